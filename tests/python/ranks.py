"""Processes that make up a training job: joined by gloo, each runs one function of a test.

They are forked from a process that has imported torch and nothing of Esker's, so that they start at once.
"""

import faulthandler
import multiprocessing
import os
import pathlib
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

_TIMEOUT = 120.0  # seconds

_processes = multiprocessing.get_context("forkserver")
# What a rank would otherwise import by itself, some of it (torch._dynamo) with its first DTensor.
_processes.set_forkserver_preload(
    ["numpy", "torch", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor"]
)


class Raised(str):
    """In the place of a rank's result: the traceback of what it raised."""


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returned on each rank. A rank that raised is the test's failure."""
    results = end_of_ranks(world_size, function, *arguments)
    for result in results:
        assert not isinstance(result, Raised), result
    return results


def end_of_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What became of each rank: its result, Raised, or None if it was killed."""
    with tempfile.TemporaryDirectory() as directory:
        return _run_processes(world_size, _in_group, f"file://{directory}/rendezvous", function, arguments)


def run_apart(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """As run_ranks, but `function` has to join the ranks itself."""
    results = _run_processes(world_size, function, *arguments)
    for result in results:
        assert not isinstance(result, Raised), result
    return results


def _run_processes(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as directory:
        ranks = [
            _processes.Process(target=_rank_main, args=(rank, world_size, directory, function, arguments)) for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        deadline = time.monotonic() + _TIMEOUT
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [rank for rank, process in enumerate(ranks) if process.exitcode is None]
        for process in ranks:
            process.kill()
        results = [_result(pathlib.Path(directory), rank) for rank in range(world_size)]
        assert not hanging, f"ranks {hanging} did not end within {_TIMEOUT} s; {results}"
        return results


def _result(directory: pathlib.Path, rank: int) -> Any:
    file = directory / f"result-{rank}"
    return torch.load(file, weights_only=False) if file.exists() else None


def _rank_main(rank: int, world_size: int, directory: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(_TIMEOUT - 10)  # who hangs says where
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank))
    os.environ["TORCH_DIST_INIT_BARRIER"] = "1"  # no rank leaves a group that others are still connecting to
    try:
        result = function(*arguments)
    except BaseException:
        result = Raised(traceback.format_exc())
    partial = pathlib.Path(directory) / f"partial-{rank}"
    torch.save(result, partial)
    partial.rename(pathlib.Path(directory) / f"result-{rank}")


def _in_group(rendezvous: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    dist.init_process_group("gloo", init_method=rendezvous, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    result = function(*arguments)
    dist.destroy_process_group()  # not if it raised: the others may be stuck in a collective, and this would wait for them
    return result
