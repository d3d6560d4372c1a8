"""Mean IoU of a segmenter on a stream, at the images' own sizes, on one process or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from PIL import Image

from ...data.batches import BatchStream, make_loader
from ...engine.feed import Batch
from ...engine.processes import agree, gather_objects
from ...metrics.mean_iou import MeanIoU, figures_of_confusion_matrix
from .inference import Forward


class Inference(Protocol):
    """One of the classes of `pvt_hf.tasks.segmentation.inference`, where the arguments are described."""

    def __call__(self, image: Image.Image) -> list[torch.Tensor]: ...

    def predict(self, model: Forward, views: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor: ...


@torch.no_grad()
def evaluate_segmenter(
    accelerator: Accelerator,
    model: Forward,
    batches: BatchStream,
    num_workers: int,
    inference: Inference,
    num_labels: int,
    class_names: Sequence[str] | None = None,
    after_batch: Callable[[Batch], None] | None = None,
) -> dict[str, Any]:
    """
    The figures of [`pvt_hf.metrics.mean_iou.MeanIoU`] over a stream, every sample once, over all processes.

    Args:
        model: pixel values (1, 3, height, width) to an output with `logits` (1, num_labels, rows, columns).
        batches: this process' part of the stream: of [`pvt_hf.tasks.segmentation.samples.SegmentationEvaluationSample`], whose
            `views` are `inference`, in lists.
        inference: makes the label map of an image of its views.
        num_labels: classes of the model.
        class_names: by label; are returned as `category_names`, if given.
        after_batch: called with each batch of this process once its images are counted.

    Returns:
        The same on each process: the figures, with NaN where there is nothing to divide by; `eval_samples`, images, and
        `eval_skipped`.

    Raises:
        ValueError: there is no sample, or a label that is no class.
    """
    metric, skipped = MeanIoU(num_labels=num_labels), 0

    def forward(pixel_values: torch.Tensor) -> Any:
        with accelerator.autocast():
            return model(pixel_values.to(accelerator.device))

    def forward_in_step(pixel_values: torch.Tensor) -> Any:
        # FSDP gathers the parameters in every forward pass, so all processes have to run equally often: each asks the
        # others before it runs, and those that are through with their images run on one of zeros below.
        agree(accelerator, True, "any")
        return forward(pixel_values)

    for batch in make_loader(batches, num_workers):
        skipped += len(batch["skipped"])
        if "sample_ids" in batch:
            for views, labels in zip(batch["views"], batch["labels"]):
                predict = forward_in_step if accelerator.is_fsdp2 else forward
                predicted = inference.predict(predict, views, tuple(labels.shape))
                metric.add(prediction=predicted, reference=labels)
        if after_batch is not None:
            after_batch(batch)
    while accelerator.is_fsdp2 and agree(accelerator, False, "any"):
        forward(torch.zeros(1, 3, 64, 64))
    parts = gather_objects(accelerator, (metric.confusion_matrix, len(metric), skipped))
    num_samples = sum(part[1] for part in parts)
    if not num_samples:
        raise ValueError(f"{batches.stream.name} has no sample to evaluate on.")
    metrics = figures_of_confusion_matrix(sum(part[0] for part in parts))
    if class_names is not None:
        metrics["category_names"] = list(class_names)
    metrics["eval_samples"] = num_samples
    metrics["eval_skipped"] = sum(part[2] for part in parts)
    return metrics
