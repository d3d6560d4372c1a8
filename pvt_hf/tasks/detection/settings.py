"""Arguments of object detection and instance segmentation."""

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


ARCHITECTURES = architectures("detection")


@dataclass(kw_only=True)
class DetectionData(DataSettings, SceneSettings):
    """Images with objects."""

    dataset: str = option("digit-scenes", "'digit-scenes' (built in), a folder, or a Hub dataset id such as org/name.")
    objects_column: str = option("", "Column of the objects; found by its type if not given.")
    masks: bool = option(True, "Read, train and evaluate masks if the model has them.")


@dataclass(kw_only=True)
class DetectionRecipe(HeadSettings):
    """Model and augmentation."""

    architecture: str = option("retinanet", "Detector to build if --model is not given.", choices=[*ARCHITECTURES])
    keep_empty: bool = option(True, "Train on images without objects as well.")
    shortest_edges: list[int] = option([800], "Shorter side in training, in pixels, one drawn per image, e.g. 640 800.")
    shortest_edge_range: bool = option(False, "--shortest_edges are two, and any length between them is drawn.")
    eval_shortest_edge: int = option(800, "Shorter side in evaluation, in pixels.")
    longest_edge: int = option(1333, "Longer side at most, in pixels.")
    horizontal_flip: float = option(0.5, "Probability of mirroring an image.")
    group_by_aspect: bool = option(
        True, "Make batches of wide images and batches of others, within --shuffle_window, to save padding."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 32, "eval_shortest_edge")
        check_share(self, "horizontal_flip")
        edges = self.shortest_edges
        if not edges or min(edges) < 32:
            raise ValueError(f"--shortest_edges must be at least 32, got {edges}.")
        if self.shortest_edge_range and (len(edges) != 2 or edges[0] > edges[1]):
            raise ValueError(f"--shortest_edge_range goes with two --shortest_edges, in order, got {edges}.")
        if self.longest_edge < max(self.eval_shortest_edge, *edges):
            raise ValueError(f"--longest_edge {self.longest_edge} is below the length of a shorter side.")
        read_overrides(self, load(ARCHITECTURES[self.architecture].config))


@dataclass(kw_only=True)
class DetectionSettings(TrainingSettings, DetectionData, DetectionRecipe):
    """Arguments of `scripts/train_object_detection.py`."""


@dataclass(kw_only=True)
class DetectionFinetuning(HeadFinetuning, SplitSettings, DetectionData, DetectionRecipe):
    """Arguments of `scripts/finetune.py object-detection`."""

    dataset: str = field(
        metadata={"help": "'digit-scenes' (built in), a folder, or a Hub dataset id such as org/name."}
    )


@dataclass(kw_only=True)
class DetectionEvaluationSettings(EvaluationSettings, DetectionData):
    """Arguments of `scripts/evaluate_object_detection.py`."""

    dataset: str = field(
        metadata={"help": "'digit-scenes' (built in), a folder, or a Hub dataset id such as org/name."}
    )
    batch_size: int = option(
        1, "Images per batch and process. Smaller images are padded, which changes their answers a little."
    )
    results: str = option("", "JSON file for the detections, in COCO's results format, e.g. detections.json.")
