"""COCO AP of a detector on a stream, at the images' own sizes, on one process or many."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ...data.batches import BatchStream, make_loader
from ...engine.feed import Batch
from ...engine.processes import agree, gather_objects
from ...metrics.coco_ap import CocoAP


# Least score of a detection that AP counts, by the model's type: the paper's. Other models, such as DETR, make a set of
# a fixed number of detections, which all count.
SCORE_THRESHOLDS = {"retinanet": 0.05, "mask_rcnn": 0.05}
# By the model's type, not by what the processor can do: that of Transformers for DETR has the post-processing of masks
# for another model as well.
MODELS_WITH_MASKS = ("mask_rcnn",)


def check_takes_pixel_mask(model: PreTrainedModel) -> None:
    """Raises a ValueError for a model that would take the padding of a batch for a part of the image."""
    if "pixel_mask" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{type(model).__name__} takes no pixel_mask, so that it would take the padding of a batch for image."
        )


@torch.no_grad()
def evaluate_detector(
    accelerator: Accelerator,
    model: PreTrainedModel,
    batches: BatchStream,
    num_workers: int,
    processor: Any,
    class_names: Sequence[str],
    masks: bool,
    after_batch: Callable[[Batch], None] | None = None,
    keep_images: Callable[[dict[Any, Any]], None] | None = None,
) -> dict[str, Any]:
    """
    The figures of [`pvt_hf.metrics.coco_ap.CocoAP`] over a stream, every sample once, over all processes.

    Args:
        model: unwrapped, in eval mode.
        batches: this process' part of the stream: of [`pvt_hf.tasks.detection.samples.DetectionEvaluationSample`], put together
            by `collate_detection`.
        processor: whose post-processing makes detections of the model's output.
        class_names: by label of the model.
        masks: whether the model finds masks, which are evaluated, too.
        after_batch: called with each batch of this process once its images are counted.
        keep_images: called with all images' detections and truth, as `CocoAP` keeps them, on each process.

    Returns:
        The same on each process: the figures, with NaN where there is nothing to find; `eval_samples`, images, and
        `eval_skipped`.

    Raises:
        ValueError: there is no sample, or two have the same image id.
    """
    metric, skipped = CocoAP(num_labels=len(class_names), masks=masks), 0
    threshold = SCORE_THRESHOLDS.get(model.config.model_type, 0.0)

    def forward(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
        with accelerator.autocast():
            return model(pixel_values.to(accelerator.device), pixel_mask=pixel_mask.to(accelerator.device))

    for batch in make_loader(batches, num_workers):
        skipped += len(batch["skipped"])
        if "sample_ids" in batch:
            if accelerator.is_fsdp2:  # see `evaluate_segmenter`: all processes have to run equally often
                agree(accelerator, True, "any")
            outputs = forward(batch["pixel_values"], batch["pixel_mask"])
            predictions = detections(processor, outputs, threshold, batch["orig_size"], masks)
            metric.add_batch(predictions=predictions, references=[reference(target) for target in batch["target"]])
        if after_batch is not None:
            after_batch(batch)
    while accelerator.is_fsdp2 and agree(accelerator, False, "any"):
        forward(torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.long))
    parts = gather_objects(accelerator, (metric.images, skipped))
    everything = CocoAP(num_labels=len(class_names), masks=masks)
    for images, _ in parts:
        everything.merge(images)
    num_samples = len(everything)
    if not num_samples:
        raise ValueError(f"{batches.stream.name} has no sample to evaluate on.")
    if keep_images is not None:
        keep_images(everything.images)
    return everything.compute() | {"eval_samples": num_samples, "eval_skipped": sum(part[1] for part in parts)}


def detections(
    processor: Any, outputs: Any, threshold: float, sizes: Sequence[tuple[int, int]], masks: bool
) -> list[dict[str, Any]]:
    """Per image what `CocoAP` wants as a prediction. `sizes`: (height, width) per image."""
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
    """The truth of an image in the form of `CocoAP`, of COCO's annotations."""
    annotations = target["annotations"]
    columns = {
        "labels": [annotation["category_id"] for annotation in annotations],
        "boxes_xywh": [annotation["bbox"] for annotation in annotations],
        "area": [annotation["area"] for annotation in annotations],
        "iscrowd": [annotation["iscrowd"] for annotation in annotations],
    }
    if annotations and "segmentation" in annotations[0]:
        columns["masks"] = [annotation["segmentation"] for annotation in annotations]
    else:
        columns["masks"] = []
    return {"image_id": target["image_id"], **columns}


def without_nan(value: Any) -> Any:
    """JSON has no NaN: None instead, of a figure or in a list of them."""
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
