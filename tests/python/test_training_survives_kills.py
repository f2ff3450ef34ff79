"""The example jobs, killed at random instants, end with the loss curve and the weights of a job that was left alone, bit for bit; and
what 4 ranks saved, 2 and 3 ranks load, bit for bit.

Kills, with SIGKILL: one rank, all ranks, and the server. torchrun starts the ranks again. The seed is printed; ESKER_TEST_SEED replays
its schedule. ESKER_KILL_ROUNDS: kills for each job, 3 by default.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time
from typing import Any

import pytest

pytest.importorskip("torch")

from native import Server, running_server  # noqa: E402
from torchrun_job import EXAMPLES, TorchrunJob, kill, running  # noqa: E402

import esker  # noqa: E402
from esker._programs import program_path  # noqa: E402

ROUNDS = int(os.environ.get("ESKER_KILL_ROUNDS", "3"))
RANKS = 4
SAVE_EVERY = 4
STEPS_A_ROUND = 24
COMPARE = pathlib.Path(__file__).parents[2] / "tools/compare_safetensors.py"
STEPS = STEPS_A_ROUND * (ROUNDS + 2)  # nothing is killed in the last two rounds' steps


def metadata(file: pathlib.Path) -> Any:
    """Of a safetensors file."""
    with open(file, "rb") as content:
        header = content.read(int.from_bytes(content.read(8), "little"))
    return json.loads(header)["__metadata__"]


def assert_same(a: pathlib.Path, b: pathlib.Path, *options: str) -> None:
    """Two safetensors files. By a program that has none of Esker's code."""
    said = subprocess.run([sys.executable, COMPARE, *options, a, b], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    print(f"{a.name}, {b.name}: {said.stdout.strip()}")


class Trial:
    """One of the examples, its server and its files."""

    def __init__(self, example: str, directory: pathlib.Path, seed: int) -> None:
        self.example = example
        self.directory = directory
        self.random = random.Random(f"{example} {seed}")

    def start(self, server: str, name: str, run: str, ranks: int = RANKS, max_restarts: int = 0) -> TorchrunJob:
        script = [str(EXAMPLES / f"{self.example}.py"), "--server", server, "--job", run, "--save-every", str(SAVE_EVERY)]
        script += ["--steps", str(STEPS), "--final-state", str(self.final(name))]
        return TorchrunJob(self.directory, name, ranks, script, max_restarts)

    def final(self, name: str) -> pathlib.Path:
        return self.directory / f"{name}.final"

    def losses(self, name: str) -> str:
        return (self.directory / f"{name}.loss").read_text()

    def run_to_end(self, server: str, name: str, run: str, ranks: int = RANKS) -> None:
        with running(self.start(server, name, run, ranks)) as job:
            job.finish()

    def run_through_kills(self, server: str, own_server: Server | None) -> None:
        """own_server: to be killed and started again by the test; else the ranks have one of their own, and see to that themselves."""
        kinds = [kind for _ in range(ROUNDS) for kind in self.random.sample(["rank", "all", "server"], 3)][:ROUNDS]
        with running(self.start(server, "stormy", "stormy", max_restarts=2 * ROUNDS)) as job:
            for number, kind in enumerate(kinds):
                job.await_step(STEPS_A_ROUND * number + self.random.randrange(1, STEPS_A_ROUND))
                time.sleep(self.random.uniform(0, 0.3))
                print(f"round {number}: {kind}, after step {job.steps_done()}")
                self._kill(job, kind, own_server)
            job.finish()

    def _kill(self, job: TorchrunJob, kind: str, own_server: Server | None) -> None:
        if kind == "server" and own_server is not None:
            own_server.kill()
            time.sleep(self.random.uniform(0, 1))
            own_server.start()
        elif kind == "server":
            for process in job.processes("eskerd"):
                kill(process)
        else:
            ranks = job.await_ranks()
            for process in ranks if kind == "all" else [self.random.choice(ranks)]:
                kill(process)

    def check_same_end(self) -> None:
        assert self.losses("stormy") == self.losses("calm")
        assert len(self.losses("calm").splitlines()) == STEPS
        assert_same(self.final("calm"), self.final("stormy"))
        assert metadata(self.final("calm")) == metadata(self.final("stormy"))

    def check_loaded(self, server: str) -> None:
        """What is in the last checkpoint; and what fewer ranks loaded of it, and did not train."""
        stored = self.directory / "stored.safetensors"
        command = [program_path("esker"), "--server", server, "restore", "stormy@latest", "--to", str(stored)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        assert_same(self.final("stormy"), stored)
        for ranks in (2, 3):
            loaded = self.final(f"resumed-{ranks}")
            assert_same(loaded, stored, "--subset")  # it lacks the random numbers of the other ranks
            assert metadata(loaded) == metadata(self.final("stormy"))


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Trial:
    seed = int(os.environ.get("ESKER_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed} (replay with ESKER_TEST_SEED={seed})")
    return Trial(request.param, tmp_path, seed)


def check(trial: Trial, server: str, own_server: Server | None) -> None:
    trial.run_to_end(server, "calm", "calm")
    trial.run_through_kills(server, own_server)
    trial.check_same_end()
    for ranks in (2, 3):
        trial.run_to_end(server, f"resumed-{ranks}", "stormy", ranks)
    address = own_server.address if own_server else esker.local_server(server)
    checkpoints = esker.Reader(address).list("stormy")
    assert [checkpoint.step for checkpoint in checkpoints] == list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))
    assert all(checkpoint.world_size == RANKS for checkpoint in checkpoints)
    assert checkpoints[-1].attempt > 1
    trial.check_loaded(address)


@pytest.mark.parametrize("trial", ["train_gpt"], indirect=True)
def test_the_native_api_with_a_server_of_the_ranks_own(trial: Trial) -> None:
    check(trial, str(trial.directory / "checkpoints"), None)


@pytest.mark.parametrize("trial", ["train_dcp"], indirect=True)
def test_dcp_with_a_server_that_is_started_again(trial: Trial) -> None:
    with running_server(trial.directory) as server:
        check(trial, server.address, server)
