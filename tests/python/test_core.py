"""The native module: what a save and a restore promise, errors with their codes, and other threads that go on."""

import contextlib
import os
import pathlib
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Literal

import numpy as np
import pytest
from native import Array, Server, box, frozen, random_array, running_server, threads_of, whole

from esker._core import Checkpointer, EskerError, Reader, SaveHandle

MIB = 1 << 20


def expect_error(code: str, *words: str) -> Any:
    """Like pytest.raises: an EskerError with this code, and these words in its message."""

    @contextlib.contextmanager
    def expecting() -> Iterator[None]:
        with pytest.raises(EskerError) as caught:
            yield
        assert caught.value.code == code, caught.value
        for word in words:
            assert word in str(caught.value)

    return expecting()


def save(checkpointer: Checkpointer, at_step: int, /, **arrays: Array) -> SaveHandle:
    return checkpointer.save(at_step, [whole(name, array) for name, array in arrays.items()], [])


# --- saving and restoring


def test_restores_what_was_saved(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    assert checkpointer.attempt == 1
    assert checkpointer.latest_step() is None
    arrays: dict[str, Array] = {
        "weight": random_array(300, 1000),
        "step": np.array(7, dtype=np.int64),
        "mask": np.array([True, False, True]),
        "nothing": np.zeros((0, 5)),
    }
    handle = save(checkpointer, 7, **arrays)
    handle.wait()
    assert handle.step == 7 and handle.done() and handle.exception() is None
    progress = handle.progress()
    assert progress.phase == "committed"
    assert progress.processed_bytes == progress.raw_bytes == sum(array.nbytes for array in arrays.values())

    assert checkpointer.latest_step() == 7
    checkpoint = checkpointer.open_checkpoint()
    found = {name: np.full_like(array, 1) for name, array in arrays.items()}
    checkpoint.restore([whole(name, array) for name, array in found.items()])
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_save_returns_with_a_copy(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(1000)
    saved = array.copy()
    with frozen(server):
        handle = checkpointer.save(1, [whole("a", array)], [("rng", bytes(bytearray(b"state")))])
        array[:] = 0
    handle.wait()
    checkpoint = checkpointer.open_checkpoint(1)
    checkpoint.restore([whole("a", array)])
    np.testing.assert_array_equal(array, saved)
    assert checkpoint.read_item(0, "rng") == b"state"


def test_two_ranks_and_other_boxes(server: Server, run: str) -> None:
    whole_array = random_array(8, 6)
    ranks = [Checkpointer(server.address, run, rank, 2, incarnation="first") for rank in range(2)]
    halves = [np.ascontiguousarray(whole_array[:4]), np.ascontiguousarray(whole_array[4:])]
    handles = [
        ranks[rank].save(3, [box("w", halves[rank], (8, 6), (4 * rank, 0))], [("rank", b"%d" % rank)]) for rank in range(2)
    ]
    for handle in handles:
        handle.wait()

    checkpoint = Reader(server.address).open(run)  # the reader lives as long as the checkpoint needs it
    columns = np.zeros((8, 2), np.float32)
    checkpoint.restore([box("w", columns, (8, 6), (0, 3))], preferred_rank=1)
    np.testing.assert_array_equal(columns, whole_array[:, 3:5])
    assert checkpoint.stored_by(1) == [("w", "F32", (8, 6), (4, 0), (4, 6), 0)]
    assert [(item.rank, item.name, item.bytes) for item in checkpoint.items()] == [(0, "rank", 1), (1, "rank", 1)]
    assert checkpoint.read_item(1, "rank") == b"1"
    [tensor] = checkpoint.tensors()
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.shards) == ("w", "F32", (8, 6), 2)


def test_lists_checkpoints(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(1000, seed=1)  # no other test stores it
    before_ms = time.time() * 1000
    for step in (1, 2):
        save(checkpointer, step, a=array).wait()
    infos = Reader(server.address).list(run)
    assert [info.step for info in infos] == [info.step for info in checkpointer.list()] == [1, 2]
    info = infos[1]
    assert (info.run, info.attempt, info.world_size, info.raw_bytes, info.pinned) == (run, 1, 1, 4000, False)
    assert infos[0].new_stored_bytes >= 4000 and info.new_stored_bytes == 0
    assert before_ms - 1000 <= info.committed_unix_ms <= time.time() * 1000 + 1000
    with pytest.raises(AttributeError):
        info.step = 3  # type: ignore[misc]


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_a_save_goes_the_way_that_was_asked_for(server: Server, run: str, transport: Literal["shm", "grpc"]) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1, transport=transport)
    handle = save(checkpointer, 1, weight=random_array(100, 1000))
    handle.wait()
    assert handle.progress().transport == transport


def test_an_unknown_transport_is_refused(server: Server, run: str) -> None:
    with pytest.raises(ValueError, match='"auto", "shm", "grpc", found "pigeon"'):
        Checkpointer(server.address, run, 0, 1, transport="pigeon")  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", ["zstd", "planes"])
def test_compression_gives_back_the_same(server: Server, run: str, compression: Literal["zstd", "planes"]) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1, compression=compression, chunk_bytes=64 << 10)
    zeros = np.zeros(MIB, np.float32)
    save(checkpointer, 1, a=zeros).wait()
    assert checkpointer.list()[0].stored_bytes < MIB
    found = np.ones_like(zeros)
    checkpointer.open_checkpoint().restore([whole("a", found)])
    assert not found.any()


@pytest.mark.parametrize("transport", ["shm", "grpc"])
def test_a_delta_takes_little_and_gives_back_the_same(server: Server, run: str, transport: Literal["shm", "grpc"]) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1, compression="delta", transport=transport, chunk_bytes=64 << 10)
    weight = random_array(MIB // 4, seed=71 if transport == "shm" else 72)  # nothing that the server holds
    seen = []
    sent = []
    for step in (1, 2, 3):
        handle = save(checkpointer, step, weight=weight)
        handle.wait()
        sent.append(handle.progress().sent_bytes)
        seen.append(weight.copy())
        weight.view(np.uint32)[step::50] ^= 1
    assert sent[0] > MIB / 2
    assert max(sent[1:]) < sent[0] / 5
    for step, expected in zip((1, 2, 3), seen, strict=True):
        found = np.zeros_like(weight)
        checkpointer.open_checkpoint(step).restore([whole("weight", found)])
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_a_delta_needs_the_staging_memory(server: Server, run: str) -> None:
    with expect_error("INVALID_ARGUMENT", "keep_staging"):
        Checkpointer(server.address, run, 0, 1, compression="delta", keep_staging=False)


# --- errors


def test_what_is_no_state_is_refused(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(4)
    name, dtype, shape, offset, extent, address = whole("a", array)
    with expect_error("INVALID_ARGUMENT", '"a"', "F33"):
        checkpointer.save(1, [(name, "F33", shape, offset, extent, address)], [])
    with expect_error("INVALID_ARGUMENT", '"a"'):
        checkpointer.save(1, [(name, dtype, shape, (2,), extent, address)], [])
    with expect_error("INVALID_ARGUMENT", '"a"', "null"):
        checkpointer.save(1, [(name, dtype, shape, offset, extent, 0)], [])
    with pytest.raises(TypeError, match=r"tensor a: expected a shape .* found \(-1,\)"):
        checkpointer.save(1, [(name, dtype, (-1,), offset, extent, address)], [])
    with pytest.raises(TypeError, match="tensor number 1: expected a tuple"):
        checkpointer.save(1, [whole("b", array), ("a", dtype)], [])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="item number 0: expected a tuple"):
        checkpointer.save(1, [], [("rng", "text")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match='in_flight: expected one of "wait", "skip", "fail", found "queue"'):
        Checkpointer(server.address, run, 0, 1, in_flight="queue")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="save_timeout: expected seconds"):
        Checkpointer(server.address, run, 0, 1, save_timeout=-1)
    assert checkpointer.list() == []


def test_what_is_not_stored_is_not_found(server: Server, run: str) -> None:
    with expect_error("NOT_FOUND", run):
        Reader(server.address).list(run)
    checkpointer = Checkpointer(server.address, run, 0, 1)
    with expect_error("NOT_FOUND"):
        checkpointer.open_checkpoint()
    array = random_array(4)
    save(checkpointer, 1, a=array).wait()
    with expect_error("NOT_FOUND", "2"):
        checkpointer.open_checkpoint(2)
    checkpoint = checkpointer.open_checkpoint()
    with expect_error("NOT_FOUND", '"rng"'):
        checkpoint.read_item(0, "rng")
    with expect_error("NOT_FOUND", '"b"'):
        checkpoint.restore([whole("b", array)])
    with expect_error("INVALID_ARGUMENT", '"a"'):
        checkpoint.restore([whole("a", array.astype(np.float64))])


def test_no_server(run: str) -> None:
    begin = time.monotonic()
    with expect_error("UNAVAILABLE", "127.0.0.1:1", "is eskerd running there"):
        Checkpointer("127.0.0.1:1", run, 0, 1, connect_timeout=0.5)
    assert 0.4 < time.monotonic() - begin < 10
    with expect_error("INVALID_ARGUMENT", "host:port"):
        Checkpointer("nowhere", run, 0, 1)


def test_an_older_start_of_the_job_is_fenced(server: Server, run: str) -> None:
    old = Checkpointer(server.address, run, 0, 1, incarnation="first")
    new = Checkpointer(server.address, run, 0, 1, incarnation="second")
    assert (old.attempt, new.attempt) == (1, 2)
    handle = save(old, 1, a=random_array(4))
    with expect_error("PERMISSION_DENIED", "attempt 2"):
        handle.wait()
    error = handle.exception()
    assert error is not None and error.code == "PERMISSION_DENIED"
    assert handle.progress().phase == "failed"


def test_errors_can_be_pickled(run: str) -> None:
    with pytest.raises(EskerError) as caught:
        Checkpointer("nowhere", run, 0, 1)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.code, str(copy)) == (EskerError, "INVALID_ARGUMENT", str(caught.value))


# --- a server that is away


def test_wait_runs_out_of_time_and_the_save_goes_on(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    with frozen(server):
        handle = save(checkpointer, 1, a=random_array(4))
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match="step 1 is still under way after 0.3 s"):
            handle.wait(timeout=0.3)
        assert 0.3 <= time.monotonic() - begin < 5
        assert not handle.done() and handle.exception() is None
        assert handle.progress().phase == "uploading"
    handle.wait(timeout=60)


@pytest.mark.parametrize(("policy", "code"), [("skip", "CANCELLED"), ("fail", "FAILED_PRECONDITION")])
def test_a_save_in_flight_has_precedence(server: Server, run: str, policy: Any, code: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1, in_flight=policy)
    with frozen(server):
        first = save(checkpointer, 1, a=random_array(4))
        second = save(checkpointer, 2, a=random_array(4))
        assert second.done()
        with expect_error(code, "step 1 is still under way"):
            second.wait()
    first.wait(timeout=60)
    assert [info.step for info in checkpointer.list()] == [1]


def test_a_save_survives_the_death_of_the_server(tmp_path: pathlib.Path) -> None:
    with running_server(tmp_path) as server:
        checkpointer = Checkpointer(server.address, "gpt", 0, 1)
        array = random_array(MIB)
        server.kill()
        handle = save(checkpointer, 1, a=array)
        assert not handle.done()
        server.start()
        handle.wait(timeout=60)
        assert checkpointer.latest_step() == 1


# --- signals


class Alarmed(Exception):
    pass


@contextlib.contextmanager
def alarm_after(seconds: float) -> Iterator[None]:
    """A signal whose handler raises Alarmed, as Ctrl-C's raises KeyboardInterrupt."""

    def raise_alarmed(number: int, frame: FrameType | None) -> None:
        raise Alarmed

    previous = signal.signal(signal.SIGALRM, raise_alarmed)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_signals_get_through_to_wait_and_save(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(4)
    with frozen(server):
        handle = save(checkpointer, 1, a=array)
        calls: list[Callable[[], object]] = [handle.wait, lambda: save(checkpointer, 2, a=array)]
        for call in calls:
            begin = time.monotonic()
            with alarm_after(0.2), pytest.raises(Alarmed):
                call()
            assert time.monotonic() - begin < 5
    handle.wait(timeout=60)
    assert [info.step for info in checkpointer.list()] == [1]


# --- other threads


class Ticks:
    """A Python thread that counts: it can't while another thread keeps the GIL."""

    def __init__(self) -> None:
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.001):
            self.count += 1

    def __enter__(self) -> "Ticks":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def during(self, call: Callable[[], object]) -> int:
        before = self.count
        call()
        return self.count - before


def test_other_threads_run_while_it_works(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(4 * MIB)
    save(checkpointer, 1, a=array).wait()

    def is_concurrent(call: Callable[[], object]) -> bool:
        """Runs what needs the server, which is away for a while, so that even a fast machine is seen to wait."""
        server.signal(signal.SIGSTOP)
        threading.Timer(0.3, server.signal, [signal.SIGCONT]).start()
        return ticks.during(call) >= 5

    with Ticks() as ticks:
        with frozen(server):
            handle = save(checkpointer, 2, a=array)
            assert is_concurrent(handle.wait)
        with frozen(server):
            handle = save(checkpointer, 3, a=array)
            assert is_concurrent(lambda: save(checkpointer, 4, a=array).wait())
        checkpoint = checkpointer.open_checkpoint()
        assert is_concurrent(lambda: checkpoint.restore([whole("a", array)]))
        assert is_concurrent(lambda: checkpoint.read_item(0, "a") if checkpointer.list() is None else None)


def test_other_threads_run_while_the_end_waits_for_a_save(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1, save_timeout=20)
    with frozen(server), Ticks() as ticks:
        handle = save(checkpointer, 1, a=random_array(4))
        threading.Timer(0.3, server.signal, [signal.SIGCONT]).start()
        before = ticks.count
        del checkpointer
        assert handle.done() and ticks.count - before >= 5
    handle.wait()


def test_many_threads_share_the_objects(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(MIB)
    save(checkpointer, 1, a=array).wait()
    checkpoint = checkpointer.open_checkpoint()
    failures: list[object] = []

    def work(step: int) -> None:
        try:
            found = np.zeros_like(array)
            seen: list[int] = []
            checkpoint.restore([whole("a", found)], progress=lambda done, total: seen.append(done))
            assert (found == array).all() and seen[-1] == array.nbytes
            save(checkpointer, step, a=found).wait()
            assert step in [info.step for info in checkpointer.list()]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[step]) for step in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- progress of a restore


def test_progress_is_reported_up_to_the_end(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(4 * MIB)
    save(checkpointer, 1, a=array).wait()
    reports: list[tuple[int, int]] = []
    checkpointer.open_checkpoint().restore([whole("a", array)], progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (array.nbytes, array.nbytes)
    assert reports == sorted(reports)


def test_what_progress_raises_is_raised_from_restore(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(4 * MIB)
    save(checkpointer, 1, a=array).wait()
    calls = []

    def report(done: int, total: int) -> None:
        calls.append(done)
        raise Alarmed

    checkpoint = checkpointer.open_checkpoint()
    with pytest.raises(Alarmed):
        checkpoint.restore([whole("a", array)], progress=report)
    assert len(calls) == 1
    checkpoint.restore([whole("a", array)])


# --- processes


def in_child(call: Callable[[], str]) -> str:
    """What `call` returns in a forked child, which ends within 30 s."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            os.write(writing, call().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def test_a_forked_child_is_refused(server: Server, run: str) -> None:
    checkpointer = Checkpointer(server.address, run, 0, 1)
    array = random_array(4)
    handle = save(checkpointer, 1, a=array)
    handle.wait()
    objects: dict[str, Any] = {
        "checkpointer": checkpointer, "checkpoint": checkpointer.open_checkpoint(), "reader": Reader(server.address)
    }  # fmt: skip
    del checkpointer

    def child() -> str:
        codes = []
        calls: list[Callable[[], object]] = [
            lambda: save(objects["checkpointer"], 2, a=array),
            objects["checkpointer"].list,
            lambda: objects["checkpoint"].restore([whole("a", array)]),
            lambda: objects["reader"].list(run),
            handle.wait,
            lambda: Checkpointer(server.address, run, 0, 1),
            lambda: Reader(server.address),
        ]
        for call in calls:
            try:
                call()
            except EskerError as error:
                assert "spawn" in str(error)
                codes.append(error.code)
        objects.clear()  # their ends don't block
        return " ".join(codes)

    assert in_child(child) == " ".join(["FAILED_PRECONDITION"] * 7)
    save(objects["checkpointer"], 2, a=array).wait()
    assert objects["checkpointer"].latest_step() == 2


def test_threads_and_connections_end_with_the_objects(server: Server, run: str) -> None:
    def use() -> None:
        checkpointer = Checkpointer(server.address, run, 0, 1)
        save(checkpointer, 1, a=random_array(4)).wait()
        checkpointer.open_checkpoint().tensors()

    use()
    before = threads_of(os.getpid())
    for _ in range(10):
        use()
    assert threads_of(os.getpid()) <= before + 10  # gRPC's own threads come and go; 10 checkpointers have more than 30
