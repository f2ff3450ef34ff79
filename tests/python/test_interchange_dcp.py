"""Directories of torch.distributed.checkpoint in and out of Esker, against torch's own readers and writers."""

import os
import pathlib
import pickle
import random
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from dcp_ranks import state_of, train_step, training_job, whole_tensors
from native import Server
from ranks import run_ranks
from states import TORCH_DTYPES, difference, random_tensor
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

import esker
from esker import EskerError, _core, interchange
from esker.interchange import dcp_metadata, parts
from esker.torch import StorageReader, StorageWriter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def state_of_all_kinds() -> dict[str, Any]:
    rng = random.Random(4)
    model = torch.nn.Linear(9, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 9)).sum().backward()
    optimizer.step()
    return {
        "model": dict(model.state_dict()),
        "optim": optimizer.state_dict(),
        "tensors": {str(dtype): random_tensor(rng, dtype, (3, 5)) for dtype in TORCH_DTYPES},
        "shapes": [torch.tensor(2.5), torch.empty(0, 4), torch.arange(12.0).reshape(3, 4).t()],
        "objects": {"epoch": 7, "name": "run", "none": None, "blob": b"\x00\xff" * 9, "list": [1, 2]},
    }


def load_all(reader: Any) -> dict[str, Any]:
    """As torch's dcp_to_torch_save: everything that is in it, nested."""
    state: dict[str, Any] = {}
    _load_state_dict(state, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)  # type: ignore[no-untyped-call]
    return dict(in_order(state))


def chunks_of(directory: pathlib.Path, name: str) -> int:
    """How many pieces of a tensor DCP's own reader finds."""
    metadata = dcp.FileSystemReader(directory).read_metadata().state_dict_metadata[name]
    assert isinstance(metadata, TensorStorageMetadata)
    return len(metadata.chunks)


def in_order(state: Any) -> Any:
    """DCP promises no order of a dict's keys."""
    if isinstance(state, dict):
        return {key: in_order(state[key]) for key in sorted(state)}
    return [in_order(value) for value in state] if isinstance(state, list) else state


def write_dcp(state: dict[str, Any], directory: pathlib.Path, **options: Any) -> pathlib.Path:
    dcp.save(state, storage_writer=dcp.FileSystemWriter(directory, **options), no_dist=True)
    return directory


def url(server: Server, run: str, step: int) -> str:
    return f"esker://{server.address}/{run}/{step}"


@pytest.mark.parametrize("files", [1, 3])
def test_a_directory_is_the_same_through_esker_and_out_again(server: Server, tmp_path: pathlib.Path, files: int) -> None:
    run = f"dcp-round-trip-{files}"
    directory = write_dcp(state_of_all_kinds(), tmp_path / "in", thread_count=files)
    expected = load_all(dcp.FileSystemReader(directory))
    interchange.save(server.address, run, 8, directory)
    assert difference(expected, load_all(StorageReader(url(server, run, 8)))) is None
    restored = interchange.restore(server.address, run, 8, tmp_path / "out", format="dcp")
    assert (restored.step, restored.files) == (8, [str(tmp_path / "out")])
    assert difference(expected, load_all(dcp.FileSystemReader(tmp_path / "out"))) is None


def test_a_state_is_loaded_in_place_from_either_side(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    state = {"model": {"w": torch.randn(6, 5), "b": torch.randn(5)}, "epoch": 3}
    interchange.save(server.address, run, 1, write_dcp(state, tmp_path / "in"))
    interchange.restore(server.address, run, 1, tmp_path / "out", format="dcp")
    for reader in (StorageReader(url(server, run, 1)), dcp.FileSystemReader(tmp_path / "out")):
        target = {"model": {"w": torch.zeros(6, 5), "b": torch.zeros(5)}, "epoch": 0}
        dcp.load(target, storage_reader=reader, no_dist=True)
        assert difference(state, target) is None


def test_what_dcp_saved_into_esker_comes_out_as_a_directory(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    state = state_of_all_kinds()
    dcp.save(state, storage_writer=StorageWriter(url(server, run, 2)), no_dist=True)
    expected = load_all(dcp.FileSystemReader(write_dcp(state, tmp_path / "expected")))
    interchange.restore(server.address, run, 2, tmp_path / "out", format="dcp")
    assert difference(expected, load_all(dcp.FileSystemReader(tmp_path / "out"))) is None
    dcp_to_torch_save(tmp_path / "out", tmp_path / "out.pt")
    assert difference(expected, in_order(torch.load(tmp_path / "out.pt", weights_only=True))) is None
    interchange.restore(server.address, run, 2, tmp_path / "direct.pt")
    assert difference(expected, in_order(torch.load(tmp_path / "direct.pt", weights_only=True))) is None


def test_what_a_checkpointer_saved_is_what_dcp_would_have_saved(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    state = state_of_all_kinds()
    with esker.Checkpointer(server.address, run, 0, 1) as checkpointer:
        checkpointer.save(2, state).wait()
    interchange.restore(server.address, run, 2, tmp_path / "out", format="dcp")
    expected = load_all(dcp.FileSystemReader(write_dcp(state, tmp_path / "expected")))
    assert difference(expected, load_all(dcp.FileSystemReader(tmp_path / "out"))) is None


def test_what_dcp_has_no_form_for_becomes_the_nearest(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    import collections

    import numpy as np

    pair = collections.namedtuple("pair", ["x", "y"])
    state = {"array": np.arange(6.0).reshape(2, 3), "scalar": np.float32(1.5), "pair": pair(torch.ones(2), 1), "plain": (1, 2)}
    with esker.Checkpointer(server.address, run, 0, 1) as checkpointer:
        checkpointer.save(1, state).wait()
        checkpointer.save(2, [1, 2]).wait()
        checkpointer.save(3, {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}).wait()
    interchange.restore(server.address, run, 1, tmp_path / "out", format="dcp")
    expected = {"array": torch.arange(6.0, dtype=torch.float64).reshape(2, 3), "scalar": torch.tensor(1.5), "pair": [torch.ones(2), 1], "plain": (1, 2)}
    found = load_all(dcp.FileSystemReader(tmp_path / "out"))
    assert difference(expected, {name: found[name] for name in expected}) is None
    for step, message in {2: "DCP holds dicts only", 3: "a.b"}.items():
        with pytest.raises(EskerError, match=message):
            interchange.restore(server.address, run, step, tmp_path / f"out-{step}", format="dcp")
        assert not (tmp_path / f"out-{step}").exists()


def test_shards_of_several_ranks_stay_shards(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    from esker.interchange import native

    state = {"w": torch.randn(11, 3), "b": torch.randn(2)}
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    native._esker(server.address, 20.0, "save", f"{run}@1", str(tmp_path / "in.safetensors"), "--ranks", "3")
    restored = interchange.restore(server.address, run, 1, tmp_path / "out", format="dcp")
    assert restored.items_left_out == 0 and restored.bytes == 11 * 3 * 4 + 2 * 4
    assert sorted(os.listdir(tmp_path / "out")) == [".metadata", "__0_0.distcp", "__1_0.distcp", "__2_0.distcp"]
    assert chunks_of(tmp_path / "out", "w") == 3
    assert difference(state, {name: load_all(dcp.FileSystemReader(tmp_path / "out"))[name] for name in state}) is None


def save_as_a_job(directory: pathlib.Path) -> dict[str, Any]:
    """On each rank: saves a sharded job's state with torch's own writer, and its model by torch.save. Returns the whole tensors."""
    model, optimizer = training_job(seed=5)
    train_step(model, optimizer)
    state = state_of(model, optimizer)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(directory / "dcp"))
    torch.save(state["model"], directory / f"model-{torch.distributed.get_rank()}.pt")
    return whole_tensors({"model": state["model"], "optim": state["optim"]})


def test_a_job_of_several_ranks(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    expected, _ = run_ranks(2, save_as_a_job, tmp_path)
    interchange.save(server.address, run, 1, tmp_path / "dcp")
    interchange.restore(server.address, run, 1, tmp_path / "out", format="dcp")
    for reader in (StorageReader(url(server, run, 1)), dcp.FileSystemReader(tmp_path / "out")):
        assert difference(in_order(expected), in_order(whole_tensors(load_all(reader)))) is None
    with pytest.raises(EskerError, match="can't store a DTensor out of a file"):
        interchange.save(server.address, run, 2, tmp_path / "model-0.pt")


def test_large_checkpoints_go_through_in_small_pieces(
    server: Server, run: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"t{i}": torch.randn(300, 300) for i in range(8)} | {"epoch": 5, "large": torch.randn(1000, 600)}
    directory = write_dcp(state, tmp_path / "in")
    monkeypatch.setattr(parts, "PART_BYTES", 1 << 20)
    info = interchange.save(server.address, run, 1, directory)
    assert info.world_size >= 4
    interchange.restore(server.address, run, 1, tmp_path / "out", format="dcp")
    assert chunks_of(tmp_path / "out", "large") > 1
    for reader in (StorageReader(url(server, run, 1)), dcp.FileSystemReader(tmp_path / "out")):
        found = load_all(reader)
        assert difference(state, {name: found[name] for name in state}) is None


def save_boxes(server: Server, run: str, of_ranks: list[list[tuple[int, int]]]) -> torch.Tensor:
    """Saves rows of a tensor of 8 rows, those of each rank, and returns the tensor."""
    whole = torch.randn(8, 3)
    ranks = [_core.Checkpointer(server.address, run, rank, len(of_ranks), incarnation="one") for rank in range(len(of_ranks))]
    handles = [
        checkpointer.save(1, [("w", "F32", (8, 3), (first, 0), (rows, 3), whole[first:].data_ptr()) for first, rows in of_rank], [])
        for checkpointer, of_rank in zip(ranks, of_ranks)
    ]
    for handle in handles:
        handle.wait()
    return whole


@pytest.mark.parametrize(
    ("of_ranks", "chunks"),
    [
        ([[(0, 8)], [(0, 8)]], 1),  # replicas
        ([[(0, 4), (4, 4)], [(0, 8)]], 1),  # one has all
        ([[(0, 6)], [(0, 4), (4, 4)]], 2),  # equal offsets; the last two rows are of the second rank only
        ([[(0, 5)], [(3, 5)]], 2),
    ],
)
def test_boxes_that_overlap_become_chunks_that_do_not(
    server: Server, run: str, tmp_path: pathlib.Path, of_ranks: list[list[tuple[int, int]]], chunks: int
) -> None:
    whole = save_boxes(server, run, of_ranks)
    interchange.restore(server.address, run, 1, tmp_path / "out", format="dcp")
    assert chunks_of(tmp_path / "out", "w") == chunks
    assert difference({"w": whole}, load_all(dcp.FileSystemReader(tmp_path / "out"))) is None
    dcp_metadata.read(tmp_path / "out")


def test_a_checkpoint_with_a_hole_is_not_exported(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    save_boxes(server, run, [[(0, 4)], [(1, 4)]])
    for path in ("out", "out.pt"):
        with pytest.raises(EskerError) as caught:
            interchange.restore(server.address, run, 1, tmp_path / path, format="dcp" if path == "out" else None)
        assert caught.value.code == "DATA_LOSS" and "w" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_tensors_of_a_directory_are_restored_as_safetensors(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    state: dict[str, Any] = {"model": {"w": torch.randn(6, 5)}, "epoch": 3}
    interchange.save(server.address, run, 1, write_dcp(state, tmp_path / "in"))
    interchange.restore(server.address, run, 1, tmp_path / "out.safetensors")
    assert difference({"model.w": state["model"]["w"]}, safetensors.torch.load_file(tmp_path / "out.safetensors")) is None


# --- bad input, bad output


class _RunsCode:
    def __init__(self, file: pathlib.Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._file}",)


def error_of(server: Server, run: str, directory: pathlib.Path) -> EskerError:
    with pytest.raises(EskerError) as caught:
        interchange.save(server.address, run, 1, directory)
    with pytest.raises(EskerError):
        esker.Reader(server.address).open(run, 1)
    return caught.value


def rewrite_metadata(directory: pathlib.Path, change: Any) -> None:
    metadata: Metadata = pickle.loads((directory / ".metadata").read_bytes())
    change(metadata)
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))


def test_code_in_the_metadata_is_named_and_not_run(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    directory = write_dcp({"w": torch.ones(3)}, tmp_path / "in")
    rewrite_metadata(directory, lambda metadata: setattr(metadata, "planner_data", _RunsCode(tmp_path / "ran")))
    error = error_of(server, run, directory)
    assert error.code == "INVALID_ARGUMENT" and "posix.system" in str(error)
    assert not (tmp_path / "ran").exists()


def test_code_in_an_object_is_stored_and_not_run(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    directory = write_dcp({"w": torch.ones(3), "evil": _RunsCode(tmp_path / "ran")}, tmp_path / "in")
    interchange.save(server.address, run, 1, directory)
    interchange.restore(server.address, run, 1, tmp_path / "out", format="dcp")
    with pytest.raises(EskerError, match="evil.*format dcp"):
        interchange.restore(server.address, run, 1, tmp_path / "out.pt")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.pt").exists()


def test_damaged_directories_are_errors(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    directory = write_dcp({"w": torch.arange(3000.0), "epoch": 1}, tmp_path / "in")
    data, metadata = directory / "__0_0.distcp", directory / ".metadata"
    whole_data, whole_metadata = data.read_bytes(), metadata.read_bytes()

    for length in (0, len(whole_data) - 1):
        data.write_bytes(whole_data[:length])
        assert error_of(server, run, directory).code == "DATA_LOSS"
    data.write_bytes(bytes(len(whole_data)))
    error = error_of(server, run, directory)
    assert error.code == "DATA_LOSS" and "__0_0.distcp: w: " in str(error)
    data.unlink()
    assert "__0_0.distcp: it is missing" in str(error_of(server, run, directory))
    data.write_bytes(whole_data)

    for content, code in {b"": "DATA_LOSS", whole_metadata[: len(whole_metadata) // 2]: None, b"nonsense": None, pickle.dumps(7): "INVALID_ARGUMENT"}.items():
        metadata.write_bytes(content)
        error = error_of(server, run, directory)
        assert error.code in ([code] if code else ["DATA_LOSS", "INVALID_ARGUMENT"]) and ".metadata" in str(error)


def test_metadata_that_lies_is_an_error(
    server: Server, run: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 4096)  # of a part the server itself refuses boxes that overlap

    def lie(number: int, change: Any) -> EskerError:
        directory = write_dcp({"w": torch.arange(3000.0)}, tmp_path / f"in-{number}")
        rewrite_metadata(directory, change)
        return error_of(server, run, directory)

    def first(metadata: Metadata) -> Any:
        return next(iter(metadata.storage_data.values()))

    elsewhere = lie(1, lambda m: setattr(first(m), "relative_path", "../in-0/__0_0.distcp"))
    assert elsewhere.code == "INVALID_ARGUMENT" and "'../in-0/__0_0.distcp'" in str(elsewhere)
    assert lie(2, lambda m: setattr(first(m), "length", 1 << 40)).code == "DATA_LOSS"
    assert lie(3, lambda m: m.state_dict_metadata["w"].chunks.clear()).code == "DATA_LOSS"
    assert lie(4, lambda m: m.storage_data.clear()).code == "INVALID_ARGUMENT"
    assert lie(5, lambda m: setattr(m, "storage_data", None)).code == "INVALID_ARGUMENT"

    def place_chunks(metadata: Metadata, *chunks: tuple[int, int]) -> None:
        info = first(metadata)
        metadata.storage_data = {MetadataIndex("w", torch.Size([offset])): info for offset, _ in chunks}
        tensor = metadata.state_dict_metadata["w"]
        assert isinstance(tensor, TensorStorageMetadata)
        tensor.chunks = [ChunkStorageMetadata(torch.Size([offset]), torch.Size([size])) for offset, size in chunks]

    hole = lie(6, lambda m: place_chunks(m, (0, 1500), (10, 1500)))
    assert hole.code == "DATA_LOSS" and "[0] of shape [1500] and the chunk at [10] of shape [1500] overlap" in str(hole)
    for number, chunks in enumerate([[(0, 1500), (1510, 1500)], [(-10, 3000)], [(0, 3010), (3000, -10)]], 7):
        beyond = lie(number, lambda m, chunks=chunks: place_chunks(m, *chunks))
        assert beyond.code == "DATA_LOSS" and "is not within the tensor, of shape [3000]" in str(beyond)


def test_a_directory_that_is_not_empty_is_never_replaced(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    interchange.save(server.address, run, 1, write_dcp({"w": torch.ones(3)}, tmp_path / "in"))
    before = sorted(os.listdir(tmp_path / "in"))
    for force in (False, True):
        with pytest.raises(EskerError) as caught:
            interchange.restore(server.address, run, 1, tmp_path / "in", format="dcp", force=force)
        assert caught.value.code == "ALREADY_EXISTS"
    assert sorted(os.listdir(tmp_path / "in")) == before
    (tmp_path / "empty").mkdir()
    interchange.restore(server.address, run, 1, tmp_path / "empty", format="dcp")
    assert sorted(os.listdir(tmp_path)) == ["empty", "in"]


def test_an_export_that_fails_leaves_nothing(
    server: Server, run: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interchange.save(server.address, run, 1, write_dcp({"w": torch.ones(3)}, tmp_path / "in"))

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(dcp.FileSystemWriter, "finish", fail)
        interchange.restore(server.address, run, 1, tmp_path / "out", format="dcp")
    assert os.listdir(tmp_path) == ["in"]
