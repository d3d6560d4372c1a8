"""The task semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from ...data.streams import Stream
from ...engine.task import EvaluationPart, Task
from ...metrics.reports import format_metrics
from ...models.image_processing_semantic import IGNORE_LABEL, PvtSemanticImageProcessor
from ...weights.opening import open_processor
from ..labels import RenumberedSample, class_names_of, match_labels, numbers_without_names, read_class_names
from ..models import build_head, normalization_of, open_model
from .evaluation import MEANS, Inference, SegmentationEvaluation, class_table, format_table
from .inference import MultiScale, SingleScale, SlidingWindow
from .samples import SegmentationEvaluationSample, SegmentationSample, collate_lists
from .settings import (
    ARCHITECTURES,
    SegmentationData,
    SegmentationEvaluationSettings,
    SegmentationFinetuning,
    SegmentationRecipe,
    SegmentationSettings,
)
from .streams import open_segmentation_stream
from .transforms import SegmentationTransform


def segmentation_loss(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """
    The loss that the model computes itself. For Semantic FPN and Trans2Seg it is `semantic_segmentation_loss` in
    `models/modeling_semantic_fpn.py`, the mean cross-entropy over all pixels with a class.

    Args:
        model: takes `pixel_values` and `labels`, and returns `loss`.
        batch: on the model's device; has `pixel_values` (batch, 3, H, W) and `labels` (batch, H, W) int64, in which 255
            is no class.
    """
    return model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss


def make_inference(settings: SegmentationEvaluationSettings, processor: Any) -> Inference:
    """Makes the inference that `--mode` selects."""
    if settings.mode == "single":
        return SingleScale(processor)
    if settings.mode == "multi_scale":
        return MultiScale(processor, settings.ratios, settings.flip)
    return SlidingWindow(processor, settings.window, settings.stride)


class SegmentationTask(Task):
    name = "semantic-segmentation"
    auto_class = AutoModelForSemanticSegmentation
    best_metric = "mean_iou"
    training_settings = SegmentationSettings
    evaluation_settings = SegmentationEvaluationSettings
    finetuning_settings = SegmentationFinetuning
    eval_batch_size = 1  # images differ in size, so they are predicted one by one

    def open_stream(self, settings: SegmentationData, split: str, processor: Any, training: bool = False) -> Stream:
        return open_segmentation_stream(
            settings.dataset,
            split,
            image_column=settings.image_column or None,
            mask_column=settings.mask_column or None,
            image_size=settings.scene_size,
            digit_sizes=settings.digit_sizes,
        )

    def build_processor(self, settings: SegmentationRecipe) -> Any:
        if settings.model:
            return open_processor(settings.model, do_reduce_labels=settings.reduce_labels)
        size = {"shortest_edge": settings.shortest_edge, "longest_edge": settings.longest_edge}
        return PvtSemanticImageProcessor(
            size=size, do_reduce_labels=settings.reduce_labels, **normalization_of(settings.backbone)
        )

    def build_model(self, settings: SegmentationRecipe, class_names: tuple[str, ...]) -> PreTrainedModel:
        if settings.model:
            return open_model(settings.model, self.auto_class, class_names, settings.drop_path_rate)
        family = ARCHITECTURES[settings.architecture]
        return build_head(settings, self.auto_class, family, class_names)

    def training_sample(self, settings: Any, stream: Stream, processor: Any) -> SegmentationSample:
        transform = SegmentationTransform(
            tuple(processor.image_mean),
            tuple(processor.image_std),
            crop_size=settings.crop_size,
            shortest_edge=settings.shortest_edge,
            longest_edge=settings.longest_edge,
            min_scale=settings.min_scale,
            max_scale=settings.max_scale,
            max_class_share=settings.max_class_share,
            horizontal_flip=settings.horizontal_flip,
            photometric=settings.photometric,
        )
        class_names = read_class_names(settings.class_names)
        values = settings.mask_values, settings.ignore_other_values
        return SegmentationSample(stream, transform, class_names, settings.reduce_labels, *values)

    def evaluation_sample(
        self, settings: Any, stream: Stream, processor: Any, class_names: tuple[str, ...]
    ) -> SegmentationEvaluationSample:
        return SegmentationEvaluationSample(
            stream,
            SingleScale(processor),
            class_names,
            settings.reduce_labels,
            settings.mask_values,
            settings.ignore_other_values,
        )

    def loss(self, settings: Any, num_labels: int) -> Callable[[nn.Module, dict[str, Any]], torch.Tensor]:
        return segmentation_loss

    def evaluation(
        self, settings: Any, model: PreTrainedModel, processor: Any, num_labels: int
    ) -> SegmentationEvaluation:
        """Evaluates as the evaluation command does with `--mode single`."""
        return SegmentationEvaluation(SingleScale(processor), num_labels)

    def checkpoint_evaluations(
        self, settings: SegmentationEvaluationSettings, stream: Stream, model: PreTrainedModel, processor: Any
    ) -> Iterator[EvaluationPart]:
        reduce_labels = settings.reduce_labels
        if reduce_labels is None:
            reduce_labels = bool(getattr(processor, "do_reduce_labels", False))
        data_names = read_class_names(settings.class_names) or (
            stream.class_names and stream.class_names[int(reduce_labels) :]
        )
        model_names = class_names_of(model)
        named = replace(stream, class_names=data_names)
        labels, warning = match_labels(named, model_names)
        note = numbers_without_names(named, model_names)
        table = torch.full((IGNORE_LABEL + 1,), IGNORE_LABEL)
        table[: len(labels)] = torch.tensor(labels)
        inference = make_inference(settings, processor)
        sample = SegmentationEvaluationSample(
            stream,
            inference,
            data_names or model_names,
            reduce_labels,
            settings.mask_values,
            settings.ignore_other_values,
        )

        def report(metrics: dict[str, Any]) -> dict[str, Any]:
            figures = {name: value for name, value in metrics.items() if not name.startswith("per_category_")}
            return {**figures, "classes": class_table(metrics, model_names)}

        def text(metrics: dict[str, Any]) -> str:
            shown = {name: metrics[name] for name in (*MEANS, "eval_samples", "eval_skipped", "images_per_second")}
            figures = ", ".join(format_metrics(shown, digits=6))
            return f"{format_table(class_table(metrics, model_names))}\n{settings.mode}: {figures}"

        yield EvaluationPart(
            title=settings.mode,
            sample=RenumberedSample(sample, table, model_names),
            evaluation=SegmentationEvaluation(inference, len(model_names)),
            report=report,
            table=text,
            facts={"reduce_labels": reduce_labels, "warning": warning, "note": note},
        )

    def collate_evaluation(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Makes lists, because the images differ in size."""
        return collate_lists(list(samples))
