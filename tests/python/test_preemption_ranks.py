"""Preemption of a job of several processes: the signal reaches one of them, and all stop at the same step or not at all."""

import logging
import os
import pathlib
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from native import Server
from ranks import Raised, end_of_ranks, run_ranks

import esker

DEADLINE = 3.0
SLACK = 20.0  # of a busy machine; who does not hold to the deadline waits for ever


def train(server: str, run: str, told: dict[int, int]) -> tuple[int, Any]:
    """Trains until a rank is told to stop. told: at which step each of these ranks gets its signal. The last step, and what was saved."""
    state: dict[str, Any] = {"weights": torch.zeros(100), "step": 0}
    with esker.Checkpointer(server, run, incarnation="a", replicated=["weights"]) as ckpt, esker.on_preemption(ckpt) as preemption:
        for step in range(50):
            state["weights"] += 1
            state["step"] = step
            if told.get(dist.get_rank()) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            if preemption.reached(step, state):
                break
        dist.barrier()
        saved = ckpt.load()
    return step, (saved[0], saved[1]["step"], saved[1]["weights"].tolist())


@pytest.mark.parametrize(
    ("world_size", "told", "last"),
    [(2, {0: 3}, 3), (3, {2: 0}, 0), (3, {1: 7, 0: 7}, 7), (4, {3: 5, 1: 9}, 5)],
    ids=str,
)
def test_all_ranks_stop_where_the_first_was_told(server: Server, run: str, world_size: int, told: dict[int, int], last: int) -> None:
    expected = (last, (last, last, [last + 1.0] * 100))
    assert run_ranks(world_size, train, server.address, run, told) == [expected] * world_size


class Log(logging.Handler):
    """The messages of the logger esker, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        logging.getLogger("esker").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


def die() -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_while_one_dies(server: str, run: str, in_the_save: bool) -> tuple[float, str, int | None]:
    """Rank 0 is told to stop; rank 1 dies before it comes to the step's end, or just before its part is saved."""
    log = Log()
    with esker.Checkpointer(server, run, incarnation="a", exit_timeout=0.0) as ckpt, esker.on_preemption(ckpt, deadline=DEADLINE) as preemption:
        assert not preemption.reached(0, {})
        dist.barrier()
        if dist.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        if dist.get_rank() == 1 and not in_the_save:
            die()
        began = time.monotonic()
        assert preemption.reached(1, die if dist.get_rank() == 1 else {"step": 1})
        return time.monotonic() - began, log.text, ckpt.latest_step()


def test_a_rank_that_dies_before_the_step_is_not_waited_for(server: Server, run: str) -> None:
    told, dead, other = end_of_ranks(3, stop_while_one_dies, server.address, run, False)
    assert dead is None
    took, log, saved = told
    assert took < DEADLINE + SLACK and saved is None
    assert "step 1 is not saved: the ranks could not agree to stop here" in log
    assert isinstance(other, Raised) and "in reached" in other  # nobody told it: it sees a job whose rank is gone


def test_a_rank_that_dies_in_the_last_save_costs_no_more_than_the_deadline(server: Server, run: str) -> None:
    first, dead, other = end_of_ranks(3, stop_while_one_dies, server.address, run, True)
    assert dead is None
    for took, log, saved in (first, other):
        assert took < DEADLINE + SLACK and saved is None
        assert f"step 1 is not saved: the deadline of {DEADLINE:.0f} s is over" in log


def hang(server: str, run: str, release: str) -> tuple[float, str] | None:
    """Rank 0 is told to stop while rank 1 hangs in its step, with its connections open."""
    log = Log()
    with esker.Checkpointer(server, run, incarnation="a") as ckpt, esker.on_preemption(ckpt, deadline=DEADLINE) as preemption:
        assert not preemption.reached(0, {})
        if dist.get_rank() == 1:
            while not os.path.exists(release):
                time.sleep(0.01)
            return None
        os.kill(os.getpid(), signal.SIGTERM)
        began = time.monotonic()
        assert preemption.reached(1, {})
        took = time.monotonic() - began
        pathlib.Path(release).touch()
        return took, log.text


def test_a_rank_that_hangs_is_waited_for_until_the_deadline(server: Server, run: str, tmp_path: pathlib.Path) -> None:
    result, _ = run_ranks(2, hang, server.address, run, str(tmp_path / "release"))
    took, log = result
    assert DEADLINE - 0.1 < took < DEADLINE + SLACK
    assert "a rank has not come to this step before the deadline" in log
