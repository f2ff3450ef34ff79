"""A training rank's way to save and resume whole states. Start here: `Checkpointer`."""

import atexit
import ctypes
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, Literal

from esker import _core, dtypes, job_start, loading, memory, spread, tensors, tree, tree_json
from esker import progress as bars
from esker._server import address_of
from esker.errors import StateMismatchError
from esker.handle import RefusedSave, SaveHandle, Watcher
from esker.stored_tree import StoredTree

log = logging.getLogger("esker")

# A save's errors that the caller has to mend, in the state or the call; all others are the world's.
_CALLERS_ERRORS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"}
# Small tensors of each rank's own are compared when the world changes: an optimizer's step counts are the same on all.
_DIGESTED_BYTES = 4096
# Copies of tensors that can't be read into in place are made for so much at a time.
_STAGED_BYTES = 1 << 30


class Checkpointer:
    """Saves and loads the state of one rank of a training job. Thread-safe, but one save at a time.

        ckpt = esker.Checkpointer("127.0.0.1:7070", run="gpt", rank=rank, world_size=world)
        step, state = ckpt.load(into={"model": model, "optim": optimizer})
        ...
        ckpt.save(step, {"model": model, "optim": optimizer, "rng": torch.get_rng_state()})

    A state is any nesting of dicts, lists and tuples of tensors (torch, DTensor, ShardedTensor, numpy, DLPack), numbers, strings,
    bytes, None, and objects with state_dict() (and load_state_dict(), to be loaded into). Nothing is pickled unless you say so.

    What belongs to whom, when there are several ranks:
      * A DTensor is one tensor of the job: it loads on any number of ranks, meshes and placements. Replicas are saved once.
      * A plain tensor is this rank's own, as are bytes and numbers. A job with as many ranks gets each its own back. With another
        number, what was the same on all ranks is taken (of tensors those up to 4 KiB are compared), and the rest must be asked
        for: load's from_rank.
      * A plain tensor whose path matches a pattern of `replicated` is the same on all ranks: it is saved once, the work is
        spread over the ranks, and it loads on any number of them. Every rank must have it. Its equality is not checked.
    """

    def __init__(
        self,
        server: str | os.PathLike[str],
        run: str,
        rank: int | None = None,
        world_size: int | None = None,
        *,
        replicated: Sequence[str] = (),
        on_error: Literal["log", "raise"] = "log",
        in_flight: Literal["wait", "skip", "fail"] = "wait",
        incarnation: str = "",
        compression: Literal["none", "zstd", "planes", "auto", "delta"] = "none",
        transport: Literal["auto", "shm", "grpc"] = "auto",
        threads: int = 0,
        staging_bytes: int = 0,
        connect_timeout: float = 20.0,
        save_timeout: float = 600.0,
        exit_timeout: float = 60.0,
        stale_fraction: float = 0.9,
        show_progress: bool = True,
    ) -> None:
        """Reaches the server and opens the run: ranks of an earlier start of the job can save nothing from here on.

        server: "host:port"; or a directory, on which a local server is started or joined.
        run: the job's name, [a-z0-9][a-z0-9._-]{0,127}.
        rank, world_size: by default RANK and WORLD_SIZE of the environment (torchrun sets them), else 0 and 1.
        replicated: patterns ("model.*") of the paths of plain tensors that are the same on all ranks.
        on_error: "log": a failed save is logged, and in last_error. "raise": moreover, the next save() or close() raises it.
        in_flight: what save does while the one before is under way: "wait" for it, "skip" (the handle says CANCELLED), or
            "fail" (the handle says FAILED_PRECONDITION).
        incarnation: equal on all ranks of one start of the job, new at the next. By default ESKER_INCARNATION of the environment;
            else, where torch.distributed is initialized with as many ranks, they agree on one by a broadcast; else the
            launcher's (torchrun with an id, Slurm).
        compression: "none"; "planes", for floats (a third of bf16, a sixth of fp32 is saved); "zstd", for what repeats itself;
            "auto": planes where that makes saves faster, judged from save to save; "delta": planes, and of what changed little
            since an earlier save only the difference: for low learning rates in bf16; keeps a second copy of the state in memory.
        transport: how the state gets to the server and back: "shm", memory shared with a server on this host, or an error;
            "grpc"; "auto": "shm" where it can be.
        threads: worker threads; 0: as many as cores, at most 8.
        staging_bytes: memory for the snapshot, to be touched ahead of the first save. 0: the first save allocates.
        connect_timeout, save_timeout: seconds to reach the server; seconds from save to commit.
        exit_timeout: seconds that the end of the interpreter, or close(), waits for a save under way.
        stale_fraction: a save of which at least this part is what this rank saved before is stale: it is logged, and handle.stale.
            1.0 warns only of saves that bring nothing new; more than 1 turns it off. Lower it never; raise it if most of your
            weights are frozen.
        show_progress: a bar for load and wait, on a terminal with tqdm.

        Raises EskerError: INVALID_ARGUMENT, UNAVAILABLE (server not reached in time), PERMISSION_DENIED (a newer start exists).
        """
        if on_error not in ("log", "raise"):
            raise ValueError(f'on_error: expected "log" or "raise", found {on_error!r}')
        if isinstance(replicated, str):
            raise TypeError(f'replicated: expected a list of patterns, as ["{replicated}"], found a string')
        rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
        self._job = tensors.Job(rank, world_size, tuple(replicated))
        self._run = run
        self._on_error = on_error
        self._exit_timeout = exit_timeout
        self._stale_fraction = stale_fraction
        self._show_progress = show_progress
        self._pid = os.getpid()
        self._staging = memory.PinnedStaging()
        self._save_lock = threading.Lock()
        self._watcher: Watcher | None = None
        self._last: SaveHandle | None = None
        self._unraised: _core.EskerError | None = None
        self.last_error: _core.EskerError | None = None
        """Why the last save that ended failed; None if it was committed."""
        self._native: _core.Checkpointer | None = _core.Checkpointer(
            address_of(server),
            run,
            rank,
            world_size,
            incarnation=incarnation or job_start.agreed_token(world_size),
            in_flight=in_flight,
            compression=compression,
            transport=transport,
            threads=threads,
            staging_bytes=staging_bytes,
            connect_timeout=connect_timeout,
            save_timeout=save_timeout,
        )
        _open.add(self)

    # --- what it is ---

    @property
    def run(self) -> str:
        return self._run

    @property
    def rank(self) -> int:
        return self._job.rank

    @property
    def world_size(self) -> int:
        return self._job.world_size

    @property
    def attempt(self) -> int:
        """The number of this start of the job: 1, 2 ..."""
        return self._opened().attempt

    @property
    def last_save(self) -> SaveHandle | None:
        """The handle of the latest save, under way or done."""
        return self._last

    def __repr__(self) -> str:
        return f"<esker.Checkpointer {self._where()} of {self.world_size}>"

    def _where(self) -> str:
        return f"run {self._run}, rank {self.rank}"

    def _opened(self) -> _core.Checkpointer:
        if self._native is None:
            raise ValueError(f"{self._where()}: this Checkpointer is closed: open another one")
        return self._native

    # --- saving ---

    def save(self, step: int, state: Any, *, allow_pickle: bool = False) -> SaveHandle:
        """Copies the state and returns; the rest happens in the background, without the GIL.

        Every rank saves the same step; nothing is visible until all have. You may change your tensors when this returns.
        allow_pickle: pickle what has no other form. It is loaded only by load(allow_pickle=True).

        Never raises because of a server, a disk or a lack of memory: the handle, last_error and the log say so. Raises TypeError
        (names the path of what can't be stored), ValueError (the state contains itself), EskerError INVALID_ARGUMENT (a name, box
        or step that is not allowed) and FAILED_PRECONDITION (in a forked process).
        """
        native = self._opened()
        self._raise_unraised()
        flat = tree.flatten(state, lambda value, path: tensors.describe(value, path, self._job), allow_pickle)
        shares = spread.own_shares(flat.tensors, self.rank)
        with self._save_lock:
            ready = self._readable([share.held.data for share in shares])
            boxes = [_native_box(share, data) for share, data in zip(shares, ready)]
            for share, data in zip(shares, ready):
                if share.is_own and share.bytes <= _DIGESTED_BYTES:
                    share.leaf.digest = tree.digest_of(memory.content(data, share.bytes))
            items = [(tree.TREE_ITEM, tree_json.encode(flat.root, self.world_size))]
            items += [(source.leaf.item, source.content) for source in flat.items]
            try:
                save: Any = native.save(step, boxes, items)
            except _core.EskerError as error:
                if error.code in _CALLERS_ERRORS:
                    raise
                save = RefusedSave(step, error)
        return self._watched(save)

    def _readable(self, sources: list[Any]) -> list[Any]:
        """The same elements in memory that the native client can read."""
        far = [i for i, data in enumerate(sources) if memory.on_device(data)]
        ready = list(sources)
        for i, copy in zip(far, self._staging.fetch([sources[i] for i in far])):
            ready[i] = copy
        return [memory.contiguous(data) for data in ready]

    def _watched(self, save: Any) -> SaveHandle:
        what = f"{self._run}@{save.step}"
        reference = weakref.ref(self)

        def at_end(handle: SaveHandle, error: _core.EskerError | None) -> None:
            checkpointer = reference()
            if checkpointer is not None:
                checkpointer._note_end(handle, error)

        handle = SaveHandle(save, what, at_end, self._show_progress)
        self._last = handle
        if handle.done():
            handle.settle()
            return handle
        if self._watcher is None:
            self._watcher = Watcher()
            weakref.finalize(self, self._watcher.finish).atexit = False  # for a Checkpointer that nobody closes
        self._watcher.watch(handle)
        return handle

    def _note_end(self, handle: SaveHandle, error: _core.EskerError | None) -> None:
        if error is None:
            self.last_error = None
            self._note_stale(handle)
        elif error.code == "CANCELLED":  # the policy "skip", as asked for
            log.info("esker: %s", error)
        else:
            self.last_error = error
            self._unraised = error
            log.error("esker: %s, step %d: the save failed: %s", self._where(), handle.step, error)

    def _note_stale(self, handle: SaveHandle) -> None:
        progress = handle.progress()
        unchanged = progress.unchanged_bytes / max(progress.raw_bytes, 1)
        if unchanged < self._stale_fraction:
            return
        handle.stale = True
        log.warning(
            "esker: %s, step %d: %.1f%% of what was saved is what was saved before: is a copy being saved that training no longer"
            " changes? (if most weights are frozen, raise stale_fraction)",
            self._where(),
            handle.step,
            100 * unchanged,
        )

    def _raise_unraised(self) -> None:
        if self._on_error != "raise":
            return
        if self._last is not None and self._last.done():
            self._last.settle()
        error, self._unraised = self._unraised, None
        if error is not None:
            raise error

    # --- loading ---

    def load(
        self,
        step: int | None = None,
        *,
        into: Any = None,
        strict: bool = True,
        only: str | None = None,
        from_rank: int | None = None,
        allow_pickle: bool = False,
    ) -> tuple[int | None, Any]:
        """Loads a committed checkpoint: (step, state). (None, into) if the run has none yet and no step is asked for.

        step: which; by default the latest.
        into: a state to load into. Its tensors are filled in place, each with the box that it holds; objects get
            load_state_dict(), optimizers first their state tensors; values in dicts and lists are replaced. Without it new
            objects are made, with each tensor whole (its global shape) on the CPU.
        strict: whether a path that one side lacks is an error. If not, what is there is taken. dtype and shape must always agree.
        only: a pattern of paths: "model.*". Nothing else is read, or asked of `into`.
        from_rank: whose own state to take (plain tensors that are not `replicated`, rng, numbers). By default that of this rank if
            there are as many ranks as saved it, else only what was the same on all.
        allow_pickle: load what was pickled. It runs whatever code is in it.

        Raises StateMismatchError (nothing was changed, but for new optimizer state: zeros), ValueError for pickled content,
        EskerError: NOT_FOUND (no such step), DATA_LOSS (damaged, and no other copy), UNAVAILABLE (server). After an EskerError from
        reading, the tensors of `into` hold unspecified elements.
        """
        native = self._opened()
        if step is None:
            step = native.latest_step()
            if step is None:
                return None, into
        checkpoint = native.open_checkpoint(step)
        where = f"run {self._run}, step {step}"
        stored = StoredTree(checkpoint, where, self._job, from_rank)
        plan, state = self._plan(stored, into, only, allow_pickle)
        if plan.missing and stored.can_widen():
            stored.widen()  # what this rank wants may have been another's
            plan, state = self._plan(stored, into, only, allow_pickle)
        unexpected = [path for path in plan.unexpected if stored.is_common(path)]
        if strict and (plan.missing or unexpected or plan.mismatched or plan.ambiguous) or plan.mismatched:
            raise StateMismatchError(where, plan.missing, unexpected, plan.mismatched, plan.ambiguous)
        for what, paths in (("missing", plan.missing), ("stored by each rank for itself", plan.ambiguous)):
            if paths:
                log.warning("esker: %s: not loaded, because %s: %s", where, what, ", ".join(paths))
        self._read(checkpoint, plan.reads, f"load {self._run}@{step}")
        plan.finish()
        return step, loading.finished(state)

    def _plan(self, stored: StoredTree, into: Any, only: str | None, allow_pickle: bool) -> tuple[loading.Plan, Any]:
        plan = loading.Plan(stored.checkpoint.read_item, only, allow_pickle)
        root = loading.select(stored.root, only)
        return plan, plan.build(root, ()) if into is None else plan.fit(into, root, ())

    def _read(self, checkpoint: _core.Checkpoint, reads: list[loading.Read], what: str) -> None:
        with bars.bar(what, self._show_progress) as report:
            direct: list[loading.Read] = []
            staged: list[loading.Read] = []
            for read in reads:
                if memory.elements(read.target) > 0:
                    (direct if memory.is_direct(read.target) else staged).append(read)
            self._restore(checkpoint, direct, [read.target for read in direct], report)
            for batch in _batches(staged):
                buffers = [memory.empty_like(read.target) for read in batch]
                self._restore(checkpoint, batch, buffers, report)
                for read, buffer in zip(batch, buffers):
                    memory.copy_into(read.target, buffer)

    def _restore(
        self, checkpoint: _core.Checkpoint, reads: list[loading.Read], buffers: list[Any], report: bars.Report | None
    ) -> None:
        # Tied tensors are one memory with several paths: it is written once.
        boxes = {}
        for read, data in zip(reads, buffers):
            at = memory.address(data)
            boxes[at, read.leaf.dtype, read.box.extent] = (read.leaf.name, read.leaf.dtype, read.leaf.shape, read.box.offset, read.box.extent, at)
        if boxes:
            checkpoint.restore(list(boxes.values()), self.rank, report)

    # --- the rest ---

    def latest_step(self) -> int | None:
        """The latest committed step; None if there is none. Asks the server."""
        return self._opened().latest_step()

    def list(self) -> list[_core.CheckpointInfo]:
        """The committed checkpoints of the run, by step."""
        return self._opened().list()

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the save under way, if there is one. As SaveHandle.wait."""
        if self._last is not None:
            self._last.wait(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Waits for the save under way, then lets the server and the memory go. May be called again.

        timeout: seconds, by default exit_timeout. A save that is not done by then is given up by this process: that is logged.
        Raises a failed save's error only if on_error is "raise".
        """
        self._close(self._exit_timeout if timeout is None else timeout)

    def _close(self, timeout: float, own_part_only: bool = False) -> None:
        if self._native is None or os.getpid() != self._pid:
            return
        finished = self._await_last(timeout, own_part_only)
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None
        if not finished:
            # Its destructor would wait for the save: it is left to the end of the process.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._native))
        self._native = None
        self._staging = memory.PinnedStaging()
        _open.discard(self)
        self._raise_unraised()

    def _await_last(self, timeout: float, own_part_only: bool) -> bool:
        """Whether the last save has ended in time. With own_part_only it need not: the commit needs no more of this process,
        unless the server is started again before it."""
        last = self._last
        if last is None or last.done():
            if last is not None:
                last.settle()
            return True
        log.info("esker: %s: waiting up to %.0f s for the save of step %d", self._where(), timeout, last.step)
        began = time.monotonic()
        while not last.poll(max(0.0, min(0.2, began + timeout - time.monotonic()))):
            if own_part_only and last.progress().phase == "sealed":
                return False
            if time.monotonic() - began >= timeout:
                log.error(
                    "esker: %s: the save of step %d is given up: it is still under way after %.0f s",
                    self._where(),
                    last.step,
                    timeout,
                )
                return False
        return True

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """close(). After an exception it waits for no other rank: one of them may be dead, and the launcher waits for this one."""
        self._close(self._exit_timeout, own_part_only=error is not None)


def _native_box(share: spread.Share, data: Any) -> _core.TensorBox:
    leaf, box = share.leaf, share.held.box
    return (leaf.name, leaf.dtype, leaf.shape, box.offset, box.extent, memory.address(data) if share.bytes else 0)


def _batches(reads: list[loading.Read]) -> list[list[loading.Read]]:
    batches: list[list[loading.Read]] = []
    filled = _STAGED_BYTES
    for read in reads:
        size = memory.elements(read.target) * dtypes.element_bytes(read.leaf.dtype)
        if filled + size > _STAGED_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(read)
        filled += size
    return batches


_open: "weakref.WeakSet[Checkpointer]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for checkpointer in list(_open):
        try:
            checkpointer.close()
        except _core.EskerError as error:
            log.error("esker: %s", error)
