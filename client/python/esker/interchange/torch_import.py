"""Files of torch.save, into Esker: as the tree that esker.Checkpointer would have saved."""

import errno
import os
import pickle
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

import torch

from esker import _core, memory, tensors, tree, tree_json
from esker.interchange import parts
from esker.sharding import Box

_READ_BYTES = 1 << 20
_ENCRYPTED = 0x1  # of a record's flags
_WHAT_TO_DO = (
    "load it where you trust it, and save tensors and plain values only, such as its state_dict();"
    " or allow it in your own program with torch.serialization.add_safe_globals and save what it loads with esker.Checkpointer"
)


def save(destination: parts.Destination, path: str | os.PathLike[str]) -> _core.CheckpointInfo:
    """Saves what is in the file. As interchange.save.

    Every tensor is stored for itself, row-major: what shared memory, or was a view, has the same elements but not the same memory when
    it is loaded.
    """
    state = load(path)
    try:
        flat = tree.flatten(state, _describe, allow_pickle=False)
    except (TypeError, ValueError) as error:
        raise _core.EskerError(f"{os.fspath(path)}: {error}", "INVALID_ARGUMENT") from error
    data = {source.leaf.name: source.source.held[0].data for source in flat.tensors}
    pieces = [
        parts.TensorPiece(source.leaf.name, source.leaf.dtype, source.leaf.shape, box)
        for source in flat.tensors
        for box in parts.cut(source.source.held[0].box, source.leaf.dtype)
    ]

    def read(part: Sequence[parts.Piece]) -> list[Any]:
        return [_elements(data[piece.name], piece.box) for piece in part if isinstance(piece, parts.TensorPiece)]

    # On each part, so that it can be loaded from any.
    items = [(tree.TREE_ITEM, tree_json.encode(flat.root, 1)), *((source.leaf.item, source.content) for source in flat.items)]
    return parts.save(destination, pieces, items, read)


def _describe(value: Any, path: str) -> tensors.Source:
    if tensors.is_distributed(value):
        raise TypeError(
            f"can't store a {type(value).__qualname__} out of a file: it holds one rank's box of it; save full_tensor() there, or the whole"
            " job with torch.distributed.checkpoint"
        )
    return tensors.describe(value, path, tensors.Job(0, 1))


def load(path: str | os.PathLike[str]) -> Any:
    """What is in the file, with its tensors mapped from there where the format allows it (archives: since torch 1.6).

    Raises EskerError: INVALID_ARGUMENT (no such file; needs code, says which), DATA_LOSS (truncated, or a checksum is wrong); OSError.
    """
    path = os.path.abspath(path)
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive:
        _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise _core.EskerError(f"{path}: {_needed(path, error)}: {_WHAT_TO_DO}", "INVALID_ARGUMENT") from error
    except OSError:
        raise
    except Exception as error:  # torch raises whatever its parser ran into
        if isinstance(error, (EOFError, IndexError, struct.error)) or "unexpected EOF" in str(error):
            raise _core.EskerError(f"{path}: it ends too early: it is truncated", "DATA_LOSS") from error
        code = "DATA_LOSS" if "failed reading zip archive" in str(error) else "INVALID_ARGUMENT"
        raise _core.EskerError(f"{path}: torch.load can't read it: {_first_line(error)}", code) from error


def _check_archive(path: str) -> None:
    """Compares every record with its CRC-32, which torch.load does not, and refuses records that torch.save does not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            packed = [record.filename for record in records if record.flag_bits & _ENCRYPTED or record.compress_type != zipfile.ZIP_STORED]
            # torch.save can be told to write no checksums (torch.serialization.set_crc32_options): then all of them are 0.
            checked = records if not packed and any(record.CRC for record in records) else []
            damaged = next((record.filename for record in checked if not _is_intact(archive, record)), None)
    except Exception as error:  # zipfile raises whatever its parser ran into, and EINVAL for a record at an impossible offset
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise _core.EskerError(f"{path}: it begins as an archive of torch.save, but is cut off or damaged: {error}", "DATA_LOSS") from error
    if packed:
        raise _core.EskerError(
            f"{path}: the record {packed[0]} is compressed or encrypted, and torch.save does neither: it is damaged, or no file of torch.save",
            "DATA_LOSS",
        )
    if damaged is not None:
        raise _core.EskerError(f"{path}: the record {damaged} is damaged: its checksum or its size is wrong", "DATA_LOSS")


def _is_intact(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    if record.compress_size != record.file_size:
        return False
    try:
        with archive.open(record) as content:
            while content.read(_READ_BYTES):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _needed(path: str, error: pickle.UnpicklingError) -> str:
    """What of the file torch.load(weights_only=True) does not take."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # only archives are looked through; the error itself names the first one
        names = []
    if names:
        return f"to load it, code would have to be run: {', '.join(sorted(names))}"
    first = next((line for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line), _first_line(error))
    return f"to load it, code would have to be run, or it is no file of torch.save: {first.strip()}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _elements(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    view = tensor[tuple(slice(offset, offset + extent) for offset, extent in zip(box.offset, box.extent))]
    return memory.contiguous(view)  # type: ignore[no-any-return]
