"""What of its tensors a rank saves: replicas divide what they all hold among themselves, by size, and talk to nobody."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from esker import dtypes, sharding
from esker.sharding import Box
from esker.tensors import Held
from esker.tree import SourceTensor


class Share(NamedTuple):
    """A box for this rank to save."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    held: Held


def own_shares(tensors: Sequence[SourceTensor], rank: int) -> list[Share]:
    """What this rank saves. Every rank of a group of replicas computes the same division, so it has to hold the same
    tensors: what one of them lacks may be saved by nobody."""
    mine: list[Share] = []
    groups: dict[tuple[int, ...], list[Share]] = {}
    for tensor in tensors:
        source = tensor.source
        shares = [Share(tensor.leaf.name, source.dtype, source.shape, held) for held in source.held]
        if len(source.replicas) == 1:
            mine.extend(shares)
        else:
            groups.setdefault(source.replicas, []).extend(shares)
    for replicas, shares in groups.items():
        divided = [part for share in sorted(shares, key=_order) for part in _divide(share, len(replicas))]
        chosen = sharding.assign([_bytes(share) for share in divided], len(replicas))
        place = replicas.index(rank)
        mine.extend(share for share, holder in zip(divided, chosen) if holder == place)
    return mine


def _order(share: Share) -> tuple[str, tuple[int, ...]]:
    return share.name, share.held.box.offset


def _bytes(share: Share) -> int:
    return math.prod(share.held.box.extent) * dtypes.element_bytes(share.dtype)


def _divide(share: Share, holders: int) -> list[Share]:
    box, data = share.held.box, share.held.data
    cuts = sharding.shares(_bytes(share), box.extent, holders)
    if len(cuts) == 1:
        return [share]
    parts = []
    for dimension, first, rows in cuts:
        offset = tuple(o + (first if d == dimension else 0) for d, o in enumerate(box.offset))
        extent = tuple(rows if d == dimension else e for d, e in enumerate(box.extent))
        view = data[(slice(None),) * dimension + (slice(first, first + rows),)]
        parts.append(share._replace(held=Held(Box(offset, extent), view)))
    return parts
