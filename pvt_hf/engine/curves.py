"""The curves of a training, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.figure


COLORS = ("#1B7F3B", "#C43C39", "#2F6FDE", "#222222")


def plotted_metrics(history: list[dict[str, Any]]) -> list[str]:
    """
    Up to four metrics of the evaluations in `history`, by name: for a detector AP and AP50 of boxes and masks, else the
    first ones. Counts and losses (`eval_...`) and lists by class are left out.
    """
    evaluations = [entry for entry in history if "loss" not in entry]
    names = [
        name
        for name, value in (evaluations[-1] if evaluations else {}).items()
        if isinstance(value, float) and not name.startswith("eval_")
    ]
    detection = [name for name in names if name.removeprefix("mask_") in ("ap", "ap50")]
    return (detection or names)[: len(COLORS)]


def plot_curves(history: list[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """
    Writes a PNG: training loss and learning rate by step, and metrics of the evaluations by step.

    Args:
        history: of [`pvt_hf.engine.loop.TrainingState`].
    """
    steps = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "loss" not in entry]
    figure = matplotlib.figure.Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([e["step"] for e in steps], [e["loss"] for e in steps], color="#2F6FDE", linewidth=1)
    left.margins(y=0.2)
    left.set(title="Training loss", xlabel="step", ylim=(0, None))
    rate = left.twinx()
    rate.plot([e["step"] for e in steps], [e["learning_rate"] for e in steps], color="#BBBBBB", linewidth=1)
    rate.set_ylabel("learning rate", color="#888888")
    names = plotted_metrics(history)
    for name, color in zip(names, COLORS):
        values = [entry[name] for entry in evaluations]
        right.plot([e["step"] for e in evaluations], values, marker=".", color=color, label=f"{name}: {values[-1]:.4f}")
    right.set(title="Held-out samples", xlabel="step", ylim=(None, 1.005))
    if names:
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top"]].set_visible(False)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=130)
