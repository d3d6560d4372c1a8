"""Image classification on the training loop: streams, transforms, loss, evaluation, and the run's files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from ...data.samples import ProcessorTransform
from ...data.streams import Stream
from ...engine.checkpoints import ensure_output_dir
from ...engine.processes import make_accelerator
from ...engine.run import run_task
from ...engine.settings import TrainingSettings, parse_overrides
from ...models.configuration_pvt import PvtConfig
from ...models.image_processing_pvt import PvtImageProcessor
from ...models.modeling_pvt import PvtForImageClassification
from ...weights.variants import get_variant
from ..models import label_fields, open_trained_model
from .evaluate_stream import evaluate_classifier
from .samples import ClassificationSample
from .streams import open_classification_stream
from .transforms import training_transform


@dataclass
class ClassificationSettings(TrainingSettings):
    """Arguments of `scripts/train_image_classification.py`."""

    dataset: str = field(default="digits", metadata={"help": "'digits', a folder, or a Hub data set id."})
    label_column: str = field(default="", metadata={"help": "If it cannot be found by its name."})
    class_names: str = field(default="", metadata={"help": "Comma-separated names, for labels without names."})
    model: str = field(default="", metadata={"help": "Checkpoint to fine-tune: a folder or Hub id."})
    variant: str = field(default="pvt-tiny", metadata={"help": "Model to train from scratch if --model is not given."})
    config_overrides: str = field(default="{}", metadata={"help": "JSON of PvtConfig fields for --variant."})
    image_size: int = field(default=224, metadata={"help": "Side in pixels for training and evaluation."})
    crop_ratio: float = field(default=0.875, metadata={"help": "Evaluation: crop over resized shorter side."})
    drop_path_rate: float = field(default=0.1, metadata={"help": "Stochastic depth."})
    min_scale: float = field(default=0.08, metadata={"help": "Smallest area share of a random crop; 1 crops nothing."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability."})
    auto_augment: str = field(default="rand-m9-mstd0.5-inc1", metadata={"help": "timm policy; '' for none."})
    random_erasing: float = field(default=0.25, metadata={"help": "Probability."})
    mixup: float = field(default=0.8, metadata={"help": "Alpha; 0 for none."})
    cutmix: float = field(default=1.0, metadata={"help": "Alpha; 0 for none."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Share given to the other classes."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"Mixing pairs the samples of a batch: --batch_size must be even, got {self.batch_size}.")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"--crop_ratio is above 0 and at most 1, got {self.crop_ratio}.")
        parse_overrides("config_overrides", self.config_overrides, PvtConfig)


def build_model(settings: ClassificationSettings, class_names: tuple[str, ...]) -> PreTrainedModel:
    """
    The model to train: a checkpoint with a head of the right size, or a new one. ValueError for a single class.
    """
    if len(class_names) < 2:
        raise ValueError(f"There is only the class {class_names[0]!r}, and so nothing to tell apart: give two or more.")
    if settings.model:
        return open_trained_model(settings.model, AutoModelForImageClassification, class_names, settings.drop_path_rate)
    overrides = parse_overrides("config_overrides", settings.config_overrides, PvtConfig)
    fields = {**get_variant(settings.variant).config, "image_size": settings.image_size, **overrides}
    fields |= label_fields(class_names)
    return PvtForImageClassification(PvtConfig(drop_path_rate=settings.drop_path_rate, **fields))


def build_processor(settings: ClassificationSettings) -> Any:
    """The evaluation's processor: shorter side to size / crop ratio, centre crop; mean and std of the checkpoint."""
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": int(settings.image_size / settings.crop_ratio)},
        "crop_size": {"height": settings.image_size, "width": settings.image_size},
        "do_center_crop": True,
    }
    if settings.model:
        return AutoImageProcessor.from_pretrained(settings.model, **sizes)
    return PvtImageProcessor(**sizes)


def open_streams(settings: ClassificationSettings) -> tuple[Stream, Stream]:
    """Training and evaluation streams; the same one twice where a share is held out."""
    columns: dict[str, Any] = {
        "image_column": settings.image_column or None,
        "label_column": settings.label_column or None,
        "class_names": [name.strip() for name in settings.class_names.split(",")] if settings.class_names else None,
        "image_size": settings.image_size,
    }
    train_stream = open_classification_stream(settings.dataset, settings.train_split, **columns)
    if settings.eval_share:
        return train_stream, train_stream
    eval_stream = open_classification_stream(settings.dataset, settings.eval_split, **columns)
    if train_stream.class_names != eval_stream.class_names:
        only_train = sorted(set(train_stream.class_names or ()) - set(eval_stream.class_names or ()))
        only_eval = sorted(set(eval_stream.class_names or ()) - set(train_stream.class_names or ()))
        raise ValueError(
            f"{train_stream.name} and {eval_stream.name} have different classes: only in the first {only_train}, "
            f"only in the second {only_eval}."
        )
    return train_stream, eval_stream


class MixedLoss:
    """Mixup or CutMix of a batch (timm) and cross-entropy with soft targets; plain smoothed cross-entropy without."""

    def __init__(self, settings: ClassificationSettings, num_labels: int):
        self.mixup = None
        if settings.mixup or settings.cutmix:
            self.mixup = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                label_smoothing=settings.label_smoothing,
                num_classes=num_labels,
            )
        self.soft_loss = SoftTargetCrossEntropy()
        self.hard_loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        images, labels = batch["pixel_values"], batch["labels"]
        if self.mixup is None:
            return self.hard_loss(model(images).logits, labels)
        images, targets = self.mixup(images, labels)
        return self.soft_loss(model(images).logits, targets)


def run(settings: ClassificationSettings) -> dict[str, Any]:
    """
    The whole training: returns what is written to `run.json`. The final model and processor are saved into
    `settings.output_dir` as safetensors and JSON, with `curves.png`.
    """
    accelerator = make_accelerator(settings)
    output_dir = ensure_output_dir(settings.output_dir, settings.resume_from_checkpoint)
    train_stream, eval_stream = open_streams(settings)
    processor = build_processor(settings)
    sample = ClassificationSample(
        train_stream,
        training_transform(
            settings.image_size,
            settings.image_size,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            min_scale=settings.min_scale,
            horizontal_flip=settings.horizontal_flip,
            auto_augment=settings.auto_augment,
            random_erasing=settings.random_erasing,
        ),
    )
    eval_sample = ClassificationSample(eval_stream, ProcessorTransform(processor), sample.class_names)
    return run_task(
        accelerator,
        settings,
        output_dir,
        build_model(settings, sample.class_names),
        processor,
        sample,
        eval_sample,
        MixedLoss(settings, len(sample.class_names)),
        lambda model, batches: evaluate_classifier(accelerator, model, batches, settings.num_workers),
        best_metric="accuracy@1",
    )
