"""Evaluation of a saved segmenter, whichever its class: arguments, way of inference, labels, table and report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoModelForSemanticSegmentation

from ...data.batches import BatchStream
from ...engine.evaluation import (
    CheckpointSettings,
    Monitor,
    RenumberedSample,
    class_names_of,
    open_checkpoint,
    write_report,
)
from ...models.image_processing_semantic import IGNORE_LABEL
from ..classification.evaluate import match_labels
from ..models import read_class_names
from .evaluate_stream import Inference, evaluate_segmenter
from .inference import RATIOS, MultiScale, SingleScale, SlidingWindow
from .samples import SegmentationEvaluationSample, collate_lists
from .streams import open_segmentation_stream


@dataclass
class SegmentationEvaluationSettings(CheckpointSettings):
    """Arguments of `scripts/evaluate_semantic_segmentation.py`."""

    mask_column: str = field(default="", metadata={"help": "If it cannot be found by its type and name."})
    class_names: str = field(
        default="", metadata={"help": "'ade20k', names separated by commas, or a text file with a name per line."}
    )
    reduce_labels: bool | None = field(
        default=None,
        metadata={"help": "Label 0 of the masks is no class, and 1 is the first; default: as the model's processor."},
    )
    scene_size: int = field(default=128, metadata={"help": "Side in pixels of the built-in scenes."})
    digit_sizes: list[int] = field(
        default_factory=list,
        metadata={"help": "Smallest and largest digit in them, in pixels; by default a sixth to a half of the side."},
    )
    mode: str = field(
        default="single",
        metadata={"help": "single, multi_scale or sliding.", "choices": ["single", "multi_scale", "sliding"]},
    )
    ratios: list[float] = field(
        default_factory=lambda: list(RATIOS), metadata={"help": "multi_scale: factors on the processor's size."}
    )
    flip: bool = field(default=True, metadata={"help": "multi_scale: each scale mirrored as well."})
    window: int = field(default=512, metadata={"help": "sliding: side in pixels."})
    stride: int = field(default=341, metadata={"help": "sliding: pixels from one window to the next."})
    batch_size: int = field(
        default=1, metadata={"help": "Images that a loader worker hands over at once; they are labelled one by one."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"--ratios must be positive, and at least one, got {self.ratios}.")
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"--stride is at least 1 and at most the --window of {self.window}, got {self.stride}.")


def make_inference(settings: SegmentationEvaluationSettings, processor: Any) -> Inference:
    """The way of inference that `--mode` names."""
    if settings.mode == "single":
        return SingleScale(processor)
    if settings.mode == "multi_scale":
        return MultiScale(processor, settings.ratios, settings.flip)
    return SlidingWindow(processor, settings.window, settings.stride)


def class_table(metrics: dict[str, Any], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class: `name`, `iou`, `accuracy` (fractions of 1, None where they are not defined), `pixels`."""
    columns = (metrics[f"per_category_{name}"] for name in ("iou", "accuracy", "pixels"))
    return [
        {"name": name, "iou": _known(iou), "accuracy": _known(accuracy), "pixels": pixels}
        for name, iou, accuracy, pixels in zip(class_names, *columns)
    ]


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows of [`class_table`] as text, with a minus sign for None."""
    width = max(len("class"), *(len(row["name"]) for row in rows))
    lines = [f"{'class':<{width}} {'IoU':>7} {'accuracy':>9} {'pixels':>14}"]
    for row in rows:
        iou, accuracy = ("-" if row[name] is None else f"{row[name]:.4f}" for name in ("iou", "accuracy"))
        lines.append(f"{row['name']:<{width}} {iou:>7} {accuracy:>9} {row['pixels']:>14,}")
    return "\n".join(lines)


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def run(settings: SegmentationEvaluationSettings) -> dict[str, Any]:
    """
    Evaluates a checkpoint; prints a table of the classes and a line of the means, writes `settings.output`, and
    returns what is in it.

    `results` has `mean_iou`, `mean_accuracy`, `overall_accuracy` (None where no pixel has a label), `eval_samples`,
    `eval_skipped`, `images_per_second` (loading and inference of all processes together, over the whole evaluation
    after the first batch; None if there is no second) and `classes`, the rows of [`class_table`].

    Raises:
        OSError: no such model or data set.
        ValueError: the checkpoint is no segmenter, or its classes are not the data's.
        StreamError: the source cannot be read, or more than `max_bad_share` of the samples are unusable.
    """
    accelerator, model, processor = open_checkpoint(settings, AutoModelForSemanticSegmentation)
    inference = make_inference(settings, processor)

    reduce_labels = settings.reduce_labels
    if reduce_labels is None:
        reduce_labels = bool(getattr(processor, "do_reduce_labels", False))
    stream = open_segmentation_stream(
        settings.dataset,
        settings.split,
        image_column=settings.image_column or None,
        mask_column=settings.mask_column or None,
        image_size=settings.scene_size,
        digit_sizes=settings.digit_sizes,
    )
    data_names = read_class_names(settings.class_names) or (
        stream.class_names and stream.class_names[int(reduce_labels) :]
    )
    model_names = class_names_of(model)
    labels, warning = match_labels(replace(stream, class_names=data_names), model_names)
    if warning:
        accelerator.print(f"warning: {warning}")
    sample = SegmentationEvaluationSample(stream, inference, data_names or model_names, reduce_labels)
    table = torch.full((IGNORE_LABEL + 1,), IGNORE_LABEL)
    table[: len(labels)] = torch.tensor(labels)

    skipped: dict[str, str] = {}
    with Monitor(accelerator, stream, settings.mode, skipped) as monitor:
        metrics = evaluate_segmenter(
            accelerator,
            model,
            BatchStream(
                stream,
                RenumberedSample(sample, table),
                settings.batch_size,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                max_bad_share=settings.max_bad_share,
                collate=collate_lists,
            ),
            settings.num_workers,
            inference,
            len(model_names),
            after_batch=monitor,
        )
    speed = monitor.images_per_second()
    rows = class_table(metrics, model_names)
    means = {name: _known(metrics[name]) for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    counts = {name: metrics[name] for name in ("eval_samples", "eval_skipped")}
    shown = ", ".join(f"{name} {_text(value)}" for name, value in {**means, **counts}.items())
    accelerator.print(f"{format_table(rows)}\n{settings.mode}: {shown}, images_per_second {_text(speed)}")
    return write_report(
        accelerator,
        settings,
        model,
        skipped,
        results={**means, **counts, "images_per_second": speed, "classes": rows},
        reduce_labels=reduce_labels,
        warning=warning,
    )


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
