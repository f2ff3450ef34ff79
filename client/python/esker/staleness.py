"""Whether a rank saves what it saved before: a cached copy, perhaps, that training no longer changes.

The store says how much of a save it had already. But it may have had it from another rank, in the very same save. So each save
also samples its largest tensors, and is stale only if these too are what they were in this rank's save before.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

from esker import memory
from esker.spread import Share

_MOST_TENSORS = 256
_SAMPLES = 16
_SAMPLE_BYTES = 64

Samples = dict[tuple[str, tuple[int, ...]], tuple[int, bytes]]
"""(name, offset) of a box -> its bytes, and some of its content."""


def take(shares: Sequence[Share], ready: Sequence[Any]) -> Samples:
    """Samples the largest of the boxes; `ready` is their content, as tensors or arrays that can be read directly."""
    largest = sorted(range(len(shares)), key=lambda i: -shares[i].bytes)[:_MOST_TENSORS]
    return {
        (shares[i].leaf.name, shares[i].held.box.offset): (shares[i].bytes, _sample(memory.address(ready[i]), shares[i].bytes))
        for i in largest
        if shares[i].bytes > 0
    }


def _sample(address: int, size: int) -> bytes:
    step = max(size // _SAMPLES, _SAMPLE_BYTES)
    places = range(0, size, step)
    return b"".join(ctypes.string_at(address + at, min(_SAMPLE_BYTES, size - at)) for at in places)


def unchanged_fraction(before: Samples, now: Samples) -> float:
    """How much of the sampled boxes, by size, looks as it did before: 0.0 to 1.0."""
    total = sum(size for size, _ in now.values())
    same = sum(size for key, (size, sample) in now.items() if before.get(key) == (size, sample))
    return same / total if total else 0.0
