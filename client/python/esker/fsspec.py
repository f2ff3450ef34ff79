"""Files in checkpoints, for code that only takes paths: the fsspec file system "esker://".

    with fsspec.open("esker://127.0.0.1:7070/gpt-files/100/last.ckpt", "wb") as file: ...
    with fsspec.open("esker://gpt-files/100/last.ckpt", "rb", server="127.0.0.1:7070") as file: ...     # or ESKER_SERVER

The directory of a step is one Esker checkpoint, and each file in it a tensor of bytes: verified when it is read, also in parts, and
listed, restored and collected as any checkpoint. A file is there once it was closed, and all files of a transaction
(`with fs.transaction`) are there at once; what was not finished is not there, whatever dies.

One process writes a run at a time: to write a file is to begin a new attempt of its run. Who was about to write the run gets an error,
a training job that saves into it too, so files want a run of their own. Files on their way are held in memory, with those that their
step has already: this is made for a few files a step, not for thousands.
"""

import ctypes
import io
import json
import os
import secrets
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.transaction import Transaction

from esker import _core

# The item that says: the tensors of this checkpoint are files.
_MARK = ".files"
_VERSION = 1
_BLOCK_BYTES = 4 << 20


class _Place(NamedTuple):
    """A path taken apart. file: "" for the directory of the step; step: None for that of the run."""

    server: str
    run: str
    step: int | None
    file: str


class EskerFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """See the module. server: "host:port", for paths without one; default: ESKER_SERVER. connect_timeout: seconds."""

    protocol = "esker"
    root_marker = ""
    transaction_type: type[Transaction]

    def __init__(self, server: str | None = None, connect_timeout: float = 20.0, **options: Any) -> None:
        super().__init__(**options)
        self._server = server
        self._connect_timeout = connect_timeout
        self._writing = threading.Lock()

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """The steps of a run, or the files of a step. FileNotFoundError if there are none."""
        place = self._parse(path)
        if place.step is None:
            entries = self._steps(place)
        else:
            prefix = place.file + "/" if place.file else ""
            entries = self._children(place, prefix)
            if not entries and place.file:
                entries = [self.info(path)]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """name, size (bytes) and type of a file or directory. FileNotFoundError if it is not there."""
        place = self._parse(path)
        name = self._strip_protocol(path)
        if place.step is None:
            self._steps(place)
            return _directory(name)
        sizes = self._sizes(self._checkpoint(place))
        if place.file in sizes:
            return {"name": name, "size": sizes[place.file], "type": "file"}
        if not place.file or any(file.startswith(place.file + "/") for file in sizes):
            return _directory(name)
        raise FileNotFoundError(f"esker://{name}: the step is there, but it has no such file")

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Directories are there with their first file: nothing to do."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Directories are there with their first file: nothing to do."""

    def rm_file(self, path: str) -> None:
        """Removes one file of a step: afterwards the step has the others. FileNotFoundError if it is not there."""
        place = self._parse(path)
        self.info(path)
        self._commit(place, {place.file: None})

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rmdir(self, path: str) -> None:
        """Not possible: retention and `esker rm RUN@STEP` delete steps."""
        raise NotImplementedError(f"{path}: delete whole steps with `esker rm RUN@STEP`, or by retention")

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        """Copies one file."""
        self.pipe_file(path2, self.cat_file(path1))

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **options: Any) -> None:
        """Renames one file, at once if both names are in the same step."""
        source, target = self._parse(path1), self._parse(path2)
        content = self.cat_file(path1)
        if source._replace(file="") == target._replace(file=""):
            self._commit(target, {source.file: None, target.file: content})
        else:
            self.pipe_file(path2, content)
            self.rm_file(path1)

    def open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        """As any file system's. A file that is left by an exception, or dropped without close(), is not written."""
        if "b" in mode or "w" not in mode:
            return super().open(path, mode, block_size=block_size, **options)
        text = {key: options.pop(key) for key in ("encoding", "errors", "newline") if key in options}
        return _TextWriter(super().open(path, mode.replace("t", "") + "b", block_size=block_size, **options), **text)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True, **options: Any) -> Any:
        place = self._parse(path)
        if place.step is None or not place.file:
            raise IsADirectoryError(f"esker://{path}: expected run/step/file")
        if mode == "rb":
            size = self.info(path)["size"]
            return _FileReader(self, path, mode, block_size or _BLOCK_BYTES, size=size, checkpoint=self._checkpoint(place), file=place.file)
        if mode == "wb":
            return _FileWriter(self, place, autocommit)
        raise ValueError(f'esker://{path}: mode "{mode}": files are read ("rb") or written whole ("wb")')

    def _parse(self, path: str) -> _Place:
        parts = self._strip_protocol(path).split("/", 1)
        server = self._server or os.environ.get("ESKER_SERVER")
        if ":" in parts[0]:
            server = parts[0]
            parts = parts[1].split("/", 1) if len(parts) > 1 else [""]
        run = parts[0]
        step, _, file = (parts[1] if len(parts) > 1 else "").partition("/")
        if not run or not (step.isdecimal() or not step):
            raise ValueError(f"esker://{path}: expected esker://host:port/run/step/file, or run/step/file with server=")
        if server is None:
            raise ValueError(f"esker://{path}: which server? Give server=, set ESKER_SERVER, or write esker://host:port/{run}/…")
        return _Place(server, run, int(step) if step else None, file.strip("/"))

    def _reader(self, place: _Place) -> _core.Reader:
        return _core.Reader(place.server, connect_timeout=self._connect_timeout)

    def _checkpoint(self, place: _Place) -> _core.Checkpoint:
        try:
            return self._reader(place).open(place.run, place.step)
        except _core.EskerError as error:
            raise _as_os_error(error) from error

    def _steps(self, place: _Place) -> list[dict[str, Any]]:
        try:
            infos = self._reader(place).list(place.run)
        except _core.EskerError as error:
            raise _as_os_error(error) from error
        return [_directory(f"{place.server}/{place.run}/{info.step}") for info in infos]

    def _children(self, place: _Place, prefix: str) -> list[dict[str, Any]]:
        base = f"{place.server}/{place.run}/{place.step}"
        entries: dict[str, dict[str, Any]] = {}
        for file, size in self._sizes(self._checkpoint(place)).items():
            if file.startswith(prefix):
                child, _, below = file[len(prefix) :].partition("/")
                name = f"{base}/{prefix}{child}"
                entries[name] = _directory(name) if below else {"name": name, "size": size, "type": "file"}
        return list(entries.values())

    @staticmethod
    def _sizes(checkpoint: _core.Checkpoint) -> dict[str, int]:
        if not any(item.name == _MARK for item in checkpoint.items()):
            info = checkpoint.info
            raise FileNotFoundError(f"{info.run}@{info.step} holds a state, no files: read it with esker.Checkpointer, or `esker restore`")
        return {tensor.name: tensor.shape[0] for tensor in checkpoint.tensors()}

    def _commit(self, place: _Place, changes: Mapping[str, bytes | None]) -> None:
        """Makes the files of the step what they are now with these changes; None: without this file. All or nothing."""
        assert place.step is not None
        with self._writing:
            try:
                # The attempt comes first: whoever writes the run meanwhile fails, and what is read here stays true.
                checkpointer = _core.Checkpointer(
                    place.server, place.run, 0, 1, incarnation=f"files-{secrets.token_hex(16)}", connect_timeout=self._connect_timeout
                )
                files = {**self._present(checkpointer, place), **changes}
                contents = {file: content for file, content in files.items() if content is not None}
                boxes = [_box(file, len(content), 0, ctypes.c_char_p(bytes(content))) for file, content in contents.items()]
                mark = json.dumps({"version": _VERSION}).encode()
                checkpointer.save(place.step, [box for box, _ in boxes], [(_MARK, mark)]).wait()
            except _core.EskerError as error:
                raise _as_os_error(error) from error

    def _present(self, checkpointer: _core.Checkpointer, place: _Place) -> dict[str, bytes]:
        if all(info.step != place.step for info in checkpointer.list()):
            return {}
        checkpoint = checkpointer.open_checkpoint(place.step)
        return {file: _read(checkpoint, file, 0, size, size) for file, size in self._sizes(checkpoint).items()}


class _EskerTransaction(Transaction):  # type: ignore[misc]
    """The files of each step become visible together."""

    fs: EskerFileSystem | None  # None once it is complete

    def complete(self, commit: bool = True) -> None:
        steps: dict[_Place, dict[str, bytes | None]] = {}
        while self.files:
            file: _FileWriter = self.files.popleft()
            if not file.discarded:
                steps.setdefault(file.place._replace(file=""), {})[file.place.file] = file.content
        fs, self.fs = self.fs, None
        if fs is None:
            return
        fs._intrans = False
        fs._transaction = None
        if commit:
            for place, files in steps.items():
                fs._commit(place, files)


EskerFileSystem.transaction_type = _EskerTransaction


class _FileReader(AbstractBufferedFile):  # type: ignore[misc]
    """One file of an open checkpoint, which stays readable if the checkpoint is deleted or replaced meanwhile."""

    def __init__(self, *arguments: Any, checkpoint: _core.Checkpoint, file: str, **options: Any) -> None:
        self._checkpoint = checkpoint
        self._file = file
        super().__init__(*arguments, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return _read(self._checkpoint, self._file, start, end, self.size)


class _FileWriter(io.BytesIO):
    """Committed by close(), or by the end of the transaction; not if it was left by an exception or never closed."""

    def __init__(self, fs: EskerFileSystem, place: _Place, autocommit: bool) -> None:
        super().__init__()
        self.place = place
        self.content = b""
        self._fs = fs
        self._autocommit = autocommit
        self.discarded = False

    def close(self) -> None:
        """Makes the file visible. EskerError's causes are raised as OSError: then it is not."""
        if self.closed:
            return
        self.content = self.getvalue()
        super().close()
        if self._autocommit and not self.discarded:
            self._fs._commit(self.place, {self.place.file: self.content})

    def discard(self) -> None:
        """Closes it, and leaves no file."""
        self.discarded = True
        self.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        self.discard()


class _TextWriter(io.TextIOWrapper):
    """The same for text."""

    buffer: _FileWriter

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if kind is not None:
            self.buffer.discard()
        self.close()

    def __del__(self) -> None:
        if not self.buffer.closed:
            self.buffer.discard()


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _box(file: str, size: int, begin: int, memory: Any, extent: int | None = None) -> tuple[_core.TensorBox, Any]:
    """A range of a file, and what keeps its memory alive."""
    address = ctypes.cast(memory, ctypes.c_void_p).value or 0
    return (file, "U8", (size,), (begin,), (size if extent is None else extent,), address), memory


def _read(checkpoint: _core.Checkpoint, file: str, begin: int, end: int, size: int) -> bytes:
    end = min(end, size)
    if begin >= end:
        return b""
    memory = ctypes.create_string_buffer(end - begin)
    checkpoint.restore([_box(file, size, begin, memory, end - begin)[0]])
    return memory.raw


def _as_os_error(error: _core.EskerError) -> OSError:
    kinds: dict[str, type[OSError]] = {"NOT_FOUND": FileNotFoundError, "PERMISSION_DENIED": PermissionError, "UNAVAILABLE": ConnectionError}
    return kinds.get(error.code, OSError)(str(error))
