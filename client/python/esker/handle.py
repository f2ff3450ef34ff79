"""A save under way, and the thread that sees how it ends."""

import asyncio
import concurrent.futures
import queue
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import Any, Protocol

from esker import progress as bars
from esker._core import EskerError

_SLICE_SECONDS = 0.2


class Progress(Protocol):
    """How far a save is; bytes of this rank.

    phase: "uploading", "sealed" (this rank is done), "committed" or "failed". raw_bytes: of the state. processed_bytes: of
    these, what the server holds. sent_bytes: over the network. deduplicated_bytes: raw bytes that the server held already.
    unchanged_bytes: raw bytes that this rank's save before had too; known once it is sealed. transport: how the bytes go to the
    server, "shm" (shared memory) or "grpc"; "auto" as long as that is not known.
    """

    @property
    def phase(self) -> str: ...
    @property
    def raw_bytes(self) -> int: ...
    @property
    def processed_bytes(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...
    @property
    def deduplicated_bytes(self) -> int: ...
    @property
    def unchanged_bytes(self) -> int: ...
    @property
    def transport(self) -> str: ...


class NativeSave(Protocol):
    """esker._core.SaveHandle, or what stands for one that never began."""

    @property
    def step(self) -> int: ...
    def wait(self, timeout: float | None = None) -> None: ...
    def done(self) -> bool: ...
    def exception(self) -> EskerError | None: ...
    def progress(self) -> Progress: ...


class _NothingSent:
    phase = "failed"
    raw_bytes = processed_bytes = sent_bytes = deduplicated_bytes = unchanged_bytes = 0
    transport = "auto"


class RefusedSave:
    """A save that failed before it began: the state did not fit into memory, say."""

    def __init__(self, step: int, error: EskerError) -> None:
        self.step = step
        self._error = error

    def wait(self, timeout: float | None = None) -> None:
        raise self._error

    def done(self) -> bool:
        return True

    def exception(self) -> EskerError | None:
        return self._error

    def progress(self) -> Progress:
        return _NothingSent()


class SaveHandle:
    """A save under way: to be waited for, awaited, or ignored. Thread-safe. The save goes on if the handle is dropped."""

    def __init__(self, native: NativeSave, what: str, at_end: "Callable[[SaveHandle, EskerError | None], None]", show_progress: bool) -> None:
        self._native = native
        self._what = what
        self._at_end = at_end
        self._show_progress = show_progress
        self._settle_lock = threading.Lock()
        self._future: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._future.set_running_or_notify_cancel()  # so that a cancelled await does not cancel the save's own result
        self.stale = False
        """Whether most of what was saved is what this rank's save before had: perhaps a copy that training no longer changes.
        Known when the save is done."""

    @property
    def step(self) -> int:
        return self._native.step

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until the checkpoint is committed: every rank's part is durable. Wakes up for signals.

        timeout: seconds; None waits until the save's own time limit (save_timeout).
        Raises EskerError if the save failed (it says why: which ranks did not report, server, disk full), TimeoutError if it
        is still under way.
        """
        with bars.bar(f"save {self._what}", self._show_progress) as report:
            if report is None:
                self._await_native(timeout)
            else:
                self._await_with_bar(timeout, report)
        error = self.exception()
        if error is not None:
            raise error

    def _await_native(self, timeout: float | None) -> None:
        try:
            self._native.wait(timeout)
        except EskerError:
            pass  # the save's own end, which wait() raises after it was noted

    def _await_with_bar(self, timeout: float | None, report: bars.Report) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._native.done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"the save of step {self.step} is still under way after {timeout} s")
            try:
                self._native.wait(_SLICE_SECONDS if left is None else min(left, _SLICE_SECONDS))
            except (TimeoutError, EskerError):
                pass
            now = self._native.progress()
            report(now.processed_bytes, now.raw_bytes)

    def done(self) -> bool:
        """Whether it was committed or has failed."""
        return self._native.done()

    def exception(self) -> EskerError | None:
        """Why it failed; None if it is committed, or under way. Always the same object."""
        if not self.done():
            return None
        self.settle()
        error = self._future.exception()
        assert error is None or isinstance(error, EskerError)
        return error

    def progress(self) -> Progress:
        """How far it is."""
        return self._native.progress()

    def settle(self) -> None:
        """Notes the end of a save that is done: once, whoever sees it first."""
        with self._settle_lock:
            if self._future.done():
                return
            error = self._native.exception()
            try:
                self._at_end(self, error)
            finally:  # a user's logging handler may raise
                if error is None:
                    self._future.set_result(None)
                else:
                    self._future.set_exception(error)

    def poll(self, seconds: float) -> bool:
        """Waits so long at most. Whether it is done; then it has been settled."""
        try:
            self._native.wait(seconds)
        except TimeoutError:
            return False
        except EskerError:
            pass
        self.settle()
        return True

    def __await__(self) -> Generator[Any, None, None]:
        """`await handle` is wait() without blocking the event loop."""
        return asyncio.wrap_future(self._future).__await__()

    def __repr__(self) -> str:
        return f"<SaveHandle {self._what}: {self._native.progress().phase}>"


class Watcher:
    """One thread that waits for the saves of a Checkpointer in their order, so that each end is noted without anyone asking."""

    def __init__(self) -> None:
        self._saves: queue.SimpleQueue[SaveHandle | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="esker-watcher", daemon=True)
        self._thread.start()

    def watch(self, save: SaveHandle) -> None:
        self._saves.put(save)

    def stop(self) -> None:
        """Leaves what is not done unnoted, and ends the thread."""
        self._stopping.set()
        self._saves.put(None)
        self._thread.join()

    def finish(self) -> None:
        """Lets the thread end by itself, after the saves that it has."""
        self._saves.put(None)

    def _run(self) -> None:
        while (save := self._saves.get()) is not None:
            while not self._stopping.is_set():
                try:
                    if save.poll(_SLICE_SECONDS):
                        break
                except Exception:  # of a user's logging handler: it must not end the watch, and can't be logged
                    traceback.print_exc()
                    break
            del save
