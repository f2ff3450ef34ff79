"""ShardedTensors: torch's own, and whatever has its interface (local_shards() and metadata())."""

import types
from typing import Any

import pytest
import torch
import torch.distributed as dist
from native import Server
from ranks import run_ranks
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import esker

ROWS, COLUMNS = 11, 6
WHOLE = torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS)


class LookAlike:
    """Not torch's: a class of somebody's own, with the two functions."""

    def __init__(self, shards: list[Any], metadata: Any) -> None:
        self._shards = shards
        self._metadata = metadata

    def local_shards(self) -> list[Any]:
        return self._shards

    def metadata(self) -> Any:
        return self._metadata


def chunked(dim: int) -> Any:
    """Cut evenly along a dimension, by torch: the last ranks have less, or nothing."""
    spec = ChunkShardingSpec(dim=dim, placements=[f"rank:{rank}/cpu" for rank in range(dist.get_world_size())])
    return sharded_tensor.zeros(spec, ROWS, COLUMNS)


def uneven(look_alike: bool) -> Any:
    """Rows of each rank's own number: rank 0 has one, the last one the rest, in two shards."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    first, last = rank, rank + 1 if rank < world_size - 1 else ROWS
    rows = [(first, last)] if last - first < 2 else [(first, first + 2), (first + 2, last)]
    shards = [
        sharded_tensor.Shard(torch.zeros(end - begin, COLUMNS), ShardMetadata([begin, 0], [end - begin, COLUMNS], f"rank:{rank}/cpu"))
        for begin, end in rows
    ]
    tensor = sharded_tensor.init_from_local_shards(shards, ROWS, COLUMNS)
    return LookAlike(tensor.local_shards(), tensor.metadata()) if look_alike else tensor


KINDS: dict[str, Any] = {
    "rows": lambda: chunked(0),
    "columns": lambda: chunked(1),
    "uneven": lambda: uneven(False),
    "look_alike": lambda: uneven(True),
}


def box_of(whole: torch.Tensor, shard: Any) -> torch.Tensor:
    ranges = zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes)
    return whole[tuple(slice(offset, offset + size) for offset, size in ranges)]


def fill(tensor: Any) -> Any:
    for shard in tensor.local_shards():
        shard.tensor.copy_(box_of(WHOLE, shard))
    return tensor


def assert_filled(tensor: Any) -> None:
    for shard in tensor.local_shards():
        assert torch.equal(shard.tensor, box_of(WHOLE, shard)), shard.metadata


def save(server: str, run: str, start: str) -> None:
    with esker.Checkpointer(server, run, incarnation=start) as ckpt:
        handle = ckpt.save(1, {"model": {kind: fill(make()) for kind, make in KINDS.items()}, "lr": 0.1})
        handle.wait(60)
        held = torch.tensor(handle.progress().raw_bytes)
        dist.all_reduce(held)
        assert len(KINDS) * WHOLE.nbytes < int(held) < len(KINDS) * WHOLE.nbytes + ckpt.world_size * 8192


def load_other_kinds(ckpt: esker.Checkpointer) -> None:
    """Each stored tensor into the next kind, in place."""
    names = list(KINDS)
    wanted = {name: KINDS[names[(i + 1) % len(names)]]() for i, name in enumerate(names)}
    memory = [shard.tensor.data_ptr() for tensor in wanted.values() for shard in tensor.local_shards()]
    into: Any = {"model": dict(wanted), "lr": 0.0}
    ckpt.load(into=into)
    for name, tensor in into["model"].items():
        assert tensor is wanted[name]
        assert_filled(tensor)
    assert memory == [shard.tensor.data_ptr() for tensor in wanted.values() for shard in tensor.local_shards()]


def load(server: str, run: str, start: str) -> None:
    with esker.Checkpointer(server, run, incarnation=start) as ckpt:
        load_other_kinds(ckpt)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        as_dtensors: Any = {name: distribute_tensor(torch.zeros(ROWS, COLUMNS), mesh, [Shard(i % 2)]) for i, name in enumerate(KINDS)}
        ckpt.load(into={"model": as_dtensors}, only="model.*")
        for tensor in as_dtensors.values():
            assert torch.equal(tensor.full_tensor(), WHOLE)
        as_plain: Any = {name: torch.zeros(ROWS, COLUMNS) for name in KINDS}
        ckpt.load(into={"model": as_plain}, only="model.*")
        loaded = ckpt.load()[1]["model"]
        for name in KINDS:
            assert torch.equal(as_plain[name], WHOLE) and torch.equal(loaded[name], WHOLE)


@pytest.mark.parametrize("savers", [1, 2, 3])
def test_what_some_ranks_saved_any_ranks_load(server: Server, run: str, savers: int) -> None:
    run_ranks(savers, save, server.address, run, "saved")
    for loaders in (1, 2, 3):
        run_ranks(loaders, load, server.address, run, f"loaded-by-{loaders}")


def save_dtensor_and_load_into_shards(server: str, run: str) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with esker.Checkpointer(server, run, incarnation="only") as ckpt:
        ckpt.save(1, {"w": distribute_tensor(WHOLE, mesh, [Shard(1)])}).wait(60)
        for make in KINDS.values():
            tensor = make()
            ckpt.load(into={"w": tensor})
            assert_filled(tensor)


def test_dtensors_load_into_sharded_tensors(server: Server, run: str) -> None:
    run_ranks(2, save_dtensor_and_load_into_shards, server.address, run)


def refuse_other_shapes(server: str, run: str) -> None:
    with esker.Checkpointer(server, run, incarnation="only") as ckpt:
        ckpt.save(1, {"w": fill(chunked(0)), "other": 1}).wait(60)
        spec = ChunkShardingSpec(dim=0, placements=[f"rank:{rank}/cpu" for rank in range(dist.get_world_size())])
        wrong_shape = sharded_tensor.zeros(spec, ROWS + 1, COLUMNS)
        wrong_dtype = sharded_tensor.zeros(spec, ROWS, COLUMNS, dtype=torch.float64)
        for wrong, words in ((wrong_shape, "F32 of shape [12, 6]"), (wrong_dtype, "F64 of shape [11, 6]")):
            with pytest.raises(esker.StateMismatchError) as caught:
                ckpt.load(into={"w": wrong, "missing": chunked(0)})
            assert caught.value.mismatched == [f"w: wanted is {words}, stored is F32 of shape [11, 6]"]
            assert caught.value.missing == ["missing"] and caught.value.unexpected == ["other"]
            assert all(not shard.tensor.any() for shard in wrong.local_shards())


def test_other_shapes_and_dtypes_are_refused(server: Server, run: str) -> None:
    run_ranks(2, refuse_other_shapes, server.address, run)


def test_a_sharded_tensor_of_a_dtype_that_cant_be_stored_is_named(server: Server, run: str) -> None:
    properties = types.SimpleNamespace(dtype=torch.qint8)
    metadata = types.SimpleNamespace(tensor_properties=properties, size=(1,), shards_metadata=[])
    with esker.Checkpointer(server.address, run, 0, 1) as ckpt, pytest.raises(TypeError, match="^w: .*qint8"):
        ckpt.save(1, {"w": LookAlike([], metadata)})
