"""SIGTERM to torchrun, as before a machine is taken away: the step that the ranks are at is saved, and the job goes on from there."""

import pathlib

import pytest

pytest.importorskip("torch")

from native import running_server  # noqa: E402
from torchrun_job import EXAMPLES, TorchrunJob, running  # noqa: E402

import esker  # noqa: E402


def test_the_last_step_before_the_end_is_saved(tmp_path: pathlib.Path) -> None:
    with running_server(tmp_path) as server:
        script = [str(EXAMPLES / "train_gpt.py"), "--server", server.address, "--save-every", "5000"]
        with running(TorchrunJob(tmp_path, "job", 2, [*script, "--steps", "5000"])) as job:
            job.await_step(3)
            job.terminate()
            done = job.steps_done()
        assert [info.step for info in esker.Reader(server.address).list("gpt")] == [done]
        with running(TorchrunJob(tmp_path, "job", 2, [*script, "--steps", str(done + 1)])) as job:
            job.finish()
            assert f"resumed from step {done}" in job.log()
            assert job.steps_done() == done + 1
