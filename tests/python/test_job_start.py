"""What counts as a start of the job under torchrun: what joins the ranks, and no number that torchrun gives them."""

import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

pytest.importorskip("torch")

from native import running_server  # noqa: E402
from torchrun_job import EXAMPLES, TorchrunJob, running  # noqa: E402

import esker  # noqa: E402

_SAME_ID = ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=same")


def await_true(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("example", ["train_gpt", "train_dcp"])
def test_torchrun_started_again_by_hand_with_the_same_id_fences_off_the_ranks_that_it_left(example: str, tmp_path: pathlib.Path) -> None:
    """torchrun is killed, its ranks train on, and somebody starts it again. Its restart count is 0 then as it was before."""

    def start(name: str, steps: int) -> TorchrunJob:
        script = [str(EXAMPLES / f"{example}.py"), "--server", server.address, "--steps", str(steps), "--save-every", "5"]
        return TorchrunJob(tmp_path, name, 2, script, rendezvous=_SAME_ID)

    def checkpoints() -> list[esker.CheckpointInfo]:
        return esker.Reader(server.address).list("gpt")

    with running_server(tmp_path) as server, running(start("old", 5000)) as old:
        old.await_step(12)
        old.kill_torchrun()
        assert len(old.processes("rank")) == 2
        with running(start("new", 5000)) as new:
            await_true(lambda: checkpoints()[-1].attempt == 2, "no checkpoint of the new start")
            await_true(lambda: "attempt 2 has been opened since" in old.log(), "a save of the old start was not refused")
            committed = [(info.attempt, info.step) for info in checkpoints()]
            assert committed == sorted(committed)  # nothing of the old start behind the new one's
            resumed = int(re.findall(r"resumed from step (\d+)", new.log())[0])
            assert resumed == max(step for attempt, step in committed if attempt == 1)


def test_an_exception_does_not_wait_for_ranks_that_may_be_dead(tmp_path: pathlib.Path) -> None:
    """Two ranks, of which one never saves. The other's part is durable, and a launcher waits for its end."""
    with running_server(tmp_path) as server, esker.Checkpointer(server.address, "run", 0, 2, incarnation="a", exit_timeout=60) as ckpt:
        ended = threading.Event()

        def fail() -> None:
            with pytest.raises(ZeroDivisionError), ckpt:
                ckpt.save(1, {"x": 1})
                1 / 0
            ended.set()

        threading.Thread(target=fail, daemon=True).start()
        assert ended.wait(20)
        assert [info.step for info in esker.Reader(server.address).list("run")] == []


def test_what_a_rank_left_behind_at_an_exception_is_committed_by_the_others(tmp_path: pathlib.Path) -> None:
    with running_server(tmp_path) as server:
        first, second = (esker.Checkpointer(server.address, "run", rank, 2, incarnation="a") for rank in range(2))
        with pytest.raises(ZeroDivisionError), first:
            first.save(1, {"x": 1})
            1 / 0
        with second:
            second.save(1, {"x": 1})
        assert [info.step for info in esker.Reader(server.address).list("run")] == [1]


def test_forked_ranks_are_a_start_of_their_own() -> None:
    """A supervisor that has imported esker forks the ranks of one start after the other."""
    code = """
import os
from esker import job_start

tokens = [job_start.token()]
for _ in range(2):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, job_start.token().encode())
        os._exit(0)
    os.wait()
    tokens.append(os.read(read, 1000).decode())
assert len(set(tokens)) == 3, tokens
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    environment.pop("ESKER_INCARNATION", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
