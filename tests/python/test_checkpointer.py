"""Whole states through a server: what is saved comes back, into new objects or the caller's, on as many ranks or others."""

import logging
import os
import pathlib
import random
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from native import Server, running_server
from states import SHAPES, TORCH_DTYPES, difference, random_state, random_tensor

import esker
from esker import memory
from esker._programs import program_path


def open_ranks(server: Server, run: str, world_size: int, start: str = "first", **options: Any) -> list[esker.Checkpointer]:
    """The checkpointers of all ranks of a job, in this one process."""
    return [
        esker.Checkpointer(server.address, run, rank, world_size, incarnation=f"{run}-{start}", **options) for rank in range(world_size)
    ]


def save_all(ranks: list[esker.Checkpointer], step: int, states: list[Any]) -> None:
    handles = [rank.save(step, state) for rank, state in zip(ranks, states)]
    for handle in handles:
        handle.wait(60)


def one_rank(server: Server, run: str, **options: Any) -> esker.Checkpointer:
    return esker.Checkpointer(server.address, run, 0, 1, **options)


# --- new objects ---


@pytest.mark.parametrize("seed", range(12))
def test_random_states_come_back_bit_for_bit(server: Server, run: str, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    state = {"state": random_state(rng), "more": [random_state(rng) for _ in range(3)]}
    with one_rank(server, run) as ckpt:
        ckpt.save(seed, state).wait(60)
        step, loaded = ckpt.load()
    assert step == seed
    assert difference(state, loaded) is None


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype_and_shape_comes_back(server: Server, run: str, dtype: torch.dtype) -> None:
    rng = random.Random(str(dtype))
    state = {str(shape): random_tensor(rng, dtype, shape) for shape in SHAPES}
    with one_rank(server, run) as ckpt:
        ckpt.save(1, state).wait(60)
        assert difference(state, ckpt.load()[1]) is None
        into: Any = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
        ckpt.load(into=into)
        assert difference(state, into) is None


def test_a_run_without_checkpoints_loads_nothing(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        state = {"w": torch.zeros(2)}
        assert ckpt.load(into=state) == (None, state)
        assert ckpt.latest_step() is None and ckpt.list() == []
        with pytest.raises(esker.EskerError) as caught:
            ckpt.load(step=5)
        assert caught.value.code == "NOT_FOUND"


def test_the_latest_or_the_asked_step_is_loaded(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        for step in (3, 7):
            ckpt.save(step, {"x": step, "t": torch.full((4,), step)}).wait(60)
        assert ckpt.load()[1]["x"] == 7
        loaded_step, state = ckpt.load(step=3)
        assert loaded_step == 3 and state["x"] == 3 and state["t"].tolist() == [3] * 4
        assert [info.step for info in ckpt.list()] == [3, 7]


def test_the_snapshot_is_taken_before_save_returns(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        tensor = torch.arange(1 << 20)
        handle = ckpt.save(1, {"t": tensor})
        tensor.zero_()
        handle.wait(60)
        assert torch.equal(ckpt.load()[1]["t"], torch.arange(1 << 20))


def test_only_reads_what_matches(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        ckpt.save(1, {"model": {"w": torch.ones(2)}, "optim": {"m": torch.ones(3)}, "raw": b"x"}).wait(60)
        loaded = ckpt.load(only="model.*")[1]
        assert list(loaded) == ["model"] and torch.equal(loaded["model"]["w"], torch.ones(2))
        into: Any = {"model": {"w": torch.zeros(2)}, "optim": {"m": torch.zeros(3)}}
        ckpt.load(into=into, only="model.*")
        assert into["model"]["w"].tolist() == [1, 1] and into["optim"]["m"].tolist() == [0, 0, 0]


def test_pickled_content_is_loaded_only_on_request(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        with pytest.raises(TypeError, match=r"^args\.device: "):
            ckpt.save(1, {"args": {"device": torch.device("cpu")}})
        ckpt.save(1, {"args": {"device": torch.device("cpu")}, "x": 1}, allow_pickle=True).wait(60)
        with pytest.raises(ValueError, match=r"^args\.device: .*pickle"):
            ckpt.load()
        assert ckpt.load(only="x")[1] == {"x": 1}
        assert ckpt.load(allow_pickle=True)[1]["args"]["device"] == torch.device("cpu")


class DlpackOnly:
    """An array of another library."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_dlpack_arrays_are_saved(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        ckpt.save(1, {"a": DlpackOnly(np.arange(4.0)), "b": DlpackOnly(torch.arange(3))}).wait(60)
        loaded = ckpt.load()[1]
    assert difference({"a": np.arange(4.0), "b": np.arange(3)}, loaded) is None


# --- into the caller's objects ---


def trained(seed: int, width: int = 8) -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 2))
    model[0].bias.requires_grad_(False)  # a frozen parameter has no optimizer state
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return model, optimizer, schedule


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> None:
    for _ in range(steps):
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def test_training_resumes_bit_for_bit(server: Server, run: str) -> None:
    whole = trained(1)
    train(*whole, steps=3)
    with one_rank(server, run) as ckpt:
        state = {"model": whole[0], "optim": whole[1], "schedule": whole[2], "rng": torch.get_rng_state()}
        ckpt.save(3, state).wait(60)
        train(*whole, steps=3)

        resumed = trained(2)
        into: Any = {"model": resumed[0], "optim": resumed[1], "schedule": resumed[2], "rng": torch.get_rng_state()}
        assert ckpt.load(into=into)[0] == 3
        torch.set_rng_state(into["rng"])
        train(*resumed, steps=3)
    for a, b in zip(whole, resumed):
        assert difference(dict(a.state_dict()), dict(b.state_dict())) is None


def test_loading_fills_tensors_in_place(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        ckpt.save(1, {"t": torch.arange(12).reshape(3, 4), "n": np.arange(4), "list": [torch.ones(2), 5], "x": "new"}).wait(60)
        backing = torch.zeros(4, 6, dtype=torch.int64)
        tensor, array, inner = backing[:3, 1:5], np.zeros(4, dtype=np.int64), torch.zeros(2)
        into: Any = {"t": tensor, "n": array, "list": [inner, 0], "x": "old"}
        ckpt.load(into=into)
    assert into["t"] is tensor and into["n"] is array and into["list"][0] is inner
    assert torch.equal(tensor, torch.arange(12).reshape(3, 4)) and backing[3].sum() == 0 and backing[:, 0].sum() == 0
    assert array.tolist() == [0, 1, 2, 3] and inner.tolist() == [1, 1] and into["list"][1] == 5 and into["x"] == "new"


def test_a_device_is_copied_through_staging(server: Server, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, with CPU tensors that are taken for a device's."""
    fetched: list[int] = []
    fetch = memory.PinnedStaging.fetch
    monkeypatch.setattr(memory, "on_device", memory.is_torch)

    def counting_fetch(self: memory.PinnedStaging, tensors: Any) -> list[Any]:
        fetched.append(len(tensors))
        return fetch(self, tensors)

    monkeypatch.setattr(memory.PinnedStaging, "fetch", counting_fetch)
    state: Any = {"a": torch.arange(1000.0).reshape(10, 100).t(), "b": torch.tensor(True), "e": torch.zeros(0, 3), "n": np.ones(2)}
    with one_rank(server, run) as ckpt:
        for step in range(2):
            state["a"] += 1
            ckpt.save(step, state).wait(60)
        into: Any = {key: torch.zeros_like(value) if isinstance(value, torch.Tensor) else np.zeros_like(value) for key, value in state.items()}
        ckpt.load(into=into)
    assert fetched == [3, 3]
    assert difference(state, into) is None


def test_strict_lists_what_does_not_fit_and_changes_nothing(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        ckpt.save(1, {"a": torch.ones(2), "b": torch.ones(2), "c": {"d": 1, "e": torch.ones(1)}, "s": torch.ones(3)}).wait(60)
        into: Any = {"a": torch.zeros(2), "x": {"y": torch.zeros(2)}, "c": {"d": 0}, "s": torch.zeros(3, dtype=torch.float64)}
        with pytest.raises(esker.StateMismatchError) as caught:
            ckpt.load(into=into)
        assert caught.value.missing == ["x.y"]
        assert caught.value.unexpected == ["c.e", "b"]
        assert caught.value.mismatched == ["s: wanted is F64 of shape [3], stored is F32 of shape [3]"]
        assert into["a"].tolist() == [0, 0] and into["c"]["d"] == 0
        with pytest.raises(esker.StateMismatchError, match="F64"):
            ckpt.load(into=into, strict=False)
        del into["s"]
        ckpt.load(into=into, strict=False)
        assert into["a"].tolist() == [1, 1] and into["c"]["d"] == 1 and into["x"]["y"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("stored", "wanted", "words"),
    [
        (torch.ones(2), torch.ones(3), "wanted is F32 of shape \\[3\\], stored is F32 of shape \\[2\\]"),
        (torch.ones(2), {"x": 1}, "wanted is a dict"),
        (torch.ones(2), 5, "stored is F32"),
        ({"x": 1}, torch.ones(2), "stored is a dict"),
        ([torch.ones(1)], [torch.ones(1), torch.ones(1)], "wanted is 2 elements, stored is 1"),
    ],
)
def test_other_kinds_and_shapes_are_refused(server: Server, run: str, stored: Any, wanted: Any, words: str) -> None:
    with one_rank(server, run) as ckpt:
        ckpt.save(1, {"a": stored}).wait(60)
        with pytest.raises(esker.StateMismatchError, match=f"a: .*{words}"):
            ckpt.load(into={"a": wanted})


def test_state_may_change_its_shape_between_saves(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        for step, size in enumerate((4, 9, 1)):
            ckpt.save(step, {"buffer": torch.arange(size), "log": list(range(size))}).wait(60)
        for step, size in enumerate((4, 9, 1)):
            state = ckpt.load(step=step)[1]
            assert state["buffer"].tolist() == state["log"] == list(range(size))
        into: Any = {"log": [7, 7]}
        ckpt.load(step=1, into=into, only="log.*")
        assert into["log"] == list(range(9))


# --- several ranks ---


def own_state(rank: int) -> dict[str, Any]:
    return {"w": torch.full((3,), rank), "count": torch.tensor(7.0), "rng": bytes([rank]), "lr": 0.1, "position": rank}


def test_each_rank_gets_its_own_back(server: Server, run: str) -> None:
    ranks = open_ranks(server, run, 3)
    save_all(ranks, 1, [own_state(rank) for rank in range(3)])
    for number, rank in enumerate(ranks):
        assert difference(own_state(number), rank.load()[1]) is None
        rank.close()


def test_other_ranks_must_say_whose_state_they_take(server: Server, run: str) -> None:
    first = open_ranks(server, run, 3)
    save_all(first, 1, [own_state(rank) for rank in range(3)])
    second = open_ranks(server, run, 2, "second")
    for rank in second:
        with pytest.raises(esker.StateMismatchError) as caught:
            rank.load()
        assert caught.value.ambiguous == ["w", "rng", "position"]
        assert difference({"count": torch.tensor(7.0), "lr": 0.1}, rank.load(strict=False)[1]) is None
        assert rank.load(only="lr")[1] == {"lr": 0.1}
        assert difference(own_state(2), rank.load(from_rank=2)[1]) is None
        with pytest.raises(ValueError, match="from_rank 3: it was saved by ranks 0 to 2"):
            rank.load(from_rank=3)
    for rank in first + second:
        rank.close()


def test_replicated_state_is_saved_once_and_loads_on_any_number(server: Server, run: str) -> None:
    generator = torch.Generator().manual_seed(1)
    model = {"big": torch.randn(3000, 1500, generator=generator), "small": torch.randn(10, generator=generator), "step": torch.tensor(5)}
    first = open_ranks(server, run, 3, replicated=["model.*"])
    handles = [rank.save(1, {"model": model, "own": torch.tensor(i)}) for i, rank in enumerate(first)]
    for handle in handles:
        handle.wait(60)
    tensor_bytes = sum(tensor.nbytes for tensor in model.values())
    sent = [handle.progress().raw_bytes for handle in handles]
    assert tensor_bytes <= sum(sent) <= tensor_bytes + 3 * 1024
    assert max(sent) < 0.4 * tensor_bytes
    for world_size, start in ((2, "second"), (1, "third"), (3, "fourth")):
        ranks = open_ranks(server, run, world_size, start)
        for rank in ranks:
            assert difference(model, rank.load(only="model.*")[1]["model"]) is None
            rank.close()


def test_ranks_with_other_layers_complete_each_other(server: Server, run: str) -> None:
    """A pipeline of two stages, loaded by one rank, and by two that hold the layers the other way round."""
    stages = [{"model": {f"layer{i}": torch.full((2,), i)}, "lr": 0.1} for i in range(2)]
    first = open_ranks(server, run, 2)
    save_all(first, 1, stages)
    (single,) = open_ranks(server, run, 1, "second")
    into: Any = {"model": {"layer0": torch.zeros(2, dtype=torch.int64), "layer1": torch.zeros(2, dtype=torch.int64)}, "lr": 0.0}
    single.load(into=into)
    assert difference({"model": {"layer0": torch.full((2,), 0), "layer1": torch.full((2,), 1)}, "lr": 0.1}, into) is None
    swapped = open_ranks(server, run, 2, "third")
    for rank, ckpt in enumerate(swapped):
        into = {"model": {f"layer{1 - rank}": torch.zeros(2, dtype=torch.int64)}, "lr": 0.0}
        ckpt.load(into=into)
        assert difference(stages[1 - rank], into) is None
    for ckpt in [*first, single, *swapped]:
        ckpt.close()


# --- bad input ---


def test_wrong_options_are_refused(server: Server, run: str) -> None:
    with pytest.raises(TypeError, match=r'expected a list of patterns, as \["model\.\*"\]'):
        one_rank(server, run, replicated="model.*")
    with pytest.raises(ValueError, match="on_error"):
        one_rank(server, run, on_error="explode")
    with pytest.raises(ValueError, match="in_flight"):
        one_rank(server, run, in_flight="explode")


def test_a_closed_checkpointer_says_so(server: Server, run: str) -> None:
    ckpt = one_rank(server, run)
    ckpt.close()
    ckpt.close()
    with pytest.raises(ValueError, match="is closed"):
        ckpt.save(1, {})


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(esker.EskerError, match="127.0.0.1:1") as caught:
        esker.Checkpointer("127.0.0.1:1", "run", 0, 1, connect_timeout=0.3)
    assert caught.value.code == "UNAVAILABLE"


def test_a_checkpoint_of_the_bare_client_is_refused_with_a_reason(server: Server, run: str) -> None:
    from esker import _core

    _core.Checkpointer(server.address, run, 0, 1).save(1, [], [("x", b"y")]).wait()
    with one_rank(server, run) as ckpt, pytest.raises(ValueError, match="it was not saved by esker.Checkpointer"):
        ckpt.load()


def test_a_forked_child_is_told_to_open_its_own(server: Server, run: str) -> None:
    with one_rank(server, run) as ckpt:
        ckpt.save(1, {"x": 1}).wait(60)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                ckpt.save(2, {"x": 1})
            except esker.EskerError as error:
                code = 0 if error.code == "FAILED_PRECONDITION" and "fork" in str(error) else 2
            finally:
                ckpt.close()
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        ckpt.save(3, {"x": 3}).wait(60)
        assert ckpt.latest_step() == 3


def test_a_directory_starts_a_local_server(tmp_path: pathlib.Path, run: str) -> None:
    with esker.Checkpointer(tmp_path / "store", run, 0, 1) as ckpt:
        ckpt.save(1, {"x": torch.ones(2)}).wait(60)
        assert ckpt.load()[1]["x"].tolist() == [1, 1]


# --- bad days ---


def test_training_goes_on_without_the_server_and_saves_after_its_return(tmp_path: pathlib.Path, run: str) -> None:
    with running_server(tmp_path) as own_server:
        with one_rank(own_server, run, save_timeout=1.0) as ckpt:
            ckpt.save(1, {"x": torch.ones(1000)}).wait(60)
            own_server.kill()
            lost = ckpt.save(2, {"x": torch.zeros(1000)})
            with pytest.raises(esker.EskerError):
                lost.wait(30)
            assert ckpt.last_error is lost.exception()
            own_server.start()
            ckpt.save(3, {"x": torch.full((1000,), 3.0)}).wait(60)
            assert ckpt.last_error is None
            assert [info.step for info in ckpt.list()] == [1, 3]


def resident_bytes() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_saves_that_fail_for_long_cost_no_memory(tmp_path: pathlib.Path, run: str) -> None:
    """A server that is gone for a long time: training saves on and on, and in the end again with success."""
    weights = torch.zeros(8 << 20)
    with running_server(tmp_path) as own_server, one_rank(own_server, run, save_timeout=0.3) as ckpt:
        ckpt.save(0, {"weights": weights}).wait(60)
        own_server.kill()
        sizes = []
        for step in range(1, 13):
            weights += 1
            ckpt.save(step, {"weights": weights})  # waits until the one before has failed
            sizes.append(resident_bytes())
        with pytest.raises(esker.EskerError):
            ckpt.wait(60)
        assert ckpt.last_error is not None and ckpt.last_error.code == "DEADLINE_EXCEEDED"
        assert max(sizes) - sizes[1] < weights.nbytes, [size >> 20 for size in sizes]
        own_server.start()
        until_saved = time.monotonic() + 60
        while True:  # the save has 0.3 s
            handle = ckpt.save(100, {"weights": weights})
            try:
                handle.wait()
                break
            except esker.EskerError:
                assert time.monotonic() < until_saved
        assert [info.step for info in ckpt.list()] == [0, 100]


COST = """
import sys, numpy as np
import esker
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
state = {str(i): np.random.default_rng(i).random(4 << 20) for i in range(8)}
ckpt = esker.Checkpointer(sys.argv[1], sys.argv[2], 0, 1)
before = peak()
for step in range(3):
    for array in state.values():
        array += 1
    ckpt.save(step, state).wait()
print(peak() - before, sum(array.nbytes for array in state.values()))
"""


def test_a_save_costs_one_copy_of_the_state(server: Server, run: str) -> None:
    job = subprocess.run([sys.executable, "-c", COST, server.address, run], check=True, capture_output=True, text=True, timeout=120)
    cost, state = map(int, job.stdout.split())
    assert state <= cost < state + (64 << 20), f"{cost >> 20} MiB for a state of {state >> 20} MiB"


def test_a_server_that_comes_late_is_waited_for(tmp_path: pathlib.Path, run: str) -> None:
    with running_server(tmp_path) as own_server:
        own_server.kill()
        late = threading.Timer(0.5, own_server.start)
        late.start()
        try:
            with one_rank(own_server, run, connect_timeout=60) as ckpt:
                ckpt.save(1, {"x": 1}).wait(60)
                assert ckpt.latest_step() == 1
        finally:
            late.join()


AT_EXIT = """
import logging, signal, sys, numpy as np, os
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
import esker
ckpt = esker.Checkpointer(sys.argv[1], sys.argv[2], 0, 1, exit_timeout=float(sys.argv[3]))
ckpt.save(1, {"x": np.zeros(1)}).wait()
if sys.argv[4:]:
    os.kill(int(sys.argv[4]), signal.SIGSTOP)
ckpt.save(2, {"x": np.ones(1 << 20)})
"""


def test_an_interpreter_that_ends_completes_its_save(server: Server, run: str) -> None:
    subprocess.run([sys.executable, "-c", AT_EXIT, server.address, run, "60"], check=True, timeout=120)
    with one_rank(server, run) as ckpt:
        assert ckpt.load()[0] == 2


def test_an_interpreter_that_ends_waits_for_its_save_with_a_limit(tmp_path: pathlib.Path, run: str) -> None:
    with running_server(tmp_path) as own_server:
        pid = own_server._process.pid  # type: ignore[union-attr]
        began = time.monotonic()
        job = subprocess.run(
            [sys.executable, "-c", AT_EXIT, own_server.address, run, "1.5", str(pid)], capture_output=True, text=True, timeout=60
        )
        took = time.monotonic() - began
        assert job.returncode == 0, job.stderr
        assert "waiting up to 2 s for the save of step 2" in job.stdout
        assert "the save of step 2 is given up" in job.stdout
        assert took < 30


# --- stale saves ---


def test_stale_saves_are_caught(server: Server, run: str, caplog: pytest.LogCaptureFixture) -> None:
    state: Any = {"w": torch.randn(1 << 20), "step": 0}
    cached = {"w": state["w"].clone()}  # what must not be saved again and again
    with one_rank(server, run) as ckpt:
        handles = []
        for step in range(3):
            handle = ckpt.save(step, {"state": cached, "step": step})
            handle.wait(60)
            handles.append(handle)
        assert [handle.stale for handle in handles] == [False, True, True]
        assert sum("is what was saved before" in record.message for record in caplog.records) == 2
        state["w"] += 1
        fresh = ckpt.save(3, {"state": state, "step": 3})
        fresh.wait(60)
        assert not fresh.stale
        assert [info.unchanged_bytes > 0.9 * info.raw_bytes for info in ckpt.list()] == [False, True, True, False]
    listed = subprocess.run([program_path("esker"), "--server", server.address, "ls", run], capture_output=True, text=True)
    assert [line.rsplit("  ", 1)[-1].strip() for line in listed.stdout.splitlines()[1:]] == [
        "committed",
        "committed, stale: 100% unchanged",
        "committed, stale: 100% unchanged",
        "committed",
    ]


def test_what_another_rank_saved_too_is_not_stale(server: Server, run: str) -> None:
    """The store has all of the second rank's content, from the first."""
    ranks = open_ranks(server, run, 2)
    weights = torch.randn(1 << 20)
    for step in range(3):
        weights += 1
        handles = [ranks[0].save(step, {"w": weights})]
        time.sleep(0.3)
        handles.append(ranks[1].save(step, {"w": weights}))
        for handle in handles:
            handle.wait(60)
        assert handles[1].progress().deduplicated_bytes > 0.9 * handles[1].progress().raw_bytes
        assert not handles[0].stale and not handles[1].stale
    for rank in ranks:
        rank.close()


def test_frozen_weights_can_be_told(server: Server, run: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    frozen, adapter = torch.randn(1 << 20), torch.zeros(100)
    with one_rank(server, run, stale_fraction=1.0) as ckpt:
        for step in range(3):
            adapter += 1
            handle = ckpt.save(step, {"frozen": frozen, "adapter": adapter})
            handle.wait(60)
            assert not handle.stale
    assert not caplog.records
