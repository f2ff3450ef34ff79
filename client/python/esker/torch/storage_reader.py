"""Loads from Esker through torch.distributed.checkpoint."""

import dataclasses
import io
import os
import uuid
from typing import Any, Literal

import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from esker import _core
from esker.torch.checkpoint_id import CheckpointId
from esker.torch.metadata import read_metadata, stored_name

# Memory for elements that can't be read into place (another device, dtype or stride), in bytes.
_BUFFER_BYTES = 1 << 30


class StorageReader(storage.StorageReader):
    """Reads one Esker checkpoint, saved by any number of ranks, through DCP or not: of a checkpoint that was not saved through DCP,
    the tensors. Only what this rank wants is read, and each byte is verified.

    Elements go straight into tensors that are contiguous and on the CPU; others are filled through at most 1 GiB of buffers, or
    one item if it is larger.
    """

    def __init__(
        self,
        checkpoint_id: str | os.PathLike[str] | int | None = None,
        *,
        server: str | None = None,
        run: str | None = None,
        transport: Literal["auto", "shm", "grpc"] = "auto",
        threads: int = 0,
        connect_timeout: float = 20.0,
    ) -> None:
        """checkpoint_id: "esker://host:port/run/step", or without the step for the latest; or a step number of `run` on `server`,
            where none at all is the latest. May also be given to each load.
        transport, threads, connect_timeout (seconds): as esker.Checkpointer's.

        Raises ValueError for a checkpoint_id that is none.
        """
        self.server = server
        self.run = run
        self.checkpoint_id: str | None = None
        self._id: CheckpointId | None = None
        self._transport = transport
        self._threads = threads
        self._connect_timeout = connect_timeout
        self._rank = 0
        self._load_id = ""
        self._checkpoint: _core.Checkpoint | None = None
        self._metadata: Metadata | None = None
        self._items: dict[str, list[int]] = {}
        self.reset(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | int | None = None) -> None:
        """A new load begins, from `checkpoint_id` if it is given. ValueError if it is none."""
        self._load_id = str(uuid.uuid4())
        self._checkpoint = None
        if checkpoint_id is not None:
            self._id = CheckpointId.parse(checkpoint_id, self.server, self.run)
        elif self._id is None and self.server is not None and self.run is not None:
            self._id = CheckpointId(self.server, self.run, None)
        self.checkpoint_id = None if self._id is None else str(self._id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Opens the checkpoint; garbage collection leaves it alone until the load has ended. Raises EskerError ("NOT_FOUND" says
        what there is instead), ValueError without a checkpoint_id."""
        self._open(None if self._id is None else self._id.step)
        assert self._metadata is not None
        self._metadata.storage_meta = StorageMeta(checkpoint_id=self.checkpoint_id, load_id=self._load_id)
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Learns this process's rank, whose replicas it reads first. kwargs: rank, from DCP."""
        self._rank = int(kwargs.get("rank") or 0)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leaves the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """On the coordinator: all ranks load its step, also if "the latest" was another one for some of them."""
        assert self._checkpoint is not None, "prepare_global_plan is called after read_metadata"
        return [dataclasses.replace(plan, storage_data=self._checkpoint.info.step) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fills what the plan wants. Raises EskerError ("DATA_LOSS" names rank, tensor and chunk), and what the planner raises."""
        assert self._checkpoint is not None, "read_data is called after read_metadata"
        if self._checkpoint.info.step != plan.storage_data:
            self._open(plan.storage_data)
        self._read_tensors([item for item in plan.items if item.type is LoadItemType.TENSOR], planner)
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(item, io.BytesIO(self._read_item(item.storage_index.fqn)))
        self._checkpoint = None
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an esker:// URL that names a server and a run."""
        return CheckpointId.is_url(checkpoint_id)

    def _open(self, step: int | None) -> None:
        if self._id is None:
            raise ValueError("no checkpoint_id: give one to the StorageReader, or to the load")
        reader = _core.Reader(
            self._id.server, connect_timeout=self._connect_timeout, threads=self._threads, transport=self._transport
        )
        self._checkpoint = reader.open(self._id.run, step)
        self._metadata, self._items = read_metadata(self._checkpoint)

    def _read_tensors(self, items: list[ReadItem], planner: LoadPlanner) -> None:
        wanted: list[_Wanted] = []
        buffered_bytes = 0
        for item in items:
            one = _Wanted(item, planner.resolve_tensor(item).detach(), self._stored(item.storage_index.fqn))
            if wanted and buffered_bytes + one.buffer_bytes > _BUFFER_BYTES:
                self._fill(wanted, planner)
                wanted, buffered_bytes = [], 0
            wanted.append(one)
            buffered_bytes += one.buffer_bytes
        self._fill(wanted, planner)

    def _fill(self, wanted: list["_Wanted"], planner: LoadPlanner) -> None:
        """One call for all of them: a chunk that several want is read once."""
        assert self._checkpoint is not None
        if boxes := [one.box() for one in wanted if one.target.numel() > 0]:
            self._checkpoint.restore(boxes, preferred_rank=self._rank)
        for one in wanted:
            one.put_in_place()
            planner.commit_tensor(one.item, one.target)

    def _stored(self, fqn: str) -> TensorStorageMetadata:
        assert self._metadata is not None
        stored = self._metadata.state_dict_metadata.get(fqn)
        if not isinstance(stored, TensorStorageMetadata):
            raise KeyError(f"{self.checkpoint_id}: no tensor {fqn}")
        return stored

    def _read_item(self, fqn: str) -> bytes:
        """This rank's own, where several ranks stored one."""
        assert self._checkpoint is not None
        ranks = self._items[fqn]
        return self._checkpoint.read_item(self._rank if self._rank in ranks else ranks[0], fqn)


class _Wanted:
    """A read item, the tensor that it fills, and a buffer where the elements can't be read right into it."""

    def __init__(self, item: ReadItem, target: torch.Tensor, stored: TensorStorageMetadata) -> None:
        if tuple(target.shape) != tuple(item.lengths):
            raise ValueError(f"{item.storage_index.fqn}: wanted {tuple(item.lengths)}, but the target is {tuple(target.shape)}")
        self.item = item
        self.target = target
        self._stored = stored
        dtype = stored.properties.dtype
        self._direct = (
            target.device.type == "cpu" and target.is_contiguous() and target.dtype == dtype and not target.is_conj() and not target.is_neg()
        )
        self._buffer: torch.Tensor | None = None
        self.buffer_bytes = 0 if self._direct else target.numel() * dtype.itemsize

    def box(self) -> _core.TensorBox:
        """Where the elements are to be read to. Allocates the buffer."""
        item = self.item
        begin = item.storage_index.offset or [0] * len(item.lengths)
        offset = tuple(a + b for a, b in zip(begin, item.storage_offsets, strict=True))
        into = self.target
        if not self._direct:
            into = self._buffer = torch.empty(tuple(item.lengths), dtype=self._stored.properties.dtype)
        name = stored_name(into.dtype, item.storage_index.fqn)
        return (item.storage_index.fqn, name, tuple(self._stored.size), offset, tuple(item.lengths), into.data_ptr())

    def put_in_place(self) -> None:
        """From the buffer into the target, where there is one. Lets go of the buffer."""
        if self._buffer is not None:
            self.target.copy_(self._buffer)
            self._buffer = None
