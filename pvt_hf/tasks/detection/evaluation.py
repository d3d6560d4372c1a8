"""COCO AP of a detector of any architecture, at the images' own sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.figures import write_precision_recall
from ...engine.gallery import Shown, to_jpeg, to_png_mask
from ...engine.task import Evaluation
from ...families import FAMILIES
from ...metrics.coco_ap import FIGURES, CocoAP


# By model type. Detectors of other types are treated like DETR: all of their predictions count, and they are not asked
# for masks. (Transformers' DETR processor can post-process masks, but those of another model.)
SCORE_THRESHOLDS = {family.model_type: family.score_threshold for family in FAMILIES.values()}
# Detections with lower scores are neither drawn nor counted as errors of an image.
SHOWN_SCORE = 0.5
MODELS_WITH_MASKS = {family.model_type for family in FAMILIES.values() if family.masks}


class DetectionEvaluation(Evaluation):
    """
    Computes the metrics of [`pvt_hf.metrics.coco_ap.CocoAP`].

    Batches are samples of [`pvt_hf.tasks.detection.samples.DetectionEvaluationSample`] and `collate_detection`. Two
    images with the same id raise a ValueError in [`add`] or [`compute`].

    Args:
        processor: the image processor, whose post-processing turns the model's output into detections.
        model_type: `model_type` of the model's configuration; selects the score threshold.
        num_labels: number of classes of the model.
        masks: whether masks are evaluated too.
    """

    def __init__(self, processor: Any, model_type: str, num_labels: int, masks: bool):
        self.processor, self.num_labels, self.masks = processor, num_labels, masks
        self.threshold = SCORE_THRESHOLDS.get(model_type, 0.0)
        self.metric = self._new_metric()
        self.precisions: dict[str, np.ndarray] = {}  # of the last computation

    def _new_metric(self) -> CocoAP:
        return CocoAP(num_labels=self.num_labels, masks=self.masks)

    def add(self, forward: Callable[..., Any], batch: dict[str, Any]) -> None:
        outputs = forward(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"])
        predictions = detections(self.processor, outputs, self.threshold, batch["orig_size"], self.masks)
        self.metric.add_batch(predictions=predictions, references=[reference(target) for target in batch["target"]])
        if self.gallery is not None:
            for index, name in enumerate(batch["sample_ids"]):
                record = self.metric.images[batch["target"][index]["image_id"]]
                errors = count_errors(record["prediction"], record["reference"])
                rank = (1 - errors["f1"], errors["missed"] + errors["false_alarms"])
                self.gallery.offer(name, rank, partial(self._shown, batch, index, record, errors))

    def _shown(self, batch: dict[str, Any], index: int, record: dict[str, Any], errors: dict[str, Any]) -> Shown:
        from pycocotools import mask as coco_mask

        assert self.gallery is not None
        rows, columns = (int(batch["pixel_mask"][index].any(dim=axis).sum()) for axis in (1, 0))  # without padding
        image = self.gallery.picture(batch["pixel_values"][index, :, :rows, :columns])
        height, width = batch["orig_size"][index]
        scale = np.array([image.width / width, image.height / height] * 2)

        def objects(side: dict[str, Any], keep: np.ndarray) -> dict[str, Any]:
            corners = side["boxes_xywh"].copy()
            corners[:, 2:] += corners[:, :2]
            scores = side["scores"].tolist() if "scores" in side else [None] * len(corners)
            found = list(zip((corners * scale).tolist(), side["labels"].tolist(), scores))
            kept: dict[str, Any] = {"objects": [found[row] for row in np.flatnonzero(keep)]}
            if "masks" in side:
                masks = [coco_mask.decode(side["masks"][row]) for row in np.flatnonzero(keep)]
                kept["masks"] = [to_png_mask(mask, image.size) for mask in masks]
            return kept

        predicted, wanted = record["prediction"], record["reference"]
        return Shown(
            batch["sample_ids"][index],
            to_jpeg(image),
            objects(wanted, ~wanted["iscrowd"]),
            objects(predicted, predicted["scores"] >= SHOWN_SCORE),
            errors,
        )

    def write_figures(self, states: list[Any], class_names: Sequence[str], folder: Path) -> None:
        """Writes the precision-recall curves."""
        write_precision_recall(self.precisions, class_names, folder)

    def state(self) -> dict[Any, Any]:
        collected, self.metric = self.metric.images, self._new_metric()
        return collected

    def count(self, states: list[Any]) -> int:
        return sum(len(images) for images in states)

    def compute(self, states: list[Any]) -> dict[str, Any]:
        metric = self.merge(states)
        figures, self.precisions = metric.compute(), metric.precisions
        return figures

    def merge(self, states: list[Any]) -> CocoAP:
        """Combines the images of all processes in one metric."""
        metric = self._new_metric()
        for images in states:
            metric.merge(images)
        return metric

    def idle_inputs(self) -> dict[str, torch.Tensor]:
        return {**super().idle_inputs(), "pixel_mask": torch.ones(1, 64, 64, dtype=torch.long)}


def count_errors(prediction: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """
    Compares the detections of an image that score `SHOWN_SCORE` or more with its objects. Best first, a detection takes
    the free object of its class with the highest IoU of boxes, from 0.5 on. What lies in a crowd is not counted.

    Args:
        prediction, reference: the records of an image in a `CocoAP`.

    Returns:
        `found`, `missed`, `false_alarms`, and `f1`, from 0 to 1; 1 if there is nothing to find and nothing was found.
    """
    from pycocotools import mask as coco_mask

    order = np.argsort(-prediction["scores"], kind="stable")
    order = order[prediction["scores"][order] >= SHOWN_SCORE]
    is_crowd = reference["iscrowd"]
    iou = np.zeros((len(order), len(is_crowd)))
    if iou.size:
        iou = coco_mask.iou(prediction["boxes_xywh"][order], reference["boxes_xywh"], is_crowd.astype(np.uint8))
    free, found, ignored = ~is_crowd, 0, 0
    for row, label in zip(iou, prediction["labels"][order]):
        same = reference["labels"] == label
        best = np.where(free & same, row, 0)
        if best.size and best.max() >= 0.5:
            free[best.argmax()] = False
            found += 1
        else:
            ignored += bool((row[is_crowd & same] >= 0.5).any())
    missed, false_alarms = int((~is_crowd).sum()) - found, len(order) - found - ignored
    total = 2 * found + missed + false_alarms
    f1 = 2 * found / total if total else 1.0
    return {"found": found, "missed": missed, "false_alarms": false_alarms, "f1": f1}


def detections(
    processor: Any, outputs: Any, threshold: float, sizes: Sequence[tuple[int, int]], masks: bool
) -> list[dict[str, Any]]:
    """
    Post-processes a model's output into the predictions that `CocoAP` takes, one dict per image.

    Args:
        threshold: detections with lower scores are left out.
        sizes: (height, width) of each image before processing, in pixels.
        masks: whether to add a mask for each detection.
    """
    found = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
    predictions = [
        {"scores": image["scores"], "labels": image["labels"], "boxes_xyxy": image["boxes"]} for image in found
    ]
    if masks:
        maps = processor.post_process_instance_segmentation(
            outputs, threshold=threshold, target_sizes=sizes, return_binary_maps=True
        )
        for prediction, image in zip(predictions, maps):
            prediction["masks"] = image["segmentation"]
    return predictions


def reference(target: dict[str, Any]) -> dict[str, Any]:
    """Converts the `target` of a sample into the reference that `CocoAP` takes."""
    annotations = target["annotations"]
    with_masks = annotations and "segmentation" in annotations[0]
    return {
        "image_id": target["image_id"],
        "labels": [annotation["category_id"] for annotation in annotations],
        "boxes_xywh": [annotation["bbox"] for annotation in annotations],
        "area": [annotation["area"] for annotation in annotations],
        "iscrowd": [annotation["iscrowd"] for annotation in annotations],
        "masks": [annotation["segmentation"] for annotation in annotations] if with_masks else [],
    }


def format_table(metrics: dict[str, Any], class_names: tuple[str, ...], masks: bool) -> str:
    """
    A text table of COCO's twelve metrics and the AP of each class, in percent; "-" where undefined, which a last line
    explains.
    """
    kinds = {"boxes": "", "masks": "mask_"} if masks else {"boxes": ""}
    width = max(len("ar_medium"), *map(len, class_names))
    lines = [f"{'':<{width}} " + " ".join(f"{kind:>7}" for kind in kinds)]
    rows = [(name, [metrics[prefix + name] for prefix in kinds.values()]) for name in FIGURES]
    rows += [
        (name, [metrics[f"{prefix}per_category_ap"][label] for prefix in kinds.values()])
        for label, name in enumerate(class_names)
    ]
    for name, values in rows:
        cells = ("-" if value is None else f"{value:.2%}" for value in values)
        lines.append(f"{name:<{width}} " + " ".join(f"{cell:>7}" for cell in cells))
    if any(value is None for _, values in rows for value in values):
        lines.append("-: undefined, because there are no such objects")
    return "\n".join(lines)
