"""The task object detection, which includes instance segmentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForObjectDetection, PreTrainedModel

from ...data.samples import ProcessorTransform
from ...data.streams import Stream
from ...engine.evaluation import prepare_output
from ...engine.task import EvaluationPart, Task
from ...families import load
from ...metrics.coco_ap import coco_results
from ...metrics.reports import format_metrics, write_json
from ...weights.opening import open_config, open_processor
from ..labels import class_names_of, read_class_names
from ..models import build_head, normalization_of, open_model
from .evaluation import MODELS_WITH_MASKS, DetectionEvaluation, format_table
from .samples import DetectionEvaluationSample, DetectionSample, aspect_group, collate_detection
from .settings import (
    ARCHITECTURES,
    DetectionData,
    DetectionEvaluationSettings,
    DetectionFinetuning,
    DetectionRecipe,
    DetectionSettings,
)
from .streams import open_detection_stream
from .transforms import DetectionTransform


def detection_loss(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """
    The loss that the model computes itself: for RetinaNet `RetinaNetForObjectDetection.losses` in
    `models/modeling_retinanet.py`; for Mask R-CNN `region_losses` in `models/modeling_mask_rcnn.py` and the losses of
    `models/modeling_rpn.py`; for DETR that of Transformers.

    Args:
        model: takes the entries of `batch`, and returns `loss`.
        batch: on the model's device; see [`pvt_hf.tasks.detection.samples.DetectionSample`] and `collate_detection`.
    """
    return model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], labels=batch["labels"]).loss


def check_takes_pixel_mask(model: PreTrainedModel) -> None:
    """Raises a ValueError if the model takes no `pixel_mask`, which tells the image from the padding of a batch."""
    if "pixel_mask" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{type(model).__name__} has no pixel_mask argument, so it cannot tell the image from the padding of a "
            "batch: give a detector that has one, such as RetinaNet or DETR."
        )


class DetectionTask(Task):
    name = "object-detection"
    auto_class = AutoModelForObjectDetection
    best_metric = "ap"
    training_settings = DetectionSettings
    evaluation_settings = DetectionEvaluationSettings
    finetuning_settings = DetectionFinetuning

    def open_stream(self, settings: DetectionData, split: str, processor: Any, training: bool = False) -> Stream:
        recipe = settings if training and isinstance(settings, DetectionRecipe) else None
        return open_detection_stream(
            settings.dataset,
            split,
            image_column=settings.image_column or None,
            objects_column=settings.objects_column or None,
            image_size=settings.scene_size,
            digit_sizes=settings.digit_sizes,
            keep_empty=recipe.keep_empty if recipe else True,
            keep_unused_classes=recipe.keep_unused_classes if recipe else True,
        )

    def build_processor(self, settings: DetectionRecipe) -> Any:
        """With `settings.model`, the checkpoint's processor, unchanged."""
        if settings.model:
            return open_processor(settings.model)
        size = {"shortest_edge": settings.eval_shortest_edge, "longest_edge": settings.longest_edge}
        processor_class = load(ARCHITECTURES[settings.architecture].processor)
        return processor_class(size=size, **normalization_of(settings.backbone))

    def build_model(self, settings: DetectionRecipe, class_names: tuple[str, ...]) -> PreTrainedModel:
        if settings.model:
            model = open_model(settings.model, self.auto_class, class_names, settings.drop_path_rate)
            check_takes_pixel_mask(model)
            return model
        family = ARCHITECTURES[settings.architecture]
        return build_head(settings, self.auto_class, family, class_names)

    def training_sample(self, settings: Any, stream: Stream, processor: Any) -> DetectionSample:
        edges = settings.shortest_edges
        transform = DetectionTransform(
            tuple(processor.image_mean),
            tuple(processor.image_std),
            shortest_edges=range(edges[0], edges[1] + 1) if settings.shortest_edge_range else edges,
            longest_edge=settings.longest_edge,
            horizontal_flip=settings.horizontal_flip,
        )
        return DetectionSample(stream, transform, read_class_names(settings.class_names), self._has_masks(settings))

    def evaluation_sample(
        self, settings: Any, stream: Stream, processor: Any, class_names: tuple[str, ...]
    ) -> DetectionEvaluationSample:
        return DetectionEvaluationSample(stream, ProcessorTransform(processor), class_names, self._has_masks(settings))

    def remarks(self, sample: Any, example: dict[str, Any]) -> dict[str, int]:
        clipped = sample.count_clipped(example)
        return {"boxes that extend beyond their image: clipped": clipped} if clipped else {}

    def _has_masks(self, settings: Any) -> bool:
        """Whether to train with masks: the model predicts them, and `settings.masks` is on."""
        model_type = ARCHITECTURES[settings.architecture].model_type
        if settings.model:
            model_type = open_config(settings.model).model_type
        return settings.masks and model_type in MODELS_WITH_MASKS

    def loss(self, settings: Any, num_labels: int) -> Callable[[nn.Module, dict[str, Any]], torch.Tensor]:
        return detection_loss

    def evaluation(
        self, settings: DetectionData, model: PreTrainedModel, processor: Any, num_labels: int
    ) -> DetectionEvaluation:
        model_type = model.config.model_type
        return DetectionEvaluation(
            processor, model_type, num_labels, settings.masks and model_type in MODELS_WITH_MASKS
        )

    def checkpoint_evaluations(
        self, settings: DetectionEvaluationSettings, stream: Stream, model: PreTrainedModel, processor: Any
    ) -> Iterator[EvaluationPart]:
        prepare_output(settings.results, "results")
        check_takes_pixel_mask(model)
        class_names = class_names_of(model)
        evaluation = self.evaluation(settings, model, processor, len(class_names))
        if settings.class_names:
            stream = replace(stream, class_names=read_class_names(settings.class_names))
        sample = DetectionEvaluationSample(stream, ProcessorTransform(processor), class_names, evaluation.masks)

        def write_results(states: list[Any]) -> None:
            write_json(settings.results, coco_results(evaluation.merge(states).images, sample.category_ids))

        def text(metrics: dict[str, Any]) -> str:
            shown = {name: metrics[name] for name in ("eval_samples", "eval_skipped", "images_per_second")}
            return f"{format_table(metrics, class_names, evaluation.masks)}\n{', '.join(format_metrics(shown))}"

        yield EvaluationPart(
            title="boxes and masks" if evaluation.masks else "boxes",
            sample=sample,
            evaluation=evaluation,
            report=lambda metrics: {**metrics, "category_names": list(class_names)},
            table=text,
            save=write_results if settings.results else None,
        )

    def collate_training(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return collate_detection(samples)

    def collate_evaluation(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return collate_detection(list(samples))

    def group(self, settings: Any, stream: Stream) -> Callable[[dict[str, Any]], Hashable] | None:
        """Groups wide images apart from the others, so that batches need little padding."""
        return partial(aspect_group, stream) if settings.group_by_aspect else None
