"""What of a caller's tensor this rank holds: torch tensors, DTensors, sharded tensors, numpy arrays, and whatever speaks DLPack.

Nothing is copied here. torch is looked at only if the program has imported it.
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

from esker import dtypes, sharding
from esker.sharding import Box, Sizes


@dataclasses.dataclass
class Held:
    """A box that this rank holds, and its elements: a torch tensor or numpy array of the box's extent, on any device."""

    box: Box
    data: Any


@dataclasses.dataclass
class Source:
    """A tensor to save.

    dtype: as safetensors calls it. shape: the global tensor's. kind: what to make of it when it is loaded: "torch", "numpy"
    or "numpy_scalar". owner: behind its name where not all ranks share it: "@rank3", "@ranks0-3". replicas: the ranks that
    hold these same boxes, this one among them, sorted.
    """

    dtype: str
    shape: Sizes
    kind: str
    held: list[Held]
    owner: str
    replicas: tuple[int, ...]
    is_own: bool = False  # a plain tensor of this rank alone


@dataclasses.dataclass(frozen=True)
class Job:
    """Who saves. replicated: patterns of paths whose plain tensors are the same on all ranks."""

    rank: int
    world_size: int
    replicated: tuple[str, ...] = ()

    def is_replicated(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.replicated)


def is_distributed(value: Any) -> bool:
    """Whether it is a box of a larger tensor: a DTensor, or a ShardedTensor."""
    return _is_dtensor(value) or _is_sharded(value)


def is_tensor(value: Any) -> bool:
    """Whether `describe` takes it, or at least says why it does not."""
    torch, numpy = dtypes.torch_if_imported(), dtypes.numpy_if_imported()
    if torch is not None and isinstance(value, torch.Tensor):
        return True
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return True
    return _is_sharded(value) or (hasattr(value, "__dlpack__") and not isinstance(value, type))


def _is_dtensor(value: Any) -> bool:
    return hasattr(value, "device_mesh") and hasattr(value, "placements") and hasattr(value, "to_local")


def _is_sharded(value: Any) -> bool:
    return callable(getattr(value, "local_shards", None)) and callable(getattr(value, "metadata", None))


def describe(value: Any, path: str, job: Job) -> Source:
    """What of `value` to save.

    Shapes: a DTensor or ShardedTensor counts with its global shape, everything else with its own.
    Raises TypeError for what has no elements in memory, or elements of a type that can't be stored.
    """
    if _is_dtensor(value):
        return _of_dtensor(value, path, job)
    if _is_sharded(value):
        return _of_sharded(value, path, job)
    data, dtype, kind = plain_data(value)
    shape = tuple(int(size) for size in data.shape)
    held = [Held(Box((0,) * len(shape), shape), data)]
    if job.world_size == 1 or job.is_replicated(path):
        return Source(dtype, shape, kind, held, "", tuple(range(job.world_size)))
    return Source(dtype, shape, kind, held, f"@rank{job.rank}", (job.rank,), is_own=True)


def plain_data(value: Any) -> tuple[Any, str, str]:
    """A local tensor as (torch tensor or numpy array, dtype name, kind), sharing its memory. TypeError as `describe`."""
    torch, numpy = dtypes.torch_if_imported(), dtypes.numpy_if_imported()
    if torch is not None and isinstance(value, torch.Tensor):
        return _of_torch(torch, value)
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return _of_numpy(numpy, value)
    return _of_dlpack(torch, value)


def _of_torch(torch: Any, value: Any) -> tuple[Any, str, str]:
    if hasattr(value, "trigger_wait"):  # a collective's result that may still be on its way
        value = value.trigger_wait()
    what = f"a torch tensor of type {type(value).__qualname__}"
    if torch.nn.parameter.is_lazy(value):
        raise TypeError("a parameter of a lazy module that has not run yet: it has no shape; run the module once")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"can't store {what} with layout {value.layout}: make it dense first")
    if value.is_meta:
        raise TypeError(f"can't store {what} on the device meta: it has no elements")
    if value.is_quantized or hasattr(value, "__tensor_flatten__"):
        raise TypeError(f"can't store {what}: store the plain tensors that it is made of")
    dtype = dtypes.name_of(value.dtype)
    if dtype is None:
        raise TypeError(f"can't store {what} and dtype {value.dtype}: convert it first")
    return value.detach(), dtype, "torch"


def _of_numpy(numpy: Any, value: Any) -> tuple[Any, str, str]:
    kind = "numpy_scalar" if isinstance(value, numpy.generic) else "numpy"
    if isinstance(value, numpy.ma.MaskedArray):
        raise TypeError("can't store a masked array: store its data and its mask")
    array = numpy.asarray(value)
    dtype = dtypes.name_of(array.dtype)
    if dtype is None:
        raise TypeError(f"can't store a numpy array of dtype {array.dtype}: convert it first")
    return array, dtype, kind


def _of_dlpack(torch: Any, value: Any) -> tuple[Any, str, str]:
    """Through torch if it is there (bf16, devices), else numpy (CPU only). Comes back as numpy where numpy has the type."""
    try:
        if torch is not None:
            return (*_of_torch(torch, torch.from_dlpack(value))[:2], "numpy")
        import numpy

        return (*_of_numpy(numpy, numpy.from_dlpack(value))[:2], "numpy")
    except (ImportError, RuntimeError, BufferError, ValueError) as error:
        raise TypeError(f"can't take a {type(value).__qualname__} through DLPack: {error}") from error


# --- tensors of several ranks ---


def _owner(ranks: Sequence[int], path: str, job: Job) -> str:
    """Tensors that are spread over all ranks are one by their name; others might share it with another group's."""
    if list(ranks) == list(range(job.world_size)) or job.is_replicated(path):
        return ""
    first, last = ranks[0], ranks[-1]
    text = f"{first}-{last}" if list(ranks) == list(range(first, last + 1)) else ",".join(str(r) for r in ranks)
    return f"@ranks{text}"


def _of_dtensor(value: Any, path: str, job: Job) -> Source:
    shape = tuple(value.shape)
    mesh = value.device_mesh
    ranks = sorted(int(rank) for rank in mesh.mesh.flatten().tolist())
    coordinate = mesh.get_coordinate()
    if coordinate is not None and int(mesh.mesh[tuple(coordinate)]) != job.rank:
        raise TypeError(
            f"this process is rank {int(mesh.mesh[tuple(coordinate)])} of the DTensor's mesh, and rank {job.rank} of the"
            " Checkpointer: open the Checkpointer with the rank that torch.distributed has"
        )
    local, dtype, _ = plain_data(value.to_local())
    held = []
    replicas: tuple[int, ...] = (job.rank,)
    if coordinate is not None:
        held = [Held(piece.box, view_of(local, piece)) for piece in dtensor_pieces(value)]
        replicas = _replicas(mesh, coordinate, value.placements)
    return Source(dtype, shape, "torch", held, _owner(ranks, path, job), replicas)


def dtensor_pieces(value: Any) -> list[sharding.Piece]:
    """The boxes of the global tensor that this rank's part of a DTensor holds. TypeError if it is a pending sum."""
    splits = []
    coordinate = value.device_mesh.get_coordinate()
    if coordinate is None:
        return []
    for mesh_dimension, placement in enumerate(value.placements):
        if placement.is_replicate():
            continue
        if not hasattr(placement, "dim"):
            raise TypeError(f"a DTensor with the placement {placement}: redistribute it to Shard or Replicate first")
        splits.append(
            sharding.Split(
                placement.dim % max(len(value.shape), 1),
                int(value.device_mesh.size(mesh_dimension)),
                int(coordinate[mesh_dimension]),
                int(getattr(placement, "split_factor", 1)),
            )
        )
    local_shape, pieces = sharding.local_pieces(tuple(value.shape), splits)
    found = tuple(value.to_local().shape)
    if found != local_shape:
        raise TypeError(
            f"a DTensor of shape {tuple(value.shape)} with placements {value.placements}: expected a local tensor of shape"
            f" {local_shape}, found {found}"
        )
    return pieces


def _replicas(mesh: Any, coordinate: Sequence[int], placements: Sequence[Any]) -> tuple[int, ...]:
    where = tuple(slice(None) if p.is_replicate() else c for p, c in zip(placements, coordinate))
    return tuple(sorted(int(rank) for rank in mesh.mesh[where].flatten().tolist()))


def view_of(local: Any, piece: sharding.Piece) -> Any:
    """The part of a local tensor that a piece names, sharing its memory."""
    return local[tuple(slice(o, o + e) for o, e in zip(piece.local_offset, piece.box.extent))]


def sharded_pieces(value: Any) -> list[Held]:
    """The boxes that this rank holds of a ShardedTensor-like object (local_shards(), metadata())."""
    held = []
    for shard in value.local_shards():
        box = Box(tuple(shard.metadata.shard_offsets), tuple(shard.metadata.shard_sizes))
        held.append(Held(box, plain_data(shard.tensor)[0]))
    return held


def _of_sharded(value: Any, path: str, job: Job) -> Source:
    metadata = value.metadata()
    dtype = dtypes.name_of(metadata.tensor_properties.dtype)
    if dtype is None:
        raise TypeError(f"can't store a sharded tensor of dtype {metadata.tensor_properties.dtype}: convert it first")
    ranks = sorted({int(shard.placement.rank()) for shard in metadata.shards_metadata})
    held = sharded_pieces(value)
    return Source(dtype, tuple(metadata.size), "torch", held, _owner(ranks, path, job), (job.rank,))
