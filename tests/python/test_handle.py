"""Handles: waiting, awaiting, failing; what reaches the training loop and what does not."""

import asyncio
import io
import logging
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from native import Server, frozen, running_server

import esker
from esker import handle as handles
from esker import progress

STATE = {"x": np.arange(1 << 20)}


@pytest.fixture
def own_server(tmp_path: pathlib.Path) -> Iterator[Server]:
    with running_server(tmp_path) as server:
        yield server


def one_rank(server: Server, run: str, **options: Any) -> esker.Checkpointer:
    return esker.Checkpointer(server.address, run, 0, 1, **options)


def ckpt_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "esker-watcher"}


def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_save_under_way_is_seen_from_its_handle(own_server: Server, run: str) -> None:
    with one_rank(own_server, run) as ckpt:
        ckpt.save(1, STATE).wait(60)
        with frozen(own_server):
            handle = ckpt.save(2, STATE)
            assert handle.step == 2 and not handle.done() and handle.exception() is None
            assert handle.progress().phase == "uploading" and "uploading" in repr(handle)
            with pytest.raises(TimeoutError, match="step 2 is still under way"):
                handle.wait(0.2)
        handle.wait(60)
        assert handle.done() and handle.exception() is None and handle.progress().phase == "committed"
        assert handle.progress().processed_bytes == handle.progress().raw_bytes > 8 << 20


def test_a_failed_save_is_logged_by_itself_and_raises_only_when_asked(
    own_server: Server, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    with one_rank(own_server, run, save_timeout=0.5) as ckpt:
        ckpt.save(1, STATE).wait(60)
        own_server.kill()
        handle = ckpt.save(2, STATE)
        until(lambda: ckpt.last_error is not None)  # nobody waits for it
        error = handle.exception()
        assert error is not None and error is ckpt.last_error and error.code == "DEADLINE_EXCEEDED"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert f"run {run}, rank 0, step 2: the save failed" in caplog.text
        ckpt.save(3, STATE)  # does not raise either
        with pytest.raises(esker.EskerError):
            handle.wait()
        own_server.start()
        ckpt.save(4, STATE).wait(60)
        assert ckpt.last_error is None


def test_raising_into_the_loop_is_a_choice(own_server: Server, run: str) -> None:
    ckpt = one_rank(own_server, run, save_timeout=0.5, on_error="raise")
    own_server.kill()
    handle = ckpt.save(1, STATE)
    until(handle.done)
    with pytest.raises(esker.EskerError) as caught:
        ckpt.save(2, STATE)
    assert caught.value is handle.exception()
    ckpt.save(3, STATE)  # said once
    until(lambda: ckpt.last_save is not None and ckpt.last_save.done())
    with pytest.raises(esker.EskerError):
        ckpt.close()


@pytest.mark.parametrize(("policy", "code", "is_failure"), [("skip", "CANCELLED", False), ("fail", "FAILED_PRECONDITION", True)])
def test_a_save_in_flight_is_left_alone(own_server: Server, run: str, policy: str, code: str, is_failure: bool) -> None:
    with one_rank(own_server, run, in_flight=policy) as ckpt:
        ckpt.save(1, STATE).wait(60)
        with frozen(own_server):
            first = ckpt.save(2, STATE)
            second = ckpt.save(3, STATE)
            error = second.exception()
            assert error is not None and error.code == code and second.done() and not first.done()
            assert (ckpt.last_error is error) == is_failure
        first.wait(60)
        assert [info.step for info in ckpt.list()] == [1, 2]


def test_in_flight_waits_by_default(own_server: Server, run: str) -> None:
    with one_rank(own_server, run) as ckpt:
        first = ckpt.save(1, STATE)
        second = ckpt.save(2, STATE)
        assert first.done()
        second.wait(60)


def test_handles_can_be_awaited(own_server: Server, run: str) -> None:
    async def job() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        with frozen(own_server):
            handle = ckpt.save(1, STATE)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(waiting(handle))), 0.3)
            assert ticks > 5  # the event loop went on
        await asyncio.wait_for(waiting(handle), 60)
        await handle  # again
        assert handle.progress().phase == "committed"
        own_server.kill()
        with pytest.raises(esker.EskerError):
            await ckpt.save(2, STATE)
        ticking.cancel()

    async def waiting(handle: esker.SaveHandle) -> None:
        await handle

    with one_rank(own_server, run, save_timeout=5.0) as ckpt:
        asyncio.run(job())


def test_a_cancelled_await_leaves_the_save_alone(own_server: Server, run: str) -> None:
    async def job() -> esker.SaveHandle:
        with frozen(own_server):
            handle = ckpt.save(1, STATE)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait(handle), 0.1)
        return handle

    async def wait(handle: esker.SaveHandle) -> None:
        await handle

    with one_rank(own_server, run) as ckpt:
        handle = asyncio.run(job())
        handle.wait(60)
        assert ckpt.latest_step() == 1


@pytest.fixture
def interrupts() -> Iterator[None]:
    """As in a foreground process; one that a shell started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_the_wait_and_not_the_save(own_server: Server, run: str, interrupts: None) -> None:
    with one_rank(own_server, run) as ckpt:
        with frozen(own_server):
            handle = ckpt.save(1, STATE)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                handle.wait(30)
        handle.wait(60)
        assert ckpt.latest_step() == 1


def test_a_rank_that_never_reports_is_named(tmp_path: pathlib.Path, run: str) -> None:
    with running_server(tmp_path) as server:
        ranks = [esker.Checkpointer(server.address, run, r, 3, incarnation="a", save_timeout=1.0) for r in range(3)]
        for handle in [ranks[r].save(1, STATE) for r in (0, 2)]:
            with pytest.raises(esker.EskerError, match=r"rank.* 1\b"):
                handle.wait(30)
        assert ranks[0].latest_step() is None
        for rank in ranks:
            rank.close()


def test_what_does_not_fit_into_memory_does_not_raise(own_server: Server, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def save(self, *_: Any) -> Any:
            raise esker.EskerError("no room for the snapshot", "RESOURCE_EXHAUSTED")

    with one_rank(own_server, run) as ckpt:
        native = ckpt._native
        monkeypatch.setattr(ckpt, "_native", Full())
        handle = ckpt.save(1, STATE)
        assert handle.done() and ckpt.last_error is handle.exception()
        assert handle.progress().phase == "failed"
        with pytest.raises(esker.EskerError, match="no room"):
            handle.wait()
        monkeypatch.setattr(ckpt, "_native", native)


def test_wrong_calls_do_raise(own_server: Server, run: str) -> None:
    with one_rank(own_server, run) as ckpt:
        with pytest.raises(esker.EskerError) as caught:
            ckpt.save(1 << 63, STATE)
        assert caught.value.code == "INVALID_ARGUMENT"
        assert ckpt.last_error is None


def test_a_log_handler_that_raises_does_not_end_the_watch(own_server: Server, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_rank(own_server, run, save_timeout=0.3) as ckpt:
        own_server.kill()
        monkeypatch.setattr(logging.getLogger("esker"), "error", lambda *_: 1 / 0)
        ckpt.save(1, STATE)
        until(lambda: ckpt.last_error is not None)
        monkeypatch.undo()
        ckpt.last_error = None
        ckpt.save(2, STATE)
        until(lambda: ckpt.last_error is not None)


def test_closing_waits_with_a_limit_and_leaves_no_thread(own_server: Server, run: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = ckpt_threads()
    ckpt = one_rank(own_server, run)
    ckpt.save(1, STATE).wait(60)
    with frozen(own_server):
        ckpt.save(2, STATE)
        began = time.monotonic()
        ckpt.close(timeout=0.5)
        assert 0.4 < time.monotonic() - began < 5
    assert "the save of step 2 is given up" in caplog.text
    assert not ckpt_threads() - before


def test_a_checkpointer_that_nobody_closes_leaves_no_thread(own_server: Server, run: str) -> None:
    before = ckpt_threads()
    ckpt = one_rank(own_server, run)
    ckpt.save(1, STATE).wait(60)
    assert ckpt_threads() - before
    del ckpt
    until(lambda: not ckpt_threads() - before)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_shown_on_a_terminal_only(own_server: Server, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with one_rank(own_server, run) as ckpt:
            with frozen(own_server):
                handle = ckpt.save(1, {"x": np.random.rand(1 << 20)})
                with pytest.raises(TimeoutError):
                    handle.wait(0.5)
            handle.wait(60)
            ckpt.load()
        assert (f"save {run}@1" in stream.getvalue()) == shown
        assert (f"load {run}@1" in stream.getvalue()) == shown


def test_without_tqdm_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.bar("x", enabled=True) as report:
        assert report is None


def test_a_refused_save_is_a_native_save() -> None:
    refused: handles.NativeSave = handles.RefusedSave(3, esker.EskerError("why", "CANCELLED"))
    assert refused.step == 3 and refused.done() and str(refused.exception()) == "why"
