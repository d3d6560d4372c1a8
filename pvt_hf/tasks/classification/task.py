"""The task image classification."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from ...data.samples import ProcessorTransform
from ...data.streams import Stream
from ...engine.settings import parse_overrides
from ...engine.task import EvaluationPart, Task
from ...families import FAMILIES
from ...metrics.reports import format_metrics
from ...models.configuration_pvt import PvtConfig
from ...models.image_processing_pvt import PvtImageProcessor
from ...models.modeling_pvt import PvtForImageClassification
from ...weights.opening import check_task, open_processor
from ...weights.variants import get_variant
from ..labels import (
    RenumberedSample,
    class_names_of,
    label_fields,
    match_labels,
    numbers_without_names,
    read_class_names,
)
from ..models import open_model
from .evaluation import ClassificationEvaluation, evaluation_transform, forward_options, output_size
from .samples import ClassificationSample
from .settings import (
    ClassificationData,
    ClassificationEvaluationSettings,
    ClassificationFinetuning,
    ClassificationRecipe,
    ClassificationSettings,
)
from .streams import open_classification_stream
from .transforms import ClassificationTransform


class MixedLoss:
    """
    The loss of the official training: Mixup or CutMix (timm), and cross-entropy with the mixed labels. Without mixing,
    cross-entropy with label smoothing.
    """

    def __init__(self, recipe: ClassificationRecipe, num_labels: int):
        self.mixup = None
        if recipe.mixup or recipe.cutmix:
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=num_labels,
            )
        self.soft_loss = SoftTargetCrossEntropy()
        self.hard_loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """
        Args:
            model: takes images (batch, 3, height, width) and returns `logits`.
            batch: `pixel_values` (batch, 3, height, width) and `labels` (batch,) int64, on the model's device.

        Raises:
            ValueError: the batch is to be mixed and has an odd number of images.
        """
        images, labels = batch["pixel_values"], batch["labels"]
        if self.mixup is None:
            return self.hard_loss(model(images).logits, labels)
        if len(images) % 2:
            raise ValueError(f"--mixup and --cutmix mix pairs of images: use an even batch size, not {len(images)}.")
        images, targets = self.mixup(images, labels)
        return self.soft_loss(model(images).logits, targets)


class ClassificationTask(Task):
    name = "image-classification"
    auto_class = AutoModelForImageClassification
    best_metric = "accuracy@1"
    training_settings = ClassificationSettings
    evaluation_settings = ClassificationEvaluationSettings
    finetuning_settings = ClassificationFinetuning

    def open_stream(self, settings: ClassificationData, split: str, processor: Any, training: bool = False) -> Stream:
        return open_classification_stream(
            settings.dataset,
            split,
            image_column=settings.image_column or None,
            label_column=settings.label_column or None,
            class_names=read_class_names(settings.class_names),
            # The built-in digits are drawn at this size; other sources ignore it.
            image_size=max(output_size(processor)) if settings.dataset == "digits" else 64,
        )

    def build_processor(self, settings: ClassificationRecipe) -> Any:
        """
        A processor that resizes the shorter side to image_size / crop_ratio and crops the centre, with the mean and std
        of the checkpoint. Without `image_size`, the checkpoint's processor, unchanged.
        """
        if settings.model:
            check_task(self.auto_class, settings.model)
        if not settings.image_size:
            return open_processor(settings.model)
        sizes: dict[str, Any] = {
            "size": {"shortest_edge": int(settings.image_size / settings.crop_ratio)},
            "crop_size": {"height": settings.image_size, "width": settings.image_size},
            "do_center_crop": True,
        }
        if settings.model:
            return open_processor(settings.model, **sizes)
        return PvtImageProcessor(**sizes)

    def build_model(self, settings: Any, class_names: tuple[str, ...]) -> PreTrainedModel:
        """Raises a ValueError for a single class."""
        if len(class_names) < 2:
            raise ValueError(
                f"There is only the class {class_names[0]!r}: a classifier needs images of two or more classes."
            )
        if settings.model:
            return open_model(settings.model, self.auto_class, class_names, settings.drop_path_rate)
        overrides = parse_overrides("config_overrides", settings.config_overrides, FAMILIES["pvt"].config)
        fields = {**get_variant(settings.variant).config, "image_size": settings.image_size, **overrides}
        fields |= label_fields(class_names)
        return PvtForImageClassification(PvtConfig(drop_path_rate=settings.drop_path_rate, **fields))

    def training_sample(self, settings: ClassificationRecipe, stream: Stream, processor: Any) -> ClassificationSample:
        transform = ClassificationTransform(
            tuple(processor.image_mean),
            tuple(processor.image_std),
            image_size=output_size(processor),
            min_scale=settings.min_scale,
            horizontal_flip=settings.horizontal_flip,
            auto_augment=settings.auto_augment,
            random_erasing=settings.random_erasing,
        )
        return ClassificationSample(stream, transform)

    def evaluation_sample(
        self, settings: Any, stream: Stream, processor: Any, class_names: tuple[str, ...]
    ) -> ClassificationSample:
        """Raises a ValueError if the stream has other classes, or has them in another order."""
        if stream.class_names is not None and stream.class_names != class_names:
            only_train = sorted(set(class_names) - set(stream.class_names))
            only_eval = sorted(set(stream.class_names) - set(class_names))
            raise ValueError(
                f"{stream.name} has other classes than the training split, or another order: only in {stream.name} "
                f"{only_eval}, only in the training split {only_train}."
            )
        return ClassificationSample(stream, ProcessorTransform(processor), class_names)

    def loss(self, settings: ClassificationRecipe, num_labels: int) -> MixedLoss:
        return MixedLoss(settings, num_labels)

    def evaluation(
        self, settings: Any, model: PreTrainedModel, processor: Any, num_labels: int
    ) -> ClassificationEvaluation:
        return ClassificationEvaluation(output_size(processor))

    def checkpoint_evaluations(
        self, settings: ClassificationEvaluationSettings, stream: Stream, model: PreTrainedModel, processor: Any
    ) -> Iterator[EvaluationPart]:
        model_names = class_names_of(model)
        labels, warning = match_labels(stream, model_names)
        sizes: list[Any] = settings.image_sizes or [None]
        for image_size in sizes:
            transform = evaluation_transform(processor, image_size, settings.crop_ratio)
            height, width = (image_size, image_size) if image_size else output_size(processor)
            sample = ClassificationSample(stream, transform, stream.class_names or model_names)
            yield EvaluationPart(
                title=f"{height}x{width}",
                sample=RenumberedSample(sample, torch.tensor(labels), model_names),
                evaluation=ClassificationEvaluation((height, width), **forward_options(model, (height, width))),
                report=_at_size(height, width),
                table=_as_line(height, width),
                facts={"warning": warning, "note": numbers_without_names(stream, model_names)},
                folder=f"{height}x{width}" if len(sizes) > 1 else "",
            )

    def summarize(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A list with one entry per image size."""
        return results


def _at_size(height: int, width: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda metrics: {"height": height, "width": width, **metrics}


def _as_line(height: int, width: int) -> Callable[[dict[str, Any]], str]:
    return lambda metrics: f"{height}x{width}: {', '.join(format_metrics(metrics, digits=6))}"
