"""What ranks tell each other over torch.distributed, where the job has initialized it."""

import os
from typing import Any

from esker.dtypes import torch_if_imported

_TEXT_BYTES = 1024


def group_of(world_size: int) -> Any:
    """The default process group, if it has so many ranks; else None."""
    torch = torch_if_imported()
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.group.WORLD if torch.distributed.get_world_size() == world_size else None


def broadcast_text(text: str) -> str:
    """Rank 0's text, of at most 1 KiB. A collective of the default group."""
    torch = torch_if_imported()
    padded = text.encode().ljust(_TEXT_BYTES, b"\0")
    told = torch.tensor(list(padded), dtype=torch.uint8, device=_device(torch))
    torch.distributed.broadcast(told, src=0)
    return bytes(told.tolist()).rstrip(b"\0").decode()


def _device(torch: Any) -> Any:
    """Where the default group's backend wants tensors to be: on the CPU if it can."""
    group = torch.distributed.group.WORLD
    if torch.device("cpu") in group._device_types:
        return torch.device("cpu")
    # One GPU a rank: the one that the group was given, or the one of this rank; the current one may still be everybody's first.
    return group.bound_device_id or torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
