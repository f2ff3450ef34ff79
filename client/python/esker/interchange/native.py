"""Safetensors, by the program `esker`."""

import json
import os
import subprocess
from typing import Any

from esker import _core
from esker._programs import program_path
from esker.interchange import exit_codes
from esker.interchange.results import Restored


def save(
    server: str,
    run: str,
    step: int,
    path: str | os.PathLike[str],
    force: bool,
    compression: str,
    incarnation: str,
    connect_timeout: float,
) -> _core.CheckpointInfo:
    """As interchange.save."""
    options = ["--compress", compression]
    options += ["--force"] if force else []
    options += ["--incarnation", incarnation] if incarnation else []
    _esker(server, connect_timeout, "save", f"{run}@{step}", os.path.abspath(path), *options)
    return _core.Reader(server, connect_timeout=connect_timeout).open(run, step).info


def restore(
    server: str, run: str, step: int | None, path: str | os.PathLike[str], max_shard_size: int | str | None, force: bool, connect_timeout: float
) -> Restored:
    """As interchange.restore."""
    options = ["--force"] if force else []
    options += [] if max_shard_size is None else ["--max-shard-size", str(max_shard_size)]
    name = f"{run}@{'latest' if step is None else step}"
    said = _esker(server, connect_timeout, "restore", name, "--to", os.path.abspath(path), "--format", "safetensors", *options)
    return Restored(said["run"], said["step"], said["tensors"], said["bytes"], said["items_left_out"], said["files"])


def show(server: str, run: str, step: int, connect_timeout: float) -> Any:
    """The document of `esker show --tensors`."""
    return _esker(server, connect_timeout, "show", f"{run}@{step}", "--tensors")


def _esker(server: str, connect_timeout: float, *arguments: str) -> Any:
    options = ["--json", "--server", server, "--timeout", f"{max(1, int(connect_timeout * 1000))}ms"]
    ran = subprocess.run([program_path("esker"), *options, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = json.loads(ran.stdout)
    except ValueError:
        raise _core.EskerError(f"esker ended with {ran.returncode}: {ran.stderr.strip()}", "INTERNAL") from None
    if ran.returncode != 0:
        raise exit_codes.error_of(said["error"]["code"], said["error"]["message"])
    return said
