"""The charts in the report of `pvt-hf reproduce ablations`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# Okabe and Ito's palette, for colour-blind readers
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
LEAST_SPAN = 5.0  # points that a vertical axis shows
SEEDS_AND_MEANS = "dots: one seed each; bars: their mean; vertical axes do not begin at 0"


@dataclass(frozen=True)
class Panel:
    """
    Attributes:
        task: title of the panel.
        metric: label of its axis.
        runs: the trainings of each model, one for each seed, by the model's label.
    """

    task: str
    metric: str
    runs: dict[str, list[dict[str, Any]]]


def chart_models(panels: Sequence[Panel], path: Path) -> None:
    """Every seed and the mean of every model."""
    figure, axes = _figure(len(panels))
    for one, panel in zip(axes, panels):
        for index, runs in enumerate(panel.runs.values()):
            _seeds_and_mean(one, index, runs, COLORS[index])
        one.set(title=panel.task, ylabel=f"{panel.metric} (%)")
        one.set_xticks(range(len(panel.runs)), list(panel.runs))
        one.set_xlim(-0.6, len(panel.runs) - 0.4)
        _show_at_least(one, LEAST_SPAN)
    _save(figure, path, SEEDS_AND_MEANS)


def chart_costs(panels: Sequence[Panel], path: Path) -> None:
    """As [`chart_models`], against the multiply-adds."""
    figure, axes = _figure(len(panels), least_width=6.5)
    for one, panel in zip(axes, panels):
        for color, (label, runs) in zip(COLORS, panel.runs.items()):
            _seeds_and_mean(one, runs[0]["multiply_adds"] / 1e6, runs, color, label)
        one.set(title=panel.task, xlabel="multiply-adds of the whole model (M)", ylabel=f"{panel.metric} (%)")
        one.margins(x=0.2)
        one.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the points
        _show_at_least(one, LEAST_SPAN)
    _save(figure, path, SEEDS_AND_MEANS)


def chart_curves(panels: Sequence[Panel], path: Path) -> None:
    """A curve over steps for every seed."""
    figure, axes = _figure(len(panels))
    for one, panel in zip(axes, panels):
        for color, (label, runs) in zip(COLORS, panel.runs.items()):
            for run in runs:
                steps, values = [step for step, _ in run["curve"]], [100 * value for _, value in run["curve"]]
                name = label if run is runs[0] else None
                one.plot(steps, values, color=color, marker=".", alpha=0.8, label=name)
        one.set(title=panel.task, xlabel="steps", ylabel=f"{panel.metric} (%)")
        one.set_xlim(left=0)
        one.legend()
    _save(figure, path, "one line for each seed")


def chart_sizes(runs: Sequence[dict[str, Any]], sizes: Sequence[int], trained: int, path: Path) -> None:
    """
    Accuracy against the size of the test images, a line for each seed.

    Args:
        sizes: sides in pixels.
        trained: the side in training.
    """
    figure, axes = _figure(1)
    for color, run in zip(COLORS, runs):
        values = [100 * run["accuracy"][str(size)] for size in sizes]
        axes[0].plot(sizes, values, color=color, marker=".", label=f"seed {run['seed']}")
    axes[0].axvline(trained, color="grey", linestyle=":", label="training size")
    axes[0].set(xlabel="side of the test images (pixels)", ylabel="accuracy (%)", xticks=sizes)
    axes[0].legend()
    _save(figure, path, "plain PVT, position tables resized")


def _seeds_and_mean(axes: Any, x: float, runs: Sequence[dict[str, Any]], color: str, label: str | None = None) -> None:
    values = [100 * run["value"] for run in runs]
    axes.plot([x] * len(values), values, "o", color=color, alpha=0.5, label=label)
    axes.plot([x], [statistics.mean(values)], "_", color=color, markersize=28, markeredgewidth=2)


def _show_at_least(axes: Any, points: float) -> None:
    """Widens a vertical axis, so that a small difference does not look like a large one."""
    low, high = axes.get_ylim()
    more = max(points - (high - low), 0) / 2
    axes.set_ylim(low - more, high + more)


def _figure(panels: int, least_width: float = 5.0) -> tuple[Any, list[Any]]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(max(least_width, 3.8 * panels), 4.0), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path, note: str) -> None:
    figure.suptitle(note, fontsize="small", color="grey")
    figure.savefig(path, dpi=110)
