"""The .metadata of a DCP directory, read without running what it says.

It is a pickle, which can name any function to be called. Here it may name the classes that DCP's own metadata is made of, and no others.
"""

import math
import os
import pathlib
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from esker._core import EskerError
from esker.interchange import boxes
from esker.sharding import Box

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "BytesStorageMetadata")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    # Where it was saved.
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            if module.startswith("pathlib"):
                return str if name.endswith("WindowsPath") else pathlib.PurePosixPath
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of DCP's metadata, and is not run")


def read(directory: pathlib.Path) -> Metadata:
    """The metadata, after it was compared with the files. Raises EskerError: INVALID_ARGUMENT (not such a file, or one with other
    classes in it), DATA_LOSS (a file that it names is missing or too short, chunks that do not make up their tensor); OSError."""
    path = directory / ".metadata"
    try:
        with open(path, "rb") as file:
            metadata = _Unpickler(file).load()
    except OSError:
        raise
    except EOFError as error:
        raise EskerError(f"{path}: it ends too early: it is truncated", "DATA_LOSS") from error
    except Exception as error:  # a pickle of random bytes raises anything
        raise EskerError(f"{path}: it can't be read as metadata of torch.distributed.checkpoint: {error}", "INVALID_ARGUMENT") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.state_dict_metadata, dict) or not isinstance(metadata.storage_data, dict):
        raise EskerError(f"{path}: expected metadata that torch.distributed.checkpoint's FileSystemWriter wrote", "INVALID_ARGUMENT")
    try:
        for fqn, stored in metadata.state_dict_metadata.items():
            _check(path, directory, fqn, stored, metadata.storage_data)
    except (AttributeError, TypeError) as error:
        raise EskerError(f"{path}: it lacks what torch.distributed.checkpoint's metadata has: {error}", "INVALID_ARGUMENT") from error
    return metadata


def _check(path: pathlib.Path, directory: pathlib.Path, fqn: str, stored: Any, storage: dict[Any, Any]) -> None:
    if isinstance(stored, BytesStorageMetadata):
        _check_place(path, directory, MetadataIndex(fqn), storage)
        return
    if not isinstance(stored, TensorStorageMetadata):
        raise EskerError(f"{path}: {fqn}: expected a tensor or an object, found a {type(stored).__qualname__}", "INVALID_ARGUMENT")
    found = []
    for chunk in stored.chunks:
        box = Box(tuple(chunk.offsets), tuple(chunk.sizes))
        if not len(box.offset) == len(box.extent) == len(stored.size):
            raise EskerError(f"{path}: {fqn}: a chunk has other dimensions than its tensor", "INVALID_ARGUMENT")
        if any(n < 0 or x < 0 or x + n > size for x, n, size in zip(box.offset, box.extent, stored.size)):
            raise EskerError(f"{path}: {fqn}: {_shown(box)} is not within the tensor, of shape {list(stored.size)}", "DATA_LOSS")
        _check_place(path, directory, MetadataIndex(fqn, chunk.offsets), storage)
        found.append(box)
    elements = sum(boxes.elements(box) for box in found)
    if elements != math.prod(stored.size):
        raise EskerError(
            f"{path}: {fqn}: its chunks have {elements} elements, and the tensor {math.prod(stored.size)}: a part is missing", "DATA_LOSS"
        )
    # As many elements as the tensor, and none twice: so none is missing.
    if pair := boxes.overlap(found):
        raise EskerError(f"{path}: {fqn}: {_shown(pair[0])} and {_shown(pair[1])} overlap: a part is missing", "DATA_LOSS")


def _shown(box: Box) -> str:
    return f"the chunk at {list(box.offset)} of shape {list(box.extent)}"


def _check_place(path: pathlib.Path, directory: pathlib.Path, index: MetadataIndex, storage: dict[Any, Any]) -> None:
    info = storage.get(index)
    if not isinstance(info, _StorageInfo):
        raise EskerError(f"{path}: {index.fqn}: it does not say where {index.offset or 'it'} is stored", "INVALID_ARGUMENT")
    if os.path.basename(info.relative_path) != info.relative_path or info.relative_path in ("", ".", ".."):
        raise EskerError(
            f"{path}: {index.fqn}: expected the name of a file in the directory, found {info.relative_path!r}", "INVALID_ARGUMENT"
        )
    file = directory / info.relative_path
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise EskerError(f"{file}: it is missing, and {index.fqn} is in it", "DATA_LOSS") from None
    if info.offset < 0 or info.length < 0 or info.offset + info.length > size:
        raise EskerError(
            f"{file}: it has {size} bytes, and {index.fqn} is at {info.offset} to {info.offset + info.length}: it is truncated", "DATA_LOSS"
        )
