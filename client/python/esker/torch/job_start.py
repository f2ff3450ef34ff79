"""Which start of the job this is: the token (Esker's incarnation) that is equal on all ranks, in this process and in the
process that DCP saves from, and new when the job starts again.

The environment names it (ESKER_INCARNATION, torchrun with an id, Slurm), and the native client reads it there. Where it does not,
the coordinator's process draws one, and the writers spread it.
"""

import os
import secrets

_token = f"dcp-{secrets.token_hex(16)}"


def environment_has_token() -> bool:
    """Whether the native client finds a token by itself. By the rule of esker._core.Checkpointer's `incarnation`."""
    return bool(
        os.environ.get("ESKER_INCARNATION")
        or os.environ.get("TORCHELASTIC_RUN_ID", "none") not in ("", "none")
        or os.environ.get("SLURM_JOB_ID")
    )


def token() -> str:
    """This process's token: "" if the environment has one; else its own, or the one that was adopted."""
    return "" if environment_has_token() else _token


def adopt(other: str) -> None:
    """From here on this process has the token of the coordinator, or of the process that started it."""
    global _token
    if other:
        _token = other
