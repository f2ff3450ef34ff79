"""Which boxes of a global tensor a rank holds, and which ranks hold the same ones. Pure arithmetic: neither torch nor memory.

A box is (offset, extent): the elements x with offset[d] <= x[d] < offset[d] + extent[d] in every dimension d.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

Sizes = tuple[int, ...]


class Box(NamedTuple):
    offset: Sizes
    extent: Sizes


class Piece(NamedTuple):
    """A box of the global tensor, and where it lies in the rank's local tensor."""

    box: Box
    local_offset: Sizes


class Split(NamedTuple):
    """A dimension of the tensor, divided over the `parts` places of one dimension of the mesh.

    In even chunks of ceil(size / parts), as torch.chunk does: the last ones may be short or empty. interleave: the
    dimension is first cut into so many chunks, and each of them divided (torch's _StridedShard; 1 for Shard).
    """

    dim: int
    parts: int
    place: int
    interleave: int = 1


# Where the rows of a local dimension come from: (first global row, how many), in the order of the local rows.
_Runs = list[tuple[int, int]]


def _length(runs: _Runs) -> int:
    return sum(count for _, count in runs)


def _cut(runs: _Runs, first: int, last: int) -> _Runs:
    """Local rows [first, last) of the runs."""
    cut: _Runs = []
    at = 0
    for begin, count in runs:
        low, high = max(first - at, 0), min(last - at, count)
        if low < high:
            cut.append((begin + low, high - low))
        at += count
    return cut


def _chunk(runs: _Runs, parts: int, place: int) -> _Runs:
    length = _length(runs)
    size = -(-length // parts)
    return _cut(runs, min(place * size, length), min((place + 1) * size, length))


def _joined(runs: _Runs) -> _Runs:
    joined: _Runs = []
    for begin, count in runs:
        if joined and sum(joined[-1]) == begin:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((begin, count))
    return joined


def local_pieces(shape: Sizes, splits: Sequence[Split]) -> tuple[Sizes, list[Piece]]:
    """The local tensor's shape, and the boxes that it is made of, after the splits in their order.

    One box for ordinary shards; several for interleaved ones; none if this rank has no element. A scalar has one.
    """
    runs: list[_Runs] = [[(0, size)] if size else [] for size in shape]
    for split in splits:
        chunks = [_chunk(runs[split.dim], split.interleave, i) for i in range(split.interleave)]
        mine = [run for chunk in chunks for run in _chunk(chunk, split.parts, split.place)]
        runs[split.dim] = _joined(mine)
    local_shape = tuple(_length(r) for r in runs)

    placed = []  # for each dimension: (global row, local row, how many)
    for dimension in runs:
        ends = list(itertools.accumulate(count for _, count in dimension))
        placed.append([(begin, end - count, count) for (begin, count), end in zip(dimension, ends)])
    pieces = [
        Piece(Box(tuple(p[0] for p in each), tuple(p[2] for p in each)), tuple(p[1] for p in each))
        for each in itertools.product(*placed)
    ]
    return local_shape, pieces


# Replicas share the work of saving what they all hold. Below this a tensor is not divided: it would only make small chunks.
SMALLEST_SHARE_BYTES = 4 << 20


def shares(box_bytes: int, extent: Sizes, holders: int) -> list[tuple[int, int, int]]:
    """Divides a box of that extent into at most `holders` shares that lie each in one place of its memory.

    Returns [(dimension, first row, rows)], relative to the box. Only boxes of twice SMALLEST_SHARE_BYTES are divided.
    """
    dimension = next((d for d, size in enumerate(extent) if size > 1), None)
    count = min(holders, box_bytes // SMALLEST_SHARE_BYTES)
    if dimension is None or count < 2:
        return [(0, 0, extent[0] if extent else 1)]
    rows = extent[dimension]
    step = -(-rows // count)
    return [(dimension, first, min(step, rows - first)) for first in range(0, rows, step)]


def assign(sizes: Sequence[int], holders: int) -> list[int]:
    """Which of the holders saves which share: the largest first, each to who has least. The same on every rank."""
    loads = [0] * holders
    chosen = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        holder = min(range(holders), key=lambda h: (loads[h], h))
        loads[holder] += sizes[index]
        chosen[index] = holder
    return chosen
