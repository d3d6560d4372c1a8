"""
The model families, one row each. Everything that needs to know them derives it from here: the names of `pvt_hf`, the
Auto classes, what a Hub repository holds, model cards, training, evaluation and prediction.

Classes are written as in Transformers' `auto_map`: "file.Class", with the file in `models/`. Nothing is imported until
[`load`] is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


def class_name(path: str) -> str:
    """The name of the class "file.Class"."""
    return path.rpartition(".")[2]


@dataclass(frozen=True)
class Model:
    """
    A class that can be saved and pushed.

    Attributes:
        path: "file.Class".
        description: noun phrase for model cards.
        auto_classes: the Auto classes that build it.
        pipelines: the pipelines that run it, first the one that the Hub lists it under.
    """

    path: str
    description: str
    auto_classes: tuple[str, ...]
    pipelines: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the class."""
        return class_name(self.path)

    @property
    def hub_task(self) -> str:
        """The task that the Hub lists it under."""
        return self.pipelines[0] if self.pipelines else "image-feature-extraction"


@dataclass(frozen=True)
class Family:
    """
    Attributes:
        name: as `--architecture` takes it.
        title: as its paper writes it.
        model_type: in `config.json`.
        task: the folder in `tasks/` that trains it.
        config: its configuration, "file.Class".
        processor: its image processor for torchvision, "file.Class". The one for Pillow has the suffix "Pil".
        models: the class that is trained, then the smaller ones that the same checkpoint opens.
        stages: of the backbone, that the head reads. Empty for a model without a head.
        paper_url: of the head.
        masks: whether it predicts a mask for each object.
        score_threshold: only detections above it count in COCO AP. The paper's value; 0 for DETR, which predicts a
            set of fixed size that counts as a whole.
        requires: packages that its code needs besides those of Transformers.
    """

    name: str
    title: str
    model_type: str
    task: str
    config: str
    processor: str
    models: tuple[Model, ...]
    stages: tuple[str, ...] = ()
    paper_url: str = ""
    masks: bool = False
    score_threshold: float = 0.0
    requires: tuple[str, ...] = ()

    @property
    def processors(self) -> dict[str, str]:
        """Its image processors by backend, "file.Class"."""
        return {"pil": f"{self.processor}Pil", "torchvision": self.processor}

    @property
    def paths(self) -> tuple[str, ...]:
        """All its classes, "file.Class"."""
        return (self.config, *self.processors.values(), *(model.path for model in self.models))


_FOUR_STAGES = ("stage1", "stage2", "stage3", "stage4")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="pvt", title="PVT", model_type="pvt", task="classification",
            config="configuration_pvt.PvtConfig",
            processor="image_processing_pvt.PvtImageProcessor",
            models=(
                Model("modeling_pvt.PvtForImageClassification", "image classifier",
                      ("AutoModelForImageClassification",), ("image-classification",)),
                Model("modeling_pvt.PvtModel", "feature extractor", ("AutoModel",), ("image-feature-extraction",)),
                Model("modeling_pvt.PvtBackbone", "backbone", ("AutoBackbone",), ()),
            ),
        ),
        Family(
            name="semantic_fpn", title="Semantic FPN", model_type="semantic_fpn", task="segmentation",
            config="configuration_semantic_fpn.SemanticFpnConfig",
            processor="image_processing_semantic.PvtSemanticImageProcessor",
            models=(
                Model("modeling_semantic_fpn.SemanticFpnForSemanticSegmentation", "semantic segmentation model",
                      ("AutoModelForSemanticSegmentation",), ("image-segmentation",)),
            ),
            stages=_FOUR_STAGES, paper_url="https://arxiv.org/abs/1901.02446",
        ),
        Family(
            name="trans2seg", title="Trans2Seg", model_type="trans2seg", task="segmentation",
            config="configuration_trans2seg.Trans2SegConfig",
            processor="image_processing_semantic.PvtSemanticImageProcessor",
            models=(
                Model("modeling_trans2seg.Trans2SegForSemanticSegmentation", "semantic segmentation model",
                      ("AutoModelForSemanticSegmentation",), ("image-segmentation",)),
            ),
            stages=("stage1", "stage4"), paper_url="https://arxiv.org/abs/2101.08461",
        ),
        Family(
            name="retinanet", title="RetinaNet", model_type="retinanet", task="detection",
            config="configuration_retinanet.RetinaNetConfig",
            processor="image_processing_detection.PvtDetectionImageProcessor",
            models=(
                Model("modeling_retinanet.RetinaNetForObjectDetection", "object detector",
                      ("AutoModelForObjectDetection",), ("object-detection",)),
            ),
            stages=("stage2", "stage3", "stage4"), paper_url="https://arxiv.org/abs/1708.02002",
            score_threshold=0.05, requires=("torchvision",),
        ),
        Family(
            name="mask_rcnn", title="Mask R-CNN", model_type="mask_rcnn", task="detection",
            config="configuration_mask_rcnn.MaskRcnnConfig",
            processor="image_processing_instance.PvtInstanceImageProcessor",
            models=(
                Model("modeling_mask_rcnn.MaskRcnnForInstanceSegmentation", "object detector with masks",
                      ("AutoModelForObjectDetection", "AutoModelForInstanceSegmentation",
                       "AutoModelForImageSegmentation"), ("image-segmentation", "object-detection")),
            ),
            stages=_FOUR_STAGES, paper_url="https://arxiv.org/abs/1703.06870",
            masks=True, score_threshold=0.05, requires=("torchvision",),
        ),
        Family(
            name="detr", title="DETR", model_type="pvt_detr", task="detection",
            config="configuration_pvt_detr.PvtDetrConfig",
            processor="image_processing_detr.PvtDetrImageProcessor",
            models=(
                Model("modeling_pvt_detr.PvtDetrForObjectDetection", "object detector",
                      ("AutoModelForObjectDetection",), ("object-detection",)),
            ),
            stages=("stage4",), paper_url="https://arxiv.org/abs/2005.12872",
        ),
    )
}  # fmt: skip

MODELS: dict[str, tuple[Family, Model]] = {
    model.name: (family, model) for family in FAMILIES.values() for model in family.models
}


def architectures(task: str) -> dict[str, Family]:
    """The families that `tasks/TASK` trains, by name."""
    return {name: family for name, family in FAMILIES.items() if family.task == task}


def load(path: str) -> Any:
    """Imports the file in `models/` and returns the class of "file.Class"."""
    file, _, name = path.partition(".")
    return getattr(import_module(f"{__package__}.models.{file}"), name)
