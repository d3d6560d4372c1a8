"""Registers the installed package with Transformers' Auto classes. Takes over the `pvt` model type (`exist_ok`)."""

from importlib import import_module
from typing import Any

from transformers import (
    IMAGE_PROCESSOR_MAPPING,
    MODEL_FOR_IMAGE_SEGMENTATION_MAPPING,
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
)

from .models.configuration_mask_rcnn import MaskRcnnConfig
from .models.configuration_pvt import PvtConfig
from .models.configuration_pvt_detr import PvtDetrConfig
from .models.configuration_retinanet import RetinaNetConfig
from .models.configuration_semantic_fpn import SemanticFpnConfig
from .models.configuration_trans2seg import Trans2SegConfig
from .models.image_processing_pvt import PvtImageProcessor, PvtImageProcessorPil
from .models.modeling_pvt import PvtBackbone, PvtForImageClassification, PvtModel


class _OnDemand(type):
    """
    Stands for a class of a head, of the same name and module, in an Auto class: its file is imported when it is first
    asked for something. (A model's file then puts itself in this one's place.)
    """

    def __getattr__(cls, name: str) -> Any:
        return getattr(getattr(import_module(cls.__module__), cls.__name__), name)


def _on_demand(module: str, name: str) -> type:
    return _OnDemand(name, (), {"__module__": f"{__package__}.models.{module}"})


def register() -> None:
    """Makes `AutoX.from_pretrained` and `AutoX.from_config` build this package's classes for its model types."""
    AutoConfig.register("pvt", PvtConfig, exist_ok=True)
    AutoModel.register(PvtConfig, PvtModel, exist_ok=True)
    AutoModelForImageClassification.register(PvtConfig, PvtForImageClassification, exist_ok=True)
    AutoBackbone.register(PvtConfig, PvtBackbone, exist_ok=True)
    # AutoImageProcessor.register first looks up what the name "PvtConfig" stands for natively, which imports the native
    # processors and, without torchvision, warns of a fallback that concerns nobody.
    # (Its annotation is that of tokenizers, pairs of classes.)
    IMAGE_PROCESSOR_MAPPING.register(
        PvtConfig,
        {"pil": PvtImageProcessorPil, "torchvision": PvtImageProcessor},  # type: ignore[arg-type]
        exist_ok=True,
    )

    semantic = (MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,)
    detection = (MODEL_FOR_OBJECT_DETECTION_MAPPING,)
    instance = (
        MODEL_FOR_OBJECT_DETECTION_MAPPING,
        MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING,
        MODEL_FOR_IMAGE_SEGMENTATION_MAPPING,
    )
    for model_type, config_class, model_name, mappings, processor in (
        ("semantic_fpn", SemanticFpnConfig, "SemanticFpnForSemanticSegmentation", semantic, "semantic"),
        ("trans2seg", Trans2SegConfig, "Trans2SegForSemanticSegmentation", semantic, "semantic"),
        ("retinanet", RetinaNetConfig, "RetinaNetForObjectDetection", detection, "detection"),
        ("mask_rcnn", MaskRcnnConfig, "MaskRcnnForInstanceSegmentation", instance, "instance"),
        ("pvt_detr", PvtDetrConfig, "PvtDetrForObjectDetection", detection, "detr"),
    ):
        AutoConfig.register(model_type, config_class, exist_ok=True)
        for mapping in mappings:  # not AutoModelForX.register, which asks the class for its `config_class`
            model_class = _on_demand(f"modeling_{model_type}", model_name)
            mapping.register(config_class, model_class, exist_ok=True)  # type: ignore[arg-type]
        name = f"Pvt{processor.capitalize()}ImageProcessor"
        IMAGE_PROCESSOR_MAPPING.register(
            config_class,
            {  # type: ignore[arg-type]
                "pil": _on_demand(f"image_processing_{processor}", f"{name}Pil"),
                "torchvision": _on_demand(f"image_processing_{processor}", name),
            },
            exist_ok=True,
        )
