"""Arguments of semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...engine.settings import (
    DataSettings,
    EvaluationSettings,
    SplitSettings,
    TrainingSettings,
    check_share,
    check_side,
    option,
)
from ...families import architectures
from ..settings import HeadFinetuning, HeadSettings, SceneSettings, read_overrides


ARCHITECTURES = architectures("segmentation")
# For multi-scale testing, as in one row of the PVT paper's Table 5. The paper does not give the ratios; these are in
# the official segmentation/configs/_base_/datasets/ade20k.py, commented out.
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(kw_only=True)
class SegmentationData(DataSettings, SceneSettings):
    """The data set: images with one mask of labels each."""

    dataset: str = field(metadata={"help": "digit-scenes (built in), a folder, or a Hub data set such as org/name."})
    mask_column: str = option("", "Column with the masks, e.g. annotation; default: found by type and name.")
    mask_values: list[int] = option(
        [],
        "Value of each class in the masks, in order, e.g. 0 255 for masks of 0 and 255; default: 0 1 2 ...",
    )
    ignore_other_values: bool = option(
        False, "Values that --mask_values does not name are no class, as 255 is. Otherwise they are an error."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        values = self.mask_values
        if self.ignore_other_values and not values:
            raise ValueError("--ignore_other_values goes with --mask_values, which names the values of the classes.")
        if values and (len(values) < 2 or len({*values}) < len(values) or min(values) < 0):
            raise ValueError(f"--mask_values must be two or more different numbers, none negative, got {values}.")


@dataclass(kw_only=True)
class SegmentationRecipe(HeadSettings):
    """Model and augmentation."""

    architecture: str = option("semantic_fpn", "Head to build if --model is not given.", choices=[*ARCHITECTURES])
    reduce_labels: bool = option(
        False,
        "Label 0 of the masks is no class, and label 1 is the first class, as in ADE20K. (255 is never a class.)",
    )
    shortest_edge: int = option(
        512,
        "Length to which the shorter side is resized, in pixels; less if the longer one would exceed --longest_edge.",
    )
    longest_edge: int = option(2048, "Largest length of the longer side, in pixels.")
    min_scale: float = option(0.5, "Smallest random factor on --shortest_edge and --longest_edge in training.")
    max_scale: float = option(2.0, "Largest random factor on --shortest_edge and --longest_edge in training.")
    crop_size: int = option(512, "Height and width of the training crops, in pixels.")
    max_class_share: float = option(
        0.75, "Draw a crop again (up to 10 times) if one class fills this fraction of it or more; 1: accept any crop."
    )
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.")
    photometric: bool = option(True, "Change brightness, contrast, saturation and hue at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_side(self, 32, "crop_size", "shortest_edge", "longest_edge")
        check_share(self, "max_class_share", "horizontal_flip")
        if self.longest_edge < self.shortest_edge:
            raise ValueError(f"--longest_edge {self.longest_edge} is below --shortest_edge {self.shortest_edge}.")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(f"--min_scale {self.min_scale} must be above 0 and at most --max_scale {self.max_scale}.")
        read_overrides(self, ARCHITECTURES[self.architecture].config)


@dataclass(kw_only=True)
class SegmentationSettings(TrainingSettings, SegmentationData, SegmentationRecipe):
    """Arguments of `scripts/train_semantic_segmentation.py`."""


@dataclass(kw_only=True)
class SegmentationFinetuning(HeadFinetuning, SplitSettings, SegmentationData, SegmentationRecipe):
    """Arguments of `pvt-hf finetune semantic-segmentation`."""


@dataclass(kw_only=True)
class SegmentationEvaluationSettings(EvaluationSettings, SegmentationData):
    """Arguments of `scripts/evaluate_semantic_segmentation.py`."""

    batch_size: int = option(1, "Images that a loader process sends at once. The model gets them one by one.")
    reduce_labels: bool | None = option(
        None, "Label 0 of the masks is no class, e.g. true; default: as the model's image processor says."
    )
    mode: str = option(
        "single",
        "single: the image at the size of the model's image processor; multi_scale: the average over several sizes; "
        "sliding: a sliding window at the image's own resolution.",
        choices=["single", "multi_scale", "sliding"],
    )
    ratios: list[float] = option(list(RATIOS), "For --mode multi_scale: factors on the image processor's size.")
    flip: bool = option(True, "For --mode multi_scale: also predict the mirrored image at each scale.")
    window: int = option(512, "For --mode sliding: height and width of the window, in pixels, a multiple of 32.")
    stride: int = option(341, "For --mode sliding: distance between windows, in pixels, at most --window.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"--ratios must be one or more positive numbers, got {self.ratios}.")
        check_side(self, 32, "window")
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"--stride must be at least 1 and at most --window {self.window}, got {self.stride}.")
