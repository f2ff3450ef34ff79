#!/usr/bin/env python3
"""Draws the loss of a training job that was killed again and again, on top of that of one that was left alone, and below it when
each step was done.

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
_CALM, _KILL = "#b9cfe8", "#c0392b"
_LIVES = ["#1b3a5c", "#d17a00", "#2e7d4f", "#7b4ba0", "#8c6239"]  # in turn


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


def draw_losses(axis, calm, parts, kills):
    axis.plot([step for _, step, _ in calm], [loss for _, _, loss in calm], color=_CALM, linewidth=9, label="left alone")
    for number, part in enumerate(parts):
        label = f"killed, start {number + 1}: steps {part[0][1]} to {part[-1][1]}"
        axis.plot([step for _, step, _ in part], [loss for _, _, loss in part], color=_LIVES[number % len(_LIVES)], linewidth=1.6, label=label)
    done = [entry for part in parts for entry in part]
    for time, who in kills:
        step = max((entry for entry in done if entry[0] <= time), default=done[0])[1]
        axis.axvline(step, color=_KILL, linewidth=1, linestyle="--")
        axis.annotate(f"SIGKILL\n{who}", (step, 1), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
                      ha="center", va="bottom", color=_KILL, fontsize=9)  # fmt: skip
    axis.set(xlabel="step", ylabel="loss (nats per byte)")
    axis.legend(framealpha=1, edgecolor="none")


def draw_steps(axis, parts, kills):
    begin = parts[0][0][0]
    for number, part in enumerate(parts):
        color = _LIVES[number % len(_LIVES)]
        axis.plot([time - begin for time, _, _ in part], [step for _, step, _ in part], color=color, linewidth=2)
        if number > 0:
            (died, died_at, _), (resumed, resumed_at, _) = parts[number - 1][-1], part[0]
            axis.annotate("", (resumed - begin, resumed_at), (died - begin, died_at), arrowprops={"arrowstyle": "->", "linestyle": ":"})
            axis.annotate(f"goes on from step {resumed_at - 1}", (resumed - begin, resumed_at), xytext=(8, -4),
                          textcoords="offset points", va="top", color=color, fontsize=9)  # fmt: skip
    for time, _ in kills:
        axis.axvline(time - begin, color=_KILL, linewidth=1, linestyle="--")
    axis.set(xlabel="seconds since the first step (in the gaps torch starts)", ylabel="step")


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    calm, stormy = (executed_steps(pathlib.Path(path)) for path in sys.argv[1:3])
    kills = [(seconds(time), who) for time, who in re.findall(rf"{_TIME} (.*)", pathlib.Path(sys.argv[3]).read_text())]
    if not calm or not stormy:
        sys.exit(f"plot_loss.py: no steps in {sys.argv[1 if not calm else 2]}")
    parts = lives(stormy)
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(10, 8), height_ratios=[3, 2], layout="constrained")
    draw_losses(upper, calm, parts, kills)
    draw_steps(lower, parts, kills)
    for axis in (upper, lower):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("A training job on Esker: killed, resumed, and the same to the last bit", fontsize=13)
    figure.savefig(sys.argv[4], dpi=120)


if __name__ == "__main__":
    main()
