"""`pvt-hf reproduce figure5`: AP over epochs of RetinaNet, pretrained and from scratch, from the `run.json` of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..metrics.reports import write_json
from .reproduce_data import FIGURE_5, MISSING


def reproduce_figure5(runs: dict[str, Path], output_dir: Path) -> int:
    """
    Prints the last AP of each run beside the paper's, and writes `figure5.png` and `figure5.json`.

    Args:
        runs: folder with a `run.json` by name, of which those in `FIGURE_5` are compared with the paper.

    Returns:
        The exit status: 0, or 2 if a run is missing or has no AP.

    Raises:
        SystemExit: a `run.json` is damaged or no report.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, folder in runs.items():
        try:
            history = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("history", [])
            curves[name] = [(one["epoch"], 100 * one["ap"]) for one in history if one.get("ap") is not None]
        except (ValueError, AttributeError, KeyError, TypeError):  # damaged, or of another program
            raise SystemExit(f"error: {folder / 'run.json'} is not the report of a training.") from None
        if not curves[name]:
            print(f"{folder / 'run.json'} has no evaluation with AP: it is no training of a detector.")
            return MISSING
    rows: dict[str, Any] = {}
    print("Figure 5: RetinaNet on COCO, AP of the last epoch in percent")
    for name, points in curves.items():
        ours, paper = round(points[-1][1], 1), FIGURE_5.get(name)
        rows[name] = {"paper": paper, "ours": ours, "epochs": points[-1][0], "curve": points}
        beside = f"paper {paper}, ours {ours} ({ours - paper:+.1f})" if paper is not None else f"ours {ours}"
        print(f"  {name}: {beside}, after {points[-1][0]} epochs")
    write_json(output_dir / "figure5.json", rows)
    _plot(curves, output_dir / "figure5.png")
    print(f"Written: figure5.png and figure5.json in {output_dir}")
    return 0


def _plot(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        (line,) = axes.plot(*zip(*points), marker=".", label=name)
        if name in FIGURE_5:
            axes.axhline(FIGURE_5[name], color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xlabel="epochs", ylabel="AP (%)", title="RetinaNet on COCO; dotted: the paper's last AP")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.savefig(path, dpi=130)
