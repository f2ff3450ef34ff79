#!/usr/bin/env python3
"""Esker beside other ways to save tensors, on one disk, in one run; writes docs/benchmarks.md. Start it by peers.sh.

The contenders (contenders.py) are processes of their own, which take turns round by round; the first round, in which memory is
touched and files are made, is not counted. What is saved is durable when its time ends, what is read comes from the disk, and is
compared. Ratios are taken within a round: what slows the machine down slows both.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import bench_states
import contenders
import page_cache
import peers_report
from safetensors.torch import load_file

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_FIGURES = ("stall_s", "save_s", "save_cpu_s", "load_s", "load_cpu_s", "disk_bytes", "peak_rss_bytes", "server_peak_rss_bytes")

Results = dict[str, Any]


class Worker:
    """The process of a contender."""

    def __init__(self, name: str, python: pathlib.Path, state: pathlib.Path, directory: pathlib.Path) -> None:
        directory.mkdir()
        self.name = name
        self.rounds: list[dict[str, Any]] = []
        self.error: str | None = None
        self._log = directory.parent / f"{name}.log"
        script = pathlib.Path(contenders.__file__)
        self._process = subprocess.Popen(
            [python, "-W", "ignore", script, name, state, directory],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log.open("w"), text=True,
        )  # fmt: skip
        self._answer()

    def tell(self, command: str, number: int) -> dict[str, Any]:
        """What it measured; nothing once it has failed."""
        if self.error is not None:
            return {}
        assert self._process.stdin is not None
        try:
            print(command, number, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # its answer says why
        return self._answer()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"ended: {self._log.read_text()[-300:].strip()}"}
        if "error" in answer:
            self.error = str(answer["error"])
            print(f"peers: {self.name}: {self.error}", file=sys.stderr)
            return {}
        return answer


def measure(state: pathlib.Path, workers: list[Worker], rounds: int, directory: pathlib.Path) -> str:
    """Fills the workers' rounds. Returns how the page cache was dropped."""
    how = ""
    for number in range(rounds + 1):
        # Each is the first in turn: whatever the one before left to the disk, it is not always the same one's.
        turn = workers[number % len(workers) :] + workers[: number % len(workers)]
        for worker in turn:
            saved = worker.tell("save", number)
            how = page_cache.drop(directory)
            loaded = worker.tell("load", number)
            if number > 0 and worker.error is None:
                worker.rounds.append(saved | loaded)
    return how


def run_state(name: str, options: argparse.Namespace) -> Results:
    state = bench_states.state_file(name, options.size_mib << 20, options.cache)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="esker-peers.", dir=options.dir))
    workers: list[Worker] = []
    try:
        for contender in options.contenders:
            python = pathlib.Path(sys.executable) if contender.startswith("esker") else options.peers_python
            workers.append(Worker(contender, python, state, directory / contender))
        how = measure(state, workers, options.rounds, directory)
    finally:
        for worker in workers:
            worker.end()
        shutil.rmtree(directory, ignore_errors=True)
    rounds = {worker.name: [{key: found.get(key) for key in _FIGURES} for found in worker.rounds] for worker in workers}
    errors = {worker.name: worker.error for worker in workers if worker.error is not None}
    tensors = load_file(state).values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"state": name, "bytes": size, "cold": how, "rounds": rounds, "errors": errors}


def run_esker_bench(arguments: list[str], directory: pathlib.Path) -> Results:
    """`esker bench`, which compares with the machine's own limits."""
    program = pathlib.Path(sys.executable).with_name("esker")
    done = subprocess.run([program, "--json", "bench", *arguments, "--dir", directory], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


def run_zipnn(state: str, options: argparse.Namespace) -> Results:
    """ZipNN is a codec and nothing else: size, and GB/s of one thread each way, beside Esker's."""
    file = bench_states.state_file(state, options.size_mib << 20, options.cache)
    script = pathlib.Path(__file__).with_name("zipnn_codec.py")
    done = subprocess.run([options.peers_python, script, file], capture_output=True, text=True)
    if done.returncode != 0:
        return {"state": state, "error": (done.stderr.strip().splitlines() or ["?"])[-1]}
    program = pathlib.Path(sys.executable).with_name("esker")
    esker = subprocess.run([program, "--json", "bench", "codec", "--file", file], stdout=subprocess.PIPE, check=True)
    return {"state": state, "zipnn": json.loads(done.stdout), "esker": json.loads(esker.stdout)}


def machine(directory: pathlib.Path) -> str:
    cpu = next(
        (line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    file_system = subprocess.run(["df", "--output=fstype", directory], stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    system = f"{file_system}, Linux {'.'.join(platform.release().split('.')[:2])}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GB of memory, {system}"


LIMITS: dict[str, list[str]] = {
    "save, shared memory": ["save", "--transport", "shm", "--ranks", "2"],
    "save, gRPC": ["save", "--transport", "grpc", "--ranks", "2"],
    "restore": ["restore", "--ranks", "2"],
    "stall": ["stall"],
    "commit": ["commit", "--runs", "50"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", nargs="*", default=list(bench_states.STATES), choices=list(bench_states.STATES))
    parser.add_argument("--contenders", nargs="+", default=list(contenders.CONTENDERS), choices=list(contenders.CONTENDERS))
    parser.add_argument("--limits", nargs="*", default=list(LIMITS), choices=list(LIMITS), help="what `esker bench` measures")
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--size-mib", type=int, default=512, help="of a state, roughly; a published model has its own")
    parser.add_argument("--dir", type=pathlib.Path, default=_REPOSITORY / "build", help="on the disk to measure; it is left as it was")
    parser.add_argument("--cache", type=pathlib.Path, default=_REPOSITORY / "build/bench_states", help="for the states")
    parser.add_argument("--results", type=pathlib.Path, default=_REPOSITORY / "build/bench_results", help="one JSON document a state")
    parser.add_argument("--peers-python", type=pathlib.Path, default=pathlib.Path(sys.executable), help="that has the peers")
    parser.add_argument("--install-errors", type=json.loads, default={}, metavar="JSON", help="of peers that could not be installed")
    parser.add_argument("--write", type=pathlib.Path, help="puts all results that there are into this document")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)

    def keep(name: str, results: Results) -> None:
        (options.results / f"{name}.json").write_text(json.dumps(results, indent=1))

    common = {"machine": machine(options.dir), "date": time.strftime("%Y-%m-%d"), "install_errors": options.install_errors}
    command = f"tools/bench/peers.sh --size-mib {options.size_mib} --rounds {options.rounds}"
    keep("run", common | {"rounds": options.rounds, "command": command})
    for state in options.states:
        print(f"peers: {state}", flush=True)
        keep(f"state-{state}", run_state(state, options))
        if state != "random":
            keep(f"codec-{state}", run_zipnn(state, options))
    for limit in options.limits:
        print(f"peers: esker bench {' '.join(LIMITS[limit])}", flush=True)
        size = [] if limit == "commit" else ["--size", f"{options.size_mib}MiB"]
        runs = [] if limit == "commit" else ["--runs", str(options.rounds)]
        found = run_esker_bench([*LIMITS[limit], *size, *runs], options.dir)
        keep(f"limit-{limit.replace(', ', '-').replace(' ', '-')}", {"title": limit} | found)
    if options.write is not None:
        peers_report.write(options.results, options.write)


if __name__ == "__main__":
    main()
