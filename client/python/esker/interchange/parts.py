"""Saves a checkpoint of any size in little memory: as the parts of several ranks, one after the other.

Each part is read, copied, and durable before the next one is read. The checkpoint appears with the last one, as always. The server
hears nothing while a part is read: it ends the save if that takes longer than its --save-timeout.
"""

import ctypes
import dataclasses
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

from esker import _core, dtypes, memory
from esker.sharding import Box
from esker.torch.connections import await_durable

PART_BYTES = 1 << 30
# Each part keeps a connection open until the commit.
_MOST_PARTS = 256
_SAVE_TIMEOUT = 7 * 24 * 3600.0  # seconds: the first part waits for the last one
# What the server says of a save that it ended because nothing came (server/coordinator/save_watch.cc).
_SENT_NOTHING = "no rank sent anything for"
_WHAT_TO_DO = "A part is sent when all of it was read: if that takes longer, start eskerd with a longer --save-timeout"


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where to save, and how. As interchange.save's arguments."""

    server: str
    run: str
    step: int
    incarnation: str
    compression: Literal["none", "zstd", "planes", "auto"]
    connect_timeout: float
    force: bool


@dataclasses.dataclass(frozen=True)
class TensorPiece:
    """A box of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    box: Box

    @property
    def bytes(self) -> int:
        return math.prod(self.box.extent) * dtypes.element_bytes(self.dtype)


@dataclasses.dataclass(frozen=True)
class ItemPiece:
    """A byte item."""

    name: str
    bytes: int


Piece: TypeAlias = TensorPiece | ItemPiece
Read: TypeAlias = Callable[[Sequence[Piece]], Sequence[Any]]
"""For each piece: of a tensor its elements, as a tensor that is contiguous and on the CPU; of an item its bytes."""


def cut(box: Box, dtype: str) -> Iterable[Box]:
    """The box in pieces of at most PART_BYTES, by halves of the first dimension that can be halved."""
    size = math.prod(box.extent) * dtypes.element_bytes(dtype)
    dimension = next((d for d, extent in enumerate(box.extent) if extent > 1), None)
    if size <= PART_BYTES or dimension is None:
        yield box
        return
    half = box.extent[dimension] // 2
    for offset, extent in ((0, half), (half, box.extent[dimension] - half)):
        offsets, extents = list(box.offset), list(box.extent)
        offsets[dimension] += offset
        extents[dimension] = extent
        yield from cut(Box(tuple(offsets), tuple(extents)), dtype)


def empty(piece: TensorPiece) -> Any:
    """New memory for the elements of a piece."""
    return memory.allocate(piece.dtype, piece.box.extent, "torch")


def save(destination: Destination, pieces: Sequence[Piece], on_each: Sequence[tuple[str, bytes]], read: Read) -> _core.CheckpointInfo:
    """Saves the pieces, in their order, and returns the committed checkpoint.

    on_each: byte items that every part gets. Raises EskerError (ALREADY_EXISTS, and as Checkpointer), and what `read` raises; nothing
    is visible then.
    """
    reader = _core.Reader(destination.server, connect_timeout=destination.connect_timeout)
    if not destination.force:
        _check_step_is_free(reader, destination)
    parts = _split(pieces)
    incarnation = destination.incarnation or f"esker-interchange-{secrets.token_hex(8)}"
    saved: list[tuple[_core.Checkpointer, _core.SaveHandle]] = []
    try:
        for rank, part in enumerate(parts):
            checkpointer = _open(destination, rank, len(parts), incarnation)
            handle = _save_part(checkpointer, destination.step, part, on_each, read)
            saved.append((checkpointer, handle))
            await_durable(handle)
        for _, handle in saved:
            handle.wait()
    except BaseException as error:
        _abort(saved, destination.step, error)
        if isinstance(error, _core.EskerError) and _SENT_NOTHING in str(error):
            raise _core.EskerError(f"{error}. {_WHAT_TO_DO}", error.code) from error
        raise
    return next(info for info in reader.list(destination.run) if info.step == destination.step)


def _check_step_is_free(reader: _core.Reader, destination: Destination) -> None:
    try:
        steps = {info.step for info in reader.list(destination.run)}
    except _core.EskerError as error:
        if error.code != "NOT_FOUND":
            raise
        return
    if destination.step in steps:
        name = f"{destination.run}@{destination.step}"
        raise _core.EskerError(f"{name} exists: choose another step, or force (--force) to replace it", "ALREADY_EXISTS")


def _split(pieces: Sequence[Piece]) -> list[list[Piece]]:
    most_bytes = max(PART_BYTES, -(-sum(piece.bytes for piece in pieces) // _MOST_PARTS))
    parts: list[list[Piece]] = [[]]
    filled = 0
    for piece in pieces:
        if parts[-1] and filled + piece.bytes > most_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(piece)
        filled += piece.bytes
    return parts


def _open(destination: Destination, rank: int, ranks: int, incarnation: str) -> _core.Checkpointer:
    return _core.Checkpointer(
        destination.server,
        destination.run,
        rank,
        ranks,
        incarnation=incarnation,
        compression=destination.compression,
        keep_staging=False,
        connect_timeout=destination.connect_timeout,
        save_timeout=_SAVE_TIMEOUT,
    )


def _save_part(
    checkpointer: _core.Checkpointer, step: int, part: Sequence[Piece], on_each: Sequence[tuple[str, bytes]], read: Read
) -> _core.SaveHandle:
    contents = read(part)
    boxes: list[_core.TensorBox] = []
    items = list(on_each)
    for piece, content in zip(part, contents, strict=True):
        if isinstance(piece, ItemPiece):
            items.append((piece.name, content))
        else:
            address = memory.address(content) if piece.bytes else 0
            boxes.append((piece.name, piece.dtype, piece.shape, piece.box.offset, piece.box.extent, address))
    return checkpointer.save(step, boxes, items)


def _abort(saved: list[tuple[_core.Checkpointer, _core.SaveHandle]], step: int, error: BaseException) -> None:
    """Ends the save on the server. Where the server does not answer, the save ends there by itself."""
    if not saved or all(handle.done() for _, handle in saved):
        return
    try:
        saved[0][0].abort(step, f"{type(error).__name__}: {error}")
    except _core.EskerError:
        for checkpointer, _ in saved:  # their destructors would wait for the commit: they are left to the end of the process
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(checkpointer))
