"""Whether boxes of a tensor overlap, and what they cover. Pure arithmetic, for many boxes: a tensor may have 100,000.

Boxes without elements are left out everywhere.
"""

import math
from collections.abc import Iterable, Iterator

from esker.sharding import Box


def elements(box: Box) -> int:
    return math.prod(box.extent)


def overlap(boxes: Iterable[Box]) -> tuple[Box, Box] | None:
    """Two of the boxes that have an element in common, or None."""
    return next((pair for group in _apart(boxes) if (pair := _overlap_in(group)) is not None), None)


def disjoint(boxes: Iterable[Box]) -> Iterator[tuple[Box, Box]]:
    """Boxes that cover what the boxes cover, each element once, and for each the one of `boxes` that it is of.

    A box that overlaps no other stays as it is; of those that overlap, the largest."""
    for group in _apart(dict.fromkeys(boxes)):
        if _overlap_in(group) is None:
            yield from ((box, box) for box in group)
            continue
        kept: list[Box] = []
        for box in sorted(group, key=lambda box: (-elements(box), box)):
            rest = [box]
            for other in kept:
                rest = [piece for part in rest for piece in _without(part, other)]
            kept += rest
            yield from ((piece, box) for piece in rest)


def _apart(boxes: Iterable[Box]) -> Iterator[list[Box]]:
    """The boxes in groups; those of different groups do not overlap.

    Cuts through all of a group that go between its boxes, until there are none. A grid comes out box by box."""
    groups = [[box for box in boxes if elements(box) > 0]]
    while groups:
        group = groups.pop()
        dimensions = range(len(group[0].offset)) if len(group) > 1 else ()
        cut = next((pieces for d in dimensions if len(pieces := _cut(group, d)) > 1), None)
        if cut is not None:
            groups += cut
        elif group:
            yield group


def _cut(group: list[Box], dimension: int) -> list[list[Box]]:
    pieces: list[list[Box]] = []
    end = -1
    for box in sorted(group, key=lambda box: box.offset[dimension]):
        if not pieces or box.offset[dimension] >= end:
            pieces.append([])
        pieces[-1].append(box)
        end = max(end, box.offset[dimension] + box.extent[dimension])
    return pieces


def _overlap_in(group: list[Box]) -> tuple[Box, Box] | None:
    """Compares each box with those that overlap it in the dimension that tells most of them apart."""
    if len(group) < 2:
        return None
    dimensions = range(len(group[0].offset))
    d = max(dimensions, key=lambda d: len({box.offset[d] for box in group}), default=None)
    if d is None:  # of a scalar there is one box only
        return group[0], group[1]
    passed: list[Box] = []
    for box in sorted(group, key=lambda box: box.offset[d]):
        passed = [other for other in passed if other.offset[d] + other.extent[d] > box.offset[d]]
        for other in passed:
            if _overlaps(other, box):
                return other, box
        passed.append(box)
    return None


def _overlaps(a: Box, b: Box) -> bool:
    return all(x < y + m and y < x + n for x, n, y, m in zip(a.offset, a.extent, b.offset, b.extent))


def _without(box: Box, hole: Box) -> Iterator[Box]:
    """What is left of the box, in boxes."""
    if not _overlaps(box, hole):
        yield box
        return
    offset, extent = list(box.offset), list(box.extent)
    for d in range(len(offset)):
        begin, end = offset[d], offset[d] + extent[d]
        hole_begin, hole_end = max(begin, hole.offset[d]), min(end, hole.offset[d] + hole.extent[d])
        for first, last in ((begin, hole_begin), (hole_end, end)):
            if first < last:
                yield Box((*offset[:d], first, *offset[d + 1 :]), (*extent[:d], last - first, *extent[d + 1 :]))
        offset[d], extent[d] = hole_begin, hole_end - hole_begin
