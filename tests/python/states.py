"""Random states, and whether two are equal bit for bit."""

import collections
import math
import random
from typing import Any

import numpy as np
import torch

Point = collections.namedtuple("Point", ["x", "y"])

TORCH_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.complex64,
    torch.complex128,
]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (4, 1, 3, 2)]


def random_tensor(rng: random.Random, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Random bits, so NaNs and denormals too; sometimes not contiguous."""
    size = torch.empty((), dtype=dtype).element_size()
    raw = bytearray(rng.randbytes(math.prod(shape) * size)) if dtype is not torch.bool else bytearray(rng.choices([0, 1], k=math.prod(shape)))
    if not raw:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(raw, dtype=dtype).reshape(shape)
    if len(shape) > 1 and rng.random() < 0.5:
        return tensor.transpose(0, -1)
    return tensor


def _random_leaf(rng: random.Random) -> Any:
    choices: list[Any] = [
        None,
        True,
        rng.randint(-(1 << 70), 1 << 70),
        -(10**5000),
        rng.random(),
        -0.0,
        math.inf,
        math.nan,
        complex(1.5, -math.inf),
        "text \u00e9 \U0001f600 \ud800 \0",
        b"",
        rng.randbytes(rng.randint(1, 3000)),
        bytearray(b"ab"),
        np.float32(rng.random()),
        np.arange(6, dtype=">i4").reshape(2, 3).T,
        np.array(3.5),
    ]
    if rng.random() < 0.5:
        return random_tensor(rng, rng.choice(TORCH_DTYPES), rng.choice(SHAPES))
    return rng.choice(choices)


def _random_key(rng: random.Random) -> Any:
    return rng.choice(["a", "b", "a.b", "", "0", "[x", "w@rank0", "esker/tree", 0, 1, True, 1.5, None, ("a", 1), -3, "\ud800"])


def random_state(rng: random.Random, depth: int = 4) -> Any:
    kind = rng.choice(["dict", "dict", "list", "tuple", "named", "leaf"]) if depth > 0 else "leaf"
    if kind == "leaf":
        return _random_leaf(rng)
    count = rng.randint(0, 4)
    if kind == "dict":
        return {_random_key(rng): random_state(rng, depth - 1) for _ in range(count)}
    if kind == "named":
        return Point(random_state(rng, depth - 1), random_state(rng, depth - 1))
    items = [random_state(rng, depth - 1) for _ in range(count)]
    return items if kind == "list" else tuple(items)


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().flatten()
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def difference(a: Any, b: Any, path: str = "") -> str | None:
    """Where b is not a, bit for bit and type for type; None if it is."""
    if type(a).__name__ != type(b).__name__:
        return f"{path}: {type(a)} became {type(b)}"
    if isinstance(a, dict):
        if [(type(k), k) for k in a] != [(type(k), k) for k in b]:
            return f"{path}: keys {list(a)} became {list(b)}"
        return next(filter(None, (difference(a[k], b[k], f"{path}/{k!r}") for k in a)), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b) or getattr(a, "_fields", None) != getattr(b, "_fields", None):
            return f"{path}: {a} became {b}"
        return next(filter(None, (difference(x, y, f"{path}/{i}") for i, (x, y) in enumerate(zip(a, b)))), None)
    if isinstance(a, torch.Tensor):
        same = (a.dtype, a.shape) == (b.dtype, b.shape) and bits(a) == bits(b)
    elif isinstance(a, (np.ndarray, np.generic)):
        same = a.shape == b.shape and a.dtype.name == b.dtype.name and a.astype(a.dtype.newbyteorder("=")).tobytes() == b.tobytes()
    elif isinstance(a, (float, complex)):
        same = repr(a) == repr(b)
    else:
        same = a == b
    return None if same else f"{path}: {a!r} became {b!r}"
