"""Arguments of semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...engine.settings import (
    DataSettings,
    EvaluationSettings,
    SplitSettings,
    TrainingSettings,
    check_at_least,
    check_share,
    option,
)
from ...families import architectures, load
from ..models import read_overrides
from ..settings import HeadFinetuning, HeadSettings, SceneSettings
from .inference import RATIOS


ARCHITECTURES = architectures("segmentation")


@dataclass(kw_only=True)
class SegmentationData(DataSettings, SceneSettings):
    """Images with a mask of labels each."""

    dataset: str = option("digit-scenes", "'digit-scenes' (built in), a folder, or a Hub dataset id such as org/name.")
    mask_column: str = option("", "Column of the masks; found by its type and name if not given.")


@dataclass(kw_only=True)
class SegmentationRecipe(HeadSettings):
    """Model and augmentation."""

    architecture: str = option("semantic_fpn", "Head to build if --model is not given.", choices=[*ARCHITECTURES])
    reduce_labels: bool = option(False, "Label 0 of the masks is no class and label 1 is the first one, as in ADE20K.")
    shortest_edge: int = option(512, "Shorter side of an image at scale 1 and in evaluation, at most, in pixels.")
    longest_edge: int = option(2048, "Longer side of an image at scale 1 and in evaluation, at most, in pixels.")
    min_scale: float = option(0.5, "Smallest random scale of --shortest_edge and --longest_edge.")
    max_scale: float = option(2.0, "Largest random scale of --shortest_edge and --longest_edge.")
    crop_size: int = option(512, "Side of the training crops, in pixels.")
    max_class_share: float = option(0.75, "Draw a crop again if one class has more of its pixels; 1: take any crop.")
    horizontal_flip: float = option(0.5, "Probability of mirroring an image.")
    photometric: bool = option(True, "Change brightness, contrast, saturation and hue at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 32, "crop_size", "shortest_edge")
        check_share(self, "max_class_share", "horizontal_flip")
        if self.longest_edge < self.shortest_edge:
            raise ValueError(f"--longest_edge {self.longest_edge} is below --shortest_edge {self.shortest_edge}.")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(f"--min_scale {self.min_scale} must be above 0 and at most --max_scale {self.max_scale}.")
        read_overrides(self, load(ARCHITECTURES[self.architecture].config))


@dataclass(kw_only=True)
class SegmentationSettings(TrainingSettings, SegmentationData, SegmentationRecipe):
    """Arguments of `scripts/train_semantic_segmentation.py`."""


@dataclass(kw_only=True)
class SegmentationFinetuning(HeadFinetuning, SplitSettings, SegmentationData, SegmentationRecipe):
    """Arguments of `scripts/finetune.py semantic-segmentation`."""

    dataset: str = field(
        metadata={"help": "'digit-scenes' (built in), a folder, or a Hub dataset id such as org/name."}
    )


@dataclass(kw_only=True)
class SegmentationEvaluationSettings(EvaluationSettings, SegmentationData):
    """Arguments of `scripts/evaluate_semantic_segmentation.py`."""

    dataset: str = field(
        metadata={"help": "'digit-scenes' (built in), a folder, or a Hub dataset id such as org/name."}
    )
    batch_size: int = option(1, "Images that a loader process sends at once. They are predicted one by one.")
    reduce_labels: bool | None = option(
        None, "Label 0 of the masks is no class and label 1 is the first one; default: as the model's processor says."
    )
    mode: str = option("single", "Way of inference.", choices=["single", "multi_scale", "sliding"])
    ratios: list[float] = option(list(RATIOS), "--mode multi_scale: factors on the processor's size.")
    flip: bool = option(True, "--mode multi_scale: add a mirrored view of each scale.")
    window: int = option(512, "--mode sliding: side of the window, in pixels.")
    stride: int = option(341, "--mode sliding: pixels from one window to the next.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"--ratios must be positive, and at least one, got {self.ratios}.")
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"--stride is at least 1 and at most the --window of {self.window}, got {self.stride}.")
