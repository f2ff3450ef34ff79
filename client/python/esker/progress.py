"""A progress bar for people: on a terminal, if tqdm is installed."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, int], None]
"""(bytes done, bytes in all); may be called from any thread."""


@contextmanager
def bar(what: str, enabled: bool) -> Iterator[Report | None]:
    """Shows a bar titled `what` while the block runs. Yields what to report to, or None if nobody would see it."""
    tqdm = _tqdm() if enabled and sys.stderr is not None and sys.stderr.isatty() else None
    if tqdm is None:
        yield None
        return
    with tqdm(desc=what, unit="B", unit_scale=True, leave=False) as shown:

        def report(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield report


def _tqdm() -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None
    return tqdm
