"""DTensors through a server: saved by some ranks, loaded by others with other meshes and placements, bit for bit.

Every world is a set of real processes with gloo. What a tensor holds is made from its name, so that each process can check its part.
"""

import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from native import Server
from ranks import run_ranks
from states import bits
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import esker
from esker import tensors

MESHES: dict[int, list[tuple[int, ...]]] = {2: [(2,)], 3: [(3,)], 4: [(4,), (2, 2)]}
SHAPES = [(7, 5), (8, 6), (1, 9), (3, 4, 5), (2, 0), (13,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64]


def whole(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(0, 100, shape, generator=generator).to(torch.float32).to(dtype)


def sharded(tensor: torch.Tensor, mesh: DeviceMesh, placements: list[Any]) -> DTensor:
    """Without communication, which gloo has not for all dtypes."""
    raw = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
    spread = distribute_tensor(raw, mesh, placements)
    if raw is tensor:
        return spread
    local = spread.to_local().view(tensor.dtype)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def placements_for(rng: random.Random, shape: tuple[int, ...], mesh: DeviceMesh) -> list[Any]:
    choices: list[Any] = [Replicate(), *[Shard(dim) for dim in range(len(shape))]]
    return [rng.choice(choices) for _ in range(mesh.ndim)]


def job_state(world_size: int, seed: int, empty: bool) -> dict[str, DTensor]:
    """Tensors with placements that depend on the seed. empty: with wrong elements everywhere, to be loaded into."""
    rng = random.Random(seed)
    meshes = [init_device_mesh("cpu", shape) for shape in MESHES[world_size]]
    state = {}
    for shape in SHAPES:
        for dtype in DTYPES:
            name = f"{shape}.{dtype}"
            mesh = rng.choice(meshes)
            placements = placements_for(rng, shape, mesh)
            tensor = sharded(whole(name, dtype, shape), mesh, placements)
            if empty:
                tensor.to_local().view(torch.uint8).fill_(0xA5) if tensor.to_local().element_size() == 1 else tensor.to_local().fill_(-1)
            state[name] = tensor
    return state


def check(state: dict[str, DTensor], world_size: int, seed: int) -> None:
    for (name, tensor), expected in zip(state.items(), job_state(world_size, seed, empty=False).values(), strict=True):
        assert bits(tensor.to_local()) == bits(expected.to_local()), (name, tensor.placements)


def save(ckpt: esker.Checkpointer, seed: int) -> None:
    state = job_state(ckpt.world_size, seed, empty=False)
    handle = ckpt.save(1, {"model": state, "lr": 0.5})
    handle.wait(60)
    # Replicas are saved once: all ranks together send what the tensors have, and their trees.
    total = torch.tensor(handle.progress().raw_bytes)
    dist.all_reduce(total)
    expected = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert expected < int(total) < expected + ckpt.world_size * 8192, (expected, int(total))


def load(ckpt: esker.Checkpointer, seed: int) -> None:
    state = job_state(ckpt.world_size, seed, empty=True)
    step, loaded = ckpt.load(into={"model": state, "lr": 0.0})
    assert step == 1 and loaded["lr"] == 0.5
    check(state, ckpt.world_size, seed)


def world(size: int, server: Server, run: str, start: str, job: Callable[..., None], *arguments: Any) -> None:
    """Runs `job` on all ranks of a new start of the run; a rank's failure is the test's."""
    run_ranks(size, with_checkpointer, server.address, run, start, job, arguments)


def with_checkpointer(server: str, run: str, start: str, job: Callable[..., None], arguments: Any) -> None:
    with esker.Checkpointer(server, run, incarnation=start) as ckpt:
        job(ckpt, *arguments)
        dist.barrier()


def test_resharding_from_4_to_2_to_3_to_4_is_bit_for_bit(server: Server, run: str) -> None:
    seed = 20240229
    print("seed", seed)
    world(4, server, run, "a", save, seed)
    with esker.Checkpointer(server.address, run, 0, 1, incarnation="b") as ckpt:
        loaded = ckpt.load()[1]["model"]
        for name, tensor in loaded.items():
            shape, dtype = next((s, d) for s in SHAPES for d in DTYPES if f"{s}.{d}" == name)
            assert bits(tensor) == bits(whole(name, dtype, shape))
    for size, start in ((2, "c"), (3, "d"), (4, "e")):
        world(size, server, run, start, reshard, seed + size)


def reshard(ckpt: esker.Checkpointer, seed: int) -> None:
    """Loads, and saves what it loaded: the next world starts from that."""
    load(ckpt, seed)
    dist.barrier()
    save(ckpt, seed)


# --- a whole training state ---


def fsdp_state(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def fsdp_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(3)
    model(torch.randn(4, 5, generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def fsdp_save(ckpt: esker.Checkpointer) -> None:
    model, optimizer = fsdp_state(1)
    for _ in range(2):
        fsdp_step(model, optimizer)
    ckpt.save(2, {"model": model, "optim": optimizer, "rng": torch.get_rng_state()}).wait(60)


def gathered(state: Any) -> Any:
    if isinstance(state, DTensor):
        return state.full_tensor().tolist()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


def fsdp_load(ckpt: esker.Checkpointer) -> None:
    expected_model, expected_optimizer = fsdp_state(1)
    for _ in range(2):
        fsdp_step(expected_model, expected_optimizer)
    model, optimizer = fsdp_state(9)
    assert gathered(model.state_dict()) != gathered(expected_model.state_dict())
    step, _ = ckpt.load(into={"model": model, "optim": optimizer}, strict=False)
    if ckpt.world_size != 2:
        # The ranks' batches are the same, their sums may be rounded otherwise: compare with what is stored.
        stored = ckpt.load(only="model.*")[1]["model"]
        assert {k: v.tolist() for k, v in stored.items()} == gathered(model.state_dict())
        moments = ckpt.load(only="optim.state.0.exp_avg")[1]["optim"]["state"][0]["exp_avg"]
        assert moments.tolist() == optimizer.state_dict()["state"][0]["exp_avg"].full_tensor().tolist() != [[0] * 5] * 7
        return
    assert step == 2
    assert gathered(model.state_dict()) == gathered(expected_model.state_dict())
    assert gathered(optimizer.state_dict()["state"]) == gathered(expected_optimizer.state_dict()["state"])
    fsdp_step(model, optimizer)  # and it trains on
    fsdp_step(expected_model, expected_optimizer)
    assert gathered(model.state_dict()) == gathered(expected_model.state_dict())


def test_fsdp_and_its_optimizer_resume_on_as_many_ranks_and_on_others(server: Server, run: str) -> None:
    world(2, server, run, "a", fsdp_save)
    world(2, server, run, "b", fsdp_load)
    world(3, server, run, "c", fsdp_load)


# --- what one process can see ---


@pytest.fixture
def one_process() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_pending_sum_is_refused(one_process: DeviceMesh) -> None:
    tensor = DTensor.from_local(torch.ones(2), one_process, [Partial()])
    with pytest.raises(TypeError, match="redistribute it to Shard or Replicate"):
        tensors.describe(tensor, "w", tensors.Job(0, 1))


def test_another_numbering_of_ranks_is_refused(one_process: DeviceMesh) -> None:
    tensor = distribute_tensor(torch.ones(2), one_process, [Shard(0)])
    with pytest.raises(TypeError, match="rank 0 of the DTensor's mesh, and rank 1 of the Checkpointer"):
        tensors.describe(tensor, "w", tensors.Job(1, 2))


def test_dtensors_of_a_part_of_the_ranks_are_theirs(one_process: DeviceMesh) -> None:
    tensor = distribute_tensor(torch.ones(2), one_process, [Shard(0)])
    assert tensors.describe(tensor, "w", tensors.Job(0, 2)).owner == "@ranks0-0"
    assert tensors.describe(tensor, "w", tensors.Job(0, 2, ("w",))).owner == ""
    assert tensors.describe(tensor, "w", tensors.Job(0, 1)).owner == ""


def strided(ckpt: esker.Checkpointer) -> None:
    """FSDP over tensor parallelism: rows that are cut twice, in the other order."""
    mesh = init_device_mesh("cpu", (2, 2))
    for rows in (8, 9, 5, 3):
        full = torch.arange(rows * 3).reshape(rows, 3)
        tensor = distribute_tensor(full, mesh, [Replicate(), Shard(0)])
        local_rows = distribute_tensor(full[:, :1].contiguous(), mesh, [Replicate(), Shard(0)]).to_local()
        part = torch.chunk(local_rows, 2)
        at = mesh.get_coordinate()[0]  # type: ignore[index]
        mine = part[at] if at < len(part) else local_rows[:0]
        local = full[(mine[:, 0] // 3).tolist()]
        shards = DTensor.from_local(
            local, mesh, [_StridedShard(0, split_factor=2), Shard(0)], run_check=False, shape=full.shape, stride=full.stride()
        )
        assert tensor.shape == shards.shape
        ckpt.save(rows, {"w": shards}).wait(60)
        dist.barrier()
        assert torch.equal(ckpt.load(step=rows, only="w")[1]["w"], full), rows
        into: Any = torch.zeros_like(shards)
        ckpt.load(step=rows, into={"w": into})
        assert torch.equal(into.to_local(), local)
        dist.barrier()


def test_interleaved_shards(server: Server, run: str) -> None:
    world(4, server, run, "a", strided)
