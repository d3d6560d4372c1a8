"""
The picture of a training run shows the metrics that the history holds, whatever the task.

    python -m pytest tests/engine/test_curves.py
"""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from pvt_hf.engine.curves import plot_curves
from pvt_hf.metrics.accuracy_at_k import AccuracyAtK
from pvt_hf.metrics.coco_ap import CocoAP
from pvt_hf.metrics.mean_iou import MeanIoU


STEPS = [{"step": step, "epoch": 0, "loss": 4.0 / step, "learning_rate": 1e-3 * step} for step in (1, 2, 3, 4)]


def classification() -> dict:
    return AccuracyAtK(keep_in_memory=True).compute(predictions=[[1, 0], [0, 1]], references=[1, 1], k=(1, 2))


def segmentation() -> dict:
    metric = MeanIoU(num_labels=2)
    metric.add(prediction=np.array([[0, 1]]), reference=np.array([[0, 0]]))
    return metric.compute()


def detection(masks: bool = False) -> dict:
    metric, mask = CocoAP(num_labels=1, masks=masks), np.ones((1, 4, 4), dtype=bool)
    shared = {"labels": [0]} | ({"masks": mask} if masks else {})
    prediction = {"scores": [0.9], "boxes_xyxy": [[0.0, 0, 4, 4]], **shared}
    metric.add(prediction=prediction, reference={"image_id": 1, "boxes_xywh": [[0.0, 0, 4, 4]], **shared})
    return metric.compute()


@pytest.fixture
def axes(monkeypatch):
    """Plots a history; returns the figure's axes: training loss, metrics, learning rate."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: figures.append(figure))

    def plot(history):
        plot_curves(history, "unused.png")
        return figures[-1].axes

    return plot


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (classification, {"accuracy@1": 0.5, "accuracy@2": 1.0}),
        (segmentation, {"mean_iou": 0.25, "mean_accuracy": 0.5, "overall_accuracy": 0.5}),
        (detection, {"ap": 1.0, "ap50": 1.0, "ap75": 1.0}),
        (lambda: detection(masks=True), dict.fromkeys(["ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75"], 1)),
    ],
    ids=["classification", "segmentation", "detection", "instance segmentation"],
)
def test_every_task_has_its_metrics(axes, metrics, expected):
    entry = {**metrics(), "eval_loss": 0.7, "eval_samples": 2, "eval_skipped": 0, "category_names": ["a", "b"]}
    evaluations = [{"step": 2, "epoch": 0, **entry}, {"step": 4, "epoch": 1, **entry}]
    left, right, rate = axes([*STEPS[:2], evaluations[0], *STEPS[2:], evaluations[1]])
    assert {line.get_label().split(":")[0]: line.get_ydata()[-1] for line in right.lines} == pytest.approx(expected)
    assert all(list(line.get_xdata()) == [2, 4] for line in right.lines)
    assert [text.get_text() for text in right.get_legend().get_texts()] == [line.get_label() for line in right.lines]
    (loss,), (learning_rate,) = left.lines, rate.lines
    assert list(loss.get_xdata()) == [1, 2, 3, 4] and list(loss.get_ydata()) == [4.0, 2.0, 4 / 3, 1.0]
    assert list(learning_rate.get_ydata()) == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3])


def test_undefined_metrics_leave_a_gap(axes):
    _, right, _ = axes([{"step": 1, "epoch": 0, "ap": None}, {"step": 2, "epoch": 1, "ap": 0.5}])
    (line,) = right.lines
    assert math.isnan(line.get_ydata()[0]) and line.get_ydata()[1] == 0.5


def test_single_losses_of_a_short_run_are_marked(axes):
    """A line between two points would look like a curve."""
    for entries, marked in ((STEPS, True), ([{**STEPS[0], "step": step} for step in range(1, 200)], False)):
        left = axes(entries)[0]
        assert (left.lines[0].get_marker() not in ("", "None")) == marked and "single steps" in left.get_title()


def test_a_run_without_evaluation(axes):
    _, right, _ = axes(STEPS)
    assert not right.lines and right.get_legend() is None


def test_a_png_is_written(tmp_path):
    plot_curves(STEPS, tmp_path / "curves.png", "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
