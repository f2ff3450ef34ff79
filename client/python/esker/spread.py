"""What of its tensors a rank saves: replicas divide what they all hold among themselves, by size, and talk to nobody."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from esker import dtypes, sharding
from esker.sharding import Box
from esker.tensors import Held
from esker.tree import SourceTensor, TensorLeaf


class Share(NamedTuple):
    """A box for this rank to save. is_own: of a plain tensor that no other rank has."""

    leaf: TensorLeaf
    held: Held
    is_own: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.held.box.extent) * dtypes.element_bytes(self.leaf.dtype)


def own_shares(tensors: Sequence[SourceTensor], rank: int) -> list[Share]:
    """What this rank saves. Every rank of a group of replicas computes the same division, so it has to hold the same
    tensors: what one of them lacks may be saved by nobody."""
    mine: list[Share] = []
    groups: dict[tuple[int, ...], list[Share]] = {}
    for tensor in tensors:
        source = tensor.source
        shares = [Share(tensor.leaf, held, source.is_own) for held in source.held]
        if len(source.replicas) == 1:
            mine.extend(shares)
        else:
            groups.setdefault(source.replicas, []).extend(shares)
    for replicas, shares in groups.items():
        divided = [part for share in sorted(shares, key=_order) for part in _divide(share, len(replicas))]
        chosen = sharding.assign([share.bytes for share in divided], len(replicas))
        place = replicas.index(rank)
        mine.extend(share for share, holder in zip(divided, chosen) if holder == place)
    return mine


def _order(share: Share) -> tuple[str, tuple[int, ...]]:
    return share.leaf.name, share.held.box.offset


def _divide(share: Share, holders: int) -> list[Share]:
    box, data = share.held.box, share.held.data
    cuts = sharding.shares(share.bytes, box.extent, holders)
    if len(cuts) == 1:
        return [share]
    parts = []
    for dimension, first, rows in cuts:
        offset = tuple(o + (first if d == dimension else 0) for d, o in enumerate(box.offset))
        extent = tuple(rows if d == dimension else e for d, e in enumerate(box.extent))
        view = data[(slice(None),) * dimension + (slice(first, first + rows),)]
        parts.append(share._replace(held=Held(Box(offset, extent), view)))
    return parts
