"""Which library wrote a file or a directory, by its content. By the rules of tools/interchange.cc."""

import os
import pathlib
from typing import Literal

_ZIP = b"PK\x03\x04"


def format_of(path: str | os.PathLike[str]) -> Literal["safetensors", "torch", "dcp"]:
    """ "safetensors" for everything that is none of the others: its reader says what is wrong with it. OSError if there is no such path."""
    path = pathlib.Path(path)
    if path.is_dir():
        return "dcp" if (path / ".metadata").exists() else "safetensors"
    with open(path, "rb") as file:
        head = file.read(16)
    return "torch" if _begins_as_torch(head) else "safetensors"


def _begins_as_torch(head: bytes) -> bool:
    if head.startswith(_ZIP):
        return True
    # A pickle of protocol 2 or later: what torch.save wrote before it made archives. The length of a safetensors header may have the
    # same bytes, but a brace follows it.
    pickle = len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5
    return pickle and head[8:9] != b"{"
