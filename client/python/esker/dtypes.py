"""Element types: the names that checkpoints use (those of safetensors), and what torch and numpy call them.

Neither library is imported here: a type of torch can only come from a program that has imported torch, and so with numpy.
"""

import sys
from typing import Any

# name -> (bytes of one element, what torch and numpy both call it)
_TYPES: dict[str, tuple[int, str]] = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "U16": (2, "uint16"),
    "I16": (2, "int16"),
    "U32": (4, "uint32"),
    "I32": (4, "int32"),
    "U64": (8, "uint64"),
    "I64": (8, "int64"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "F32": (4, "float32"),
    "F64": (8, "float64"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E4M3FNUZ": (1, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (1, "float8_e5m2fnuz"),
    "F8_E8M0": (1, "float8_e8m0fnu"),
    "C64": (8, "complex64"),
    "C128": (16, "complex128"),
}
_NAMES = {framework_name: name for name, (_, framework_name) in _TYPES.items()}


def element_bytes(name: str) -> int:
    """Bytes of one element of the type `name` ("BF16"). KeyError if there is no such type."""
    return _TYPES[name][0]


def name_of(dtype: Any) -> str | None:
    """What checkpoints call a torch.dtype or numpy.dtype; None if they have no such type (quantized, structured, text)."""
    text = str(dtype)
    return _NAMES.get(text.removeprefix("torch.") if text.startswith("torch.") else str(getattr(dtype, "name", "")))


def to_torch(name: str) -> Any:
    """The torch.dtype of the type `name`. TypeError if this torch has none."""
    import torch

    dtype = getattr(torch, _TYPES[name][1], None)
    if dtype is None:
        raise TypeError(f"torch {torch.__version__} has no type for {name}: install a newer one")
    return dtype


def to_numpy(name: str) -> Any:
    """The numpy.dtype of the type `name`. TypeError for bf16 and fp8 unless ml_dtypes is installed."""
    import numpy

    framework_name = _TYPES[name][1]
    try:
        return numpy.dtype(framework_name)
    except TypeError:
        pass
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(f"numpy has no type for {name}: install ml_dtypes, or torch") from None
    return numpy.dtype(getattr(ml_dtypes, framework_name))


def torch_if_imported() -> Any:
    """The module torch, if the program has imported it; else None. Esker never imports it to look at a value."""
    return sys.modules.get("torch")


def numpy_if_imported() -> Any:
    """The module numpy, if the program has imported it; else None."""
    return sys.modules.get("numpy")
