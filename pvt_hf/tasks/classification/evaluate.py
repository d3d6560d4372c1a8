"""Evaluation of a saved image classifier, whichever its class: arguments, protocol, labels, and the report."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2 as transforms
from transformers import AutoModelForImageClassification, PreTrainedModel

from ...data.batches import BatchStream
from ...data.samples import ProcessorTransform
from ...data.streams import Stream
from ...engine.evaluation import (
    CheckpointSettings,
    Monitor,
    RenumberedSample,
    class_names_of,
    open_checkpoint,
    write_report,
)
from ...weights.opening import shorten
from .evaluate_stream import Forward, evaluate_classifier
from .samples import ClassificationSample
from .streams import open_classification_stream


@dataclass
class EvaluationSettings(CheckpointSettings):
    """Arguments of `scripts/evaluate_image_classification.py`."""

    label_column: str = field(default="", metadata={"help": "If it cannot be found by its name."})
    class_names: str = field(default="", metadata={"help": "Comma-separated names, for labels without names."})
    image_sizes: list[int] = field(
        default_factory=list, metadata={"help": "Sides in pixels, one evaluation each; none: the processor as it is."}
    )
    crop_ratio: float = field(default=0.875, metadata={"help": "With --image_sizes: crop over resized shorter side."})
    batch_size: int = field(default=64, metadata={"help": "Images per forward pass and process."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"--crop_ratio is above 0 and at most 1, got {self.crop_ratio}.")
        if any(size < 1 for size in self.image_sizes):
            raise ValueError(f"--image_sizes are sides in pixels, got {self.image_sizes}.")


class OfficialProtocol:
    """
    One PIL RGB image to `pixel_values` (3, image_size, image_size): shorter side to int(image_size / crop_ratio),
    centre crop, and the rescaling and normalisation of `processor`. The filter is the processor's (bicubic without).

    Source: the evaluation transform of the official `classification/datasets.py`, on Pillow images as there. Processors
    differ in what `size` means to them (ConvNeXT's crops or warps by itself), so none is asked to resize.
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
    """The processor as it is for None, or if that is what it does anyway; otherwise [`OfficialProtocol`]."""
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
    The (height, width) that a processor brings every image to, found by trying.

    Raises:
        ValueError: it depends on the image, so that no batch can be made.
    """
    sizes = [
        tuple(processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"].shape[-2:])
        for size in ((640, 480), (480, 640))
    ]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{type(processor).__name__} makes {sizes[0]} of an image of 480x640 and {sizes[1]} of one of 640x480 "
            "(height, width): images of different sizes are no batch. Give --image_sizes."
        )
    return sizes[0]


def model_at_size(model: PreTrainedModel, size: tuple[int, int]) -> Forward:
    """`model`, told to interpolate its position table where it has to be told and (height, width) is not its own."""
    own = getattr(model.config, "image_size", None)
    own = (own, own) if isinstance(own, int) else own
    if (
        own is None
        or tuple(own) == size
        or "interpolate_pos_encoding" not in inspect.signature(model.forward).parameters
    ):
        return model
    return functools.partial(model, interpolate_pos_encoding=True)


def match_labels(stream: Stream, model_names: tuple[str, ...]) -> tuple[list[int], str | None]:
    """
    The model's label for each label of `stream`: by name where both have the same names, otherwise by number.

    Returns:
        The model's labels in the order of the stream's, and a warning (None if the names agree).

    Raises:
        ValueError: other numbers of classes, or a name that both have with another number in an otherwise different
            list, or names that are the same in another order but not unique; the message lists the differences.
    """
    names, numbers = stream.class_names, list(range(len(model_names)))
    if names is None:
        return numbers, (
            f"the labels of {stream.name} have no names: taken as the model's labels 0 to {len(model_names) - 1} "
            f"({model_names[0]} to {model_names[-1]}); text is looked up among the model's names."
        )
    if names == model_names:  # also where a name comes twice, as "crane" and "maillot" in ImageNet
        return numbers, None
    if set(names) == set(model_names) and len(set(names)) == len(names) == len(model_names):
        return [model_names.index(name) for name in names], None
    only_data, only_model = sorted(set(names) - set(model_names)), sorted(set(model_names) - set(names))
    moved = [name for i, name in enumerate(names) if name in model_names and name not in model_names[i : i + 1]]
    differences = (
        f"{stream.name} has {len(names)} classes and the model {len(model_names)}; only in the data: "
        f"{shorten(only_data)}; only in the model: {shorten(only_model)}; in both with another number: "
        f"{shorten(moved)}."
    )
    if len(names) != len(model_names) or moved:
        raise ValueError(
            f"{differences} If the labels do mean the same, name them as the model does: --class_names, in the order "
            "of the data's labels."
        )
    return numbers, f"{differences} Label i of the data is taken as label i of the model."


def run(settings: EvaluationSettings) -> dict[str, Any]:
    """
    Evaluates a checkpoint at each size; prints a line for each, writes `settings.output`, and returns what is in it.

    `results` has per size the metrics of [`evaluate_classifier`] and `images_per_second`: loading and forward passes
    of all processes together, over the whole evaluation after the first batch (None if there is no second).

    Raises:
        OSError: no such model or data set.
        ValueError: the checkpoint is no classifier, its classes are not the data's, or its processor makes no batches.
        StreamError: the source cannot be read, or more than `max_bad_share` of the samples are unusable.
    """
    accelerator, model, processor = open_checkpoint(settings, AutoModelForImageClassification)
    stream = open_classification_stream(
        settings.dataset,
        settings.split,
        image_column=settings.image_column or None,
        label_column=settings.label_column or None,
        class_names=[name.strip() for name in settings.class_names.split(",")] if settings.class_names else None,
        # Built-in images: the same ones whatever the size of the evaluation
        image_size=max(output_size(processor)) if settings.dataset == "digits" else 64,
    )
    model_names = class_names_of(model)
    labels, warning = match_labels(stream, model_names)
    if warning:
        accelerator.print(f"warning: {warning}")

    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    image_sizes: list[Any] = settings.image_sizes or [None]
    for image_size in image_sizes:
        transform = evaluation_transform(processor, image_size, settings.crop_ratio)
        sample = ClassificationSample(stream, transform, stream.class_names or model_names)
        size = (image_size, image_size) if image_size else output_size(processor)
        batches = BatchStream(
            stream,
            RenumberedSample(sample, torch.tensor(labels)),
            settings.batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            max_bad_share=settings.max_bad_share,
        )
        with Monitor(accelerator, stream, "{}x{}".format(*size), skipped) as monitor:
            metrics = evaluate_classifier(
                accelerator, model_at_size(model, size), batches, settings.num_workers, monitor
            )
        speed = monitor.images_per_second()
        results.append({"height": size[0], "width": size[1], **metrics, "images_per_second": speed})
        shown = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        accelerator.print(f"{size[0]}x{size[1]}: {shown}, images_per_second {speed and format(speed, '.1f')}")
    return write_report(accelerator, settings, model, skipped, results=results, warning=warning)
