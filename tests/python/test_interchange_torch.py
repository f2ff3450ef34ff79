"""Files of torch.save in and out of Esker: the same tree, bit for bit, and no code is run."""

import argparse
import errno
import json
import os
import pathlib
import random
import subprocess
import sys
import time
import zipfile
from typing import Any

import native
import pytest
import torch
from native import Server
from states import TORCH_DTYPES, bits, difference, random_tensor

import esker
from esker import EskerError, interchange
from esker._programs import program_path
from esker.interchange import __main__ as interchange_command
from esker.interchange import output, parts, torch_import
from esker.sharding import Box


class RunsCode:
    """Unpickling it makes a file."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._file}",)


def training_state() -> dict[str, Any]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(13, 7), torch.nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 13)).sum().backward()
    optimizer.step()
    return {"model": dict(model.state_dict()), "optim": optimizer.state_dict(), "epoch": 3, "rng": torch.get_rng_state()}


def load(server: Server, run: str, step: int | None = None) -> Any:
    with esker.Checkpointer(server.address, run, 0, 1) as checkpointer:
        return checkpointer.load(step)[1]


def save(state: Any, server: Server, run: str, tmp_path: pathlib.Path, **options: Any) -> esker.CheckpointInfo:
    torch.save(state, tmp_path / "in.pt", **options)
    return interchange.save(server.address, run, 1, tmp_path / "in.pt")


def refused(state: Any, server: Server, run: str, tmp_path: pathlib.Path, **options: Any) -> str:
    with pytest.raises(EskerError) as caught:
        save(state, server, run, tmp_path, **options)
    assert caught.value.code == "INVALID_ARGUMENT"
    return str(caught.value)


@pytest.mark.parametrize("archive", [True, False])
def test_a_training_state_loads_as_the_same_tree(server: Server, run: str, tmp_path: pathlib.Path, archive: bool) -> None:
    run = f"torch-tree-{archive}".lower()
    state = training_state()
    save(state, server, run, tmp_path, _use_new_zipfile_serialization=archive)
    assert difference(state, load(server, run)) is None


def test_all_dtypes_shapes_views_and_values(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    rng = random.Random(2)
    shapes = [(), (0,), (7,), (3, 5), (2, 0, 3), (4, 1, 3, 2)]
    base = torch.arange(60.0).reshape(5, 12)
    state: dict[Any, Any] = {
        "tensors": [random_tensor(rng, dtype, shape) for dtype in TORCH_DTYPES for shape in shapes],
        "shared": [base, base[1:3], base[:, ::3], base.t(), base[2, 4]],
        "expanded": torch.ones(1).expand(1000),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "values": (None, True, 1 << 70, -0.0, float("nan"), 1 + 2j, "te\u00e9xt", b"\x00\xff", bytearray(b"ab"), [], {}),
        7: {("a", 1): "key", "a.b": torch.ones(1)},
        "a": {"b": torch.zeros(1)},
        "a.b": torch.ones(2),
    }
    save(state, server, run, tmp_path)
    state["conjugate"] = state["conjugate"].resolve_conj()
    assert difference(state, load(server, run)) is None


def test_a_tensor_alone(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    save(torch.arange(5), server, run, tmp_path)
    assert bits(load(server, run)) == bits(torch.arange(5))


def test_large_states_are_saved_part_by_part(
    server: Server, run: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1 << 20)
    torch.manual_seed(3)
    state = {"large": torch.randn(3, 700, 500), "small": [torch.randn(300) for _ in range(20)], "blob": b"x" * 5000, "epoch": 4}
    info = save(state, server, run, tmp_path)
    assert info.world_size > 4
    assert difference(state, load(server, run)) is None
    with esker.Checkpointer(server.address, run, 1, info.world_size, incarnation="as-many-ranks") as checkpointer:
        assert difference(state, checkpointer.load()[1]) is None
    interchange.restore(server.address, run, 1, tmp_path / "out.pt")
    assert difference(state, torch.load(tmp_path / "out.pt", weights_only=True)) is None


def test_a_save_that_fails_between_two_parts_leaves_nothing(
    server: Server, run: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [parts.ItemPiece(f"item{i}", parts.PART_BYTES) for i in range(3)]
    reads = 0

    def read(part: Any) -> list[bytes]:
        nonlocal reads
        reads += 1
        if reads == 3:
            raise OSError("the disk is gone")
        return [b"x"]

    destination = parts.Destination(server.address, run, 1, "", "none", 20.0, False)
    with pytest.raises(OSError, match="the disk is gone"):
        parts.save(destination, pieces, [], read)
    assert esker.Reader(server.address).list(run) == []
    reads = 10
    assert parts.save(destination, pieces, [], read).world_size == 3


def test_a_part_that_is_read_too_slowly_names_the_flag_of_the_server(
    run: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = tmp_path / "eskerd"
    impatient.write_text(f'#!/bin/sh\nexec {program_path("eskerd")} --save-timeout 300ms "$@"\n')
    impatient.chmod(0o700)
    monkeypatch.setattr(native, "program_path", lambda _: impatient)

    def read(part: Any) -> list[bytes]:
        while part[0].name == "item1" and "save aborted" not in (tmp_path / "log").read_text():
            time.sleep(0.02)
        return [b"x"]

    pieces = [parts.ItemPiece(f"item{i}", parts.PART_BYTES) for i in range(2)]
    with native.running_server(tmp_path) as server, pytest.raises(EskerError, match="no rank sent anything for 300ms.*--save-timeout"):
        parts.save(parts.Destination(server.address, run, 1, "", "none", 20.0, False), pieces, [], read)


def test_memory_is_that_of_a_part_not_of_all(server: Server, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part_bytes, count = 40 << 20, 7  # malloc maps what is larger than 32 MiB, and gives it back at once
    monkeypatch.setattr(parts, "PART_BYTES", part_bytes)
    piece_of = [parts.TensorPiece(f"t{i}", "U8", (part_bytes,), Box((0,), (part_bytes,))) for i in range(count)]
    seen: list[int] = []

    def read(part: Any) -> list[torch.Tensor]:
        seen.append(anonymous_memory())
        return [torch.full((part_bytes,), len(seen), dtype=torch.uint8)]

    parts.save(parts.Destination(server.address, run, 1, "", "none", 20.0, False), piece_of, [], read)
    assert len(seen) == count
    # From the second on: threads and connections of a part cost something, but not a part.
    assert seen[-1] - seen[1] < 3 * part_bytes, seen


def anonymous_memory() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_named_and_not_run(server: Server, run: str, tmp_path: pathlib.Path, archive: bool) -> None:
    state = {"weights": torch.ones(3), "evil": RunsCode(tmp_path / "ran")}
    message = refused(state, server, run, tmp_path, _use_new_zipfile_serialization=archive)
    assert "posix.system" in message and "in.pt" in message
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "in.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload would have worked"


def test_a_class_that_is_only_unknown_is_named_with_what_to_do(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    message = refused({"args": argparse.Namespace(lr=0.1)}, server, run, tmp_path)
    assert "argparse.Namespace" in message and "state_dict()" in message


def test_tensors_that_are_not_plain_are_named(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    assert "layers.0: can't store" in refused({"layers": [torch.ones(2, 2).to_sparse()]}, server, run, tmp_path)
    assert "dtype: can't store a torch.dtype" in refused({"dtype": torch.float32}, server, run, tmp_path)


def test_damaged_and_foreign_files_are_errors(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    def error(content: bytes) -> EskerError:
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(EskerError, match="bad") as caught:
            interchange.save(server.address, run, 1, tmp_path / "bad")
        return caught.value

    torch.save({"a": torch.arange(1000.0)}, tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    for length in (4, 100, len(good) // 2, len(good) - 1):
        assert error(good[:length]).code == "DATA_LOSS"
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pt").read_bytes()
    for length in (16, 30, 100, len(old) // 2, len(old) - 1):
        assert error(old[:length]).code == "DATA_LOSS", length
    at = good.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    assert error(flipped).code == "DATA_LOSS" and "data/0" in str(error(flipped))
    assert error(b"PK\x03\x04nothing").code == "DATA_LOSS"
    assert error(b"\x80\x02K\x07.").code == "INVALID_ARGUMENT"
    with pytest.raises(FileNotFoundError):
        interchange.save(server.address, run, 1, tmp_path / "none.pt")


def test_a_file_without_checksums_is_taken(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save({"a": torch.arange(9)}, server, run, tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert difference({"a": torch.arange(9)}, load(server, run)) is None


def test_a_damaged_archive_is_data_loss_whatever_its_parser_raises(tmp_path: pathlib.Path) -> None:
    expected = {"a": torch.arange(1000.0), "empty": torch.empty(0)}
    torch.save(expected, tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    central = good.index(b"PK\x01\x02")  # the directory of the records, at the end

    def loaded(content: bytes) -> Any:
        (tmp_path / "bad.pt").write_bytes(content)
        return torch_import.load(tmp_path / "bad.pt")

    for at in [*range(4, 60), *range(central, len(good))]:
        for byte in (good[at] ^ 1, good[at] ^ 0x80):
            try:
                found = loaded(good[:at] + bytes([byte]) + good[at + 1 :])
            except EskerError as error:
                assert error.code == "DATA_LOSS", (at, error)
            else:  # of no meaning, such as a date
                assert difference(expected, found) is None, at


def test_records_that_torch_save_does_not_write_are_named(tmp_path: pathlib.Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "in.pt")
    with zipfile.ZipFile(tmp_path / "in.pt") as archive, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for record in archive.infolist():
            method = zipfile.ZIP_DEFLATED if record.filename.endswith("data/0") else zipfile.ZIP_STORED
            packed.writestr(record.filename, archive.read(record), method)
    content = bytearray((tmp_path / "in.pt").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "encrypted.pt").write_bytes(content)
    for name, first in {"packed.pt": "in/data/0", "encrypted.pt": "in/data.pkl"}.items():
        with pytest.raises(EskerError, match=f"{name}: the record {first} is compressed or encrypted") as caught:
            torch_import.load(tmp_path / name)
        assert caught.value.code == "DATA_LOSS"


def test_a_damaged_version_does_not_hide_other_damage(tmp_path: pathlib.Path) -> None:
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "in.pt")
    content = bytearray((tmp_path / "in.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "in.pt") as archive:
        for name in ("in/version", "in/data/0"):
            at = content.index(archive.read(name), archive.getinfo(name).header_offset + 30 + len(name))
            content[at] ^= 1
    (tmp_path / "in.pt").write_bytes(content)
    with pytest.raises(EskerError, match="the record in/data/0 is damaged") as caught:
        torch_import.load(tmp_path / "in.pt")
    assert caught.value.code == "DATA_LOSS"


def test_an_error_of_the_disk_is_not_taken_for_damage(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": 1}, tmp_path / "in.pt")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(OSError, match="Input/output error"):
        torch_import.load(tmp_path / "in.pt")


def test_a_committed_step_is_replaced_only_by_force(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    save({"a": 1}, server, run, tmp_path)
    with pytest.raises(EskerError) as caught:
        save({"a": 2}, server, run, tmp_path)
    assert caught.value.code == "ALREADY_EXISTS"
    assert load(server, run) == {"a": 1}
    interchange.save(server.address, run, 1, tmp_path / "in.pt", force=True)
    assert load(server, run) == {"a": 2}


# --- out of Esker


def test_what_a_checkpointer_saved_is_what_torch_load_gives(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    state = training_state()
    with esker.Checkpointer(server.address, run, 0, 1) as checkpointer:
        checkpointer.save(5, state).wait()
        restored = interchange.restore(server.address, run, None, tmp_path / "out.pt")
        checkpointer.save(6, state).wait()  # reading has not fenced the run
    assert (restored.step, restored.files) == (5, [str(tmp_path / "out.pt")])
    assert difference(state, torch.load(tmp_path / "out.pt", weights_only=True)) is None


def test_what_each_rank_stored_for_itself_has_to_be_chosen(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    checkpointers = [esker.Checkpointer(server.address, run, rank, 2, incarnation="one", replicated=["w"]) for rank in range(2)]
    handles = [c.save(1, {"w": torch.ones(4), "seed": c.rank}) for c in checkpointers]
    for handle in handles:
        handle.wait()
    with pytest.raises(EskerError, match="seed.*from_rank") as caught:
        interchange.restore(server.address, run, 1, tmp_path / "out.pt")
    assert caught.value.code == "INVALID_ARGUMENT" and list(tmp_path.iterdir()) == []
    interchange.restore(server.address, run, 1, tmp_path / "out.pt", from_rank=1)
    assert torch.load(tmp_path / "out.pt")["seed"] == 1
    for checkpointer in checkpointers:
        checkpointer.close()


def test_an_output_is_whole_or_absent(server: Server, run: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"a": torch.ones(3)}, server, run, tmp_path)
    out = tmp_path / "out" / "model.pt"
    with pytest.raises(EskerError) as caught:
        interchange.restore(server.address, run, 1, out)
    assert caught.value.code == "NOT_FOUND"
    out.parent.mkdir()
    out.write_bytes(b"precious")
    with pytest.raises(EskerError) as caught:
        interchange.restore(server.address, run, 1, out)
    assert caught.value.code == "ALREADY_EXISTS"

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(torch, "save", fail)
        interchange.restore(server.address, run, 1, out, force=True)
    assert out.read_bytes() == b"precious" and os.listdir(out.parent) == ["model.pt"]
    interchange.restore(server.address, run, 1, out, force=True)
    assert difference({"a": torch.ones(3)}, torch.load(out, weights_only=True)) is None
    assert os.listdir(out.parent) == ["model.pt"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS])
def test_a_file_system_without_links_takes_a_file_and_none_is_replaced(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    with output.whole_file(tmp_path / "out", force=False) as staging:
        staging.write_bytes(b"content")
    assert (tmp_path / "out").read_bytes() == b"content" and os.listdir(tmp_path) == ["out"]

    with pytest.raises(EskerError, match="another process was faster") as caught, output.whole_file(tmp_path / "late", force=False) as staging:
        staging.write_bytes(b"content")
        (tmp_path / "late").write_bytes(b"of another")
    assert caught.value.code == "ALREADY_EXISTS" and (tmp_path / "late").read_bytes() == b"of another"

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError), output.whole_file(tmp_path / "never", force=False) as staging:
        staging.write_bytes(b"content")
    assert sorted(os.listdir(tmp_path)) == ["late", "out"]


def test_what_was_pickled_is_not_unpickled(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    with esker.Checkpointer(server.address, run, 0, 1) as checkpointer:
        checkpointer.save(1, {"evil": [RunsCode(tmp_path / "ran")]}, allow_pickle=True).wait()
    for name, format in {"out.pt": "torch", "out": "dcp"}.items():
        with pytest.raises(EskerError, match="evil.0: saved with allow_pickle"):
            interchange.restore(server.address, run, 1, tmp_path / name, format=format)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# --- the command


def esker_command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ESKER_SERVER": server.address, "ESKER_PYTHON": sys.executable}
    return subprocess.run([program_path("esker"), *arguments], env=environment, capture_output=True, text=True, timeout=120)


def test_the_command_takes_and_gives_files_of_torch(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    state = training_state()
    torch.save(state, tmp_path / "in.pt")
    saved = esker_command(server, "save", f"{run}@4", str(tmp_path / "in.pt"), "--json")
    assert saved.returncode == 0, saved.stderr
    assert json.loads(saved.stdout)["checkpoint"]["step"] == 4
    restored = esker_command(server, "restore", f"{run}@latest", "--to", str(tmp_path / "out.pt"))
    assert restored.returncode == 0 and f"restored {run}@4" in restored.stdout, restored.stderr
    assert difference(state, torch.load(tmp_path / "out.pt", weights_only=True)) is None


def test_the_command_fails_as_the_program_does(
    server: Server, run: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save({"a": 1}, server, run, tmp_path)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    where = ["--server", server.address, "--timeout-ms", "5000", "--json"]
    for code, arguments in {
        2: ["save", f"{run}@5", str(pathlib.Path(__file__)), *where],
        3: ["restore", f"{run}@9", "--to", str(tmp_path / "none.pt"), "--format", "torch", *where],
        4: ["save", f"{run}@5", str(tmp_path / "cut.pt"), *where],
        5: ["save", f"{run}@5", str(tmp_path / "in.pt"), "--server", "127.0.0.1:1", "--timeout-ms", "200", "--json"],
        6: ["save", f"{run}@1", str(tmp_path / "in.pt"), *where],
    }.items():
        assert interchange_command.main(arguments) == code
        said = capsys.readouterr()
        assert json.loads(said.out)["error"]["exit_code"] == code
        assert said.err.startswith("esker: ") and said.err.count("\n") == 1
    assert not (tmp_path / "none.pt").exists()
