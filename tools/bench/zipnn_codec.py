"""ZipNN on the tensors of a safetensors file, by dtype: size, and GB/s each way of one thread. Prints JSON.

    python zipnn_codec.py STATE.safetensors
"""

import json
import statistics
import sys
import time
from typing import Any

import torch
from safetensors.torch import load_file
from zipnn import ZipNN

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_PASSES = 5


def measure(raw: bytes, dtype: str) -> dict[str, Any]:
    codec = ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    encode, decode, size = [], [], 0
    for number in range(_PASSES + 1):
        data = bytearray(raw)  # it may change what it is given
        began = time.process_time()
        packed = codec.compress(data)
        encoded = time.process_time()
        back = codec.decompress(packed)
        ended = time.process_time()
        if bytes(back) != raw:
            raise ValueError(f"{dtype} came back changed")
        size = len(packed)
        if number > 0:
            encode.append(len(raw) / (encoded - began) / 1e9)
            decode.append(len(raw) / (ended - encoded) / 1e9)
    return {"size_ratio": size / len(raw), "encode_gbps": statistics.median(encode), "decode_gbps": statistics.median(decode)}


def main() -> None:
    by_dtype: dict[str, bytearray] = {}
    for tensor in load_file(sys.argv[1]).values():
        if tensor.dtype in _DTYPES:
            by_dtype.setdefault(_DTYPES[tensor.dtype], bytearray()).extend(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    print(json.dumps({dtype: measure(bytes(raw), dtype) for dtype, raw in by_dtype.items()}))


if __name__ == "__main__":
    main()
