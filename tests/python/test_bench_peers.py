"""tools/bench/peers.py runs, and what it writes has the figures in it. The speeds say nothing: the state is tiny."""

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

_BENCH = pathlib.Path(__file__).resolve().parents[2] / "tools/bench"


def run(tmp_path: pathlib.Path, *arguments: str) -> dict[str, object]:
    document = tmp_path / "benchmarks.md"
    document.write_text("before\n<!-- peers.sh: begin -->\nwhat was found earlier\n<!-- peers.sh: end -->\nafter\n")
    command = [sys.executable, str(_BENCH / "peers.py"), "--size-mib", "1", "--rounds", "1", "--states", "random", "--limits"]
    places = [f"--{name}={tmp_path / name}" for name in ("cache", "results")]
    subprocess.run([*command, "--contenders", *arguments, f"--dir={tmp_path}", *places, f"--write={document}"], check=True)
    results: dict[str, object] = json.loads((tmp_path / "results/state-random.json").read_text())
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "earlier" not in text
    results["document"] = text
    return results


def test_esker_and_a_peer_are_measured_and_written_down(tmp_path: pathlib.Path) -> None:
    results = run(tmp_path, "esker", "esker-grpc", "torch.save")
    assert results["errors"] == {}
    rounds = results["rounds"]
    assert isinstance(rounds, dict) and list(rounds) == ["esker", "esker-grpc", "torch.save"]
    for found in rounds.values():
        assert len(found) == 1
        assert found[0]["save_s"] > 0 and found[0]["load_s"] > 0 and found[0]["disk_bytes"] >= 1 << 20
    assert "| Esker, shared memory |" in str(results["document"])
    assert not list(tmp_path.glob("esker-peers.*")), "nothing is left behind"


def test_a_peer_that_can_not_run_is_listed_with_its_error(tmp_path: pathlib.Path) -> None:
    results = run(tmp_path, "torch.save", "torchsnapshot")
    errors = results["errors"]
    assert isinstance(errors, dict) and "torchsnapshot" in errors["torchsnapshot"]
    assert "torchsnapshot" in str(results["document"]).partition("Could not run here")[2]
