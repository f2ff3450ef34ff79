"""Checkpoints of Esker, as files of torch.save that torch.load(weights_only=True) reads."""

import io
import os
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict

from esker import _core, dtypes
from esker.interchange import contents, output
from esker.interchange.results import Restored


def restore(checkpoint: _core.Checkpoint, path: str | os.PathLike[str], from_rank: int | None, force: bool) -> Restored:
    """As interchange.restore. The whole state is in memory meanwhile."""
    target = os.path.realpath(path)
    with output.whole_file(target, force) as staging:
        reading = _Reading(checkpoint)
        state, left_out = _of_tree(reading, from_rank) if contents.has_tree(checkpoint) else _of_names(reading)
        reading.finish()
        torch.save(state, staging)
    info = checkpoint.info
    return Restored(info.run, info.step, len(reading.boxes), reading.bytes, left_out, [target])


class _Reading:
    """The tensors that are to be read, together: a chunk that several want is read once."""

    def __init__(self, checkpoint: _core.Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.boxes: list[_core.TensorBox] = []
        self.bytes = 0

    def add(self, name: str, dtype: str, shape: tuple[int, ...], target: torch.Tensor) -> None:
        self.boxes.append((name, dtype, shape, (0,) * len(shape), shape, target.data_ptr()))
        self.bytes += target.nbytes

    def finish(self) -> None:
        if boxes := [box for box in self.boxes if 0 not in box[2]]:
            self.checkpoint.restore(boxes)


def _of_tree(reading: _Reading, from_rank: int | None) -> tuple[Any, int]:
    state, reads = contents.skeleton(reading.checkpoint, from_rank, tuples_of_tensors=True)
    for read in reads:
        reading.add(read.leaf.name, read.leaf.dtype, read.leaf.shape, read.target)
    return state, 0


def _of_names(reading: _Reading) -> tuple[Any, int]:
    found = contents.read(reading.checkpoint, None)
    types = {tensor.name: (tensor.dtype, tensor.shape) for tensor in reading.checkpoint.tensors()}
    flat: dict[str, Any] = {name: _object(name, content()) for name, content in found.objects.items()}
    for name, stored_name in found.tensors.items():
        dtype, shape = types[stored_name]
        flat[name] = torch.empty(shape, dtype=dtypes.to_torch(dtype))
        reading.add(stored_name, dtype, shape, flat[name])
    return unflatten_state_dict(flat, found.paths), found.items_left_out


def _object(name: str, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise _core.EskerError(
            f"{name}: it is an object that only unpickling loads, which runs whatever code is in it: restore it with the format dcp,"
            " which keeps it as it is, and load it where you trust it",
            "INVALID_ARGUMENT",
        ) from error
