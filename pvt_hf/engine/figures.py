"""
What an evaluation leaves for people to look at, besides its metrics: a confusion matrix or precision-recall curves (PNG
and JSON), the worst samples (JSON), and, where a function that draws them is given, a page of predictions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.reports import without_nan, write_json
from .curves import COLORS
from .gallery import Gallery
from .task import Evaluation


# (gallery, class names, folder): writes pictures and a page; `pvt_hf.inference.held_out_page.write_page` is one
WritePage = Callable[[Gallery, Sequence[str], Path], None]
NAMED_CLASSES = 30  # with more, a plot does not name each
LISTED_CONFUSIONS = 50
IOUS = {"0.50": 0, "0.75": 5}  # of COCO's ten thresholds


@dataclass
class LastEvaluation:
    """
    What the most recent evaluation collected. Filled by [`pvt_hf.engine.evaluation.evaluate`].

    Args:
        processor: the image processor that prepared the images.

    Attributes:
        states: of the `Evaluation` of each process; empty if there was no evaluation.
        gallery: samples of all processes.
    """

    processor: Any
    states: list[Any] = field(default_factory=list)
    gallery: Gallery | None = None

    def new_gallery(self) -> Gallery:
        return Gallery.of_processor(self.processor)


def write_figures(
    folder: Path, evaluation: Evaluation, last: LastEvaluation, class_names: Sequence[str], write_page: WritePage | None
) -> list[str]:
    """
    Writes the figures of an evaluation. Call this on the main process.

    Args:
        folder: is made if it is not there.
        evaluation: computed the metrics of `last.states`.
        class_names: of the model, by label.
        write_page: draws the samples; None: they are listed but not drawn.

    Returns:
        The names of the files. A figure that cannot be drawn is left out, which is said: it must not cost a model.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    if last.gallery is not None:
        worst = [{"sample": shown.name, **shown.figures} for _, _, shown in last.gallery.worst]
        write_json(folder / "worst_images.json", worst)
        try:
            evaluation.write_figures(last.states, class_names, folder)
            if write_page is not None:
                write_page(last.gallery, class_names, folder)
        except OSError:
            raise
        except Exception as error:
            print(f"warning: not all figures could be drawn: {type(error).__name__}: {error}", flush=True)
    return sorted(
        path.name for path in folder.iterdir() if path.is_file() and before.get(path.name) != path.stat().st_mtime_ns
    )


def write_confusion(matrix: np.ndarray, class_names: Sequence[str], what: str, folder: Path) -> None:
    """
    Writes `confusion_matrix.png` and `confusion_matrix.json`.

    Args:
        matrix: (classes, classes) counts, a row for each true class and a column for each predicted one.
        what: is counted, such as "pixels".
        folder: for the two files.
    """
    import matplotlib.figure

    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    confusions = _largest_confusions(matrix, shares, class_names)
    content = {
        "counts": what,
        "rows": "truth",
        "columns": "prediction",
        "classes": list(class_names),
        "most_confused": confusions,
    }
    # Row by row: the text of a thousand classes as a whole takes many times the memory of the matrix.
    with open(folder / "confusion_matrix.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1)[:-2] + ',\n "matrix": [\n')
        for row in range(len(matrix)):
            file.write("  " + json.dumps(matrix[row].tolist()) + (",\n" if row < len(matrix) - 1 else "\n ]\n}\n"))
    named = len(class_names) <= NAMED_CLASSES
    side = min(4 + 0.35 * len(class_names), 11) if named else 9
    figure = matplotlib.figure.Figure(figsize=(side + 4.5, side), layout="constrained")
    axes, text = figure.subplots(1, 2, width_ratios=(side, 4))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if named else None)
    figure.colorbar(image, ax=axes, shrink=0.7, label=f"share of the {what} of the true class")
    axes.set(xlabel="prediction", ylabel="truth")
    if named:
        short = [name if len(name) <= 20 else name[:19] + "…" for name in class_names]
        axes.set_xticks(range(len(short)), short, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(short)), short, fontsize=8, parse_math=False)
        for row, column in zip(*np.nonzero(matrix)) if len(class_names) <= 15 else ():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", color=color, fontsize=7)
    lines = [f"{each['share']:.1%}  {each['truth'][:22]} as {each['prediction'][:22]}" for each in confusions[:15]]
    title = "Most confused (share of the true class)" if lines else "Nothing is confused"
    text.text(0, 1, "\n".join([title, "", *lines]), va="top", fontsize=9, parse_math=False)
    text.axis("off")
    figure.savefig(folder / "confusion_matrix.png", dpi=110, bbox_inches="tight")


def _largest_confusions(matrix: np.ndarray, shares: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Pairs of different classes, those first that most of the true class went to."""
    off = shares.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:LISTED_CONFUSIONS]
    pairs = [divmod(int(index), len(class_names)) for index in order]
    return [
        {"truth": class_names[row], "prediction": class_names[column], "count": int(matrix[row, column]),
         "share": float(off[row, column])}
        for row, column in pairs if matrix[row, column]
    ]  # fmt: skip


def write_precision_recall(precisions: dict[str, np.ndarray], class_names: Sequence[str], folder: Path) -> None:
    """
    Writes `precision_recall.png` and `precision_recall.json`.

    Args:
        precisions: "boxes", and "masks" if there are any, to precision (10 IoU thresholds, 101 recalls, classes) as
            pycocotools computes it: of all areas and the 100 best detections of an image; -1 where it is undefined.
        folder: for the two files.
    """
    import matplotlib.figure

    recall = np.linspace(0, 1, 101)
    content: dict[str, Any] = {"recall": recall.tolist()}
    figure = matplotlib.figure.Figure(figsize=(6.2 * len(precisions), 4.6), layout="constrained")
    panels = figure.subplots(1, len(precisions), squeeze=False)[0]
    for axes, (kind, precision) in zip(panels, precisions.items()):
        known = np.where(precision < 0, np.nan, precision)
        has_objects = ~np.isnan(known).all(axis=(0, 1))  # by class
        curves = {iou: _mean(known[index][:, has_objects]) for iou, index in IOUS.items()}
        curves["0.50:0.95"] = _mean(known.mean(axis=0)[:, has_objects])
        content[kind] = {
            "mean": {iou: curve.tolist() for iou, curve in curves.items()},
            "per_class": {
                name: {iou: known[index, :, label].tolist() for iou, index in IOUS.items()}
                for label, name in enumerate(class_names)
            },
        }
        if has_objects.sum() <= NAMED_CLASSES:
            for label in np.flatnonzero(has_objects):
                axes.plot(recall, known[0, :, label], color="#BBBBBB", linewidth=0.7)
        for color, (iou, curve) in zip(COLORS, curves.items()):
            area = "undefined" if np.isnan(curve).all() else f"{np.nanmean(curve):.3f}"
            axes.plot(recall, curve, color=color, label=f"IoU {iou}: AP {area}")
        axes.set(title=f"{kind}: mean over classes; grey: each class, IoU 0.50", xlabel="recall", ylabel="precision")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.25)
        axes.legend(loc="best")
    (folder / "precision_recall.json").write_text(json.dumps(without_nan(content)) + "\n", encoding="utf-8")
    figure.savefig(folder / "precision_recall.png", dpi=110)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis; NaN if that is empty."""
    return values.mean(axis=-1) if values.shape[-1] else np.full(values.shape[:-1], np.nan)
