"""Arguments of image classification."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...engine.settings import (
    DataSettings,
    EvaluationSettings,
    SplitSettings,
    TrainingSettings,
    check_share,
    option,
    parse_overrides,
)
from ...models.configuration_pvt import PvtConfig
from ..settings import CheckpointSettings, ModelSettings


@dataclass(kw_only=True)
class ClassificationData(DataSettings):
    """Images with a label each."""

    dataset: str = option("digits", "'digits' (built in), a folder, or a Hub dataset id such as org/name.")
    label_column: str = option("", "Column of the labels; found by its name if not given.")


@dataclass(kw_only=True)
class ClassificationRecipe(CheckpointSettings):
    """Augmentation and loss."""

    image_size: int = option(224, "Side of the images in training and evaluation, in pixels.")
    crop_ratio: float = option(0.875, "Evaluation: side of the centre crop / resized shorter side.")
    min_scale: float = option(0.08, "Smallest random crop, as a share of the image's area; 1: the whole image.")
    horizontal_flip: float = option(0.5, "Probability of mirroring an image.")
    auto_augment: str = option("rand-m9-mstd0.5-inc1", "timm's augmentation policy; '': none.")
    random_erasing: float = option(0.25, "Probability of erasing a random rectangle.")
    mixup: float = option(0.8, "Alpha of Mixup; 0: none.")
    cutmix: float = option(1.0, "Alpha of CutMix; 0: none.")
    label_smoothing: float = option(0.1, "Probability mass given to the other classes.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "horizontal_flip", "random_erasing", "label_smoothing")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"--crop_ratio is above 0 and at most 1, got {self.crop_ratio}.")


@dataclass(kw_only=True)
class ClassificationSettings(TrainingSettings, ClassificationData, ClassificationRecipe, ModelSettings):
    """Arguments of `scripts/train_image_classification.py`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_overrides("config_overrides", self.config_overrides, PvtConfig)
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"Mixing pairs the samples of a batch: --batch_size must be even, got {self.batch_size}.")


@dataclass(kw_only=True)
class ClassificationFinetuning(SplitSettings, ClassificationData, ClassificationRecipe):
    """Arguments of `scripts/finetune.py image-classification`."""

    model: str = field(metadata={"help": "Checkpoint to fine-tune, with its image processor: a folder or Hub id."})
    dataset: str = field(metadata={"help": "'digits' (built in), a folder, or a Hub dataset id such as org/name."})
    image_size: int = option(0, "Side of the images, in pixels; default: as the model's image processor makes them.")
    min_scale: float = option(0.35, "Smallest random crop, as a share of the image's area; 1: the whole image.")
    auto_augment: str = option("", "timm's augmentation policy, e.g. rand-m9-mstd0.5-inc1; '': none.")
    random_erasing: float = option(0.0, "Probability of erasing a random rectangle, e.g. 0.25.")
    mixup: float = option(0.0, "Alpha of Mixup, e.g. 0.8; 0: none.")
    cutmix: float = option(0.0, "Alpha of CutMix, e.g. 1.0; 0: none.")
    label_smoothing: float = option(0.0, "Probability mass given to the other classes, e.g. 0.1.")


@dataclass(kw_only=True)
class ClassificationEvaluationSettings(EvaluationSettings, ClassificationData):
    """Arguments of `scripts/evaluate_image_classification.py`."""

    dataset: str = field(metadata={"help": "'digits' (built in), a folder, or a Hub dataset id such as org/name."})
    batch_size: int = option(64, "Images per batch and process.")
    image_sizes: list[int] = option([], "Sides in pixels, one evaluation each, e.g. 224 384; default: the processor's.")
    crop_ratio: float = option(0.875, "With --image_sizes: side of the centre crop / resized shorter side.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"--crop_ratio is above 0 and at most 1, got {self.crop_ratio}.")
        if any(size < 1 for size in self.image_sizes):
            raise ValueError(f"--image_sizes are sides in pixels, got {self.image_sizes}.")
