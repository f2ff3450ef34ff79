"""A last save before the machine is taken away."""

import datetime
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from esker import collectives
from esker._core import EskerError
from esker.checkpointer import Checkpointer
from esker.dtypes import torch_if_imported

log = logging.getLogger("esker")

Agree = Callable[[bool], bool]
"""Called on every rank at the same step: whether any of them was told to stop."""

_Left = Callable[[], float | None]
"""Seconds until this rank has to stop; None if it was not told to."""

_LONGEST_STEP = datetime.timedelta(days=7)
"""How long a rank that was not told waits for the slowest one: the job's own collectives have the job's own limits."""

_LOOK_SECONDS = 1.0
"""How often a rank that waits for the others lets the handler of a signal run."""


class Preemption:
    """Waits for the signal. Made by `on_preemption`."""

    def __init__(self, checkpointer: Checkpointer, signals: Sequence[signal.Signals], deadline: float, agree: Callable[[_Left], bool]) -> None:
        self._checkpointer = checkpointer
        self._deadline = deadline
        self._agree = agree
        self._told_at: float | None = None
        self._told_by = 0
        self._previous = {number: signal.signal(number, self._on_signal) for number in signals}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Python code between two bytecodes of the main thread: it must not take locks, so it logs nothing.
        if self._told_at is None:
            self._told_at = time.monotonic()
            self._told_by = number
        previous = self._previous.get(signal.Signals(number))
        if callable(previous):
            previous(number, frame)

    @property
    def requested(self) -> bool:
        """Whether this rank got the signal."""
        return self._told_at is not None

    def reached(self, step: int, state: Any, *, allow_pickle: bool = False) -> bool:
        """To be called by every rank at each step's end. If any rank was told to stop: saves, waits, and returns True.

        state: as Checkpointer.save takes it, or a function that returns it (called only if it is needed). If this step was saved
        just before, that save is waited for. Returns within the deadline, counted from the signal, whether the checkpoint was
        committed or not; the log, and last_error, say which. What save() raises, this raises.

        A rank that is gone can't agree, nor complete a checkpoint: a rank that was told to stop then returns True, without a save,
        at the deadline at the latest. One that was not told raises what torch.distributed says of the loss, as its own
        collectives would.
        """
        try:
            if not self._agree(self._left):
                return False
        except (RuntimeError, OSError) as error:
            if not self.requested:
                raise
            log.error("esker: step %d is not saved: the ranks could not agree to stop here: %s", step, error)
            return True
        if self._told_at is None:
            self._told_at = time.monotonic()  # another rank was told: from now on, as far as this one knows
        by = signal.Signals(self._told_by).name if self._told_by else "another rank"
        log.warning("esker: told to stop by %s: saving step %d", by, step)
        self._save_and_wait(step, state, allow_pickle)
        return True

    def _left(self) -> float | None:
        if self._told_at is None:
            return None
        return max(0.0, self._told_at + self._deadline - time.monotonic())

    def _save_and_wait(self, step: int, state: Any, allow_pickle: bool) -> None:
        handle = self._checkpointer.last_save
        try:
            if handle is not None and not handle.done():
                self._wait_quietly(handle)
            if handle is None or handle.step != step or handle.exception() is not None:
                content = state() if callable(state) and not hasattr(state, "state_dict") else state
                handle = self._checkpointer.save(step, content, allow_pickle=allow_pickle)
            handle.wait(self._left())
            log.warning("esker: step %d is saved, %.1f s before the deadline", step, self._left())
        except TimeoutError:
            log.error("esker: step %d is not saved: the deadline of %.0f s is over", step, self._deadline)
        except EskerError as error:
            if handle is None or error is not handle.exception():
                raise
            log.error("esker: step %d is not saved: %s", step, error)

    def _wait_quietly(self, handle: Any) -> None:
        try:
            handle.wait(self._left())
        except EskerError:
            pass  # logged by the Checkpointer; this step is about to be saved

    def close(self) -> None:
        """Puts the signal handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def __enter__(self) -> "Preemption":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def on_preemption(
    checkpointer: Checkpointer,
    *,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1),
    deadline: float = 30.0,
    agree: Agree | None = None,
) -> Preemption:
    """Has the next step boundary save, wait and stop, once a signal says that the machine will be taken away.

        preemption = esker.on_preemption(ckpt, deadline=30)
        for step in range(first, last):
            train(step)
            if preemption.reached(step, state):
                break

    deadline: seconds from the signal to the end of waiting; torchrun kills 30 s after its SIGTERM.
    agree: how the ranks agree at which step to stop, as signals reach them at different steps. By default a reduction over
        torch.distributed at every step (one number; on one rank none). Give your own to do it less often, or without torch.

    To be called by every rank, in the main thread (ValueError otherwise: Python sets signal handlers only there). Handlers that
    were there before are called too. Raises RuntimeError if there are several ranks and no way to agree.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("on_preemption: call it in the main thread: Python sets signal handlers only there")
    if agree is not None:
        how = _as_asked(agree)
    else:
        how = _own_word if checkpointer.world_size == 1 else _any_rank(checkpointer.world_size)
    return Preemption(checkpointer, [signal.Signals(number) for number in signals], deadline, how)


def _own_word(left: _Left) -> bool:
    return left() is not None


def _as_asked(agree: Agree) -> Callable[[_Left], bool]:
    return lambda left: agree(left() is not None)


def _any_rank(world_size: int) -> Callable[[_Left], bool]:
    if collectives.group_of(world_size) is None:
        raise RuntimeError(
            f"on_preemption: {world_size} ranks have to agree at which step to stop: initialize torch.distributed with as many"
            " first, or give agree="
        )
    torch = torch_if_imported()
    distributed = torch.distributed
    # A group of its own: on the CPU, so that no step waits for a GPU, and apart from the job's collectives if it fails.
    group = distributed.new_group(backend="gloo", timeout=_LONGEST_STEP)

    def agree(left: _Left) -> bool:
        flag = torch.tensor([left() is not None], dtype=torch.int32)
        work = distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=group, async_op=True)
        while not _done_within(work, min(_LOOK_SECONDS, left() or _LOOK_SECONDS)):
            if left() == 0.0:
                raise TimeoutError("a rank has not come to this step before the deadline")
        return bool(flag.item())

    return agree


def _done_within(work: Any, seconds: float) -> bool:
    """Whether the collective is complete by then. Raises RuntimeError if it has failed."""
    try:
        work.wait(datetime.timedelta(seconds=max(seconds, 0.001)))  # 0 would be no limit
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # it failed, which this says again; or it was completed just behind the time limit
    return True
