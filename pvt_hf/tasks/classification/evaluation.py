"""Accuracy and loss of an image classifier of any architecture, and the official evaluation protocol."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2 as transforms
from transformers import PreTrainedModel

from ...data.samples import ProcessorTransform
from ...engine.figures import write_confusion
from ...engine.gallery import Shown, to_jpeg
from ...engine.task import Evaluation
from ...metrics.accuracy_at_k import AccuracyAtK


class ClassificationEvaluation(Evaluation):
    """
    Computes `accuracy@1`, `accuracy@5` and `eval_loss`, the mean cross-entropy. There is no `accuracy@5` of five or
    fewer classes, where it would always be 1.

    Args:
        size: (height, width) of the images in pixels.
        options: more keyword arguments for the model's forward.
    """

    def __init__(self, size: tuple[int, int], **options: Any):
        self.size, self.options = size, options
        self.ranked: list[list[int]] = []
        self.labels: list[int] = []
        self.loss_sum = 0.0

    def add(self, forward: Callable[..., Any], batch: dict[str, Any]) -> None:
        logits = forward(pixel_values=batch["pixel_values"], **self.options).logits.float().cpu()
        losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        self.loss_sum += losses.sum().item()
        self.ranked += logits.topk(5 if logits.shape[1] > 5 else 1).indices.tolist()
        self.labels += batch["labels"].tolist()
        if self.gallery is not None:
            for index, (name, loss) in enumerate(zip(batch["sample_ids"], losses.tolist())):
                wrong = logits[index].argmax() != batch["labels"][index]
                self.gallery.offer(name, (loss if wrong else 0.0,), partial(self._shown, batch, logits, index, loss))

    def _shown(self, batch: dict[str, Any], logits: torch.Tensor, index: int, loss: float) -> Shown:
        assert self.gallery is not None
        scores, labels = logits[index].softmax(dim=0).topk(min(3, logits.shape[1]))
        return Shown(
            batch["sample_ids"][index],
            to_jpeg(self.gallery.picture(batch["pixel_values"][index])),
            {"classes": [(batch["labels"][index].item(), None)]},
            {"classes": list(zip(labels.tolist(), scores.tolist()))},
            {"loss": loss},
        )

    def write_figures(self, states: list[Any], class_names: Sequence[str], folder: Path) -> None:
        """Writes the confusion matrix."""
        number, matrix = len(class_names), np.zeros(len(class_names) ** 2, dtype=np.int64)
        for ranked, labels, _ in states:
            predicted = np.array([row[0] for row in ranked], dtype=np.int64)
            matrix += np.bincount(np.array(labels, dtype=np.int64) * number + predicted, minlength=number**2)
        write_confusion(matrix.reshape(number, number), class_names, "samples", folder)

    def state(self) -> tuple[list[list[int]], list[int], float]:
        collected = self.ranked, self.labels, self.loss_sum
        self.ranked, self.labels, self.loss_sum = [], [], 0.0
        return collected

    def count(self, states: list[Any]) -> int:
        return sum(len(labels) for _, labels, _ in states)

    def compute(self, states: list[Any]) -> dict[str, Any]:
        ranked = [row for part, _, _ in states for row in part]
        labels = [label for _, part, _ in states for label in part]
        ranks = (1, 5) if len(ranked[0]) == 5 else (1,)
        metrics = AccuracyAtK(keep_in_memory=True).compute(predictions=ranked, references=labels, k=ranks)
        return {**metrics, "eval_loss": sum(loss for _, _, loss in states) / len(labels)}

    def idle_inputs(self) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.zeros(1, 3, *self.size)}


class OfficialProtocol:
    """
    Prepares a PIL RGB image as the official evaluation does: resizes the shorter side to int(image_size / crop_ratio),
    crops the centre, then rescales and normalises with the processor. Returns `pixel_values` (3, image_size,
    image_size). Resizes with the processor's filter, or bicubic if it has none.

    Source: the evaluation transform of the official `classification/datasets.py`, on Pillow images as there. It does
    not resize with the processor, because processors differ in the meaning of `size` (ConvNeXT's crops or distorts).
    """

    def __init__(self, processor: Any, image_size: int, crop_ratio: float = 0.875):
        self.processor = processor
        resample = getattr(processor, "resample", None)
        resample = Image.Resampling.BICUBIC if resample is None else Image.Resampling(resample)
        filter_ = transforms.InterpolationMode(resample.name.lower())
        self.steps = transforms.Compose(
            [transforms.Resize(int(image_size / crop_ratio), filter_), transforms.CenterCrop(image_size)]
        )

    def __call__(self, image: Image.Image) -> torch.Tensor:
        inputs = self.processor(self.steps(image), do_resize=False, do_center_crop=False, return_tensors="pt")
        return inputs["pixel_values"][0]


def evaluation_transform(processor: Any, image_size: int | None, crop_ratio: float) -> Callable[[Image.Image], Any]:
    """
    Selects how images are prepared: by the processor alone if `image_size` is None or if it does the same as
    [`OfficialProtocol`], otherwise by [`OfficialProtocol`].
    """
    own = getattr(processor, "do_center_crop", None) and (
        processor.size.get("shortest_edge"),
        processor.crop_size.get("height"),
        processor.crop_size.get("width"),
    )
    if image_size is None or own == (int(image_size / crop_ratio), image_size, image_size):
        return ProcessorTransform(processor)
    return OfficialProtocol(processor, image_size, crop_ratio)


def output_size(processor: Any) -> tuple[int, int]:
    """
    Finds the (height, width) in pixels of the images that a processor returns, by trying two images.

    Raises:
        ValueError: the size depends on the image, so images cannot be stacked in a batch.
    """
    sizes = [
        tuple(processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"].shape[-2:])
        for size in ((640, 480), (480, 640))
    ]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{type(processor).__name__} resizes an image of 480x640 to {sizes[0]} and one of 640x480 to {sizes[1]} "
            "(height, width), so they cannot be stacked in a batch. Give --image_sizes (in training, --image_size)."
        )
    return sizes[0]


def forward_options(model: PreTrainedModel, size: tuple[int, int]) -> dict[str, Any]:
    """
    Keyword arguments for the model's forward at `size`, (height, width): `interpolate_pos_encoding=True` if it takes
    that and its own size is another one.
    """
    own = getattr(model.config, "image_size", None)
    own = (own, own) if isinstance(own, int) else own
    takes_it = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if takes_it and own is not None and tuple(own) != size else {}
