"""Addresses that the native client can read from and write to: row-major, contiguous memory of the CPU.

Contiguous CPU tensors are used where they are. Others go through a copy: non-contiguous ones through a new tensor, those of a
device through pinned memory that is kept from save to save, with copies that run side by side.

Not yet run on a GPU: what concerns devices here is tested with CPU tensors that are treated as if they were a device's.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

from esker import dtypes

_ALIGNMENT = 256  # bytes: of each tensor in pinned memory


def is_torch(data: Any) -> bool:
    torch = dtypes.torch_if_imported()
    return torch is not None and isinstance(data, torch.Tensor)


def on_device(data: Any) -> bool:
    """Whether it is a tensor whose elements the CPU can't read."""
    return is_torch(data) and data.device.type != "cpu"


def is_direct(data: Any) -> bool:
    """Whether its memory holds its elements as they are stored."""
    if is_torch(data):
        return not on_device(data) and bool(data.is_contiguous()) and not data.is_conj() and not data.is_neg()
    return bool(data.flags.c_contiguous and data.dtype.isnative)


def is_writable(data: Any) -> bool:
    """Whether each of its elements can be given a value: not in a read-only array, nor where elements share memory."""
    if is_torch(data):
        return all(stride > 0 for stride, size in zip(data.stride(), data.shape) if size > 1)
    return bool(data.flags.writeable)


def address(data: Any) -> int:
    """Of the first element of a direct tensor or array."""
    return int(data.data_ptr()) if is_torch(data) else int(data.ctypes.data)


def content(data: Any, size: int) -> bytes:
    """The bytes of a direct tensor or array of that size."""
    return ctypes.string_at(address(data), size) if size else b""


def elements(data: Any) -> int:
    return math.prod(data.shape)


def contiguous(data: Any) -> Any:
    """The CPU tensor or array itself if it is direct, else a copy that is."""
    if is_direct(data):
        return data
    if is_torch(data):
        return data.resolve_conj().resolve_neg().contiguous()
    return data.astype(data.dtype.newbyteorder("="), order="C")


class PinnedStaging:
    """Pinned CPU memory for copies from devices. It grows to the largest state and is kept. Not thread-safe."""

    def __init__(self) -> None:
        self._buffer: Any = None

    def fetch(self, tensors: Sequence[Any]) -> list[Any]:
        """CPU copies of the devices' tensors, good until the next call. Returns when they are complete.

        The copies are queued behind the work that made the tensors, on each device's current stream, and run side by side.
        """
        if not tensors:
            return []
        import torch

        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        offsets, total = _offsets(sizes)
        if self._buffer is None or self._buffer.numel() < total:
            self._buffer = None  # first let the old one go
            self._buffer = torch.empty(total, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        copies = []
        for tensor, offset, size in zip(tensors, offsets, sizes):
            copy = self._buffer[offset : offset + size].view(tensor.dtype).view(tensor.shape)
            copy.copy_(tensor, non_blocking=True)
            copies.append(copy)
        for device in {tensor.device for tensor in tensors}:
            _synchronize(device)
        return copies


def _offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()


def copy_into(target: Any, values: Any) -> None:
    """Writes the elements of a direct tensor or array into a target of the same shape, wherever that is."""
    if is_torch(target):
        import torch

        with torch.no_grad():
            target.copy_(values)
    else:
        target[...] = values


def empty_like(target: Any) -> Any:
    """New direct memory for a target's elements; pinned if the target is on a CUDA device."""
    if is_torch(target):
        import torch

        return torch.empty(target.shape, dtype=target.dtype, pin_memory=target.device.type == "cuda")
    import numpy

    return numpy.empty(target.shape, dtype=target.dtype.newbyteorder("="))


def allocate(dtype: str, shape: tuple[int, ...], kind: str) -> Any:
    """New memory for a loaded tensor: a torch CPU tensor for what was one, if there is torch; else a numpy array."""
    if kind == "torch":
        try:
            import torch
        except ImportError:
            pass
        else:
            return torch.empty(shape, dtype=dtypes.to_torch(dtype))
    import numpy

    return numpy.empty(shape, dtype=dtypes.to_numpy(dtype))
