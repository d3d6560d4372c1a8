"""Mean IoU of a semantic segmentation model of any architecture, at the images' own sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ...engine.figures import write_confusion
from ...engine.gallery import Shown, to_jpeg, to_png_map
from ...engine.task import Evaluation
from ...metrics.mean_iou import MeanIoU, figures_of_confusion_matrix
from ...models.image_processing_semantic import IGNORE_LABEL
from .inference import Forward


class Inference(Protocol):
    """A way to predict an image of any size. See `pvt_hf.tasks.segmentation.inference`, which has three."""

    def __call__(self, image: Image.Image) -> list[torch.Tensor]: ...

    def predict(self, model: Forward, views: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor: ...


class SegmentationEvaluation(Evaluation):
    """
    Computes the metrics of [`pvt_hf.metrics.mean_iou.MeanIoU`].

    A batch has two lists with one entry per image: `views`, the tensors that `inference` made, and `labels` (H, W). See
    [`pvt_hf.tasks.segmentation.samples.SegmentationEvaluationSample`].

    Args:
        inference: predicts the label map of an image from its views.
        num_labels: number of classes of the model.
    """

    def __init__(self, inference: Inference, num_labels: int):
        self.inference, self.num_labels = inference, num_labels
        self.metric = MeanIoU(num_labels=num_labels)

    def add(self, forward: Callable[..., Any], batch: dict[str, Any]) -> None:
        def model(pixel_values: torch.Tensor) -> Any:
            return forward(pixel_values=pixel_values)

        for index, (views, labels) in enumerate(zip(batch["views"], batch["labels"])):
            predicted = self.inference.predict(model, views, tuple(labels.shape))
            self.metric.add(prediction=predicted, reference=labels)
            if self.gallery is not None:
                labelled = labels != IGNORE_LABEL
                wrong = ((predicted != labels) & labelled).sum().item() / max(labelled.sum().item(), 1)
                name = batch["sample_ids"][index]
                self.gallery.offer(name, (wrong,), partial(self._shown, name, views, labels, predicted, wrong))

    def _shown(
        self, name: str, views: list[torch.Tensor], labels: torch.Tensor, predicted: torch.Tensor, wrong: float
    ) -> Shown:
        assert self.gallery is not None
        image = self.gallery.picture(max(views, key=torch.numel))
        truth, prediction = ({"map": to_png_map(each, image.size)} for each in (labels, predicted))
        return Shown(name, to_jpeg(image), truth, prediction, {"wrong_pixels": wrong})

    def write_figures(self, states: list[Any], class_names: Sequence[str], folder: Path) -> None:
        """Writes the confusion matrix."""
        write_confusion(sum(matrix for matrix, _ in states), class_names, "pixels", folder)

    def state(self) -> tuple[Any, int]:
        collected = self.metric.confusion_matrix, len(self.metric)
        self.metric = MeanIoU(num_labels=self.num_labels)
        return collected

    def count(self, states: list[Any]) -> int:
        return sum(images for _, images in states)

    def compute(self, states: list[Any]) -> dict[str, Any]:
        return figures_of_confusion_matrix(sum(matrix for matrix, _ in states))


MEANS = ("mean_iou", "mean_accuracy", "overall_accuracy")


def class_table(metrics: dict[str, Any], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class: `name`, `iou` and `accuracy` (from 0 to 1, None if undefined), `pixels` (labelled ones)."""
    columns = (metrics[f"per_category_{name}"] for name in ("iou", "accuracy", "pixels"))
    return [
        {"name": name, "iou": iou, "accuracy": accuracy, "pixels": pixels}
        for name, iou, accuracy, pixels in zip(class_names, *columns)
    ]


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows of [`class_table`] as text; "-" stands for None, which a last line explains."""
    width = max(len("class"), *(len(row["name"]) for row in rows))
    lines = [f"{'class':<{width}} {'IoU':>7} {'accuracy':>9} {'pixels':>14}"]
    for row in rows:
        iou, accuracy = ("-" if row[name] is None else f"{row[name]:.4f}" for name in ("iou", "accuracy"))
        lines.append(f"{row['name']:<{width}} {iou:>7} {accuracy:>9} {row['pixels']:>14,}")
    if any(row["iou"] is None or row["accuracy"] is None for row in rows):
        lines.append("-: undefined, because the class has no pixels")
    return "\n".join(lines)
