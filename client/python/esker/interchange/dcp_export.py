"""Checkpoints of Esker, as directories of torch.distributed.checkpoint: torch's own writer writes them, box by box."""

import collections
import io
import math
import os
import pathlib
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType

from esker import _core, dtypes
from esker.interchange import boxes, contents, output, parts
from esker.interchange.results import Restored
from esker.sharding import Box

_READ_AHEAD_BYTES = 64 << 20


def restore(checkpoint: _core.Checkpoint, path: str | os.PathLike[str], from_rank: int | None) -> Restored:
    """As interchange.restore. One file for each rank that saved the checkpoint, and .metadata."""
    target = os.path.realpath(path)
    with output.whole_directory(target) as staging:
        export = _Export(checkpoint, contents.read(checkpoint, from_rank))
        writer = _Writer(staging, target)
        writer.set_up_storage_writer(is_coordinator=True)
        plans = [writer.prepare_local_plan(plan) for plan in export.plans]
        results = [writer.write_data(plan, export).value() for plan in writer.prepare_global_plan(plans)]
        writer.finish(export.metadata, results)
    info = checkpoint.info
    return Restored(info.run, info.step, export.tensors, export.bytes, export.items_left_out, [target])


class _Writer(FileSystemWriter):
    """Knows where the directory will be in the end."""

    def __init__(self, staging: pathlib.Path, target: str) -> None:
        super().__init__(staging, per_thread_copy_ahead=0)  # asks for the data in the order of the plan, on any machine
        self._target = target

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(checkpoint_id=self._target, save_id=self.save_id)


class _Export(SavePlanner):
    """What DCP's writer is to write, and where it gets it from: each box is read when its turn comes, together with small ones that
    come after it, so that a chunk that they share is read once."""

    def __init__(self, checkpoint: _core.Checkpoint, found: contents.Contents) -> None:
        self._checkpoint = checkpoint
        self._stored_name = found.tensors
        self._objects = found.objects
        self._types = {tensor.name: (tensor.dtype, tensor.shape) for tensor in checkpoint.tensors()}
        state: dict[str, STORAGE_TYPES] = {}
        items: list[list[WriteItem]] = [[] for _ in range(checkpoint.info.world_size)]
        stored = self._stored_boxes()
        self.bytes = 0
        for name in found.paths:
            if name in found.objects:
                state[name] = BytesStorageMetadata()
                items[0].append(WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO))
            else:
                state[name] = self._plan_tensor(name, stored.get(found.tensors[name], {}), items)
        self.tensors = len(found.tensors)
        self.items_left_out = found.items_left_out
        self.metadata = Metadata(state_dict_metadata=state, planner_data=found.paths)
        self.plans = [SavePlan(of_rank, planner_data=found.paths) for of_rank in items]
        self._to_read = collections.deque(item for of_rank in items for item in of_rank if item.type is not WriteItemType.BYTE_IO)
        self._read: dict[MetadataIndex, torch.Tensor] = {}

    def _stored_boxes(self) -> dict[str, dict[Box, int]]:
        """Of each stored tensor the boxes, and a rank that has them."""
        stored: dict[str, dict[Box, int]] = {}
        for rank in range(self._checkpoint.info.world_size):
            for name, _, _, offset, extent, _ in self._checkpoint.stored_by(rank):
                stored.setdefault(name, {}).setdefault(Box(offset, extent), rank)
        return stored

    def _plan_tensor(self, name: str, stored: dict[Box, int], items: list[list[WriteItem]]) -> TensorStorageMetadata:
        dtype, shape = self._types[self._stored_name[name]]
        properties = TensorProperties(dtype=dtypes.to_torch(dtype))
        size = torch.Size(shape)
        chunks = []
        for number, (box, rank) in enumerate(sorted(self._to_write(name, stored))):
            chunk = ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.extent))
            chunks.append(chunk)
            index = MetadataIndex(name, chunk.offsets, number)
            items[rank].append(WriteItem(index, WriteItemType.SHARD, tensor_data=TensorWriteData(chunk, properties, size)))
            self.bytes += parts.TensorPiece(name, dtype, shape, box).bytes
        return TensorStorageMetadata(properties, size, chunks)

    def _to_write(self, name: str, stored: dict[Box, int]) -> list[tuple[Box, int]]:
        """Boxes that make up the tensor, each element once, as DCP expects of its chunks; and a rank that has them.

        Raises EskerError DATA_LOSS if elements are missing: dcp.load would leave whatever is in the target's memory there."""
        dtype, shape = self._types[self._stored_name[name]]
        found = [(piece, stored[box]) for part, box in boxes.disjoint(stored) for piece in parts.cut(part, dtype)]
        elements = sum(boxes.elements(box) for box, _ in found)
        if elements != math.prod(shape):
            info = self._checkpoint.info
            raise _core.EskerError(
                f"run {info.run}, step {info.step}: {name}: {elements} of its {math.prod(shape)} elements are stored: a part is missing",
                "DATA_LOSS",
            )
        return found or list(stored.items())[:1]

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        name = write_item.index.fqn
        if write_item.type is WriteItemType.BYTE_IO:
            return io.BytesIO(self._objects[name]())
        if write_item.index not in self._read:
            self._read_ahead()
        return self._read.pop(write_item.index)

    def _read_ahead(self) -> None:
        wanted: list[_core.TensorBox] = []
        total = 0
        while self._to_read and total < _READ_AHEAD_BYTES:
            item = self._to_read.popleft()
            piece = self._piece(item)
            self._read[item.index] = parts.empty(piece)
            if piece.bytes:
                address = self._read[item.index].data_ptr()
                wanted.append((piece.name, piece.dtype, piece.shape, piece.box.offset, piece.box.extent, address))
            total += piece.bytes
        if wanted:
            self._checkpoint.restore(wanted)

    def _piece(self, item: WriteItem) -> parts.TensorPiece:
        assert item.tensor_data is not None
        chunk = item.tensor_data.chunk
        stored_name = self._stored_name[item.index.fqn]
        dtype, shape = self._types[stored_name]
        return parts.TensorPiece(stored_name, dtype, shape, Box(tuple(chunk.offsets), tuple(chunk.sizes)))

    # What a job's planner works out is known here from the start.

    def set_up_planner(self, state_dict: Any, storage_meta: StorageMeta | None = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return self.plans[0]

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, self.metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan
