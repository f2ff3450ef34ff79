"""Directories of torch.distributed.checkpoint, into Esker: as esker.torch.StorageWriter would have saved them."""

import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from esker import _core
from esker.interchange import dcp_metadata, parts
from esker.sharding import Box
from esker.torch.metadata import ITEM, encode_item, stored_name


def save(destination: parts.Destination, path: str | os.PathLike[str]) -> _core.CheckpointInfo:
    """Saves what is in the directory. As interchange.save. Objects are pickles: they are stored as they are, and not unpickled."""
    directory = pathlib.Path(os.path.abspath(path))
    metadata = dcp_metadata.read(directory)
    if ITEM in metadata.state_dict_metadata:
        raise _core.EskerError(f'{directory}: "{ITEM}" can\'t be the name of an object: Esker keeps it for itself', "INVALID_ARGUMENT")
    try:
        pieces = _pieces(metadata)
    except TypeError as error:
        raise _core.EskerError(f"{directory}: {error}", "INVALID_ARGUMENT") from error
    planner_data = encode_item(metadata.planner_data)
    reader = FileSystemReader(directory)
    reader.set_up_storage_reader(metadata, is_coordinator=True)

    def read(part: Sequence[parts.Piece]) -> list[Any]:
        return [planner_data if piece.name == ITEM else _read(reader, directory, piece) for piece in part]

    return parts.save(destination, [parts.ItemPiece(ITEM, len(planner_data)), *pieces], (), read)


def _pieces(metadata: Metadata) -> list[parts.Piece]:
    """In the order of the files. A chunk is the least that can be read. TypeError for a tensor that can't be stored."""
    pieces: list[tuple[str, int, parts.Piece]] = []
    for fqn, stored in metadata.state_dict_metadata.items():
        if not isinstance(stored, TensorStorageMetadata):
            info = metadata.storage_data[MetadataIndex(fqn)]
            pieces.append((info.relative_path, info.offset, parts.ItemPiece(fqn, info.length)))
            continue
        dtype = stored_name(stored.properties.dtype, fqn)
        for chunk in stored.chunks:
            info = metadata.storage_data[MetadataIndex(fqn, chunk.offsets)]
            box = Box(tuple(chunk.offsets), tuple(chunk.sizes))
            pieces.append((info.relative_path, info.offset, parts.TensorPiece(fqn, dtype, tuple(stored.size), box)))
    return [piece for _, _, piece in sorted(pieces, key=lambda entry: entry[:2])]


def _read(reader: FileSystemReader, directory: pathlib.Path, piece: parts.Piece) -> Any:
    """The elements or the bytes of a piece."""
    box = piece.box if isinstance(piece, parts.TensorPiece) else None
    offset, extent = (None, ()) if box is None else (box.offset, box.extent)
    index, start = MetadataIndex(piece.name, offset), torch.Size([0] * len(extent))
    kind = LoadItemType.BYTE_IO if box is None else LoadItemType.TENSOR
    content = _Content(piece)
    try:
        reader.read_data(LoadPlan([ReadItem(kind, index, start, index, start, torch.Size(extent))]), content).wait()
    except OSError:
        raise
    except Exception as error:  # torch raises whatever its parser ran into
        file = directory / reader.storage_data[index].relative_path
        raise _core.EskerError(
            f"{file}: {piece.name}: what is stored there can't be loaded as a tensor of shape {list(extent)}: it is damaged, or would"
            " need code to be run",
            "DATA_LOSS",
        ) from error
    return content.value


class _Content(DefaultLoadPlanner):
    """Takes what DCP's reader reads for a piece."""

    def __init__(self, piece: parts.Piece) -> None:
        super().__init__()
        self._piece = piece
        self.value: Any = None

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        self.value = value.getvalue()

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        assert isinstance(self._piece, parts.TensorPiece)
        target: torch.Tensor = parts.empty(self._piece)
        self.value = target
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass
