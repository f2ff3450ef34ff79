"""Esker: fault-tolerant checkpoints for training jobs.

    ckpt = esker.Checkpointer("127.0.0.1:7070", run="gpt", rank=rank, world_size=world)
    ckpt.save(step, {"model": model, "optim": optimizer})     # returns after the snapshot copy
    step, state = ckpt.load()                                  # the latest committed

A checkpoint is whole or absent, every byte of it was checked against the hash taken when it was saved, and no failure of a server
raises into the training loop. `esker.torch` has the plug-in for torch.distributed.checkpoint.
"""

from esker._core import Checkpoint, CheckpointInfo, EskerError, ItemInfo, Reader, TensorInfo, __version__
from esker._server import local_server
from esker.checkpointer import Checkpointer
from esker.errors import StateMismatchError
from esker.handle import SaveHandle
from esker.preemption import Preemption, on_preemption

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "Checkpointer",
    "EskerError",
    "ItemInfo",
    "Preemption",
    "Reader",
    "SaveHandle",
    "StateMismatchError",
    "TensorInfo",
    "__version__",
    "local_server",
    "on_preemption",
]
