"""esker:// as a file system: what was finished is there, whole and verified, and nothing else is."""

import gc
import os
import pathlib
import tomllib
from collections.abc import Iterator

import pytest

fsspec = pytest.importorskip("fsspec")

from fsspec.registry import register_implementation  # noqa: E402
from native import Server, running_server  # noqa: E402

from esker._core import Checkpointer  # noqa: E402
from esker.fsspec import EskerFileSystem  # noqa: E402

register_implementation("esker", EskerFileSystem, clobber=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def step(server: Server, request: pytest.FixtureRequest) -> str:
    """The URL of a step in a run of the test's own."""
    return f"esker://{server.address}/{str(request.node.name).lower()}/1"


@pytest.fixture
def fs(server: Server) -> EskerFileSystem:
    return EskerFileSystem(server=server.address, skip_instance_cache=True)


def write(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


def read(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return bytes(file.read())


def test_the_package_registers_the_file_system() -> None:
    project = tomllib.loads((pathlib.Path(__file__).parents[2] / "client/python/pyproject.toml").read_text())
    assert project["project"]["entry-points"]["fsspec.specs"]["esker"] == f"{EskerFileSystem.__module__}:{EskerFileSystem.__name__}"


def test_a_file_is_read_as_it_was_written(step: str) -> None:
    content = os.urandom(10_000_000)
    write(f"{step}/models/last.ckpt", content)
    write(f"{step}/empty", b"")
    assert read(f"{step}/models/last.ckpt") == content
    assert read(f"{step}/empty") == b""
    with fsspec.open(f"{step}/models/last.ckpt", "rb") as file:
        file.seek(9_999_990)
        assert file.read() == content[-10:]
        file.seek(5)
        assert file.read(10) == content[5:15]


def test_text_is_read_as_it_was_written(step: str) -> None:
    with fsspec.open(f"{step}/notes", "w", encoding="utf-8") as file:
        file.write("größer\n")
    with fsspec.open(f"{step}/notes", "r", encoding="utf-8") as file:
        assert file.read() == "größer\n"


def test_files_of_a_step_add_up_and_are_listed(step: str, fs: EskerFileSystem) -> None:
    write(f"{step}/a", b"1")
    write(f"{step}/sub/b", b"22")
    write(f"{step}/a", b"333")
    base = step.removeprefix("esker://")
    assert sorted((e["name"], e["type"], e["size"]) for e in fs.ls(step)) == [
        (f"{base}/a", "file", 3),
        (f"{base}/sub", "directory", 0),
    ]
    assert fs.find(step) == [f"{base}/a", f"{base}/sub/b"]
    assert fs.ls(os.path.dirname(step), detail=False) == [base]
    assert (fs.exists(f"{step}/a"), fs.isdir(f"{step}/sub"), fs.exists(f"{step}/c")) == (True, True, False)


def test_renames_copies_and_removes(step: str, fs: EskerFileSystem) -> None:
    write(f"{step}/a", b"1")
    fs.mv(f"{step}/a", f"{step}/b")
    fs.cp_file(f"{step}/b", f"{step}/c")
    fs.rm(f"{step}/b")
    assert [name.rsplit("/", 1)[1] for name in fs.find(step)] == ["c"]
    assert read(f"{step}/c") == b"1"


def test_the_server_may_be_an_option_or_in_the_environment(server: Server, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = step.replace(f"{server.address}/", "")
    with fsspec.open(f"{short}/a", "wb", server=server.address) as file:
        file.write(b"1")
    monkeypatch.setenv("ESKER_SERVER", server.address)
    assert EskerFileSystem(skip_instance_cache=True).cat_file(f"{short}/a") == b"1"
    monkeypatch.delenv("ESKER_SERVER")
    with pytest.raises(ValueError, match="which server"):
        EskerFileSystem(skip_instance_cache=True).cat_file(f"{short}/a")


def test_a_file_is_not_there_before_it_is_closed(step: str, fs: EskerFileSystem) -> None:
    with fs.open(f"{step}/a", "wb") as file:
        file.write(b"1")
        assert not fs.exists(f"{step}/a")
    assert fs.exists(f"{step}/a")


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_file_that_was_not_finished_is_not_there(step: str, fs: EskerFileSystem, mode: str) -> None:
    content = b"1" if mode == "wb" else "1"
    with pytest.raises(RuntimeError, match="in the middle"):
        with fs.open(f"{step}/left", mode) as file:
            file.write(content)
            raise RuntimeError("in the middle")
    file = fs.open(f"{step}/dropped", mode)
    file.write(content)
    del file
    gc.collect()
    assert not fs.exists(step)


def test_the_files_of_a_transaction_are_there_at_once(step: str, fs: EskerFileSystem) -> None:
    with fs.transaction:
        for name in ("a", "b"):
            with fs.open(f"{step}/{name}", "wb") as file:
                file.write(name.encode())
        assert not fs.exists(step)
    assert fs.cat(fs.find(step)) == {path: path[-1].encode() for path in fs.find(step)}
    assert len(fs.find(step)) == 2


def test_a_transaction_that_was_not_finished_leaves_nothing(step: str, fs: EskerFileSystem) -> None:
    with pytest.raises(RuntimeError, match="in the middle"), fs.transaction:
        with fs.open(f"{step}/a", "wb") as file:
            file.write(b"1")
        raise RuntimeError("in the middle")
    assert not fs.exists(step)
    write(f"{step}/b", b"2")
    assert [name.rsplit("/", 1)[1] for name in fs.find(step)] == ["b"]


def test_a_file_that_was_left_within_a_transaction_is_not_there(step: str, fs: EskerFileSystem) -> None:
    with fs.transaction:
        with pytest.raises(RuntimeError), fs.open(f"{step}/left", "wb") as file:
            raise RuntimeError("in the middle")
        with fs.open(f"{step}/a", "wb") as file:
            file.write(b"1")
    assert [name.rsplit("/", 1)[1] for name in fs.find(step)] == ["a"]


def test_a_state_is_not_taken_for_files_and_not_replaced_by_them(server: Server, step: str, fs: EskerFileSystem) -> None:
    run = step.split("/")[3]
    Checkpointer(server.address, run, 0, 1).save(1, [], [("config", b"x")]).wait()
    for use in (lambda: fs.ls(step), lambda: write(f"{step}/a", b"1")):
        with pytest.raises(FileNotFoundError, match="holds a state"):
            use()
    assert [item.name for item in Checkpointer(server.address, run, 0, 1).open_checkpoint(1).items()] == ["config"]


@pytest.mark.parametrize("url", ["esker://h:1", "esker://h:1/run/step/file", "esker://h:1/run", "esker://h:1/run/1"])
def test_a_path_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises((ValueError, IsADirectoryError), match="expected"):
        EskerFileSystem(skip_instance_cache=True).open(url, "wb")


def test_modes_that_change_files_in_place_are_refused(step: str, fs: EskerFileSystem) -> None:
    with pytest.raises(ValueError, match="written whole"):
        fs.open(f"{step}/a", "ab")


def test_torch_saves_and_loads_through_paths(step: str) -> None:
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    state = {"x": torch.arange(100_000.0), "epoch": 3}
    with fsspec.open(f"{step}/last.pt", "wb") as file:
        torch.save(state, file)
    with fsspec.open(f"{step}/last.pt", "rb") as file:
        assert torch.equal(torch.load(file)["x"], state["x"])
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    dcp.save(state, storage_writer=FsspecWriter(f"{step}0/dcp"))
    loaded = {"x": torch.zeros(100_000), "epoch": 0}
    dcp.load(loaded, storage_reader=FsspecReader(f"{step}0/dcp"))
    assert torch.equal(loaded["x"], state["x"]) and loaded["epoch"] == 3
