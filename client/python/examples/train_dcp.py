"""The job of train_gpt.py for those who use torch.distributed.checkpoint (DCP): all that is Esker's are the writer and the reader.

    eskerd --data /mnt/fast/checkpoints &
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1     # else torchrun's restarts fail: https://github.com/pytorch/pytorch/issues/135712
    torchrun --standalone --nproc-per-node 4 --max-restarts 3 train_dcp.py --server 127.0.0.1:7070

Started again, it goes on from the last committed step, on 4 ranks or on another number of them.
"""

from typing import Any

import torch
import torch.distributed as dist
from gpt import Batches, LossLog, RandomNumbers, log, parse_arguments, sharded_model, start, train_step, write_final_state
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

import esker
from esker.torch import StorageReader, StorageWriter


class Job:
    """What is saved."""

    def __init__(self, layers: int, width: int, batches: Batches) -> None:
        self.model = sharded_model(layers, width)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.batches = batches
        self.random = RandomNumbers()

    def state_dict(self, random_numbers_of: int) -> dict[str, Any]:
        """DCP keeps one value for each name: what is a rank's own has the rank in its name."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        own = {str(random_numbers_of): self.random.state_dict()}
        return {"model": model, "optim": optimizer, "batches": self.batches.state_dict(), "random": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        self.batches.load_state_dict(state["batches"])
        (own,) = state["random"].values()
        self.random.load_state_dict(own)


def main() -> None:
    arguments = parse_arguments(__doc__, "host:port of an eskerd")
    start()
    rank = dist.get_rank()
    job = Job(arguments.layers, arguments.width, Batches(arguments.text))
    writer = StorageWriter(server=arguments.server, run=arguments.job)
    attempt = writer.open_run()  # before the load: ranks of an earlier start that still run can save nothing from here on
    done = resume(job, arguments.server, arguments.job)
    log.info("attempt %d: %s", attempt, f"resumed from step {done}" if done else "no checkpoint yet")

    losses = LossLog(arguments.loss_log, steps_done=done)
    saves = dist.new_group(backend="gloo")  # DCP talks in the background: not in the middle of what training says
    saving: Any = None  # a Future
    for step in range(done + 1, arguments.steps + 1):
        losses.add(step, train_step(job.model, job.optimizer, job.batches))
        if step % arguments.save_every == 0 or step == arguments.steps:
            if saving is not None:
                saving.result()  # DCP saves one step at a time; raises if the save has failed
            saving = async_save(job.state_dict(rank), checkpoint_id=str(step), storage_writer=writer, process_group=saves)
    if saving is not None:
        saving.result()

    write_final_state(arguments.final_state, job.state_dict(rank), job.batches)
    dist.destroy_process_group()


def resume(job: Job, server: str, run: str) -> int:
    """Loads the latest checkpoint. Returns its step, 0 if there is none."""
    latest = [latest_checkpoint(server, run) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(latest)  # the same on all ranks
    if latest[0] is None:
        return 0
    step, world_size = latest[0]
    state = job.state_dict(random_numbers_of=dist.get_rank() % world_size)
    load(state, checkpoint_id=str(step), storage_reader=StorageReader(server=server, run=run))
    job.load_state_dict(state)
    return step


def latest_checkpoint(server: str, run: str) -> tuple[int, int] | None:
    """Its step, and how many ranks saved it."""
    try:
        checkpoints = esker.Reader(server).list(run)
    except esker.EskerError as error:
        if error.code != "NOT_FOUND":
            raise
        return None
    return (checkpoints[-1].step, checkpoints[-1].world_size) if checkpoints else None


if __name__ == "__main__":
    main()
