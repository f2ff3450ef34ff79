"""What peers.py compares: each contender saves a flat dict of tensors durably, and reads it back. One process, one contender.

    python contenders.py NAME STATE.safetensors DIRECTORY

Reads one command a line from stdin ("save ROUND", "load ROUND"), and answers each with a line of JSON on stdout. An answer
with "error" ends it.
"""

import contextlib
import gc
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file

State = dict[str, torch.Tensor]


def fsync_tree(directory: pathlib.Path) -> None:
    """Every file and every directory: for those that leave it to the kernel when their files get to the disk."""
    for path in [directory, *directory.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    parent = os.open(directory.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)


def bytes_on_disk(directory: pathlib.Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


class Contender:
    """Saves into `target`, which does not exist before. A save is over when the files are durable."""

    def __init__(self, state: State, directory: pathlib.Path) -> None:
        self.state = state
        self.directory = directory

    def target(self, number: int) -> pathlib.Path:
        return self.directory / f"save{number}"

    def save(self, number: int) -> Callable[[], Any] | None:
        """Durable when it returns; or, if it returns something, when that has been called: the loop may go on in between."""
        raise NotImplementedError

    def load(self, number: int) -> State:
        raise NotImplementedError

    def forget(self, number: int) -> None:
        shutil.rmtree(self.target(number), ignore_errors=True)

    def disk_bytes(self, number: int) -> int:
        return bytes_on_disk(self.target(number))

    def other_cpu_seconds(self) -> float:
        """Of processes that are not this one's ended children."""
        return 0.0

    def other_peak_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


class TorchSave(Contender):
    def save(self, number: int) -> None:
        target = self.target(number)
        target.mkdir()
        torch.save(self.state, target / "state.pt")
        fsync_tree(target)

    def load(self, number: int) -> State:
        loaded: State = torch.load(self.target(number) / "state.pt", weights_only=True)
        return loaded


class Safetensors(Contender):
    def save(self, number: int) -> None:
        from safetensors.torch import save_file

        target = self.target(number)
        target.mkdir()
        save_file(self.state, target / "state.safetensors")
        fsync_tree(target)

    def load(self, number: int) -> State:
        # Copies: what it gives else is mapped, and not read yet.
        return {name: tensor.clone() for name, tensor in load_file(self.target(number) / "state.safetensors").items()}


class Dcp(Contender):
    """torch.distributed.checkpoint; its FileSystemWriter syncs its files itself."""

    def __init__(self, state: State, directory: pathlib.Path) -> None:
        super().__init__(state, directory)
        import torch.distributed as dist

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def save(self, number: int) -> Callable[[], Any] | None:
        import torch.distributed.checkpoint as dcp

        dcp.save(self.state, storage_writer=dcp.FileSystemWriter(self.target(number)))
        fsync_tree(self.target(number))
        return None

    def load(self, number: int) -> State:
        import torch.distributed.checkpoint as dcp

        into = {name: torch.empty_like(tensor) for name, tensor in self.state.items()}
        dcp.load(into, storage_reader=dcp.FileSystemReader(self.target(number)))
        return into


class DcpAsync(Dcp):
    def save(self, number: int) -> Callable[[], Any] | None:
        import torch.distributed.checkpoint as dcp

        future: Any = dcp.async_save(self.state, storage_writer=dcp.FileSystemWriter(self.target(number)))

        def finish() -> None:
            future.result()
            fsync_tree(self.target(number))

        return finish


class Torchsnapshot(Contender):
    def save(self, number: int) -> Callable[[], Any] | None:
        from torchsnapshot import Snapshot, StateDict

        pending = Snapshot.async_take(str(self.target(number)), {"state": StateDict(**self.state)})

        def finish() -> None:
            pending.wait()
            fsync_tree(self.target(number))

        return finish

    def load(self, number: int) -> State:
        from torchsnapshot import Snapshot, StateDict

        into = StateDict(**{name: torch.empty_like(tensor) for name, tensor in self.state.items()})
        Snapshot(str(self.target(number))).restore({"state": into})
        return dict(into)


class Bytecheckpoint(Dcp):
    def save(self, number: int) -> Callable[[], Any] | None:
        import bytecheckpoint

        bytecheckpoint.save(str(self.target(number)), {"model": self._Holder(self.state)}, framework="ddp")
        fsync_tree(self.target(number))
        return None

    def load(self, number: int) -> State:
        import bytecheckpoint

        into = {name: torch.empty_like(tensor) for name, tensor in self.state.items()}
        bytecheckpoint.load(str(self.target(number)), {"model": self._Holder(into)}, framework="ddp")
        return into

    class _Holder(torch.nn.Module):
        def __init__(self, state: State) -> None:
            super().__init__()
            for name, tensor in state.items():
                self.register_buffer(name.replace(".", "/"), tensor)


class Orbax(Contender):
    """With its TensorStore (OCDBT) back end. bfloat16 goes as uint16."""

    def __init__(self, state: State, directory: pathlib.Path) -> None:
        super().__init__(state, directory)
        import orbax.checkpoint as ocp

        self._checkpointer: Any = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())

    def save(self, number: int) -> Callable[[], Any] | None:
        arrays = {name: (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy() for name, t in self.state.items()}
        self._checkpointer.save(self.target(number).resolve(), arrays)

        def finish() -> None:
            self._checkpointer.wait_until_finished()
            fsync_tree(self.target(number))

        return finish

    def load(self, number: int) -> State:
        import numpy as np
        import orbax.checkpoint as ocp

        arrays = ocp.PyTreeCheckpointer().restore(self.target(number).resolve())
        return {name: torch.from_numpy(np.array(array)).view(self.state[name].dtype) for name, array in arrays.items()}


class Esker(Contender):
    """With a server of its own, on this machine."""

    transport: Any = "shm"
    compression: Any = "none"

    def __init__(self, state: State, directory: pathlib.Path) -> None:
        super().__init__(state, directory)
        import esker

        port_file = directory / "port"
        server = pathlib.Path(sys.executable).with_name("eskerd")
        self._server = subprocess.Popen(
            [server, "--data", directory / "data", "--listen", "127.0.0.1:0", "--port-file", port_file],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(directory / "log").open("w"),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().endswith("\n")):
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"eskerd does not serve: {(directory / 'log').read_text()[-500:]}")
            time.sleep(0.01)
        self._address = f"127.0.0.1:{port_file.read_text().strip()}"
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        self._checkpointer = esker.Checkpointer(
            self._address, "peers", 0, 1, transport=self.transport, compression=self.compression, staging_bytes=size, show_progress=False
        )

    def save(self, number: int) -> Callable[[], Any] | None:
        handle = self._checkpointer.save(number + 1, self.state)
        return handle.wait

    def load(self, number: int) -> State:
        into = {name: torch.empty_like(tensor) for name, tensor in self.state.items()}
        _, loaded = self._checkpointer.load(into=into, step=number + 1)
        return dict(loaded)

    def forget(self, number: int) -> None:
        subprocess.run([self._program(), "--server", self._address, "rm", f"peers@{number + 1}"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([self._program(), "--server", self._address, "gc", "peers"], check=True, stdout=subprocess.DEVNULL)

    def disk_bytes(self, number: int) -> int:
        show: list[str | pathlib.Path] = [self._program(), "--server", self._address, "--json", "show", f"peers@{number + 1}"]
        return int(json.loads(subprocess.run(show, check=True, stdout=subprocess.PIPE).stdout)["checkpoint"]["stored_bytes"])

    def other_cpu_seconds(self) -> float:
        fields = pathlib.Path(f"/proc/{self._server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def other_peak_bytes(self) -> int:
        return peak_rss(self._server.pid)

    def close(self) -> None:
        self._checkpointer.close()
        self._server.terminate()
        self._server.wait(60)

    @staticmethod
    def _program() -> pathlib.Path:
        return pathlib.Path(sys.executable).with_name("esker")


class EskerGrpc(Esker):
    transport = "grpc"


class EskerPlanes(Esker):
    compression = "planes"


CONTENDERS: dict[str, type[Contender]] = {
    "esker": Esker,
    "esker-grpc": EskerGrpc,
    "esker-planes": EskerPlanes,
    "torch.save": TorchSave,
    "safetensors": Safetensors,
    "dcp": Dcp,
    "dcp-async": DcpAsync,
    "torchsnapshot": Torchsnapshot,
    "bytecheckpoint": Bytecheckpoint,
    "orbax": Orbax,
}


def peak_rss(pid: int | str = "self") -> int:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def cpu_seconds(contender: Contender) -> float:
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in own) + contender.other_cpu_seconds()


def train(state: State) -> None:
    """As training would: nearly no chunk of the state is what it was before, and it compresses as before."""
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.mul_(0.99)
        else:
            tensor.add_(1)


def save(contender: Contender, number: int) -> dict[str, Any]:
    train(contender.state)
    if number > 0:
        contender.forget(number - 1)
    os.sync()  # what forgetting leaves to be written is no part of this save
    gc.collect()
    cpu = cpu_seconds(contender)
    began = time.perf_counter()
    finish = contender.save(number)
    returned = time.perf_counter()
    if finish is not None:
        finish()
    ended = time.perf_counter()
    cpu = cpu_seconds(contender) - cpu
    return {
        "stall_s": returned - began if finish is not None else None,
        "save_s": ended - began,
        "save_cpu_s": cpu,
        "disk_bytes": contender.disk_bytes(number),
        "peak_rss_bytes": peak_rss(),
        "server_peak_rss_bytes": contender.other_peak_bytes(),
    }


def load(contender: Contender, number: int) -> dict[str, Any]:
    cpu = cpu_seconds(contender)
    began = time.perf_counter()
    loaded = contender.load(number)
    took = time.perf_counter() - began
    cpu = cpu_seconds(contender) - cpu
    for name, tensor in contender.state.items():
        same = torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        if not same or loaded[name].shape != tensor.shape or loaded[name].dtype != tensor.dtype:
            raise ValueError(f"{name} was read back wrong")
    return {"load_s": took, "load_cpu_s": cpu}


def serve(name: str, state_file: pathlib.Path, directory: pathlib.Path) -> None:
    # What libraries print to stdout is not an answer.
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        try:
            contender = CONTENDERS[name](load_file(state_file), directory)
            print(json.dumps({}), file=answers)
            with contextlib.closing(contender):
                for line in sys.stdin:
                    command, number = line.split()
                    print(json.dumps({"save": save, "load": load}[command](contender, int(number))), file=answers)
        except Exception as error:  # to be listed with the results, whatever it is
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)


if __name__ == "__main__":
    serve(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
