#!/usr/bin/env python3
"""Draws the loss of a training job that was killed again and again, over the time of day, above that of one that was left alone.

Usage: plot_loss.py CALM_LOG STORMY_LOG KILLS OUT.png
CALM_LOG, STORMY_LOG: what torchrun and client/python/examples/train_gpt.py wrote. KILLS: lines "DATE TIME WHO", DATE TIME as in the logs.
"""

import datetime
import pathlib
import re
import sys

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

_TIME = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})"
_CALM, _STORMY, _LOST, _KILL = "#2a6fbb", "#1a1a1a", "#c9c9c9", "#c0392b"


def seconds(text):
    return datetime.datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def executed_steps(path):
    """[(time, step, loss)], as the job did them: a step that was lost in a kill is there twice."""
    lines = re.findall(rf"{_TIME}.* step (\d+): loss ([\d.]+)", path.read_text(errors="replace"))
    return [(seconds(time), int(step), float(loss)) for time, step, loss in lines]


def lives(steps):
    """The steps of each start of the job: a new one begins where the step does not go up."""
    parts = []
    for entry in steps:
        if not parts or entry[1] <= parts[-1][-1][1]:
            parts.append([])
        parts[-1].append(entry)
    return parts


def draw(calm, stormy, kills, axis, height):
    """height: of a step in the drawing, from its loss or its number."""
    begin = stormy[0][0]
    reference = {step: height(step, loss) for _, step, loss in calm}
    parts = lives(stormy)
    for number, part in enumerate(parts):
        kept_until = parts[number + 1][0][1] - 1 if number + 1 < len(parts) else part[-1][1]
        times = [time - begin for time, _, _ in part]
        label = {"label": "with kills"} if number == 0 else {}
        axis.plot(times, [reference[step] for _, step, _ in part], color=_CALM, linewidth=7, alpha=0.3, solid_capstyle="round",
                  **({"label": "left alone, at the same steps"} if number == 0 else {}))  # fmt: skip
        axis.plot(times, [height(step, loss) for _, step, loss in part], color=_STORMY, linewidth=1.4, **label)
        lost = [(time - begin, height(step, loss)) for time, step, loss in part if step > kept_until]
        if lost:
            axis.plot(*zip(*lost), ".", color=_KILL, markersize=5, **({"label": "lost, and done again"} if number == 0 else {}))
        if number + 1 < len(parts):
            first = parts[number + 1][0]
            axis.plot([times[-1], first[0] - begin], [height(*part[-1][1:]), height(*first[1:])], color=_STORMY, linewidth=0.8, linestyle=":")
    for time, _ in kills:
        axis.axvline(time - begin, color=_KILL, linewidth=1.2, linestyle="--")


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    calm, stormy = (executed_steps(pathlib.Path(path)) for path in sys.argv[1:3])
    kills = [(seconds(time), who) for time, who in re.findall(rf"{_TIME} (.*)", pathlib.Path(sys.argv[3]).read_text())]
    if not calm or not stormy:
        sys.exit(f"plot_loss.py: no steps in {sys.argv[1 if not calm else 2]}")
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(11, 7), height_ratios=[3, 2], sharex=True, layout="constrained")
    draw(calm, stormy, kills, upper, lambda step, loss: loss)
    draw(calm, stormy, kills, lower, lambda step, loss: step)
    for time, who in kills:
        upper.annotate(f"SIGKILL\n{who}", (time - stormy[0][0], 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
                       textcoords="offset points", ha="center", va="bottom", color=_KILL, fontsize=9)  # fmt: skip
    upper.set_ylabel("loss (nats per byte)")
    upper.legend(frameon=False)
    lower.set_ylabel("step")
    lower.set_xlabel("seconds since the first step")
    for axis in (upper, lower):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("A training job on Esker: killed, resumed, and the same to the last bit", fontsize=13)
    figure.savefig(sys.argv[4], dpi=120)


if __name__ == "__main__":
    main()
