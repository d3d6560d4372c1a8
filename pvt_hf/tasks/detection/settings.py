"""Arguments of object detection and instance segmentation."""

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


ARCHITECTURES = architectures("detection")


@dataclass(kw_only=True)
class DetectionData(DataSettings, SceneSettings):
    """The data set: images with objects."""

    dataset_files = (".yaml", ".yml")  # of YOLO

    dataset: str = field(metadata={"help": "digit-scenes (built in), a folder, or a Hub data set such as org/name."})
    objects_column: str = option("", "Column with the objects, e.g. objects; default: found by type.")
    masks: bool = option(True, "Use masks too, if the model predicts them.")


@dataclass(kw_only=True)
class DetectionRecipe(HeadSettings):
    """Model and augmentation."""

    architecture: str = option("retinanet", "Detector to build if --model is not given.", choices=[*ARCHITECTURES])
    keep_empty: bool = option(True, "Train on images without objects too.")
    keep_unused_classes: bool = option(
        True,
        "Keep classes that no object of the training split has, as far as the data set is in COCO's or YOLO's layout.",
    )
    shortest_edges: list[int] = option(
        [800], "Training: length of the shorter side, in pixels; of several, one is drawn per image, e.g. 640 672 800."
    )
    shortest_edge_range: bool = option(
        False, "Training: draw any length between the two --shortest_edges, e.g. with --shortest_edges 640 800."
    )
    eval_shortest_edge: int = option(800, "Evaluation: length of the shorter side, in pixels.")
    longest_edge: int = option(1333, "Largest length of the longer side, in pixels; the shorter side shrinks with it.")
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.")
    group_by_aspect: bool = option(
        True, "Batch wide images apart from the others, within each --shuffle_window, so that there is less padding."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_side(self, 32, "eval_shortest_edge", "shortest_edges", "longest_edge")
        check_share(self, "horizontal_flip")
        edges = self.shortest_edges
        if not edges:
            raise ValueError("--shortest_edges must be one or more lengths.")
        if self.shortest_edge_range and (len(edges) != 2 or edges[0] > edges[1]):
            raise ValueError(f"--shortest_edge_range needs two --shortest_edges, the smaller one first, got {edges}.")
        if self.longest_edge < max(self.eval_shortest_edge, *edges):
            raise ValueError(
                f"--longest_edge {self.longest_edge} is below --shortest_edges {edges} or --eval_shortest_edge "
                f"{self.eval_shortest_edge}."
            )
        read_overrides(self, ARCHITECTURES[self.architecture].config)


@dataclass(kw_only=True)
class DetectionSettings(TrainingSettings, DetectionData, DetectionRecipe):
    """Arguments of `scripts/train_object_detection.py`."""


@dataclass(kw_only=True)
class DetectionFinetuning(HeadFinetuning, SplitSettings, DetectionData, DetectionRecipe):
    """Arguments of `pvt-hf finetune object-detection`."""


@dataclass(kw_only=True)
class DetectionEvaluationSettings(EvaluationSettings, DetectionData):
    """Arguments of `scripts/evaluate_object_detection.py`."""

    batch_size: int = option(
        1, "Images per batch and process. Above 1, images are padded, which changes the predictions slightly."
    )
    results: str = option("", "JSON file for the detections, in COCO's results format, e.g. detections.json; '': none.")
