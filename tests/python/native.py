"""What the tests of the native module share: a server, and boxes of numpy arrays."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from esker._core import TensorBox
from esker._programs import program_path

Array = npt.NDArray[Any]

_DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


class Server:
    """An eskerd on a directory: killed at the end, and started again on the same port where a test wants that."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        port_file = self._directory / "port"
        port_file.unlink(missing_ok=True)
        command = [program_path("eskerd"), "--data", str(self._directory / "data"), "--listen", self.address]
        command += ["--port-file", str(port_file), "--segment-mib", "16", "--buffer-pool-mib", "32", "--min-free-mib", "16"]
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(command, stderr=log)
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert self._process.poll() is None and time.monotonic() < deadline, (self._directory / "log").read_text()
            time.sleep(0.01)
        self._port = int(port_file.read_text())

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running_server(directory: pathlib.Path) -> Iterator[Server]:
    server = Server(directory)
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def frozen(server: Server) -> Iterator[None]:
    """The server answers nothing meanwhile, and breaks no connection."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


def dtype_of(array: Array) -> str:
    return _DTYPES[str(array.dtype)]


def whole(name: str, array: Array) -> TensorBox:
    """All of a tensor, in the memory of `array`."""
    return box(name, array, array.shape, (0,) * array.ndim)


def box(name: str, array: Array, shape: tuple[int, ...], offset: tuple[int, ...]) -> TensorBox:
    """The box of a tensor of `shape` at `offset` whose elements are those of `array`."""
    assert array.flags.c_contiguous
    return (name, dtype_of(array), shape, offset, array.shape, array.ctypes.data)


def random_array(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def threads_of(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/task"))
