"""Trains a small GPT on several ranks, and saves with Esker. Kill any rank, all ranks or the server: it goes on with the same bits.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1     # else torchrun's restarts fail: https://github.com/pytorch/pytorch/issues/135712
    torchrun --standalone --nproc-per-node 4 --max-restarts 3 train_gpt.py --server checkpoints

Started again, it goes on from the last committed step, on 4 ranks or on another number of them.
"""

import torch
import torch.distributed as dist
from gpt import Batches, LossLog, RandomNumbers, log, parse_arguments, sharded_model, start, train_step, write_final_state

import esker


def main() -> None:
    arguments = parse_arguments(__doc__, "host:port of an eskerd, or a directory: then the ranks start one of their own there")
    start()
    model = sharded_model(arguments.layers, arguments.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = Batches(arguments.text)
    state = {"model": model, "optim": optimizer, "batches": batches, "random": RandomNumbers()}

    # AdamW counts steps in plain tensors, which are the same on all ranks. Random numbers are each rank's own.
    replicated = ["optim.state.*.step"]
    with (
        esker.Checkpointer(arguments.server, arguments.job, replicated=replicated) as ckpt,
        esker.on_preemption(ckpt) as preemption,
    ):
        resumed, state = ckpt.load(into=state, from_rank=whose_random_numbers(ckpt))
        log.info("attempt %d: %s", ckpt.attempt, f"resumed from step {resumed}" if resumed else "no checkpoint yet")
        done = resumed or 0
        losses = LossLog(arguments.loss_log, steps_done=done)
        for step in range(done + 1, arguments.steps + 1):
            losses.add(step, train_step(model, optimizer, batches))
            if step % arguments.save_every == 0 or step == arguments.steps:
                ckpt.save(step, state)  # returns after the snapshot copy
            if preemption.reached(step, state):  # SIGTERM came to some rank: this step is saved
                break
        else:
            ckpt.wait()  # the end of training is worth an error if its save has failed

    own = {f"random.torch@rank{dist.get_rank()}": torch.get_rng_state()}  # as Esker names what is a rank's own
    final = {"model": model.state_dict(), "optim": optimizer.state_dict(), **own}
    write_final_state(arguments.final_state, final, batches)
    dist.destroy_process_group()


def whose_random_numbers(ckpt: esker.Checkpointer) -> int | None:
    """Each rank goes on with its own, and if there are now more ranks than before, some with the same ones."""
    checkpoints = ckpt.list()
    return ckpt.rank % checkpoints[-1].world_size if checkpoints else None


if __name__ == "__main__":
    main()
