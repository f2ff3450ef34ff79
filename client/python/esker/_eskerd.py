"""The process `eskerd` on a data directory of this machine: whether it lives, where it listens, and how to start it.

What lives is told by locks (flock), which the kernel takes from a process however it ends:

    ADDRESS      one line, host:port; locked by the server while it lives
    USERS        locked, shared, by each process that uses the server; a server that was started here stops when none does
    (directory)  locked while one process starts a server, so that only one does
    eskerd.log   what the server wrote
"""

import contextlib
import fcntl
import os
import pathlib
import subprocess
import time
from collections.abc import Iterator

from esker._core import EskerError
from esker._programs import program_path

_POLL_SECONDS = 0.02
_MOST_LOG_BYTES = 2000


def try_lock(fd: int, kind: int) -> bool:
    """Takes a lock (fcntl.LOCK_SH or LOCK_EX) without waiting; False if another process holds one that excludes it."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(fd: int, kind: int, deadline: float, what: str) -> None:
    """Takes a lock, until `deadline` (of time.monotonic()): then raises EskerError ("UNAVAILABLE") with `what` it waited for."""
    while not try_lock(fd, kind):
        if time.monotonic() >= deadline:
            raise EskerError(f"gave up waiting for {what}", "UNAVAILABLE")
        time.sleep(_POLL_SECONDS)


def unlock(fd: int) -> None:
    """Gives a lock back at once. Closing the descriptor would not do if the process was forked meanwhile: the child has a copy."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def live_address(directory: pathlib.Path) -> str | None:
    """Where the server of `directory` listens; None if none runs."""
    line, alive = _read_address(directory)
    return line if alive else None


def has_crashed(directory: pathlib.Path) -> bool:
    """Whether the last server of `directory` ended without stopping, and no other has come since."""
    line, alive = _read_address(directory)
    return line is not None and not alive


def _read_address(directory: pathlib.Path) -> tuple[str | None, bool]:
    try:
        file = open(directory / "ADDRESS", encoding="utf-8")
    except FileNotFoundError:
        return None, False
    with file:
        alive = not try_lock(file.fileno(), fcntl.LOCK_SH)
        unlock(file.fileno())
        return file.readline().strip(), alive


def bring_up(directory: pathlib.Path, deadline: float) -> tuple[str, "subprocess.Popen[bytes] | None"]:
    """The address of the server of `directory`, and its process if it was started here.

    The caller holds a lock on USERS. Raises EskerError: "UNAVAILABLE", with what the server said.
    """
    address = live_address(directory)
    if address is not None:
        return address, None
    with _sole_starter(directory, deadline):
        while True:
            address = live_address(directory)  # somebody else may have started it meanwhile
            if address is not None:
                return address, None
            started = _start(directory, deadline)
            if started is not None:
                return started
            time.sleep(_POLL_SECONDS)  # somebody else's server holds the directory, and is starting or stopping


@contextlib.contextmanager
def _sole_starter(directory: pathlib.Path, deadline: float) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(fd, fcntl.LOCK_EX, deadline, f"another process that starts a server on {directory}")
        yield
    finally:
        unlock(fd)
        os.close(fd)


def _start(directory: pathlib.Path, deadline: float) -> "tuple[str, subprocess.Popen[bytes]] | None":
    """As bring_up; None if another server holds the directory."""
    said = ""
    for listen in _listen_addresses(directory):
        log = directory / "eskerd.log"
        log_begin = log.stat().st_size if log.exists() else 0
        process = _spawn(directory, listen, log)
        try:
            address = _await_address(directory, process, deadline)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if address is not None:
            return address, process
        said = _tail(log, log_begin)
        if "is in use by the process" in said and time.monotonic() < deadline:
            return None
    raise EskerError(f"can't start a server on {directory}: {said or 'it ended without a word'}", "UNAVAILABLE")


def _listen_addresses(directory: pathlib.Path) -> Iterator[str]:
    """Where to listen: if possible where the last server did, so that its clients find the new one."""
    last, _ = _read_address(directory)
    if last:
        yield last
    yield "127.0.0.1:0"


def _spawn(directory: pathlib.Path, listen: str, log: pathlib.Path) -> "subprocess.Popen[bytes]":
    command = [program_path("eskerd"), "--data", str(directory), "--listen", listen, "--users-file", str(directory / "USERS")]
    with open(log, "ab") as output:
        # In a session of its own: Ctrl-C is for the job, which may still have a save to finish.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )


def _await_address(directory: pathlib.Path, process: "subprocess.Popen[bytes]", deadline: float) -> str | None:
    """Where the process listens; None if it ended."""
    while process.poll() is None:
        address = live_address(directory)
        if address is not None:
            return address
        if time.monotonic() >= deadline:
            raise EskerError(
                f"the server on {directory} was started and does not serve yet: {directory / 'eskerd.log'} says why", "UNAVAILABLE"
            )
        time.sleep(_POLL_SECONDS)
    return None


def _tail(log: pathlib.Path, begin: int) -> str:
    with open(log, "rb") as file:
        file.seek(begin)
        return file.read()[-_MOST_LOG_BYTES:].decode(errors="replace").strip()
