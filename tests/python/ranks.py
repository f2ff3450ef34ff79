"""Processes that make up a training job: joined by gloo, each runs one function of a test.

They are forked from a process that has imported torch and nothing of Esker's, so that they start at once.
"""

import faulthandler
import multiprocessing
import os
import pathlib
import tempfile
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
        ranks = [
            _processes.Process(target=_rank_main, args=(rank, world_size, directory, function, arguments)) for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            for process in ranks:
                process.join(_TIMEOUT)
                assert process.exitcode is not None, f"a rank did not end within {_TIMEOUT} s"
        finally:
            for process in ranks:
                process.kill()
        return [_result(pathlib.Path(directory), rank) for rank in range(world_size)]


def _result(directory: pathlib.Path, rank: int) -> Any:
    file = directory / f"result-{rank}"
    return torch.load(file, weights_only=False) if file.exists() else None


def _rank_main(rank: int, world_size: int, directory: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(_TIMEOUT - 10)  # who hangs says where
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size)
    try:
        result = function(*arguments)
    except BaseException:
        result = Raised(traceback.format_exc())
    partial = pathlib.Path(directory) / f"partial-{rank}"
    torch.save(result, partial)
    partial.rename(pathlib.Path(directory) / f"result-{rank}")
    if dist.is_initialized() and not isinstance(result, Raised):  # else the others may be stuck in a collective, and this would wait for them
        dist.destroy_process_group()
