"""A storage server of the job's own, on a directory of this machine.

All processes of the machine that name the same directory share one server: the first one starts it, the others join. It
belongs to none of them. Each holds a lock on the file USERS in the directory until it ends, however it ends, and the server
stops when nobody holds one any more. If the server itself is killed, one of them starts it again, on the same port, within a
second; who was talking to it notices no more than a pause.
"""

import fcntl
import logging
import os
import pathlib
import re
import subprocess
import threading
import time

from esker import _eskerd
from esker._core import EskerError

_log = logging.getLogger("esker")

_HOST_AND_PORT = re.compile(r"[^/\\]+:\d+")
_CHECK_SECONDS = 0.5
_RESTART_TIMEOUT_SECONDS = 60.0
_MOST_PAUSE_SECONDS = 30.0


def local_server(directory: str | os.PathLike[str], *, timeout: float = 60.0) -> str:
    """Starts a server on `directory`, or joins the one that runs there, and returns its address, "127.0.0.1:port".

    The directory is made if it is not there; put it on a fast local disk. The server runs until the last process that called
    this has ended (a server that somebody started by hand: until they stop it). What it writes is in `eskerd.log` in the
    directory.

    timeout: seconds, for a server that is starting (after a crash it checks what it has) or stopping.

    Raises EskerError: "UNAVAILABLE", with the server's own words, or "NOT_FOUND" if the program `eskerd` is not there.
    """
    path = pathlib.Path(os.path.realpath(directory))
    with _joined_lock:
        server = _joined.get(path)
        if server is None:
            server = LocalServer(path, timeout)
            _joined[path] = server
        else:
            server.bring_up(timeout)
        return server.address


def address_of(server: str | os.PathLike[str]) -> str:
    """The server's "host:port"; for a directory that of the local server on it. Raises EskerError as local_server."""
    if isinstance(server, str) and _HOST_AND_PORT.fullmatch(server):
        return server
    return local_server(server)


class LocalServer:
    """This process's use of the server on a directory, until `close` or the end of the process. Thread-safe."""

    def __init__(self, directory: pathlib.Path, timeout: float) -> None:
        """As local_server. directory: absolute."""
        self.directory = directory
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._bringing_up = threading.Lock()
        self._closed = threading.Event()
        directory.mkdir(parents=True, exist_ok=True)
        self._users = os.open(directory / "USERS", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline = time.monotonic() + timeout
            _eskerd.lock(self._users, fcntl.LOCK_SH, deadline, f"the server on {directory}, which stops, to end")
            self._bring_up(deadline)
        except BaseException:
            os.close(self._users)
            raise
        threading.Thread(target=self._keep_up, name="esker-local-server", daemon=True).start()

    def bring_up(self, timeout: float) -> None:
        """Starts the server again unless it runs. Raises EskerError as local_server."""
        self._bring_up(time.monotonic() + timeout)

    def close(self) -> None:
        """Uses the server no more: it stops if nobody else does."""
        with self._bringing_up:
            if not self._closed.is_set():
                self._closed.set()
                os.close(self._users)

    def leave_to_parent(self) -> None:
        """In a forked child: only the parent is a user. Its lock stays, the child's copy of it goes."""
        os.close(self._users)

    def _bring_up(self, deadline: float) -> None:
        with self._bringing_up:
            if self._closed.is_set():
                return
            address, process = _eskerd.bring_up(self.directory, deadline)
            if self.address not in ("", address):
                _log.warning(
                    "the server on %s has moved from %s to %s: who opened the old address has to open the new one",
                    self.directory, self.address, address,
                )  # fmt: skip
            self.address = address
            if process is not None:
                self._process = process

    def _keep_up(self) -> None:
        """Starts the server again after a crash, until `close`. One that was stopped stays down."""
        pause = _CHECK_SECONDS
        while not self._closed.wait(pause):
            if self._process is not None:
                self._process.poll()  # takes it off the process table, once it has ended
            if not _eskerd.has_crashed(self.directory):
                pause = _CHECK_SECONDS
                continue
            try:
                self._bring_up(time.monotonic() + _RESTART_TIMEOUT_SECONDS)
                _log.warning("the server on %s had ended without stopping, and runs again at %s", self.directory, self.address)
            except (EskerError, OSError) as error:
                pause = min(2 * pause, _MOST_PAUSE_SECONDS)
                _log.error("%s; next try in %.0f s", error, pause)
        if self._process is not None:
            self._process.wait()


_joined: dict[pathlib.Path, LocalServer] = {}
_joined_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _joined_lock
    _joined_lock = threading.Lock()  # the parent's may have been held by a thread that the child does not have
    for server in _joined.values():
        server.leave_to_parent()
    _joined.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
