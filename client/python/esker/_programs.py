"""The programs `esker` and `eskerd` that come with the package, and the console commands that run them."""

import os
import pathlib
import shutil
import sys
from typing import NoReturn

from esker._core import EskerError


def program_path(name: str) -> str:
    """Where the program `name` is: in the package, else on the PATH. Raises EskerError ("NOT_FOUND")."""
    packaged = pathlib.Path(__file__).parent / "bin" / name
    if packaged.exists():
        return str(packaged)
    found = shutil.which(name)
    if found is None:
        raise EskerError(f"the program {name} is neither in {packaged.parent} nor on the PATH: install the package again", "NOT_FOUND")
    return os.path.abspath(found)


def _run(name: str) -> NoReturn:
    # Only the packaged one: the one on the PATH may be this very command.
    path = str(pathlib.Path(__file__).parent / "bin" / name)
    os.environ.setdefault("ESKER_PYTHON", sys.executable)  # for what `esker` leaves to esker.interchange
    os.execv(path, [name, *sys.argv[1:]])


def esker() -> NoReturn:
    """The command `esker`."""
    _run("esker")


def eskerd() -> NoReturn:
    """The command `eskerd`."""
    _run("eskerd")
