"""A sharded training job, as the ranks of test_dcp.py run it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Model(torch.nn.Module):
    """Two blocks with dimensions that neither 2, 3 nor 4 ranks divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(50, 50) for _ in range(2))
        self.head = torch.nn.Linear(50, 7, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


class FailingPlanner(DefaultSavePlanner):
    """Calls `fail` instead of handing out the data."""

    def __init__(self, fail: Callable[[], None]) -> None:
        super().__init__()
        self._fail = fail

    def resolve_data(self, write_item: WriteItem) -> Any:
        self._fail()
        return super().resolve_data(write_item)


def training_job(seed: int) -> tuple[Model, torch.optim.Optimizer]:
    """A sharded model and its optimizer. The same on any number of ranks until the first step."""
    torch.manual_seed(seed)
    model = Model()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train_step(model: Model, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(dist.get_rank())
    loss = model(torch.randn(8, 50)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def state_of(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What is saved: parameters, moments, and objects that are no tensors."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optim": optimizer_state, "extra": {"epoch": 3, "name": "gpt", "history": [1.5, 2.5]}}


def set_state(model: Model, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])


def whole_tensors(state: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state, whole, by its path. A collective."""
    if isinstance(state, torch.Tensor):
        full = state.full_tensor() if hasattr(state, "full_tensor") else state
        return {path: full.detach().clone()}
    if not isinstance(state, dict):
        return {}
    return {name: tensor for key, value in state.items() for name, tensor in whole_tensors(value, f"{path}.{key}").items()}
