"""Arguments of image classification."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...engine.settings import (
    DataSettings,
    EvaluationSettings,
    SplitSettings,
    TrainingSettings,
    check_at_least,
    check_share,
    check_side,
    option,
    parse_overrides,
)
from ...families import FAMILIES
from ...weights.variants import get_config
from ..settings import CheckpointSettings, ModelSettings


@dataclass(kw_only=True)
class ClassificationData(DataSettings):
    """The data set: images with one label each."""

    dataset: str = field(metadata={"help": "digits (built in), a folder, or a Hub data set such as org/name."})
    label_column: str = option("", "Column with the labels, e.g. label; default: found by name.")


@dataclass(kw_only=True)
class ClassificationRecipe(CheckpointSettings):
    """Augmentation and loss."""

    image_size: int = option(224, "Height and width of the images in training and evaluation, in pixels.")
    crop_ratio: float = option(
        0.875, "Evaluation: --image_size over the shorter side to which images are resized before the centre crop."
    )
    min_scale: float = option(0.08, "Smallest random crop, as a fraction of the image's area; 1: the whole image.")
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.")
    auto_augment: str = option("rand-m9-mstd0.5-inc1", "Augmentation policy, in timm's notation; '': none.")
    random_erasing: float = option(0.25, "Probability of erasing a random rectangle.")
    mixup: float = option(0.8, "Alpha of Mixup; 0: off.")
    cutmix: float = option(1.0, "Alpha of CutMix; 0: off.")
    label_smoothing: float = option(0.1, "Probability spread over all classes by label smoothing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "horizontal_flip", "random_erasing", "label_smoothing")
        check_at_least(self, 0, "mixup", "cutmix")
        check_side(self, 0, "image_size")
        for name in ("crop_ratio", "min_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be above 0 and at most 1, got {getattr(self, name)}.")


@dataclass(kw_only=True)
class ClassificationSettings(TrainingSettings, ClassificationData, ClassificationRecipe, ModelSettings):
    """Arguments of `scripts/train_image_classification.py`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = parse_overrides("config_overrides", self.config_overrides, FAMILIES["pvt"].config)
        if not self.model:
            check_side(self, 32, "image_size")
            if fields:  # the class need not be imported without any
                get_config(self.variant, **{"image_size": self.image_size, **fields})
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(
                f"--mixup and --cutmix mix pairs of images, so --batch_size must be even, got {self.batch_size}."
            )


@dataclass(kw_only=True)
class ClassificationFinetuning(SplitSettings, ClassificationData, ClassificationRecipe):
    """Arguments of `pvt-hf finetune image-classification`."""

    model: str = field(metadata={"help": "Checkpoint to fine-tune, with its image processor, e.g. official:pvt-small."})
    image_size: int = option(
        0, "Height and width of the images, in pixels, e.g. 224; 0: the size of the model's image processor."
    )
    min_scale: float = option(0.35, "Smallest random crop, as a fraction of the image's area; 1: the whole image.")
    auto_augment: str = option("", "Augmentation policy, in timm's notation, e.g. rand-m9-mstd0.5-inc1; '': none.")
    random_erasing: float = option(0.0, "Probability of erasing a random rectangle, e.g. 0.25.")
    mixup: float = option(0.0, "Alpha of Mixup, e.g. 0.8; 0: off.")
    cutmix: float = option(0.0, "Alpha of CutMix, e.g. 1.0; 0: off.")
    label_smoothing: float = option(0.0, "Probability spread over all classes by label smoothing, e.g. 0.1.")


@dataclass(kw_only=True)
class ClassificationEvaluationSettings(EvaluationSettings, ClassificationData):
    """Arguments of `scripts/evaluate_image_classification.py`."""

    batch_size: int = option(64, "Images per batch and process.")
    image_sizes: list[int] = option(
        [], "Heights and widths to evaluate at, in pixels, e.g. 224 384; default: as the model's image processor does."
    )
    crop_ratio: float = option(
        0.875, "With --image_sizes: size over the shorter side to which images are resized before the centre crop."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"--crop_ratio must be above 0 and at most 1, got {self.crop_ratio}.")
        check_side(self, 1, "image_sizes")
