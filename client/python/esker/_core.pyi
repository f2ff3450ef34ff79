"""libesker for Python: saves and restores boxes of tensors that lie at given addresses.

The package `esker` is the API for training loops; this module is what it stands on. Memory is named by address: the caller
keeps the tensors behind the addresses alive, and of the stated size, until the call returns.

Every call that may block lets other Python threads run (it releases the GIL), and so does the end of an object that blocks.
Sizes are in bytes, durations in seconds. All objects may be used by several threads at once. Nothing here
survives `os.fork()`: in a child of a process that has opened a Checkpointer or a Reader each method, and opening another one,
raises EskerError with code "FAILED_PRECONDITION". Start such processes with the "spawn" method, or fork before opening.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

__version__: str

TensorBox: TypeAlias = tuple[str, str, tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""A box of a global tensor, and where its elements lie: (name, dtype, shape, offset, extent, address).

name: 1 to 4096 bytes of UTF-8 without NUL. dtype: as safetensors calls it ("BF16", "F32", "F8_E4M3", "BOOL", "I64", "C64" ...).
shape: the global tensor's. The box holds the elements x with offset[d] <= x[d] < offset[d] + extent[d]; all three are () for a
scalar. address: of the box's first element; the box is row-major and contiguous. 0 in listings.
"""

class EskerError(Exception):
    """What Esker could not do: what was expected, what was found, where, and what to do.

    code: the kind of error, by its canonical name ("NOT_FOUND", "UNAVAILABLE", "DATA_LOSS" ...).
    """

    code: str
    def __init__(self, message: str = "", code: str = "UNKNOWN") -> None: ...

class CheckpointInfo:
    """A committed checkpoint, as listed. Read-only."""

    @property
    def run(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def attempt(self) -> int:
        """The start of the job that saved it: 1, 2 ..."""
    @property
    def world_size(self) -> int:
        """How many ranks saved it."""
    @property
    def committed_unix_ms(self) -> int: ...
    @property
    def raw_bytes(self) -> int:
        """Of the state, of all ranks together."""
    @property
    def stored_bytes(self) -> int:
        """After the codec."""
    @property
    def new_stored_bytes(self) -> int:
        """Of stored_bytes, what no earlier checkpoint had."""
    @property
    def unchanged_bytes(self) -> int:
        """Of raw_bytes, what each rank's save before had too, counted in whole chunks."""
    @property
    def pinned(self) -> bool: ...

class TensorInfo:
    """A global tensor of a checkpoint. Read-only."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str:
        """As safetensors calls it: "BF16", "F32" ..."""
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def shards(self) -> int:
        """How many boxes of it are stored, replicas included."""

class ItemInfo:
    """A byte item of a checkpoint. Read-only."""

    @property
    def rank(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int:
        """Its length."""

class SaveProgress:
    """How far this rank's part of a save is. Read-only."""

    @property
    def phase(self) -> Literal["uploading", "sealed", "committed", "failed"]:
        """"sealed": this rank's part is durable and reported, and others are awaited. "committed": the checkpoint is visible."""
    @property
    def raw_bytes(self) -> int:
        """All that this rank saves; 0 until the upload has begun."""
    @property
    def processed_bytes(self) -> int:
        """Of raw_bytes, what the server holds: sent now, or known before."""
    @property
    def sent_bytes(self) -> int:
        """Over the network, encoded."""
    @property
    def deduplicated_bytes(self) -> int:
        """Of raw_bytes, what the server held already."""
    @property
    def unchanged_bytes(self) -> int:
        """Of raw_bytes, what this Checkpointer's save before had too, counted in whole chunks; 0 until "sealed"."""
    @property
    def transport(self) -> Literal["auto", "shm", "grpc"]:
        """How the payload goes to the server; "auto" as long as that is not known."""

class SaveHandle:
    """A save under way. The save goes on if the handle is dropped."""

    @property
    def step(self) -> int: ...
    def wait(self, timeout: float | None = None) -> None:
        """Blocks until the checkpoint is committed.

        Raises EskerError if the save failed (which ranks did not report, server, disk full ...), and TimeoutError if it is still
        under way after `timeout` seconds. Signal handlers run meanwhile (every 0.1 s), so Ctrl-C gets through; the save goes on.
        """
    def done(self) -> bool:
        """Whether the save has ended, well or not. Does not block."""
    def exception(self) -> EskerError | None:
        """Why the save failed; None while it is under way, and when it is committed. Does not block."""
    def progress(self) -> SaveProgress:
        """Does not block."""

class Checkpointer:
    """One rank's way to save and resume a run."""

    def __init__(
        self,
        server: str,
        run: str,
        rank: int,
        world_size: int,
        *,
        incarnation: str = "",
        in_flight: Literal["wait", "skip", "fail"] = "wait",
        compression: Literal["none", "zstd", "planes", "auto", "delta"] = "none",
        transport: Literal["auto", "shm", "grpc"] = "auto",
        threads: int = 0,
        pipeline_bytes: int = 64 << 20,
        staging_bytes: int = 0,
        keep_staging: bool = True,
        chunk_bytes: int = 4 << 20,
        connect_timeout: float = 20.0,
        save_timeout: float = 600.0,
    ) -> None:
        """Opens the run at `server` ("host:port"): ranks with an older incarnation can save nothing from here on.

        run: [a-z0-9][a-z0-9._-]{0,127}.
        incarnation: equal on all ranks of one start of the job, new at each start. Empty: taken from ESKER_INCARNATION, else
            TORCHELASTIC_RUN_ID and TORCHELASTIC_RESTART_COUNT, else SLURM_JOB_ID and SLURM_RESTART_COUNT, else random if
            world_size is 1, else an error.
        in_flight: what save does while the save before it is under way: wait for it, or skip or fail the new one (its handle is
            done at once, with code "CANCELLED" or "FAILED_PRECONDITION").
        compression: "delta" takes twice the staging memory, and needs keep_staging.
        transport: how payload goes: "shm", memory shared with a server on this host, or an error; "grpc"; "auto": "shm" if it can.
        threads: that copy, hash, encode and upload; 0: as many as the machine has cores, at most 8.
        pipeline_bytes: memory for encoded chunks on their way. Staging memory, one copy of this rank's state, comes on top.
        staging_bytes: staging memory to allocate and touch in the background at once; 0: the first save allocates it.
        keep_staging: whether staging memory is kept for the next save. If not, it is given back as soon as the part is durable,
            before the commit: for a process that saves the parts of many ranks, one after the other.
        chunk_bytes: a multiple of 4096, at most 4 MiB.
        connect_timeout: how long this call, and opening a checkpoint, try to reach a server that does not answer.
        save_timeout: how long one save may take until it is given up, restarts of the server included.

        Raises EskerError: "INVALID_ARGUMENT", "UNAVAILABLE" (no server there), "PERMISSION_DENIED" (a newer incarnation exists).
        The end of the object waits for the save under way, at most save_timeout.
        """
    def save(self, step: int, tensors: Sequence[TensorBox], items: Sequence[tuple[str, bytes]]) -> SaveHandle:
        """Copies the boxes and the items, and returns; the rest happens in the background.

        Never raises because of the server: the handle tells. Raises EskerError if the state is wrong ("INVALID_ARGUMENT") or does
        not fit into memory ("RESOURCE_EXHAUSTED"), and TypeError for what is no TensorBox or item; nothing is saved then. Every
        rank of the run must save the same step; nothing is visible until all have. With in_flight "wait", signal handlers run
        while it waits for the save before.
        """
    def abort(self, step: int, reason: str) -> None:
        """Makes the save of `step` fail on all ranks at once, with `reason` in their handles: this rank can't take part, or gives up.

        Raises EskerError: "ALREADY_EXISTS" (it is committed, and stays), "UNAVAILABLE" (after 5 s).
        """
    def latest_step(self) -> int | None:
        """The latest committed step, None if there is none. Asks the server."""
    def open_checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of `step`, or the latest. Raises EskerError: "NOT_FOUND", "UNAVAILABLE"."""
    def list(self) -> list[CheckpointInfo]:
        """The run's committed checkpoints, by step."""
    @property
    def attempt(self) -> int:
        """The number of this start of the job: 1, 2 ..."""

class Reader:
    """A connection for reading, without being a rank. Connects at the first call."""

    def __init__(self, server: str, *, connect_timeout: float = 20.0, threads: int = 0, transport: Literal["auto", "shm", "grpc"] = "auto") -> None:
        """server: "host:port". connect_timeout: of each call. threads, transport: as Checkpointer's."""
    def list(self, run: str) -> list[CheckpointInfo]:
        """Committed checkpoints of `run`, by step. Raises EskerError: "NOT_FOUND" (no such run), "UNAVAILABLE"."""
    def open(self, run: str, step: int | None = None) -> Checkpoint:
        """The checkpoint of `step`, or the latest. Raises EskerError: "NOT_FOUND" says what there is instead."""

class Checkpoint:
    """One committed checkpoint, open for reading: garbage collection takes nothing of it while this object lives."""

    @property
    def info(self) -> CheckpointInfo: ...
    def tensors(self) -> list[TensorInfo]:
        """Sorted by name. Reads the layouts of all ranks at the first call."""
    def stored_by(self, rank: int) -> list[TensorBox]:
        """The boxes that `rank` stored, with address 0."""
    def items(self) -> list[ItemInfo]:
        """The byte items of all ranks, by rank and name."""
    def restore(
        self,
        boxes: Sequence[TensorBox],
        preferred_rank: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Fills the memory of the boxes: any boxes of stored tensors, whatever boxes were saved. Every byte is verified.

        preferred_rank: whose replica to read first. progress: called now and then with (done_bytes, total_bytes), from other
        threads; what it raises is raised from here when the restore has ended. Raises EskerError: "INVALID_ARGUMENT" (box, dtype
        or shape: says which), "NOT_FOUND" (no such tensor), "DATA_LOSS" (names rank, tensor and chunk), "UNAVAILABLE"; the
        memory's content is unspecified then.
        """
    def read_item(self, rank: int, name: str) -> bytes:
        """A byte item of `rank`. Raises EskerError: "NOT_FOUND" if it stored none of that name."""
