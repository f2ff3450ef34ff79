"""What goes wrong above the native client."""

from collections.abc import Sequence

_MOST_SHOWN = 10


def _listed(what: str, paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:_MOST_SHOWN])
    more = f" and {len(paths) - _MOST_SHOWN} more" if len(paths) > _MOST_SHOWN else ""
    return f"{len(paths)} {what}: {shown}{more}"


class StateMismatchError(ValueError):
    """The checkpoint does not fit the state that it is to be loaded into. Nothing was changed.

    missing: paths that the caller wants and the checkpoint does not have.
    unexpected: paths that the checkpoint has and the caller has no place for.
    mismatched: "path: what is wanted, what is stored", where dtype, shape or kind differ.
    ambiguous: paths that each rank stored for itself, with other content, so that it is open whose to take.
    """

    def __init__(
        self,
        where: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
        ambiguous: Sequence[str] = (),
    ) -> None:
        self.missing = list(missing)
        self.unexpected = list(unexpected)
        self.mismatched = list(mismatched)
        self.ambiguous = list(ambiguous)
        parts = []
        if missing:
            parts.append(_listed("missing in the checkpoint", missing))
        if unexpected:
            parts.append(_listed("unexpected in the checkpoint", unexpected))
        if mismatched:
            parts.append(_listed("of another kind, type or shape", mismatched))
        if ambiguous:
            parts.append(
                _listed("stored by each rank for itself", ambiguous)
                + ' (say whose to take with from_rank=, leave them out with only= or strict=False, or save with replicated=["..."]'
                + " what is the same on all ranks)"
            )
        if missing or unexpected:
            parts.append("strict=False takes what fits")
        super().__init__(f"{where}: " + "; ".join(parts))
