"""Evaluation of a saved detector, whichever its class: arguments, data, table, COCO results file and report."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForObjectDetection

from ...data.batches import BatchStream
from ...engine.evaluation import CheckpointSettings, Monitor, class_names_of, open_checkpoint, write_report
from ...metrics.coco_ap import FIGURES, coco_results
from ..models import read_class_names
from .evaluate_stream import MODELS_WITH_MASKS, check_takes_pixel_mask, evaluate_detector, without_nan
from .samples import DetectionEvaluationSample, collate_detection
from .streams import open_detection_stream
from .train import ProcessImage


@dataclass
class DetectionEvaluationSettings(CheckpointSettings):
    """Arguments of `scripts/evaluate_object_detection.py`."""

    objects_column: str = field(default="", metadata={"help": "If it cannot be found by its type."})
    class_names: str = field(
        default="", metadata={"help": "Of the data: names separated by commas, or a text file; or the source's."}
    )
    masks: bool = field(default=True, metadata={"help": "Evaluate masks, where the model has them."})
    scene_size: int = field(default=128, metadata={"help": "Side in pixels of the built-in scenes."})
    digit_sizes: list[int] = field(
        default_factory=list,
        metadata={"help": "Smallest and largest digit in them, in pixels; by default a sixth to a half of the side."},
    )
    batch_size: int = field(
        default=1,
        metadata={
            "help": "Images per batch and process; smaller ones are padded, which changes their answers a little."
        },
    )
    results: str = field(default="", metadata={"help": "JSON file for the detections, in COCO's results format."})


def format_table(metrics: dict[str, Any], class_names: tuple[str, ...], masks: bool) -> str:
    """COCO's twelve figures and the AP of every class, in percent; a minus sign for what is not defined."""
    kinds = {"boxes": "", "masks": "mask_"} if masks else {"boxes": ""}
    width = max(len("ar_medium"), *map(len, class_names))
    lines = [f"{'':<{width}} " + " ".join(f"{kind:>7}" for kind in kinds)]
    rows = [(name, [metrics[prefix + name] for prefix in kinds.values()]) for name in FIGURES]
    rows += [
        (name, [metrics[f"{prefix}per_category_ap"][label] for prefix in kinds.values()])
        for label, name in enumerate(class_names)
    ]
    for name, values in rows:
        cells = ("-" if math.isnan(value) else f"{value:.2%}" for value in values)
        lines.append(f"{name:<{width}} " + " ".join(f"{cell:>7}" for cell in cells))
    return "\n".join(lines)


def write_results(path: Path, images: dict[Any, Any], category_ids: dict[int, int]) -> None:
    """Writes the detections of [`pvt_hf.metrics.coco_ap.CocoAP`]'s images, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(coco_results(images, category_ids)))
    unfinished.replace(path)


def run(settings: DetectionEvaluationSettings) -> dict[str, Any]:
    """
    Evaluates a checkpoint; prints COCO's figures and the AP of every class, writes `settings.output` and
    `settings.results`, and returns what is in the first.

    `results` has the figures of [`pvt_hf.metrics.coco_ap.CocoAP`] (None where there is nothing to find),
    `eval_samples`, `eval_skipped`, `images_per_second` (loading, inference and post-processing of all processes
    together, after the first batch; None if there is no second).

    Raises:
        OSError: no such model or data set.
        ValueError: the checkpoint is no detector or one without `pixel_mask`, or none of its classes is the data's.
        StreamError: the source cannot be read, or more than `max_bad_share` of the samples are unusable.
    """
    results_path = Path(settings.results) if settings.results else None
    if results_path is not None:
        if results_path.is_dir():
            raise IsADirectoryError(f"--results {results_path} is a folder: name a JSON file.")
        results_path.parent.mkdir(parents=True, exist_ok=True)
    accelerator, model, processor = open_checkpoint(settings, AutoModelForObjectDetection)
    check_takes_pixel_mask(model)
    masks = settings.masks and model.config.model_type in MODELS_WITH_MASKS
    stream = open_detection_stream(
        settings.dataset,
        settings.split,
        image_column=settings.image_column or None,
        objects_column=settings.objects_column or None,
        image_size=settings.scene_size,
        digit_sizes=settings.digit_sizes,
    )
    class_names = class_names_of(model)
    if settings.class_names:
        stream = replace(stream, class_names=read_class_names(settings.class_names))
    sample = DetectionEvaluationSample(stream, ProcessImage(processor), class_names, masks)

    def keep_images(images: dict[Any, Any]) -> None:
        if results_path is not None and accelerator.is_main_process:
            write_results(results_path, images, sample.category_ids)

    skipped: dict[str, str] = {}
    with Monitor(accelerator, stream, "boxes and masks" if masks else "boxes", skipped) as monitor:
        metrics = evaluate_detector(
            accelerator,
            model,
            BatchStream(
                stream,
                sample,
                settings.batch_size,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                max_bad_share=settings.max_bad_share,
                collate=collate_detection,
            ),
            settings.num_workers,
            processor,
            class_names,
            masks,
            after_batch=monitor,
            keep_images=keep_images,
        )
    speed = monitor.images_per_second()
    accelerator.print(
        f"{format_table(metrics, class_names, masks)}\n{metrics['eval_samples']} images, {metrics['eval_skipped']} "
        f"skipped, {'-' if speed is None else f'{speed:.4g}'} images per second"
    )
    figures = {name: without_nan(value) for name, value in metrics.items()}
    return write_report(
        accelerator,
        settings,
        model,
        skipped,
        results={**figures, "images_per_second": speed, "category_names": list(class_names)},
    )
