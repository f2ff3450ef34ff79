"""Safetensors in and out of Esker, against the readers and writers of safetensors and huggingface_hub."""

import json
import pathlib
import random
from collections.abc import Callable

import huggingface_hub
import pytest
import safetensors
import safetensors.torch
import torch
from native import Server
from states import TORCH_DTYPES, difference, random_tensor

from esker import EskerError, interchange

# complex128 and some of the fp8 types are Esker's, but not the library's.
_LIBRARY_LACKS = {torch.complex128, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 8)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(6))
        self.head = torch.nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight


def model(seed: int) -> Tied:
    torch.manual_seed(seed)
    return Tied()


def test_what_the_library_writes_and_reads(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    rng = random.Random(1)
    dtypes = [dtype for dtype in TORCH_DTYPES if dtype not in _LIBRARY_LACKS]
    tensors = {f"{dtype}.{shape}": random_tensor(rng, dtype, shape).contiguous() for dtype in dtypes for shape in [(), (0, 2), (3, 5)]}
    safetensors.torch.save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt", "by": "test"})
    info = interchange.save(server.address, run, 3, tmp_path / "in.safetensors")
    assert (info.run, info.step) == (run, 3)
    restored = interchange.restore(server.address, run, 3, tmp_path / "out.safetensors")
    assert (restored.step, restored.tensors, restored.items_left_out) == (3, len(tensors), 0)
    assert restored.files == [str(tmp_path / "out.safetensors")]
    assert difference(tensors, {name: safetensors.torch.load_file(tmp_path / "out.safetensors")[name] for name in tensors}) is None
    with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "test"}
    assert (tmp_path / "in.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_a_model_with_tied_weights(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    safetensors.torch.save_model(model(1), str(tmp_path / "in.safetensors"))
    interchange.save(server.address, run, 0, tmp_path / "in.safetensors")
    interchange.restore(server.address, run, None, tmp_path / "out.safetensors")
    loaded = model(2)
    safetensors.torch.load_model(loaded, tmp_path / "out.safetensors")
    assert difference(dict(model(1).state_dict()), dict(loaded.state_dict())) is None


def test_a_sharded_model_of_hugging_face(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "in").mkdir()
    huggingface_hub.save_torch_model(model(1), tmp_path / "in", max_shard_size=700)
    assert len(list((tmp_path / "in").glob("model-*.safetensors"))) > 2
    interchange.save(server.address, run, 1, tmp_path / "in")
    interchange.restore(server.address, run, 1, tmp_path / "out", max_shard_size=700)
    loaded = model(2)
    missing, unexpected = huggingface_hub.load_torch_model(loaded, tmp_path / "out", strict=False, safe=True)
    assert unexpected == [] and set(missing) <= {"head.weight", "embedding.weight"}
    assert difference(dict(model(1).state_dict()), dict(loaded.state_dict())) is None


def test_shards_are_cut_as_hugging_face_cuts_them(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    state = {f"t{i:02}": torch.full((size,), float(i)) for i, size in enumerate([10, 20, 30, 500, 5, 0, 40, 40, 1])}
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    interchange.save(server.address, run, 1, tmp_path / "in.safetensors")
    interchange.restore(server.address, run, 1, tmp_path / "out", max_shard_size=300)
    expected = huggingface_hub.split_torch_state_dict_into_shards(state, max_shard_size=300)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == expected.tensor_to_filename
    assert index["metadata"]["total_size"] == expected.metadata["total_size"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*expected.filename_to_tensors, "model.safetensors.index.json"])


def test_errors_have_the_codes_of_the_program(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "in.safetensors")
    interchange.save(server.address, run, 1, tmp_path / "in.safetensors")
    calls: dict[str, Callable[[], object]] = {
        "ALREADY_EXISTS": lambda: interchange.save(server.address, run, 1, tmp_path / "in.safetensors"),
        "NOT_FOUND": lambda: interchange.restore(server.address, run, 2, tmp_path / "out"),
        "INVALID_ARGUMENT": lambda: interchange.save(server.address, run, 2, pathlib.Path(__file__)),
        "UNAVAILABLE": lambda: interchange.save("127.0.0.1:1", run, 2, tmp_path / "in.safetensors", connect_timeout=0.2),
    }
    for code, call in calls.items():
        with pytest.raises(EskerError) as caught:
            call()
        assert caught.value.code == code, caught.value
    assert not (tmp_path / "out").exists()
