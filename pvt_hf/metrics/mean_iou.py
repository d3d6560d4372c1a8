"""Mean IoU as an `evaluate` metric. Use the class, or `evaluate.load` with this file's path; no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


# Counted at a time, so that the memory (about 100 MB) does not grow with the image
PIXELS_AT_ONCE = 2**22


def figures_of_confusion_matrix(matrix: np.ndarray) -> dict[str, Any]:
    """
    The figures of [`MeanIoU`] for a matrix of pixel counts, (num_labels, num_labels), with a row for each label of the
    references and a column for each predicted label.
    """
    found, labelled = matrix.diagonal(), matrix.sum(axis=1)  # by class
    union = labelled + matrix.sum(axis=0) - found
    with np.errstate(invalid="ignore"):  # 0 / 0 gives the NaN for undefined figures
        iou, accuracy, overall = found / union, found / labelled, found.sum() / labelled.sum()
    return {
        "mean_iou": _mean_of_known(iou),
        "mean_accuracy": _mean_of_known(accuracy),
        "overall_accuracy": float(overall),
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
        "per_category_pixels": labelled.tolist(),
    }


class MeanIoU(evaluate.Metric):
    """
    Mean intersection over union (IoU) of label maps, from one confusion matrix over the pixels of all images, like
    ADE20K's mIoU (mmsegmentation's `IoUMetric`). It is not a mean over images.

    `predictions` and `references` are (height, width) maps of integers, one per image: arrays, tensors or nested lists.
    Images may differ in size. Only the int64 matrix is kept, so the memory does not grow with the number of images.

        metric = MeanIoU(num_labels=150)  # or evaluate.load("pvt_hf/metrics/mean_iou.py", num_labels=150)
        metric.add_batch(predictions=maps, references=labels)
        metric.compute()

    With several processes, add up their `confusion_matrix` and call [`figures_of_confusion_matrix`]. `evaluate`'s own
    way (`num_process`), which writes all maps to files, is not supported.

    Args:
        num_labels: number of classes.
        ignore_index: label of pixels that are not counted.

    `compute` resets the metric, as always in `evaluate`, and returns numbers from 0 to 1:
        mean_iou: mean of the IoUs that are not NaN.
        mean_accuracy: mean of the accuracies that are not NaN.
        overall_accuracy: share of the labelled pixels that are right.
        per_category_iou: list by class; NaN for a class that is neither in the references nor in the predictions.
        per_category_accuracy: share of each class' pixels that were found; NaN for a class without any.
        per_category_pixels: number of labelled pixels by class.
    The first three are NaN if no pixel has a label.

    Raises:
        ValueError: `ignore_index` is a class; a map that is not of integers or does not have its reference's shape; a
            label that is neither a class nor `ignore_index`, or a prediction on a labelled pixel that is not a class.
            Nothing of such an image is counted. In `compute`: no maps.
    """

    def __init__(self, config_name: str | None = None, *, num_labels: int, ignore_index: int = 255, **kwargs: Any):
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {num_labels}.")
        if 0 <= ignore_index < num_labels:
            raise ValueError(f"ignore_index {ignore_index} is one of the {num_labels} classes: choose another number.")
        if kwargs.get("num_process", 1) != 1:
            raise ValueError("MeanIoU does not support num_process: add up the `confusion_matrix` of the processes.")
        super().__init__(config_name, **kwargs)
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self._reset()

    def _reset(self) -> None:
        self.confusion_matrix = np.zeros((self.num_labels, self.num_labels), dtype=np.int64)
        self.num_maps = 0

    def __len__(self) -> int:
        return self.num_maps

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.List(datasets.List(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of label maps.",
            citation="",
            inputs_description="predictions, references: one (height, width) map of class indices per image.",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Counts the pixels of one image."""
        predicted, expected = _to_map(prediction, "prediction"), _to_map(reference, "reference")
        if predicted.shape != expected.shape:
            raise ValueError(
                f"a prediction of shape {predicted.shape} for a reference of shape {expected.shape}: resize the logits "
                "to the size of the reference before taking the best class."
            )
        predicted, expected = predicted.ravel(), expected.ravel()
        counts = np.zeros(self.num_labels**2, dtype=np.int64)
        for start in range(0, expected.size, PIXELS_AT_ONCE):
            part = slice(start, start + PIXELS_AT_ONCE)
            labelled = expected[part] != self.ignore_index
            rows = self._check(expected[part][labelled], "reference")
            columns = self._check(predicted[part][labelled], "prediction")
            counts += np.bincount(rows * self.num_labels + columns, minlength=counts.size)
        self.confusion_matrix += counts.reshape(self.num_labels, self.num_labels)
        self.num_maps += 1

    def _check(self, values: np.ndarray, name: str) -> np.ndarray:
        values = values.astype(np.int64)
        if values.size and (values.min() < 0 or values.max() >= self.num_labels):
            unknown = np.unique(values[(values < 0) | (values >= self.num_labels)]).tolist()
            ignored = f", or {self.ignore_index} for pixels to ignore" if name == "reference" else ""
            raise ValueError(
                f"a {name} holds {', '.join(map(str, unknown[:5]))}{' ...' * (len(unknown) > 5)}: with num_labels "
                f"{self.num_labels} it must be 0 to {self.num_labels - 1}{ignored}."
            )
        return values

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Counts the pixels of several images."""
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references.")
        for prediction, reference in zip(predictions, references):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        """The figures of all maps added so far, and of these. Resets the metric."""
        if predictions is not None or references is not None:
            self.add_batch(
                predictions=() if predictions is None else predictions,
                references=() if references is None else references,
            )
        if not self.num_maps:
            raise ValueError("There are no label maps to compute an IoU of.")
        matrix = self.confusion_matrix
        self._reset()
        return figures_of_confusion_matrix(matrix)


def _to_map(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(f"a {name} must be a (height, width) map of integers, got {array.dtype} {array.shape}.")
    return array


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
