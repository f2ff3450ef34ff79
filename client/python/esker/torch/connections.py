"""The process's open Checkpointers. Writers are made anew for each save, pickled and thrown away; connections, staging memory and
the attempt stay."""

import atexit
import contextlib
import dataclasses
import logging
import threading

from esker import _core

_log = logging.getLogger("esker")
# After DCP's save has returned, a rank's handle hears of the commit within a round trip; at most this many seconds are waited for it.
_LAG = 2.0
_POLL = 0.01  # seconds


@dataclasses.dataclass(frozen=True)
class Destination:
    """What a Checkpointer is opened with. The arguments of esker._core.Checkpointer."""

    server: str
    run: str
    rank: int
    world_size: int
    incarnation: str
    compression: str
    transport: str
    threads: int
    connect_timeout: float
    save_timeout: float


class Connection:
    """A Checkpointer and the last save that went through it."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self._checkpointer = _core.Checkpointer(**dataclasses.asdict(destination))
        self._last: _core.SaveHandle | None = None

    @property
    def attempt(self) -> int:
        return self._checkpointer.attempt

    def save(self, step: int, tensors: list[_core.TensorBox], items: list[tuple[str, bytes]]) -> _core.SaveHandle:
        """As esker._core.Checkpointer.save."""
        self._last = self._checkpointer.save(step, tensors, items)
        return self._last

    def abort(self, step: int, reason: str) -> None:
        """Makes the save of `step` fail on all ranks, as far as the server can be reached. Never raises."""
        try:
            self._checkpointer.abort(step, reason)
        except _core.EskerError as error:
            if error.code != "ALREADY_EXISTS":  # committed in the meantime: all is well
                _log.warning("step %d: the save could not be aborted, and ends when its time has run out: %s", step, error)

    def abort_abandoned(self) -> None:
        """Ends a save whose DCP save has failed: nobody will finish it, and the next one would wait for it."""
        last, self._last = self._last, None
        if last is None or last.done():
            return
        with contextlib.suppress(TimeoutError, _core.EskerError):
            last.wait(_LAG)
        if not last.done():
            self.abort(last.step, "given up: torch.distributed.checkpoint ended the save before the commit")


_lock = threading.Lock()
_connections: dict[tuple[str, str], Connection] = {}


def connect(destination: Destination) -> Connection:
    """The process's connection to the run, opened now if there is none. Raises as esker._core.Checkpointer does."""
    key = (destination.server, destination.run)
    with _lock:
        connection = _connections.get(key)
        if connection is not None and connection.destination == destination:
            return connection
        if connection is not None:
            connection.abort_abandoned()
        _connections[key] = Connection(destination)
        return _connections[key]


def existing(server: str, run: str) -> Connection | None:
    """The process's connection to the run, if it has one."""
    with _lock:
        return _connections.get((server, run))


def await_durable(handle: _core.SaveHandle) -> None:
    """Returns when this rank's part is durable; raises EskerError if the save has failed.

    It does not wait for the commit: that takes all ranks, and who waits for a dead one here would keep DCP from noticing."""
    while handle.progress().phase == "uploading":
        try:
            handle.wait(_POLL)
        except TimeoutError:
            continue
    if (error := handle.exception()) is not None:
        raise error


@atexit.register
def _close() -> None:
    """Before the native module goes: a save that nobody will finish must not hold up the end of the process."""
    with _lock:
        for connection in _connections.values():
            connection.abort_abandoned()
        _connections.clear()
