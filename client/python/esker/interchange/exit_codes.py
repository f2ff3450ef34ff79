"""Errors as the command `esker` ends with them (docs/operations.md), and back."""

import errno

from esker._core import EskerError

_OF_CODE = {
    "INVALID_ARGUMENT": "usage",
    "OUT_OF_RANGE": "usage",
    "NOT_FOUND": "not_found",
    "DATA_LOSS": "damaged",
    "UNAVAILABLE": "unreachable",
    "DEADLINE_EXCEEDED": "unreachable",
    "ALREADY_EXISTS": "refused",
    "FAILED_PRECONDITION": "refused",
    "PERMISSION_DENIED": "refused",
    "UNAUTHENTICATED": "refused",
    "RESOURCE_EXHAUSTED": "refused",
    "ABORTED": "refused",
}
_NUMBERS = {"failed": 1, "usage": 2, "not_found": 3, "damaged": 4, "unreachable": 5, "refused": 6}
# The other way round, the first of each row.
_CODE_OF = {name: code for code, name in reversed(_OF_CODE.items())}
_REFUSED_BY_SYSTEM = {errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def exit_code(error: BaseException) -> tuple[int, str]:
    """The number and the name."""
    name = "failed"
    if isinstance(error, EskerError):
        name = _OF_CODE.get(error.code, "failed")
    elif isinstance(error, (FileNotFoundError, NotADirectoryError)):
        name = "not_found"
    elif isinstance(error, OSError):
        name = "refused" if error.errno in _REFUSED_BY_SYSTEM else "failed"
    elif isinstance(error, MemoryError):
        name = "refused"
    elif isinstance(error, ValueError):
        name = "usage"
    return _NUMBERS[name], name


def error_of(name: str, message: str) -> EskerError:
    """What the program's error document says, as an exception."""
    return EskerError(message, _CODE_OF.get(name, "UNKNOWN"))
