"""DCP's metadata of a checkpoint, made from Esker's manifest and layouts. Only what they can't know, where in the nested state
dict a flat name belongs, is saved in addition, as JSON. No pickle."""

import json
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from esker import _core, dtypes

# The byte item with DCP's own data. Its presence also says that the checkpoint was saved through DCP, so that its other items
# are objects of the state dict.
ITEM = ".dcp"
_VERSION = 1


def encode_item(planner_data: Any) -> bytes:
    """The content of the item: `planner_data` maps a flat name to the path of keys (text) and indices (int) that leads to it.

    Paths with other keys, and planner data of another shape, are left out: only a load into an empty state dict would need them,
    and it then finds the object under its flat name.
    """
    paths = {}
    if isinstance(planner_data, dict):
        for name, path in planner_data.items():
            if isinstance(name, str) and isinstance(path, tuple) and all(type(key) in (str, int) for key in path):
                paths[name] = list(path)
    return json.dumps({"version": _VERSION, "paths": paths}).encode()


def decode_item(content: bytes) -> dict[str, tuple[str | int, ...]]:
    """The planner data again. ValueError if a later version wrote it."""
    document = json.loads(content)
    if document["version"] != _VERSION:
        raise ValueError(f"item {ITEM}: version {document['version']}, expected {_VERSION}: install a newer esker")
    return {name: tuple(path) for name, path in document["paths"].items()}


def stored_name(dtype: torch.dtype, fqn: str) -> str:
    """What Esker calls `dtype`. TypeError names the tensor if Esker has no such type."""
    name = dtypes.name_of(dtype)
    if name is None:
        raise TypeError(f"{fqn}: {dtype} can't be stored: convert it, or save it as an object")
    return name


def read_metadata(checkpoint: _core.Checkpoint) -> tuple[Metadata, dict[str, list[int]]]:
    """DCP's metadata, and for each byte item the ranks that stored it. Reads the layouts of all ranks. Raises EskerError."""
    boxes: dict[str, dict[tuple[tuple[int, ...], tuple[int, ...]], None]] = {}
    for rank in range(checkpoint.info.world_size):
        for name, _, _, offset, extent, _ in checkpoint.stored_by(rank):
            boxes.setdefault(name, {})[offset, extent] = None  # replicas are one chunk to DCP
    state: dict[str, STORAGE_TYPES] = {}
    for tensor in checkpoint.tensors():
        state[tensor.name] = TensorStorageMetadata(
            properties=TensorProperties(dtype=dtypes.to_torch(tensor.dtype)),
            size=torch.Size(tensor.shape),
            chunks=[
                ChunkStorageMetadata(offsets=torch.Size(offset), sizes=torch.Size(extent))
                for offset, extent in sorted(boxes.get(tensor.name, {}))
            ],
        )
    items: dict[str, list[int]] = {}
    for item in checkpoint.items():
        items.setdefault(item.name, []).append(item.rank)
    planner_data: dict[str, tuple[str | int, ...]] | None = None
    if ITEM in items:
        planner_data = {}
        for rank in items.pop(ITEM):
            planner_data |= decode_item(checkpoint.read_item(rank, ITEM))
        for name in items:
            state[name] = BytesStorageMetadata()
    return Metadata(state_dict_metadata=state, planner_data=planner_data), items
