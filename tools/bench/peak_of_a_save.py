"""For torch_saves.py: the memory of a process that imports torch and esker, makes a state, and saves it twice. Prints JSON.

    python peak_of_a_save.py SERVER STATE_BYTES
"""

import json
import pathlib
import sys

import torch

import esker

_TENSOR_BYTES = 16 << 20


def peak_rss() -> int:
    """Bytes, of anonymous memory and of files (the libraries)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    server, size = sys.argv[1], int(sys.argv[2])
    imported = peak_rss()
    state = [torch.ones(_TENSOR_BYTES // 4) for _ in range(size // _TENSOR_BYTES)]
    with esker.Checkpointer(server, run="memory", rank=0, world_size=1) as ckpt:
        for step in range(2):
            for number, tensor in enumerate(state):
                tensor.add_(number)
            ckpt.save(step, state).wait()
    beyond = peak_rss() - 2 * size
    print(json.dumps({"state_bytes": size, "imports_bytes": imported, "beyond_state_and_copy_bytes": beyond}))


if __name__ == "__main__":
    main()
