"""Files and directories that are there whole or not at all: made beside their place, durable, then renamed.

What a killed process leaves is a hidden sibling, ".NAME.esker-partial-XXXXXX".
"""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from esker._core import EskerError

# What a file system without hard links says: exFAT, SMB, FUSE.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], force: bool) -> Iterator[pathlib.Path]:
    """Gives the path to write to; it is put at its place at the end of the block, and removed after an error.

    Raises EskerError: ALREADY_EXISTS unless `force`, NOT_FOUND (no parent directory); OSError.
    """
    target = _resolved(path)
    if target.is_dir():
        raise EskerError(f"{target} is a directory: name a file", "ALREADY_EXISTS")
    if not force and os.path.lexists(target):
        raise EskerError(f"{target} exists: force (--force) replaces it", "ALREADY_EXISTS")
    with _staging(target) as staging:
        file = staging / target.name
        yield file
        _sync(file)
        if force:
            os.replace(file, target)
        else:
            _place(file, target)
        _sync(target.parent)


@contextlib.contextmanager
def whole_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives a new directory to fill; it is put at its place, which must be free or an empty directory, at the end of the block.

    Raises as whole_file; a directory is never replaced: whoever reads it meanwhile would find a mixture.
    """
    target = _resolved(path)
    if os.path.lexists(target) and not (target.is_dir() and not os.listdir(target)):
        raise EskerError(f"{target} is not an empty directory, and is not replaced: name another, or remove it first", "ALREADY_EXISTS")
    with _staging(target) as staging:
        yield staging
        for entry in os.scandir(staging):
            _sync(entry.path)
        _sync(staging)
        try:
            os.rename(staging, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise EskerError(f"{target}: another process was faster: it is not empty any more", "ALREADY_EXISTS") from error
        _sync(target.parent)


def _resolved(path: str | os.PathLike[str]) -> pathlib.Path:
    target = pathlib.Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise EskerError(f"the directory {target.parent} for the output {os.fspath(path)} does not exist: make it first", "NOT_FOUND")
    return target


@contextlib.contextmanager
def _staging(target: pathlib.Path) -> Iterator[pathlib.Path]:
    staging = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.esker-partial-", dir=target.parent))
    try:
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)  # as mkdir would have made it: mkdtemp is stricter
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _place(file: pathlib.Path, target: pathlib.Path) -> None:
    """Unlike a rename alone it does not replace what is there."""
    try:
        try:
            os.link(file, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _rename_to_free_place(file, target)
    except FileExistsError:
        raise EskerError(f"{target}: another process was faster: it exists now", "ALREADY_EXISTS") from None


def _rename_to_free_place(file: pathlib.Path, target: pathlib.Path) -> None:
    """Takes the place with an empty file first, which others may see for a moment."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        os.replace(file, target)
    except BaseException:
        target.unlink()
        raise


def _sync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
