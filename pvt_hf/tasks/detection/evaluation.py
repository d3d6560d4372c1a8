"""COCO AP of a detector of any architecture, at the images' own sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...engine.task import Evaluation
from ...families import FAMILIES
from ...metrics.coco_ap import FIGURES, CocoAP


# By model type. Detectors of other types are treated like DETR: all of their predictions count, and they are not asked
# for masks. (Transformers' DETR processor can post-process masks, but those of another model.)
SCORE_THRESHOLDS = {family.model_type: family.score_threshold for family in FAMILIES.values()}
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

    def _new_metric(self) -> CocoAP:
        return CocoAP(num_labels=self.num_labels, masks=self.masks)

    def add(self, forward: Callable[..., Any], batch: dict[str, Any]) -> None:
        outputs = forward(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"])
        predictions = detections(self.processor, outputs, self.threshold, batch["orig_size"], self.masks)
        self.metric.add_batch(predictions=predictions, references=[reference(target) for target in batch["target"]])

    def state(self) -> dict[Any, Any]:
        collected, self.metric = self.metric.images, self._new_metric()
        return collected

    def count(self, states: list[Any]) -> int:
        return sum(len(images) for images in states)

    def compute(self, states: list[Any]) -> dict[str, Any]:
        return self.merge(states).compute()

    def merge(self, states: list[Any]) -> CocoAP:
        """Combines the images of all processes in one metric."""
        metric = self._new_metric()
        for images in states:
            metric.merge(images)
        return metric

    def idle_inputs(self) -> dict[str, torch.Tensor]:
        return {**super().idle_inputs(), "pixel_mask": torch.ones(1, 64, 64, dtype=torch.long)}


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
