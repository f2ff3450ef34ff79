"""What both examples train: a small GPT that learns to continue a text, byte by byte. Nothing in here knows of Esker.

Every rank draws the same global batch and trains on its share of it, so that a job may go on with another number of ranks.
"""

import argparse
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

log = logging.getLogger("train")

_REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
_GLOBAL_BATCH = 12  # sequences; 1, 2, 3, 4, 6 and 12 ranks divide it
_CONTEXT = 64  # bytes
_VOCABULARY = 256  # bytes have so many values
_HEADS = 4
_DROPOUT = 0.1
_SEED = 20


def parse_arguments(description: str | None, server_help: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help=server_help)
    # Not --run: torchrun takes that for an option of its own.
    parser.add_argument("--job", default="gpt", help="its name, the run on the server (default: %(default)s)")
    parser.add_argument("--text", type=pathlib.Path, help="file to learn from (default: this repository's documentation)")
    parser.add_argument("--steps", type=int, default=100, help="step at which training ends (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=10, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="a multiple of 4 (default: %(default)s)")
    parser.add_argument("--loss-log", type=pathlib.Path, metavar="FILE", help='for a line "STEP LOSS" a step')
    parser.add_argument("--final-state", type=pathlib.Path, metavar="FILE", help="for the whole state at the end (needs safetensors)")
    return parser.parse_args()


def start() -> None:
    """Joins the ranks that torchrun started. One thread a rank: several would add up numbers in an order of their own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    level = logging.INFO if dist.get_rank() == 0 else logging.WARNING
    logging.basicConfig(format=f"%(asctime)s rank {dist.get_rank()}: %(message)s", level=level)
    if _GLOBAL_BATCH % dist.get_world_size() != 0:
        raise SystemExit(f"{dist.get_world_size()} ranks can't share {_GLOBAL_BATCH} sequences: give 1, 2, 3, 4, 6 or 12")


# --- the model ---


class Block(nn.Module):
    """Attention to what came before, then a layer for each position by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, _HEADS, width // _HEADS).transpose(1, 2)
            for part in self.attention(self.norm_1(x)).split(width, dim=2)
        )
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.projection(seen.transpose(1, 2).reshape(batch, length, width)))
        x = x + self.dropout(self.mlp(self.norm_2(x)))
        return x


class GPT(nn.Module):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_VOCABULARY, width)
        self.positions = nn.Embedding(_CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _VOCABULARY, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        x = self.tokens(text) + self.positions.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def sharded_model(layers: int, width: int) -> GPT:
    """A new model, the same on any number of ranks; each holds its part of every parameter (FSDP2)."""
    torch.manual_seed(_SEED)
    model = GPT(layers, width)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    torch.manual_seed(_SEED + 1 + dist.get_rank())  # dropout differs from rank to rank
    return model


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batches: "Batches") -> float:
    """One step on all ranks. The loss is that of the global batch."""
    inputs, targets = batches.next_share()
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    total = loss.detach()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


# --- what else a job has to go on with after a restart ---


class Batches:
    """Batches of a text in an order that is shuffled anew each epoch. The state is the position, the same on all ranks."""

    def __init__(self, file: pathlib.Path | None) -> None:
        files = [_REPOSITORY / "LICENSE", *sorted((_REPOSITORY / "docs").glob("*.md"))] if file is None else [file]
        text = b"".join(path.read_bytes() for path in files)
        windows = (len(text) - 1) // _CONTEXT
        if windows < _GLOBAL_BATCH:
            raise SystemExit(f"{file}: a text of {len(text)} bytes is too short: {_GLOBAL_BATCH * _CONTEXT + 1} are one batch")
        self._text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self._windows = windows
        self._epoch = 0
        self._position = 0

    def next_share(self) -> tuple[Tensor, Tensor]:
        """This rank's share of the next global batch: the text, and the same one byte further."""
        if self._position + _GLOBAL_BATCH > self._windows:
            self._epoch, self._position = self._epoch + 1, 0
        order = torch.randperm(self._windows, generator=torch.Generator().manual_seed(_SEED + self._epoch))
        batch = order[self._position : self._position + _GLOBAL_BATCH]
        self._position += _GLOBAL_BATCH
        share = batch[dist.get_rank() :: dist.get_world_size()].tolist()
        inputs = torch.stack([self._text[_CONTEXT * i : _CONTEXT * (i + 1)] for i in share])
        targets = torch.stack([self._text[_CONTEXT * i + 1 : _CONTEXT * (i + 1) + 1] for i in share])
        return inputs, targets

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]


class RandomNumbers:
    """This rank's random numbers (dropout), as an object that has a state."""

    def state_dict(self) -> dict[str, Tensor]:
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["torch"])


# --- what it leaves behind ---


class LossLog:
    """The loss of each step, as if nothing had ever interrupted the job: what an earlier start of it has written beyond the
    step from which it goes on is dropped. Written by rank 0."""

    def __init__(self, path: pathlib.Path | None, steps_done: int) -> None:
        self._file: IO[str] | None = None
        if path is None or dist.get_rank() != 0:
            return
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = path.with_name(path.name + ".kept")
        kept.write_text("".join(lines[:steps_done]))
        os.replace(kept, path)  # a new file: a rank of an earlier start that still runs writes into the old one
        self._file = open(path, "a")

    def add(self, step: int, loss: float) -> None:
        log.info("step %d: loss %.4f", step, loss)
        if self._file is not None:
            print(step, loss, file=self._file, flush=True)  # all digits


def write_final_state(path: pathlib.Path | None, state: dict[str, Any], batches: Batches) -> None:
    """The state of all ranks in one safetensors file, each tensor whole, so that jobs can be compared. A collective."""
    if path is None:
        return
    from safetensors.torch import save_file

    sharded, own = {}, {}
    for name, tensor in _tensors(state):
        if isinstance(tensor, DTensor):
            sharded[name] = tensor.full_tensor()
        else:
            own[name] = tensor
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, own)
    if dist.get_rank() == 0:
        tensors = sharded | {name: tensor for one in everyones for name, tensor in one.items()}
        save_file(tensors, path, {"batches": str(batches.state_dict())})


def _tensors(state: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _tensors(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value
