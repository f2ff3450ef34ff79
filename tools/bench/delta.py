"""How much the codec `delta` saves on a real training run: a GPT's weights and Adam's moments, in fp32 and bf16, at a low and a high
learning rate, saved every few steps.

    python tools/bench/delta.py >> docs/design/0006-delta.md      # in the environment that tools/test_python.sh makes

Each state is saved twice, with `planes` and with `delta`. Prints a table: the bytes written for a save, of the state's bytes, the
mean over the saves (the whole ones that are the others' bases included), and how often a base was taken. Each last save is restored and compared.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.nn import functional as F

import esker

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(_REPOSITORY / "client/python/examples"))
from gpt import GPT, Batches  # noqa: E402

State = dict[str, torch.Tensor]


class Training:
    """Goes on for ever; what it has is looked at in between."""

    def __init__(self, dtype: torch.dtype, learning_rate: float, layers: int, width: int) -> None:
        torch.manual_seed(1)
        self._model = GPT(layers, width).to(dtype)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=learning_rate)
        self._batches = Batches(None)

    def run(self, steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            inputs, targets = self._batches.next_share()
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self._model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        return loss.item()

    def weights(self) -> State:
        return {name: tensor.detach() for name, tensor in self._model.state_dict().items()}

    def moments(self) -> State:
        per_parameter = self._optimizer.state_dict()["state"]
        return {f"{number}.{key}": moments[key] for number, moments in per_parameter.items() for key in ("exp_avg", "exp_avg_sq")}


class Saves:
    """One run on the server: what its saves wrote."""

    def __init__(self, directory: pathlib.Path, run: str, compression: str) -> None:
        # A server for each codec, and nothing is left in it: else chunks of the same content would be known already.
        self._server = esker.local_server(directory / compression)
        self._run = run
        self._checkpointer = esker.Checkpointer(self._server, run, 0, 1, compression=compression, show_progress=False)  # type: ignore[arg-type]
        self.ratios: list[float] = []

    def save(self, state: State) -> None:
        handle = self._checkpointer.save(len(self.ratios) + 1, state)
        handle.wait()
        progress = handle.progress()
        self.ratios.append(progress.sent_bytes / progress.raw_bytes)

    def check(self, state: State) -> None:
        _, restored = self._checkpointer.load(into={name: torch.zeros_like(tensor) for name, tensor in state.items()})
        for name, tensor in state.items():
            if not torch.equal(restored[name].view(torch.uint8), tensor.view(torch.uint8)):
                raise SystemExit(f"{name} came back with other bits")

    def close(self) -> None:
        self._checkpointer.close()
        for step in range(1, len(self.ratios) + 1):
            self._esker("rm", f"{self._run}@{step}")
        self._esker("gc", self._run)

    def _esker(self, *arguments: str) -> None:
        program = pathlib.Path(sys.executable).with_name("esker")
        subprocess.run([program, "--server", self._server, *arguments], check=True, stdout=subprocess.DEVNULL)


def rows(directory: pathlib.Path, arguments: argparse.Namespace) -> Iterator[str]:
    for dtype in (torch.float32, torch.bfloat16):
        for learning_rate in (1e-5, 1e-3):
            for interval in (1, 10, 30):
                training = Training(dtype, learning_rate, arguments.layers, arguments.width)
                loss = training.run(arguments.warm_up)
                states = {"weights": training.weights, "moments": training.moments}
                name = f"{str(dtype).removeprefix('torch.')}-{learning_rate:g}-{interval}".replace("+", "")
                runs = {
                    (what, codec): Saves(directory, f"{name}-{what}-{codec}", codec) for what in states for codec in ("planes", "delta")
                }
                for number in range(arguments.saves):
                    if number > 0:
                        loss = training.run(interval)
                    for (what, _), saves in runs.items():
                        saves.save(states[what]())
                cells = []
                for (what, codec), saves in runs.items():
                    saves.check(states[what]())
                    saves.close()
                    mean = sum(saves.ratios) / len(saves.ratios)
                    cells.append(f"{mean:.3f}" if codec == "planes" else f"{mean:.3f} ({min(saves.ratios):.3f})")
                yield f"| {str(dtype).removeprefix('torch.')} | {learning_rate:g} | {interval} | {loss:.2f} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--warm-up", type=int, default=30, help="steps before the first save (default: %(default)s)")
    parser.add_argument("--saves", type=int, default=5, help="(default: %(default)s)")
    arguments = parser.parse_args()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    print("| dtype | learning rate | steps between saves | loss | weights: planes | delta (smallest) | moments: planes | delta (smallest) |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for row in rows(pathlib.Path(directory), arguments):
            print(row, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
