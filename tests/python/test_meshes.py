"""Saved on one mesh, loaded on another, through both APIs: Esker's own and torch.distributed.checkpoint.

Two-dimensional meshes by name (HSDP, sharding over sharding), and meshes, shapes and placements drawn at random.
"""

import functools
import itertools
import math
import os
import random
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from native import Server
from ranks import run_ranks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import esker
from esker.torch import StorageReader, StorageWriter

APIS = ["native", "dcp"]


class Case(NamedTuple):
    """A tensor, and how it lies on a mesh."""

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    placements: tuple[Any, ...]


Cases = dict[str, Case]


def elements(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Other ones for each name."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randn(shape, generator=generator)


@functools.cache
def mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", shape)


def place(tensor: torch.Tensor, case: Case) -> DTensor:
    return distribute_tensor(tensor, mesh_of(case.mesh), list(case.placements), src_data_rank=None)


def save(server: str, run: str, api: str, cases: Cases) -> int:
    """The bytes that all ranks together handed over, in the API that says so."""
    state = {name: place(elements(name, case.shape), case) for name, case in cases.items()}
    if api == "dcp":
        dcp.save({"model": state}, storage_writer=StorageWriter(f"esker://{server}/{run}/1", incarnation="saved"))
        return 0
    with esker.Checkpointer(server, run, incarnation="saved") as ckpt:
        handle = ckpt.save(1, {"model": state})
        handle.wait(60)
        return handle.progress().raw_bytes


def load(server: str, run: str, api: str, start: str, cases: Cases) -> None:
    state = {name: place(torch.full(case.shape, math.nan), case) for name, case in cases.items()}
    if api == "dcp":
        dcp.load({"model": state}, storage_reader=StorageReader(f"esker://{server}/{run}/1"))
    else:
        with esker.Checkpointer(server, run, incarnation=start) as ckpt:
            ckpt.load(into={"model": state})
    for name, case in cases.items():
        expected = place(elements(name, case.shape), case).to_local()
        assert torch.equal(state[name].to_local(), expected), (name, case)


# --- by name

SHAPE = (7, 5)  # no mesh divides it evenly
ON_TWO_BY_TWO: dict[str, tuple[Any, Any]] = {
    "hsdp": (Replicate(), Shard(0)),
    "hsdp_columns": (Replicate(), Shard(1)),
    "outer_sharded": (Shard(0), Replicate()),
    "rows_then_columns": (Shard(0), Shard(1)),
    "columns_then_rows": (Shard(1), Shard(0)),
    "rows_twice": (Shard(0), Shard(0)),
    "columns_twice": (Shard(1), Shard(1)),
    "replicated": (Replicate(), Replicate()),
}
LOADERS: list[tuple[tuple[int, ...], list[tuple[Any, ...]]]] = [
    ((2, 2), list(ON_TWO_BY_TWO.values())),
    ((4,), [(Shard(0),), (Shard(1),)]),
    ((1, 4), [(Replicate(), Shard(0)), (Shard(1), Shard(0))]),
    ((3,), [(Shard(0),), (Shard(1),), (Replicate(),)]),
    ((2, 1), [(Shard(1), Replicate()), (Shard(0), Shard(1))]),
    ((1,), [(Replicate(),)]),
]


@pytest.mark.parametrize("api", APIS)
def test_two_dimensional_meshes_come_back_on_any(server: Server, run: str, api: str) -> None:
    saved = {name: Case(SHAPE, (2, 2), placements) for name, placements in ON_TWO_BY_TWO.items()}
    handed_over = sum(run_ranks(4, save, server.address, run, api, saved))
    if api == "native":  # replicas are saved once
        held = len(saved) * math.prod(SHAPE) * 4
        assert held < handed_over < held + 4 * 8192
    for mesh, placements in LOADERS:
        wanted = {name: Case(SHAPE, mesh, choice) for name, choice in zip(saved, itertools.cycle(placements))}
        run_ranks(math.prod(mesh), load, server.address, run, api, str(mesh), wanted)


# --- drawn at random


def draw_mesh(rng: random.Random, ranks: int) -> tuple[int, ...]:
    return rng.choice([(ranks,), *((n, ranks // n) for n in range(1, ranks + 1) if ranks % n == 0)])


def draw(rng: random.Random, shape: tuple[int, ...], ranks: int) -> Case:
    mesh = draw_mesh(rng, ranks)
    choices = [Replicate(), *(Shard(dim) for dim in range(len(shape)))]
    return Case(shape, mesh, tuple(rng.choice(choices) for _ in mesh))


def test_random_shapes_meshes_and_placements(server: Server, run: str) -> None:
    seed = int(os.environ.get("ESKER_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed} (replay with ESKER_TEST_SEED={seed})")
    rng = random.Random(seed)
    shapes = {f"tensor{i}": tuple(rng.randint(0, 9) for _ in range(rng.randint(0, 3))) for i in range(40)}
    savers = rng.randint(2, 4)
    saved = {name: draw(rng, shape, savers) for name, shape in shapes.items()}
    for api in APIS:
        run_ranks(savers, save, server.address, f"{run}-{api}", api, saved)
        for loaders in (1, 2, 3, 4):
            wanted = {name: draw(rng, shape, loaders) for name, shape in shapes.items()}
            run_ranks(loaders, load, server.address, f"{run}-{api}", api, f"on-{loaders}", wanted)
