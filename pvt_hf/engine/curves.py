"""Draws the curves of a training run: loss, learning rate, and evaluation metrics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


# With fewer log entries than this, each is marked: a line between two of them is no curve.
FEW_ENTRIES = 50
COLORS = ("#009E73", "#D55E00", "#0072B2")  # Okabe and Ito's palette, for colour-blind readers
MASK_PREFIX = "mask_"


def plot_curves(history: list[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """
    Writes a PNG with two panels over the optimiser step: loss and learning rate, and the evaluation metrics.

    Args:
        history: see [`pvt_hf.engine.state.TrainingState`]. Entries with a `loss` are log entries, the others are
            evaluations, in which None is an undefined metric.
        path: the file to write.
        title: shown above both panels.
    """
    import matplotlib.figure

    steps = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "loss" not in entry]
    figure = matplotlib.figure.Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    marker = "." if len(steps) < FEW_ENTRIES else ""
    losses = [entry["loss"] for entry in steps]
    left.plot([entry["step"] for entry in steps], losses, color=COLORS[2], linewidth=1, marker=marker)
    left.margins(y=0.2)
    left.set(title="Training loss of single steps", xlabel="step", ylim=(0, None))
    rate = left.twinx()
    rates = [entry["learning_rate"] for entry in steps]
    rate.plot([entry["step"] for entry in steps], rates, color="#BBBBBB", linewidth=1)
    rate.set_ylabel("learning rate", color="#888888")
    for name, color, style in _metrics_to_show(evaluations):
        values = [math.nan if entry.get(name) is None else entry[name] for entry in evaluations]
        label = f"{name}: {'undefined' if math.isnan(values[-1]) else f'{values[-1]:.4f}'}"
        right.plot([e["step"] for e in evaluations], values, marker=".", color=color, linestyle=style, label=label)
    right.set(title="Held-out samples", xlabel="step", ylim=(None, 1.005))
    if right.lines:
        right.legend(loc="best")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top"]].set_visible(False)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=130)


def _metrics_to_show(evaluations: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """
    Selects the metrics to draw, as (name, colour, line style): the first three, and dashed the first three for masks.
    Metrics are fractions from 0 to 1. Entries that begin with `eval_`, such as the number of samples, are left out.
    """
    if not evaluations:
        return []
    names = [
        name
        for name in evaluations[-1]
        if not name.startswith("eval_") and all(isinstance(entry.get(name), float | None) for entry in evaluations)
    ]
    masks = [name for name in names if name.startswith(MASK_PREFIX)]
    others = [name for name in names if name not in masks]
    return [*zip(others, COLORS, ["-"] * 3), *zip(masks, COLORS, ["--"] * 3)]
