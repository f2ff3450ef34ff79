"""Which start of the job this is: the token (Esker's incarnation) that is equal on all ranks and new when the job starts again.

ESKER_INCARNATION comes first. Else, where torch.distributed is initialized, one rank draws a token and tells the others: what joins
the ranks in one process group is a start of the job. What launchers say is only taken where there is no group, by the native
client, since it is less than that: torchrun's restart count begins again when torchrun is started again with the same id, stays
when a machine joins or leaves, and differs from machine to machine.
"""

import os
import secrets
import weakref
from typing import Any

from esker import collectives


def _draw() -> str:
    return f"start-{secrets.token_hex(16)}"


_token = _draw()
_agreed_in: "weakref.ref[Any] | None" = None  # the process group whose ranks have this token


def _after_fork_in_child() -> None:
    """What is forked is a start of its own, unless it is told otherwise: its parent may fork the ranks of the next one, too."""
    global _token, _agreed_in
    _token, _agreed_in = _draw(), None


os.register_at_fork(after_in_child=_after_fork_in_child)


def named_by_user() -> bool:
    """Whether the environment names the token for all. The native client reads it there."""
    return bool(os.environ.get("ESKER_INCARNATION"))


def named_by_launcher() -> bool:
    """Whether the native client finds a token by itself. By the rule of esker._core.Checkpointer's `incarnation`."""
    return named_by_user() or os.environ.get("TORCHELASTIC_RUN_ID", "none") not in ("", "none") or bool(os.environ.get("SLURM_JOB_ID"))


def token() -> str:
    """This process's token: "" if the user names it; else the one that it drew, or adopted."""
    return "" if named_by_user() else _token


def adopt(other: str) -> None:
    """From here on this process has the token of the rank that drew it, or of the process that started it."""
    global _token
    if other:
        _token = other


def is_agreed(world_size: int) -> bool:
    """Whether agreed_token has no need to ask the other ranks."""
    group = collectives.group_of(world_size)
    return named_by_user() or group is None or (_agreed_in is not None and _agreed_in() is group)


def agreed_token(world_size: int) -> str:
    """The token that all ranks have; "" if the native client has to find one.

    Where torch.distributed has so many ranks, a collective (a broadcast), once for each process group: every rank has to call it.
    """
    global _agreed_in
    group = collectives.group_of(world_size)
    if named_by_user() or group is None:
        return ""
    if not is_agreed(world_size):
        adopt(collectives.broadcast_text(_token if _agreed_in is None else _draw()))
        _agreed_in = weakref.ref(group)
    return _token
