"""
pvt_hf: the Pyramid Vision Transformer (arXiv 2102.12122) for the Hugging Face ecosystem.

Importing it takes over Transformers' `pvt` model type: `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone`,
`AutoConfig` and `AutoImageProcessor` then build the classes of this package, which open every native PVT checkpoint.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .families import FAMILIES, class_name
from .registry import register


if TYPE_CHECKING:  # types of the names, all of which are loaded on demand
    from .inference.photographs import photo
    from .inference.prediction import open_pipeline
    from .models.configuration_mask_rcnn import MaskRcnnConfig
    from .models.configuration_pvt import PvtConfig
    from .models.configuration_pvt_detr import PvtDetrConfig
    from .models.configuration_retinanet import RetinaNetConfig
    from .models.configuration_semantic_fpn import SemanticFpnConfig
    from .models.configuration_trans2seg import Trans2SegConfig
    from .models.image_processing_detection import PvtDetectionImageProcessor, PvtDetectionImageProcessorPil
    from .models.image_processing_detr import PvtDetrImageProcessor, PvtDetrImageProcessorPil
    from .models.image_processing_instance import PvtInstanceImageProcessor, PvtInstanceImageProcessorPil
    from .models.image_processing_pvt import PvtImageProcessor, PvtImageProcessorPil
    from .models.image_processing_semantic import PvtSemanticImageProcessor, PvtSemanticImageProcessorPil
    from .models.modeling_mask_rcnn import MaskRcnnForInstanceSegmentation
    from .models.modeling_pvt import PvtBackbone, PvtForImageClassification, PvtModel, PvtPreTrainedModel
    from .models.modeling_pvt_detr import PvtDetrForObjectDetection
    from .models.modeling_retinanet import RetinaNetForObjectDetection
    from .models.modeling_semantic_fpn import SemanticFpnForSemanticSegmentation
    from .models.modeling_trans2seg import Trans2SegForSemanticSegmentation
    from .weights.backbone import BackboneLoadReport, load_pretrained_backbone
    from .weights.official import load_official_checkpoint
    from .weights.paths import sample
    from .weights.release import from_official
    from .weights.variants import get_config


__version__ = "0.1.0"

__all__ = [
    "BackboneLoadReport",
    "MaskRcnnConfig",
    "MaskRcnnForInstanceSegmentation",
    "PvtBackbone",
    "PvtConfig",
    "PvtDetectionImageProcessor",
    "PvtDetectionImageProcessorPil",
    "PvtDetrConfig",
    "PvtDetrForObjectDetection",
    "PvtDetrImageProcessor",
    "PvtDetrImageProcessorPil",
    "PvtForImageClassification",
    "PvtImageProcessor",
    "PvtImageProcessorPil",
    "PvtInstanceImageProcessor",
    "PvtInstanceImageProcessorPil",
    "PvtModel",
    "PvtPreTrainedModel",
    "PvtSemanticImageProcessor",
    "PvtSemanticImageProcessorPil",
    "RetinaNetConfig",
    "RetinaNetForObjectDetection",
    "SemanticFpnConfig",
    "SemanticFpnForSemanticSegmentation",
    "Trans2SegConfig",
    "Trans2SegForSemanticSegmentation",
    "from_official",
    "get_config",
    "load_official_checkpoint",
    "load_pretrained_backbone",
    "open_pipeline",
    "photo",
    "sample",
]

_ON_DEMAND = {  # name to file
    "BackboneLoadReport": "weights.backbone",
    "PvtPreTrainedModel": "models.modeling_pvt",
    "from_official": "weights.release",
    "get_config": "weights.variants",
    "load_official_checkpoint": "weights.official",
    "load_pretrained_backbone": "weights.backbone",
    "open_pipeline": "inference.prediction",
    "photo": "inference.photographs",
    "sample": "weights.paths",
} | {class_name(path): f"models.{path.partition('.')[0]}" for family in FAMILIES.values() for path in family.paths}


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ON_DEMAND[name]}", __name__), name)


register()
