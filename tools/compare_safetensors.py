#!/usr/bin/env python3
"""Compares two safetensors files tensor by tensor, bit for bit. Standard library only, and none of Esker's code,
so that it is a second opinion.

Usage: compare_safetensors.py [--subset] A B      --subset: what only B has is no difference
Exit code 0 and a line with the number of tensors and bytes if all are equal, 1 and the differences otherwise.
"""

import json
import mmap
import struct
import sys


def read(path):
    """Returns {name: (dtype, shape, memoryview of the tensor's bytes)} of the file at `path`."""
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    (header_bytes,) = struct.unpack("<Q", data[:8])
    header = json.loads(bytes(data[8 : 8 + header_bytes]))
    body = data[8 + header_bytes :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def main():
    subset = sys.argv[1:2] == ["--subset"]
    paths = sys.argv[1 + subset :]
    if len(paths) != 2:
        sys.exit(__doc__)
    a, b = read(paths[0]), read(paths[1])
    differences = [f"only in {paths[0]}: {name}" for name in sorted(a.keys() - b.keys())]
    if not subset:
        differences += [f"only in {paths[1]}: {name}" for name in sorted(b.keys() - a.keys())]
    for name in sorted(a.keys() & b.keys()):
        if a[name][:2] != b[name][:2]:
            differences.append(f"{name}: {a[name][:2]} is not {b[name][:2]}")
        elif a[name][2] != b[name][2]:
            differences.append(f"{name}: the bytes differ")
    if differences:
        sys.exit("\n".join(differences))
    print(f"{len(a)} tensors, {sum(len(tensor[2]) for tensor in a.values())} bytes: equal bit for bit")


if __name__ == "__main__":
    main()
