"""What DCP calls a checkpoint_id: which checkpoint of which run on which server."""

import os
import re
from typing import NamedTuple

SCHEME = "esker"
# One slash is enough: pathlib.Path makes "esker:/" of "esker://".
_URL = re.compile(r"esker:/{1,2}(?P<server>[^/]+:\d+)/(?P<run>[^/]+)(?:/(?P<step>\d+))?/?")


class CheckpointId(NamedTuple):
    """server: "host:port". step: None stands for the latest."""

    server: str
    run: str
    step: int | None

    def __str__(self) -> str:
        step = "" if self.step is None else f"/{self.step}"
        return f"{SCHEME}://{self.server}/{self.run}{step}"

    @classmethod
    def is_url(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an esker:// URL that names a server and a run."""
        return _URL.fullmatch(os.fspath(checkpoint_id)) is not None

    @classmethod
    def parse(cls, checkpoint_id: str | os.PathLike[str] | int, server: str | None, run: str | None) -> "CheckpointId":
        """A URL stands for itself; a plain step number is one of `run` on `server`. ValueError for anything else."""
        text = str(checkpoint_id) if isinstance(checkpoint_id, int) else os.fspath(checkpoint_id)
        if match := _URL.fullmatch(text):
            step = match["step"]
            return cls(match["server"], match["run"], None if step is None else int(step))
        if text.isdecimal() and server is not None and run is not None:
            return cls(server, run, int(text))
        raise ValueError(
            f'checkpoint_id "{text}": expected "esker://host:port/run/step"'
            + (" or a step number" if server is not None and run is not None else "; a step number needs server= and run=")
        )
