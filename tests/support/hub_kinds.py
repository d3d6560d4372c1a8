"""One small model with random weights of every class that goes to the Hub, and its image processor."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel

import pvt_hf

from ..models.test_detection_pipelines import CLASSES as DETECTORS
from ..models.test_detection_pipelines import CONFIGS as DETECTOR_CONFIGS
from ..models.test_segmentation_pipelines import MODELS as SEGMENTERS
from .common import randomize, tiny_pvt_config


ANIMALS = {0: "cat", 1: "dog", 2: "cow", 3: "hen", 4: "pig"}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL = {"size": {"shortest_edge": 64, "longest_edge": 256}}


@dataclass(frozen=True)
class Kind:
    """`tasks` are the pipelines that serve it."""

    make_model: Callable[[], PreTrainedModel]
    make_processor: Callable[..., BaseImageProcessor]
    tasks: tuple[str, ...] = ()

    def model(self) -> PreTrainedModel:
        torch.manual_seed(0)
        return randomize(self.make_model()).eval()


def _classifier_processor() -> BaseImageProcessor:
    return pvt_hf.PvtImageProcessor(size=73, crop_size=64)


def _detector(name: str) -> PreTrainedModel:
    return getattr(pvt_hf, DETECTORS[name][0])(DETECTOR_CONFIGS[name]())


KINDS = {
    "classifier": Kind(
        # one epsilon for all norms, as the native class has it
        lambda: pvt_hf.PvtForImageClassification(tiny_pvt_config(id2label=ANIMALS, reduction_layer_norm_eps=1e-6)),
        _classifier_processor,
        ("image-classification", "image-feature-extraction"),
    ),
    "model": Kind(lambda: pvt_hf.PvtModel(tiny_pvt_config()), _classifier_processor, ("image-feature-extraction",)),
    "backbone": Kind(lambda: pvt_hf.PvtBackbone(tiny_pvt_config(out_features=STAGES)), _classifier_processor),
    **{
        name: Kind(make, lambda: pvt_hf.PvtSemanticImageProcessor(**SMALL), ("image-segmentation",))
        for name, make in SEGMENTERS.items()
    },
    **{
        name: Kind(
            lambda name=name: _detector(name),
            lambda processor=processor: getattr(pvt_hf, f"Pvt{processor}ImageProcessor")(**SMALL),
            ("object-detection", "image-segmentation") if name == "mask_rcnn" else ("object-detection",),
        )
        for name, (_, processor) in DETECTORS.items()
    },
}
