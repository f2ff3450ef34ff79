"""Moves checkpoints between Esker and the files of other libraries: safetensors, torch.save, torch.distributed.checkpoint (DCP).

    from esker import interchange

    interchange.save("127.0.0.1:7070", "llama", 100, "model.pt")            # into Esker; the format is seen from the content
    interchange.restore("127.0.0.1:7070", "llama", 100, "out", format="dcp")  # and out of it

The commands `esker save` and `esker restore` do the same. Nothing that a file says is run: what only unpickling could load is an error.

Safetensors are read and written by the program `esker`, which has the only implementation of that format; the others by torch itself.
"""

import os
from typing import Literal

from esker import _core
from esker._server import address_of
from esker.interchange import detect, native
from esker.interchange.results import Restored

__all__ = ["Restored", "restore", "save"]


def save(
    server: str | os.PathLike[str],
    run: str,
    step: int,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    compression: Literal["none", "zstd", "planes", "auto"] = "none",
    incarnation: str = "",
    connect_timeout: float = 20.0,
) -> _core.CheckpointInfo:
    """Saves what other libraries wrote as the checkpoint `step` of `run`, and returns it when it is committed.

    server: "host:port", or the directory of a local server.
    path: a .safetensors file, a directory of a sharded model or its ….safetensors.index.json; a file of torch.save; a directory of DCP.
        What was in a file of torch.save is loaded by Checkpointer.load() as the same tree; what was in a directory of DCP by dcp.load
        with esker.torch.StorageReader. Tensors of each are restored as safetensors too.
    force: replace a committed checkpoint of that step.
    incarnation: of this start of the job; by default a new one, which fences off whoever writes to the run.
    connect_timeout: seconds to reach the server.

    Memory: a part of the checkpoint, and for DCP two copies of it. A part is 1 GiB, or the largest chunk of DCP's if that is larger;
    beyond 256 GiB a 256th of the checkpoint. For safetensors a copy of all.

    Raises EskerError: INVALID_ARGUMENT (not such a file; needs code to be loaded, says which), DATA_LOSS (truncated, damaged),
    NOT_FOUND, ALREADY_EXISTS, and as Checkpointer does; OSError.
    """
    format = detect.format_of(path)
    if format == "safetensors":
        return native.save(address_of(server), run, step, path, force, compression, incarnation, connect_timeout)
    from esker.interchange import dcp_import, parts, torch_import

    destination = parts.Destination(address_of(server), run, step, incarnation, compression, connect_timeout, force)
    if format == "dcp":
        return dcp_import.save(destination, path)
    return torch_import.save(destination, path)


def restore(
    server: str | os.PathLike[str],
    run: str,
    step: int | None,
    path: str | os.PathLike[str],
    *,
    format: Literal["safetensors", "torch", "dcp"] | None = None,
    max_shard_size: int | str | None = None,
    from_rank: int | None = None,
    force: bool = False,
    connect_timeout: float = 20.0,
) -> Restored:
    """Writes a checkpoint as files of another library: whole or not at all, every byte verified.

    step: None is the latest.
    path: a directory, new or empty; or a file for "torch", and for "safetensors" if it ends with .safetensors.
    format: by default "torch" for .pt and .pth, else "safetensors", which holds tensors only.
    max_shard_size: for "safetensors": bytes, or "5GB"; splits over several files with an index, as Hugging Face's libraries do.
    from_rank: for "torch" and "dcp": whose to take of what each rank saved for itself.
    force: replace a file. A directory of DCP is never replaced.

    Arrays of numpy come out as tensors, named tuples as tuples; for DCP also tuples that hold tensors as lists. "torch" needs memory
    for the whole state, "dcp" for the largest box, at most 1 GiB.

    Raises EskerError: INVALID_ARGUMENT (what the format can't hold, says which), NOT_FOUND, ALREADY_EXISTS, DATA_LOSS, UNAVAILABLE;
    OSError; ValueError for options that don't go together.
    """
    if format is None:
        format = "torch" if os.fspath(path).endswith((".pt", ".pth")) else "safetensors"
    if format == "safetensors" and from_rank is not None:
        raise ValueError('from_rank is for the formats "torch" and "dcp"')
    if format != "safetensors" and max_shard_size is not None:
        raise ValueError('max_shard_size is for the format "safetensors"')
    if format == "safetensors":
        return native.restore(address_of(server), run, step, path, max_shard_size, force, connect_timeout)
    reader = _core.Reader(address_of(server), connect_timeout=connect_timeout)
    if format == "dcp":
        from esker.interchange import dcp_export

        return dcp_export.restore(reader.open(run, step), path, from_rank)
    if format == "torch":
        from esker.interchange import torch_export

        return torch_export.restore(reader.open(run, step), path, from_rank, force)
    raise ValueError(f'format: expected "safetensors", "torch" or "dcp", found {format!r}')
