"""The examples as their users run them: under torchrun, on several ranks. And what a test does to them: kills whom it wants."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import NamedTuple

EXAMPLES = pathlib.Path(__file__).parents[2] / "client/python/examples"
_TIMEOUT = 300.0  # seconds
_POLL = 0.01
_MARK = "ESKER_TEST_JOB"


class Process(NamedTuple):
    """One that belongs to a job. role: "torchrun", "rank" or "eskerd" (a server that the ranks have started)."""

    pid: int
    role: str
    rank: int


class TorchrunJob:
    """torchrun with its ranks. All of them carry a mark in the environment, by which they are found however they were started."""

    def __init__(
        self,
        directory: pathlib.Path,
        name: str,
        ranks: int,
        arguments: list[str],
        max_restarts: int = 0,
        rendezvous: tuple[str, ...] = ("--standalone",),
    ) -> None:
        """arguments: the script and its own. name: of its files in `directory`: NAME.log, and NAME.loss, which the script writes."""
        self._mark = uuid.uuid4().hex
        self._log = directory / f"{name}.log"
        self._losses = directory / f"{name}.loss"
        command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc-per-node", str(ranks)]
        command += ["--max-restarts", str(max_restarts), *arguments, "--loss-log", str(self._losses)]
        python_path = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        environment = {**os.environ, _MARK: self._mark, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else ranks that start again look for the dead ones (pytorch #135712)
        with open(self._log, "ab") as log:
            self._torchrun = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def processes(self, role: str) -> list[Process]:
        """Those of the job that live now."""
        found = [_process(int(entry), self._mark) for entry in os.listdir("/proc") if entry.isdecimal()]
        return [process for process in found if process is not None and process.role == role]

    def await_ranks(self) -> list[Process]:
        """The ranks that live, at least one. There are none while torchrun starts, or starts again."""
        deadline = time.monotonic() + _TIMEOUT
        while not (ranks := sorted(self.processes("rank"))) and self._torchrun.poll() is None:
            assert time.monotonic() < deadline, f"no ranks within {_TIMEOUT} s: {self.log()}"
            time.sleep(_POLL)
        assert ranks, f"the job has ended: {self.log()}"
        return ranks

    def steps_done(self) -> int:
        return len(self._losses.read_text().splitlines()) if self._losses.exists() else 0

    def await_step(self, step: int) -> None:
        """Until the job has done the step, or has ended."""
        deadline = time.monotonic() + _TIMEOUT
        while self.steps_done() < step and self._torchrun.poll() is None:
            assert time.monotonic() < deadline, f"step {step} was not reached within {_TIMEOUT} s: {self.log()}"
            time.sleep(_POLL)

    def kill_torchrun(self) -> None:
        """Only it: its ranks go on."""
        self._torchrun.kill()
        self._torchrun.wait()

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        assert self._torchrun.wait(_TIMEOUT) == 0, self.log()

    def terminate(self) -> None:
        """SIGTERM, which torchrun passes on, and the end."""
        self._torchrun.terminate()
        self._torchrun.wait(_TIMEOUT)

    def kill_all(self) -> None:
        """torchrun first, so that it starts nobody again."""
        self.kill_torchrun()
        while left := self.processes("rank") + self.processes("eskerd"):
            for process in left:
                kill(process)


@contextlib.contextmanager
def running(job: TorchrunJob) -> Iterator[TorchrunJob]:
    """Nothing of the job outlives the block."""
    try:
        yield job
    finally:
        job.kill_all()


def kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(process.pid, signal.SIGKILL)


def _process(pid: int, mark: str) -> Process | None:
    try:
        environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        program = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None  # it has ended, or is another user's
    if f"{_MARK}={mark}" not in environment:
        return None
    rank = next((int(entry.removeprefix("RANK=")) for entry in environment if entry.startswith("RANK=")), None)
    role = "eskerd" if program == "eskerd" else "torchrun" if rank is None else "rank"
    return Process(pid, role, -1 if rank is None else rank)
