"""Esker as storage of torch.distributed.checkpoint (DCP).

    import torch.distributed.checkpoint as dcp
    from esker.torch import StorageReader, StorageWriter

    dcp.save(state, storage_writer=StorageWriter("esker://127.0.0.1:7070/gpt/100"))
    dcp.load(state, storage_reader=StorageReader("esker://127.0.0.1:7070/gpt"))      # the latest step

A job that may have been started again, while ranks of the earlier start still run, calls StorageWriter.open_run before it loads.

One DCP save is one Esker checkpoint: whole or absent, listed by `esker ls`, verified when it is read.
"""

from esker.torch.checkpoint_id import CheckpointId
from esker.torch.storage_reader import StorageReader
from esker.torch.storage_writer import StorageWriter

__all__ = ["CheckpointId", "StorageReader", "StorageWriter"]
