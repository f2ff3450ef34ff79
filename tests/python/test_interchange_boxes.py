"""Which boxes overlap, and what they cover: against counting every element."""

import itertools
import random
import time

import pytest

from esker.interchange import boxes
from esker.sharding import Box


def covered(found: list[Box]) -> list[tuple[int, ...]]:
    return [
        element for box in found for element in itertools.product(*(range(x, x + n) for x, n in zip(box.offset, box.extent)))
    ]


def random_boxes(rng: random.Random, dimensions: int) -> list[Box]:
    return [
        Box(tuple(rng.randrange(6) for _ in range(dimensions)), tuple(rng.choice([0, 1, 1, 2, 3]) for _ in range(dimensions)))
        for _ in range(rng.randrange(6))
    ]


@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
def test_overlaps_and_covers_as_counting_says(dimensions: int) -> None:
    rng = random.Random(dimensions)
    for _ in range(500):
        found = random_boxes(rng, dimensions)
        elements = covered(found)
        pair = boxes.overlap(found)
        assert (pair is not None) == (len(elements) != len(set(elements))), found
        assert pair is None or set(covered([pair[0]])) & set(covered([pair[1]]))
        pieces = list(boxes.disjoint(found))
        assert sorted(covered([piece for piece, _ in pieces])) == sorted(set(elements)), found
        for piece, of in pieces:
            assert of in found and set(covered([piece])) <= set(covered([of]))


def test_boxes_that_no_cut_separates_are_kept_as_they_are() -> None:
    pinwheel = [Box((0, 0), (1, 2)), Box((0, 2), (2, 1)), Box((2, 1), (1, 2)), Box((1, 0), (2, 1)), Box((1, 1), (1, 1))]
    assert boxes.overlap(pinwheel) is None
    assert sorted(boxes.disjoint(pinwheel)) == sorted((box, box) for box in pinwheel)


def test_what_a_larger_box_contains_is_left_out() -> None:
    whole, corner, beyond = Box((0, 0), (4, 4)), Box((0, 0), (2, 2)), Box((0, 3), (1, 3))
    assert sorted(boxes.disjoint([corner, whole, beyond, whole])) == [(whole, whole), (Box((0, 4), (1, 2)), beyond)]


@pytest.mark.parametrize("grid", [(100_000, 1), (1, 100_000), (250, 400)])
def test_a_grid_of_100_000_boxes_takes_seconds(grid: tuple[int, int]) -> None:
    found = [Box((3 * row, 5 * column), (3, 5)) for row in range(grid[0]) for column in range(grid[1])]
    random.Random(1).shuffle(found)
    began = time.process_time()
    assert boxes.overlap(found) is None
    assert sum(boxes.elements(piece) for piece, _ in boxes.disjoint(found)) == 15 * 100_000
    assert boxes.overlap([*found, Box((1, 1), (1, 1))]) is not None
    assert time.process_time() - began < 30
