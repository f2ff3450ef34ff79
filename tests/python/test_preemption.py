"""Preemption: the signal, the agreement on a step, the save and the deadline."""

import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from native import Server, frozen, running_server

import esker
from esker import preemption as preemption_module

STATE = {"x": np.ones(1000)}


@pytest.fixture
def own_server(tmp_path: pathlib.Path) -> Iterator[Server]:
    with running_server(tmp_path) as server:
        yield server


@pytest.fixture
def ckpt(own_server: Server, run: str) -> Iterator[esker.Checkpointer]:
    with esker.Checkpointer(own_server.address, run, 0, 1) as opened:
        yield opened


def test_without_a_signal_nothing_is_saved(ckpt: esker.Checkpointer) -> None:
    with esker.on_preemption(ckpt) as preemption:
        assert not preemption.reached(1, lambda: 1 / 0) and not preemption.requested
    assert ckpt.latest_step() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_after_the_signal_the_next_boundary_saves(ckpt: esker.Checkpointer, number: signal.Signals) -> None:
    steps = []
    with esker.on_preemption(ckpt) as preemption:
        for step in range(5):
            steps.append(step)
            if step == 2:
                os.kill(os.getpid(), number)
            if preemption.reached(step, lambda: {"at": step}):  # noqa: B023
                break
    assert steps == [0, 1, 2]
    assert ckpt.load() == (2, {"at": 2})


def test_a_step_that_was_just_saved_is_not_saved_again(ckpt: esker.Checkpointer) -> None:
    with esker.on_preemption(ckpt) as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        ckpt.save(3, STATE)
        assert preemption.reached(3, lambda: 1 / 0)
    assert ckpt.latest_step() == 3


def test_the_deadline_holds(own_server: Server, ckpt: esker.Checkpointer, caplog: pytest.LogCaptureFixture) -> None:
    with esker.on_preemption(ckpt, deadline=1.0) as preemption, frozen(own_server):
        os.kill(os.getpid(), signal.SIGTERM)
        began = time.monotonic()
        assert preemption.reached(1, STATE)
        assert 0.8 < time.monotonic() - began < 3
    assert "step 1 is not saved: the deadline of 1 s is over" in caplog.text
    ckpt.wait(60)


def test_a_failed_save_does_not_raise(own_server: Server, run: str, caplog: pytest.LogCaptureFixture) -> None:
    with esker.Checkpointer(own_server.address, run, 0, 1, save_timeout=0.5) as ckpt, esker.on_preemption(ckpt) as preemption:
        own_server.kill()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(1, STATE)
        assert ckpt.last_error is not None
    assert "step 1 is not saved: run" in caplog.text


def test_what_cant_be_stored_raises(ckpt: esker.Checkpointer) -> None:
    with esker.on_preemption(ckpt) as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TypeError, match="^x: "):
            preemption.reached(1, {"x": object()})


def test_a_state_dict_object_is_a_state_and_not_a_function(ckpt: esker.Checkpointer) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)  # callable
    with esker.on_preemption(ckpt) as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(1, model)
    assert set(ckpt.load()[1]) == {"weight", "bias"}


def test_handlers_that_were_there_are_called_and_come_back(ckpt: esker.Checkpointer) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: called.append(number))
    mine = signal.getsignal(signal.SIGUSR1)
    try:
        with esker.on_preemption(ckpt) as preemption:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert called == [signal.SIGUSR1] and preemption.requested
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_all_ranks_stop_at_the_step_where_they_agree(own_server: Server, run: str) -> None:
    """Two ranks as threads; only the first was told."""
    ranks = [esker.Checkpointer(own_server.address, run, r, 2, incarnation="a") for r in range(2)]
    barrier, told = threading.Barrier(2, timeout=30), [False, False]

    def agree(rank: int) -> Any:
        def any_of(mine: bool) -> bool:
            told[rank] = mine
            barrier.wait()
            result = any(told)
            barrier.wait()
            return result

        return any_of

    with esker.on_preemption(ranks[0], agree=agree(0)) as first, esker.on_preemption(ranks[1], signals=(), agree=agree(1)) as second:
        stopped: list[tuple[int, int]] = []

        def loop(rank: int, preemption: esker.Preemption) -> None:
            for step in range(100):
                if rank == 0 and step == 3:
                    preemption._on_signal(signal.SIGTERM, None)
                if preemption.reached(step, STATE):
                    stopped.append((rank, step))
                    return

        threads = [threading.Thread(target=loop, args=(r, p)) for r, p in enumerate((first, second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(stopped) == [(0, 3), (1, 3)]
    assert ranks[0].latest_step() == 3
    for rank in ranks:
        rank.close()


def test_several_ranks_need_a_way_to_agree(own_server: Server, run: str) -> None:
    with esker.Checkpointer(own_server.address, run, 0, 2, incarnation="a") as ckpt:
        with pytest.raises(RuntimeError, match="2 ranks have to agree"):
            esker.on_preemption(ckpt)


def test_only_the_main_thread_takes_signals(ckpt: esker.Checkpointer) -> None:
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            esker.on_preemption(ckpt)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "main thread" in str(errors[0])


class Reduction:
    """A collective that completes just behind the time limit of a wait, well or not."""

    def __init__(self, error: str | None) -> None:
        self._error = error
        self._waits = 0

    def wait(self, *limit: Any) -> None:
        self._waits += 1
        if self._waits == 1:
            raise RuntimeError("Wait timeout")
        if self._error:
            raise RuntimeError(self._error)

    def is_completed(self) -> bool:
        return True


def test_a_reduction_that_ends_with_its_time_limit_is_complete() -> None:
    assert preemption_module._done_within(Reduction(None), 1.0)
    with pytest.raises(RuntimeError, match="connection closed"):
        preemption_module._done_within(Reduction("connection closed"), 1.0)
