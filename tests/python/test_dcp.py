"""torch.distributed.checkpoint on Esker: what is saved comes back bit for bit, on any number of ranks, whole or not at all."""

import os
import pathlib
import pickle
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from dcp_ranks import FailingPlanner, set_state, state_of, train_step, training_job, whole_tensors
from native import Server, running_server
from ranks import end_of_ranks, run_ranks
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from esker._core import EskerError, Reader
from esker.torch import StorageReader, StorageWriter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
_MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def run(server: Server, request: pytest.FixtureRequest) -> str:
    """The URL of a run of the test's own."""
    name = str(request.node.name).lower().replace("[", "-").replace("]", "")
    return f"esker://{server.address}/{name}"


def committed_steps(run: str) -> list[int]:
    address, name = run.removeprefix("esker://").split("/")
    try:
        return [info.step for info in Reader(address).list(name)]
    except EskerError as error:
        assert error.code == "NOT_FOUND", error
        return []


def info_of(run: str, step: int) -> Any:
    address, name = run.removeprefix("esker://").split("/")
    return next(info for info in Reader(address).list(name) if info.step == step)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        bits, wanted = (t.contiguous().flatten().view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(bits, wanted), name


# --- one process


def all_kinds() -> dict[str, Any]:
    torch.manual_seed(1)
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool]
    dtypes += [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]
    return {
        "tensors": {str(dtype): (torch.randn(5, 3) * 3).to(dtype) for dtype in dtypes},
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "list": [torch.ones(2), {"deep": torch.zeros(3)}],
        "objects": {"epoch": 7, "name": "run", "none": None, "ratio": 0.1, "blob": b"\x00\xff" * 9},
    }


def cleared(state: Any) -> Any:
    """The same nest, with tensors and objects of other content."""
    if isinstance(state, torch.Tensor):
        return torch.zeros_like(state)
    if isinstance(state, dict):
        return {key: cleared(value) for key, value in state.items()}
    if isinstance(state, list):
        return [cleared(value) for value in state]
    return "cleared"


def flat(state: Any, path: str = "") -> dict[str, Any]:
    if isinstance(state, (dict, list)):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: leaf for key, value in pairs for name, leaf in flat(value, f"{path}.{key}").items()}
    return {path: state}


def assert_equal_states(found: Any, expected: Any) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    tensors = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
    assert_same({name: found[name].resolve_conj() for name in tensors}, {n: t.resolve_conj() for n, t in tensors.items()})
    assert {n: v for n, v in found.items() if n not in tensors} == {n: v for n, v in expected.items() if n not in tensors}


def test_one_process_gets_back_what_it_saved(run: str) -> None:
    state = all_kinds()
    dcp.save(state, storage_writer=StorageWriter(f"{run}/5"))
    loaded = cleared(state)
    dcp.load(loaded, storage_reader=StorageReader(f"{run}/5"))
    assert_equal_states(loaded, state)
    info = info_of(run, 5)
    assert (info.world_size, info.attempt) == (1, 1)


def test_rebuilds_a_nested_state_without_a_template(run: str) -> None:
    state = all_kinds()
    dcp.save(state, storage_writer=StorageWriter(f"{run}/1"))
    loaded: dict[str, Any] = {}
    dcp.state_dict_loader._load_state_dict(
        loaded, storage_reader=StorageReader(f"{run}/1"), planner=_EmptyStateDictLoadPlanner(), no_dist=True  # type: ignore[no-untyped-call]
    )
    assert_equal_states(loaded, {**state, "transposed": state["transposed"].contiguous()})


def test_loads_the_latest_step_and_steps_by_number(server: Server, run: str) -> None:
    name = run.rsplit("/", 1)[1]
    writer = StorageWriter(server=server.address, run=name)
    for step in (10, 20):
        dcp.save({"x": torch.full((4,), float(step))}, checkpoint_id=str(step), storage_writer=writer)
    loaded = {"x": torch.zeros(4)}
    dcp.load(loaded, storage_reader=StorageReader(server=server.address, run=name))
    assert loaded["x"].tolist() == [20.0] * 4
    dcp.load(loaded, checkpoint_id="10", storage_reader=StorageReader(server=server.address, run=name))
    assert loaded["x"].tolist() == [10.0] * 4
    assert info_of(run, 20).attempt == 1


def test_converts_to_the_dtype_of_the_target(run: str) -> None:
    state = {"x": torch.randn(33, 5)}
    dcp.save(state, storage_writer=StorageWriter(f"{run}/1"))
    loaded = {"x": torch.zeros(33, 5, dtype=torch.bfloat16)}
    dcp.load(loaded, storage_reader=StorageReader(f"{run}/1"))
    assert torch.equal(loaded["x"], state["x"].bfloat16())


def test_a_step_is_replaced_by_another_start_of_the_job_only(run: str) -> None:
    def save(value: float, incarnation: str) -> None:
        dcp.save({"x": torch.tensor([value])}, storage_writer=StorageWriter(f"{run}/1", incarnation=incarnation))

    save(1.0, "first")
    with pytest.raises(dcp.api.CheckpointException, match="has been committed by attempt 1"):
        save(2.0, "first")
    save(3.0, "second")
    loaded = {"x": torch.zeros(1)}
    dcp.load(loaded, storage_reader=StorageReader(f"{run}/1"))
    assert loaded["x"].item() == 3.0
    assert committed_steps(run) == [1]


@pytest.mark.parametrize("checkpoint_id", ["esker://host/run/3", "/a/path", "12", "esker://h:1/run/last"])
def test_an_id_that_is_none_is_refused(checkpoint_id: str) -> None:
    with pytest.raises(ValueError, match="esker://host:port/run/step"):
        StorageWriter(checkpoint_id)
    assert not StorageWriter.validate_checkpoint_id(checkpoint_id)


def test_a_path_object_is_an_id(server: Server) -> None:
    path = pathlib.Path(f"esker://{server.address}/a-run/3")
    assert StorageReader(path).checkpoint_id == f"esker://{server.address}/a-run/3"


def test_what_is_not_there_is_an_error_that_says_so(run: str) -> None:
    dcp.save({"x": torch.zeros(1)}, storage_writer=StorageWriter(f"{run}/1"))
    with pytest.raises(dcp.api.CheckpointException, match="step 2"):
        dcp.load({"x": torch.zeros(1)}, storage_reader=StorageReader(f"{run}/2"))
    with pytest.raises(dcp.api.CheckpointException, match="Missing key.*y"):
        dcp.load({"y": torch.zeros(1)}, storage_reader=StorageReader(f"{run}/1"))


def test_a_tensor_that_cannot_be_stored_is_named(run: str) -> None:
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(dcp.api.CheckpointException, match="model.odd.*sparse"):
        dcp.save({"model": {"fine": torch.ones(2), "odd": sparse}}, storage_writer=StorageWriter(f"{run}/1"))
    assert committed_steps(run) == []


def test_a_writer_pickles_before_and_after_a_save(run: str) -> None:
    writer = StorageWriter(f"{run}/1")
    dcp.save({"x": torch.ones(1)}, storage_writer=pickle.loads(pickle.dumps(writer)))
    dcp.save({"x": torch.ones(1)}, checkpoint_id=f"{run}/2", storage_writer=writer)
    dcp.save({"x": torch.ones(1)}, checkpoint_id=f"{run}/3", storage_writer=pickle.loads(pickle.dumps(writer)))
    assert committed_steps(run) == [1, 2, 3]


def read_bytes(server: Server) -> int:
    """What the server has read from its disk so far (it reads around the page cache)."""
    assert server._process is not None
    lines = pathlib.Path(f"/proc/{server._process.pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def test_reads_only_the_ranges_that_are_wanted(server: Server, run: str) -> None:
    state = {"x": torch.randn(4096, 4096)}  # one stored shard of 64 MiB
    dcp.save(state, storage_writer=StorageWriter(f"{run}/1"))
    before = read_bytes(server)
    part = run_ranks(4, _load_quarter, run)[1]
    ranged = read_bytes(server) - before
    assert torch.equal(part, state["x"][1024:2048])
    assert 16 * _MIB <= ranged <= 24 * _MIB, f"{ranged / _MIB} MiB for a quarter of 64 MiB"


def _load_quarter(run: str) -> Any:
    """Rank 1 loads its quarter of the tensor; the others want nothing."""
    mesh = init_device_mesh("cpu", (4,))
    x = distribute_tensor(torch.zeros(4096, 4096), mesh, [Shard(0)])
    state = {"x": x} if dist.get_rank() == 1 else {}
    dcp.load(state, storage_reader=StorageReader(f"{run}/1"))
    return x.to_local() if dist.get_rank() == 1 else None


# --- several ranks


def _train_and_save(run: str, steps: int, use_collectives: bool) -> Any:
    model, optimizer = training_job(seed=1)
    for _ in range(steps):
        train_step(model, optimizer)
    state = state_of(model, optimizer)
    dcp.save(state, storage_writer=StorageWriter(f"{run}/{steps}"), use_collectives=use_collectives)
    return whole_tensors(state)


def _load(run: str) -> Any:
    model, optimizer = training_job(seed=2)
    state = state_of(model, optimizer)
    state["extra"] = {"epoch": 0, "name": "", "history": [0.0, 0.0]}
    dcp.load(state, storage_reader=StorageReader(run))
    set_state(model, optimizer, state)
    return whole_tensors(state_of(model, optimizer)), state["extra"]


@pytest.mark.parametrize("use_collectives", [True, False])
def test_a_sharded_job_goes_on_with_another_number_of_ranks(run: str, use_collectives: bool) -> None:
    saved = run_ranks(4, _train_and_save, run, 2, use_collectives)
    assert any("exp_avg" in name for name in saved[0])
    info = info_of(run, 2)
    assert (info.world_size, info.attempt) == (4, 1)
    for ranks in (4, 3, 2, 1):
        for result in run_ranks(ranks, _load, run):
            loaded, extra = result
            assert_same(loaded, saved[0])
            assert extra == {"epoch": 3, "name": "gpt", "history": [1.5, 2.5]}


def _save_replicated(run: str) -> None:
    torch.manual_seed(0)
    state = {f"layer.{i}": torch.randn(256, 1024) for i in range(4)}
    dcp.save(state, storage_writer=StorageWriter(f"{run}/1"))


def test_replicated_state_is_saved_once(run: str) -> None:
    assert run_ranks(4, _save_replicated, run) == [None] * 4
    info = info_of(run, 1)
    assert info.world_size == 4
    assert 4 * _MIB <= info.raw_bytes < 4 * _MIB + 4096


def _save_on_mesh(run: str) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    torch.manual_seed(0)
    whole = torch.randn(37, 53)
    state = {
        "columns": distribute_tensor(whole, mesh, [Replicate(), Shard(1)]),
        "both": distribute_tensor(whole, mesh, [Shard(0), Shard(1)]),
        "few": distribute_tensor(torch.arange(3.0), mesh, [Replicate(), Shard(0)]),
    }
    dcp.save(state, storage_writer=StorageWriter(f"{run}/1"))
    return whole


def _load_on_mesh(run: str) -> Any:
    mesh = init_device_mesh("cpu", (3,))
    state: dict[str, Any] = {
        "columns": distribute_tensor(torch.zeros(37, 53), mesh, [Shard(0)]),
        "both": distribute_tensor(torch.zeros(37, 53), mesh, [Shard(1)]),
        "few": torch.zeros(3),
    }
    dcp.load(state, storage_reader=StorageReader(f"{run}/1"))
    return state["columns"].full_tensor(), state["both"].full_tensor(), state["few"]


def test_loads_onto_another_mesh_and_other_placements(run: str) -> None:
    whole = run_ranks(4, _save_on_mesh, run)[0]
    assert info_of(run, 1).raw_bytes < 2 * whole.nbytes + 4096
    for result in run_ranks(3, _load_on_mesh, run):
        assert torch.equal(result[0], whole)
        assert torch.equal(result[1], whole)
        assert result[2].tolist() == [0.0, 1.0, 2.0]


def _save_async(run: str, kind: Any) -> Any:
    """Synchronous and asynchronous saves in turn: all of one start of the job."""
    state: dict[str, Any] = {"x": torch.full((5, 5), float(dist.get_rank())), "rank": dist.get_rank()}
    state[f"own-{dist.get_rank()}"] = torch.full((100,), float(dist.get_rank()))
    for step in (1, 2, 3, 4):
        state["x"].fill_(step)
        if step % 2 == 1:
            dcp.save(state, storage_writer=StorageWriter(f"{run}/{step}"))
        else:
            future: Any = dcp.async_save(state, storage_writer=StorageWriter(f"{run}/{step}"), async_checkpointer_type=kind)
            state["x"].fill_(-1)  # the save has its own copy
            getattr(future, "upload_completion", future).result(60)
    loaded = {"x": torch.zeros(5, 5), f"own-{(dist.get_rank() + 1) % 2}": torch.zeros(100)}
    dcp.load(loaded, storage_reader=StorageReader(f"{run}/4"))
    return loaded["x"].flatten()[0].item(), loaded[f"own-{(dist.get_rank() + 1) % 2}"][99].item()


@pytest.mark.parametrize("kind", list(AsyncCheckpointerType))
def test_async_saves_and_others_are_of_one_attempt(run: str, kind: Any) -> None:
    assert run_ranks(2, _save_async, run, kind) == [(4.0, 1.0), (4.0, 0.0)]
    assert committed_steps(run) == [1, 2, 3, 4]
    assert {info_of(run, step).attempt for step in (1, 2, 3, 4)} == {1}


# --- failures


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stumble() -> None:
    raise OSError("no data today")


def _save_in_the_background_without_collectives(run: str) -> str:
    state = {f"weights-{dist.get_rank()}": torch.ones(3)}

    def save() -> Any:
        saving: Any = dcp.async_save(state, storage_writer=StorageWriter(f"{run}/1"), use_collectives=False)
        return saving.result()

    with pytest.raises(Exception, match="open_run") as refused:
        save()
    StorageWriter(run).open_run()
    save()
    return str(refused.value)


def test_a_background_save_without_collectives_asks_for_the_run_to_be_opened_first(run: str) -> None:
    """Else it would have the ranks agree on a token in the middle of what training says to each other."""
    assert all("on all ranks" in said for said in run_ranks(2, _save_in_the_background_without_collectives, run))


def _save_while_one_fails(run: str, failing: int, fail: Any, use_collectives: bool) -> Any:
    """How long the failed save took, and what it raised; then, if the rank lives, the same step again."""
    state = {f"own-{dist.get_rank()}": torch.randn(1000), "common": torch.ones(10)}
    planner = FailingPlanner(fail) if dist.get_rank() == failing else None
    began = time.monotonic()
    try:
        dcp.save(state, storage_writer=StorageWriter(f"{run}/2"), planner=planner, use_collectives=use_collectives)
        raised = None
    except BaseException as error:
        raised = f"{type(error).__name__}: {error}"
    took = time.monotonic() - began
    if fail is _stumble:
        dist.barrier()
        seen = committed_steps(run)
        dist.barrier()
        dcp.save(state, storage_writer=StorageWriter(f"{run}/2"), use_collectives=use_collectives)
        return took, raised, seen, time.monotonic() - began
    return took, raised, committed_steps(run), 0.0


@pytest.mark.parametrize("use_collectives", [True, False])
@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_that_fails_makes_the_save_fail_on_all_and_the_next_one_works(run: str, failing: int, use_collectives: bool) -> None:
    for result in run_ranks(4, _save_while_one_fails, run, failing, _stumble, use_collectives):
        took, raised, seen, took_all = result
        assert raised is not None and "no data today" in raised
        assert seen == []
        assert took < 20 and took_all < 30
    assert committed_steps(run) == [2]


@pytest.mark.parametrize("victim", [0, 3])
def test_a_rank_that_is_killed_leaves_nothing(run: str, victim: int) -> None:
    results = end_of_ranks(4, _save_while_one_fails, run, victim, _die, True)
    assert results.pop(victim) is None
    for took, raised, seen, _ in results:
        assert raised is not None
        assert seen == []
        assert took < 20
    assert committed_steps(run) == []
    run_ranks(4, _train_and_save, run, 2, True)  # the job starts again
    assert (committed_steps(run), info_of(run, 2).attempt) == ([2], 2)


def _save_from_old_start(run: str) -> Any:
    dcp.save({"x": torch.ones(1)}, storage_writer=StorageWriter(f"{run}/1", incarnation="first"))
    dist.barrier()
    if dist.get_rank() == 0:
        dcp.save({"x": torch.ones(1)}, storage_writer=StorageWriter(f"{run}/1", incarnation="second"), no_dist=True)
    dist.barrier()
    try:
        dcp.save({"x": torch.zeros(1)}, storage_writer=StorageWriter(f"{run}/2", incarnation="first"))
    except BaseException as error:
        return str(error)
    return None


def test_an_older_start_of_the_job_is_fenced(run: str) -> None:
    for raised in run_ranks(2, _save_from_old_start, run):
        assert "attempt 2 has been opened since" in str(raised)
    assert committed_steps(run) == [1]


def test_no_server_is_a_clear_error() -> None:
    with pytest.raises(dcp.api.CheckpointException, match="127.0.0.1:1"):
        dcp.save({"x": torch.ones(1)}, storage_writer=StorageWriter("esker://127.0.0.1:1/run/1", connect_timeout=0.5))
