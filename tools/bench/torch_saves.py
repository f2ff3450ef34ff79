#!/usr/bin/env python3
"""What a PyTorch training loop pays for a checkpoint: Esker beside torch.distributed.checkpoint (DCP), on one disk, in one run.

    build/python/bin/python tools/bench/torch_saves.py [--size-mib 1024] [--tensor-mib 64] [--rounds 5] [--dir DIR] [--json]

One process with a state of float32 tensors that change before every save. The contenders take turns, round by round; the first
round, in which memory is touched and files are made, is not counted. Everything saved is durable when its time ends; what is
loaded comes from the disk (the page cache is dropped; Esker reads past it). Figures are medians.

  stall      how long save() keeps the loop, against one Tensor.copy_ of the state into touched memory, and dcp.async_save
  dcp_save   dcp.save through esker.torch.StorageWriter, against DCP's FileSystemWriter, which syncs its files
  dcp_load   dcp.load through esker.torch.StorageReader, against DCP's FileSystemReader
  memory     the peak of a process that saves, interpreter and libraries included, beyond the state and one copy of it
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import page_cache
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

import esker
from esker.torch import StorageReader, StorageWriter

State = dict[str, torch.Tensor]
Contender = Callable[[int], float]
"""Runs once, for the round of that number; seconds."""


def make_state(size: int, tensor_size: int) -> State:
    """float32 tensors of `tensor_size` bytes, of `size` bytes together."""
    return {f"layer.{i}": torch.randn(tensor_size // 4) for i in range(max(size // tensor_size, 1))}


def change(state: State) -> None:
    """A step of training: no chunk is what it was before."""
    for tensor in state.values():
        tensor.add_(1)


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, without the first round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            took = run(number)
            if number > 0:
                times[name].append(took)
    return times


class Bench:
    """One server, one scratch directory, one state."""

    def __init__(self, directory: pathlib.Path, state: State, rounds: int) -> None:
        self.scratch = directory
        self.server = esker.local_server(directory / "esker")
        self.state = state
        self.size = sum(tensor.numel() * tensor.element_size() for tensor in self.state.values())
        self.rounds = rounds

    def stall(self) -> dict[str, Any]:
        touched = {name: torch.zeros_like(tensor) for name, tensor in self.state.items()}

        def copy(_: int) -> float:
            return seconds(lambda: [touched[name].copy_(tensor) for name, tensor in self.state.items()])

        with esker.Checkpointer(self.server, run="stall", rank=0, world_size=1, threads=torch.get_num_threads()) as ckpt:

            def save(number: int) -> float:
                change(self.state)
                took = seconds(lambda: ckpt.save(number, self.state))
                ckpt.wait()
                return took

            def async_save(_: int) -> float:
                change(self.state)
                target = self.scratch / "async"
                shutil.rmtree(target, ignore_errors=True)
                began = time.perf_counter()
                future: Any = dcp.async_save(self.state, storage_writer=FileSystemWriter(target))
                took = time.perf_counter() - began
                future.result()
                return took

            times = in_turns({"copy": copy, "esker": save, "async_save": async_save}, self.rounds)
        return self._compared(times, {"over_copy": ("esker", "copy"), "over_async_save": ("esker", "async_save")})

    def dcp_save(self) -> dict[str, Any]:
        def through_esker(number: int) -> float:
            change(self.state)
            writer = StorageWriter(f"esker://{self.server}/dcp/{number}")
            return seconds(lambda: dcp.save(self.state, storage_writer=writer))

        def files(_: int) -> float:
            change(self.state)
            target = self.scratch / "files"
            shutil.rmtree(target, ignore_errors=True)
            return seconds(lambda: dcp.save(self.state, storage_writer=FileSystemWriter(target)))

        times = in_turns({"esker": through_esker, "files": files}, self.rounds)
        return self._compared(times, {"times_as_fast": ("files", "esker")})

    def dcp_load(self) -> dict[str, Any]:
        target = self.scratch / "load"
        dcp.save(self.state, storage_writer=FileSystemWriter(target))
        dcp.save(self.state, storage_writer=StorageWriter(f"esker://{self.server}/load/1"))
        into = {name: torch.zeros_like(tensor) for name, tensor in self.state.items()}

        def check() -> None:
            for name, tensor in self.state.items():
                assert torch.equal(into[name], tensor), f"{name} was loaded wrong"
                into[name].zero_()

        def through_esker(_: int) -> float:
            took = seconds(lambda: dcp.load(into, storage_reader=StorageReader(f"esker://{self.server}/load/1")))
            check()
            return took

        def files(_: int) -> float:
            page_cache.drop(target)
            took = seconds(lambda: dcp.load(into, storage_reader=FileSystemReader(target)))
            check()
            return took

        times = in_turns({"esker": through_esker, "files": files}, self.rounds)
        return self._compared(times, {"times_as_fast": ("files", "esker")})

    def memory(self) -> dict[str, Any]:
        """In a process of its own, as this one has peaked before."""
        script = pathlib.Path(__file__).with_name("peak_of_a_save.py")
        command = [sys.executable, "-P", str(script), self.server, str(self.size)]
        measured = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return dict(json.loads(measured.stdout))

    def _compared(self, times: dict[str, list[float]], ratios: dict[str, tuple[str, str]]) -> dict[str, Any]:
        """Medians, and ratios within a round: what slows the machine down slows both."""
        result: dict[str, Any] = {f"{name}_s": statistics.median(found) for name, found in times.items()}
        result |= {f"{name}_gbps": self.size / statistics.median(found) / 1e9 for name, found in times.items()}
        for ratio, (above, below) in ratios.items():
            each = [a / b for a, b in zip(times[above], times[below])]
            result[ratio] = statistics.median(each)
            result[f"{ratio}_range"] = [min(each), max(each)]
        return result


def shown(results: dict[str, Any]) -> str:
    lines = []
    for name, figures in results.items():
        for key, value in figures.items():
            text = [round(v, 2) for v in value] if isinstance(value, list) else round(value, 4) if isinstance(value, float) else value
            lines.append(f"{name:10} {key:30} {text}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=int, default=1024, help="of the state")
    parser.add_argument("--tensor-mib", type=int, default=64, help="of each tensor")
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("."), help="on the disk to measure; what is made there is removed")
    parser.add_argument("--only", action="append", choices=["stall", "dcp_save", "dcp_load", "memory"], help="may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="esker-bench.", dir=options.dir))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        cleanup.callback(dist.destroy_process_group)
        bench = Bench(directory, make_state(options.size_mib << 20, options.tensor_mib << 20), options.rounds)
        results = {name: getattr(bench, name)() for name in options.only or ["stall", "dcp_save", "dcp_load", "memory"]}
    print(json.dumps(results) if options.json else shown(results))


if __name__ == "__main__":
    main()
