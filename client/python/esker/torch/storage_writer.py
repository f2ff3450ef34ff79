"""Saves through torch.distributed.checkpoint into Esker."""

import dataclasses
import io
import os
import threading
import uuid
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from esker import _core, job_start
from esker.torch import connections
from esker.torch.checkpoint_id import CheckpointId
from esker.torch.metadata import ITEM, encode_item, stored_name


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all ranks of a save must agree on."""

    world_size: int
    incarnation: str


class StorageWriter(storage.StorageWriter):
    """Writes one Esker checkpoint per DCP save. Nothing of it is visible before all ranks have written; DCP's save returns when it is
    committed, and raises on every rank if it is not.

    Connects at the first save or in open_run, not here: the object can be pickled, and made anew for each save. Connections,
    staging memory and the attempt are the process's, which saves one step of a run at a time. A step that this start of the job
    has committed can't be saved again; one of an earlier start stays until the new one is committed.
    """

    def __init__(
        self,
        checkpoint_id: str | os.PathLike[str] | int | None = None,
        *,
        server: str | None = None,
        run: str | None = None,
        incarnation: str = "",
        world_size: int | None = None,
        compression: Literal["none", "zstd", "planes", "auto", "delta"] = "none",
        transport: Literal["auto", "shm", "grpc"] = "auto",
        threads: int = 0,
        connect_timeout: float = 20.0,
        save_timeout: float = 600.0,
    ) -> None:
        """checkpoint_id: "esker://host:port/run/step", or a step number of `run` on `server`; may also be given to each save.
        incarnation: equal on all ranks of one start of the job, new at each start. Empty: ESKER_INCARNATION of the environment;
            else the coordinator draws one.
        world_size: how many ranks save; looked at with use_collectives=False only. Default: the default process group's.
        compression, transport, threads, connect_timeout, save_timeout (seconds): as esker.Checkpointer's.

        Raises ValueError for a checkpoint_id that is none.
        """
        self.server = server
        self.run = run
        self.checkpoint_id: str | None = None
        self._id: CheckpointId | None = None
        self._incarnation = incarnation
        self._world_size = world_size
        self._options: dict[str, Any] = {
            "compression": compression,
            "transport": transport,
            "threads": threads,
            "connect_timeout": connect_timeout,
            "save_timeout": save_timeout,
        }
        self._save_id = ""
        self._rank = 0
        self._stores_planner_data = True
        self._collective = True
        self._handle: _core.SaveHandle | None = None
        self.reset(checkpoint_id)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_token": job_start.token()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        job_start.adopt(state.pop("_token"))
        self.__dict__.update(state)

    def reset(self, checkpoint_id: str | os.PathLike[str] | int | None = None) -> None:
        """A new save begins, into `checkpoint_id` if it is given. ValueError if it is none."""
        self._save_id = str(uuid.uuid4())
        self._handle = None
        if checkpoint_id is not None:
            self._id = CheckpointId.parse(checkpoint_id, self.server, self.run)
            self.checkpoint_id = str(self._id)

    def open_run(self) -> int:
        """Opens the run for writing, and returns the attempt: ranks of an earlier start of the job can save nothing from here on.

        The first save does so in any case. To be called before a load that training goes on from: else such ranks may until then
        commit steps behind the one that is loaded. A collective, for all ranks. Raises EskerError as esker.Checkpointer does.
        """
        if self._id is None and self.server is not None and self.run is not None:
            self._id = CheckpointId(self.server, self.run, None)
        rank = dist.get_rank() if dist.is_initialized() else 0
        return self._connect(self._checkpoint(), rank, self._job_without_plans()).attempt

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Learns this process's part in the save. kwargs: rank, use_collectives, from DCP."""
        checkpoint = self._checkpoint()
        self._rank = int(kwargs.get("rank") or 0)
        self._collective = bool(kwargs.get("use_collectives", True))
        # Without collectives each rank knows only its own objects.
        self._stores_planner_data = is_coordinator or not self._collective
        if connection := connections.existing(checkpoint.server, checkpoint.run):
            connection.abort_abandoned()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leaves the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: tells each rank what all must agree on."""
        job = self._job_of(plans) if self._collective else self._job_without_plans()
        return [dataclasses.replace(plan, storage_data=job) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Saves the plan's items as this rank's part, also if there are none, and returns when the part is durable.

        If this rank can't, the save fails on all ranks. Raises EskerError, TypeError (a tensor that can't be stored), and what
        the planner raises.
        """
        checkpoint = self._checkpoint()
        job: _Job = plan.storage_data
        job_start.adopt(job.incarnation)
        connection = self._connect(checkpoint, self._rank, job)
        step = self._step(checkpoint)
        self._handle = None
        try:
            self._handle, results = self._save(connection, step, plan, planner)
            connections.await_durable(self._handle)
        except BaseException as error:
            if self._handle is None or not self._handle.done():  # else it has failed, on all ranks
                connection.abort(step, f"{type(error).__name__}: {error}")
            raise
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Waits for the commit. Raises EskerError: why there is none, such as which ranks have not reported."""
        assert self._handle is not None, "finish is called after write_data"
        self._handle.wait()

    def storage_meta(self) -> StorageMeta:
        """For the planner: which checkpoint this is."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._save_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is an esker:// URL that names a server and a run."""
        return CheckpointId.is_url(checkpoint_id)

    def _connect(self, checkpoint: CheckpointId, rank: int, job: _Job) -> connections.Connection:
        return connections.connect(
            connections.Destination(checkpoint.server, checkpoint.run, rank, job.world_size, job.incarnation, **self._options)
        )

    def _checkpoint(self) -> CheckpointId:
        if self._id is None:
            raise ValueError("no checkpoint_id: give one to the StorageWriter, or to the save")
        return self._id

    @staticmethod
    def _step(checkpoint: CheckpointId) -> int:
        if checkpoint.step is None:
            raise ValueError(f'checkpoint_id "{checkpoint}": a save needs a step: {checkpoint}/STEP')
        return checkpoint.step

    def _job_of(self, plans: list[SavePlan]) -> _Job:
        self._step(self._checkpoint())  # now: an error in the plan is told to all ranks before anyone has written
        return _Job(len(plans), self._incarnation or job_start.token())

    def _job_without_plans(self) -> _Job:
        group_size = dist.get_world_size() if dist.is_initialized() else 1
        world_size = self._world_size or group_size
        if self._incarnation or world_size == 1:
            return _Job(world_size, self._incarnation or job_start.token())
        if world_size == group_size:
            if not job_start.is_agreed(world_size) and threading.current_thread() is not threading.main_thread():
                # A broadcast here would mix with the collectives of training, in another order on each rank.
                raise RuntimeError("async_save without collectives: call StorageWriter.open_run() on all ranks before the first save")
            return _Job(world_size, job_start.agreed_token(world_size))
        if not job_start.named_by_launcher():
            raise ValueError(
                f"use_collectives=False with {world_size} of {group_size} ranks: set ESKER_INCARNATION, or pass incarnation=,"
                " to a value that is equal on all of them and new at each start of the job"
            )
        return _Job(world_size, "")

    def _save(
        self, connection: connections.Connection, step: int, plan: SavePlan, planner: SavePlanner
    ) -> tuple[_core.SaveHandle, list[WriteResult]]:
        held: list[torch.Tensor] = []  # alive until the snapshot is taken
        boxes: list[_core.TensorBox] = []
        items: list[tuple[str, bytes]] = []
        results: list[WriteResult] = []
        for item in plan.items:
            value = planner.resolve_data(item)
            if item.type is WriteItemType.BYTE_IO:
                content = _content(item, value)
                items.append((item.index.fqn, content))
                results.append(WriteResult(item.index, len(content), None))
            else:
                tensor = _on_cpu(item, value)
                held.append(tensor)
                boxes.append(_box(item, tensor))
                results.append(WriteResult(item.index, tensor.numel() * tensor.element_size(), None))
        if self._stores_planner_data:
            whole = getattr(planner, "metadata", None)  # what DefaultSavePlanner has merged from all ranks
            planner_data = whole.planner_data if isinstance(whole, Metadata) else plan.planner_data
            items.append((ITEM, encode_item(planner_data)))
        return connection.save(step, boxes, items), results


def _content(item: WriteItem, value: Any) -> bytes:
    if item.index.fqn == ITEM:
        raise ValueError(f'"{ITEM}" can\'t be the name of an object: Esker keeps it for itself')
    return value.getvalue() if isinstance(value, io.BytesIO) else bytes(value)


def _on_cpu(item: WriteItem, value: Any) -> torch.Tensor:
    """The elements in the CPU's memory, row-major and without lazy conjugation or sign; the tensor itself where it is so already."""
    fqn = item.index.fqn
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        found = f"a {value.layout} tensor" if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"{fqn}: expected a strided tensor, found {found}: convert it before saving")
    return value.detach().resolve_conj().resolve_neg().cpu().contiguous()


def _box(item: WriteItem, tensor: torch.Tensor) -> _core.TensorBox:
    data = item.tensor_data
    assert data is not None, "a tensor's write item has tensor_data"
    extent = tuple(data.chunk.sizes)
    if tuple(tensor.shape) != extent:
        raise ValueError(f"{item.index.fqn}: the plan says {extent}, the tensor is {tuple(tensor.shape)}")
    name = stored_name(tensor.dtype, item.index.fqn)
    return (item.index.fqn, name, tuple(data.size), tuple(data.chunk.offsets), extent, tensor.data_ptr())
