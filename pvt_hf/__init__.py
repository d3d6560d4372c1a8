"""
pvt_hf: the Pyramid Vision Transformer (arXiv 2102.12122) for the Hugging Face ecosystem.

Importing it takes over Transformers' `pvt` model type: `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone`,
`AutoConfig` and `AutoImageProcessor` then build the classes of this package, which open every native PVT checkpoint.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .models.configuration_mask_rcnn import MaskRcnnConfig
from .models.configuration_pvt import PvtConfig
from .models.configuration_pvt_detr import PvtDetrConfig
from .models.configuration_retinanet import RetinaNetConfig
from .models.configuration_semantic_fpn import SemanticFpnConfig
from .models.configuration_trans2seg import Trans2SegConfig
from .models.image_processing_pvt import PvtImageProcessor, PvtImageProcessorPil
from .models.modeling_pvt import PvtBackbone, PvtForImageClassification, PvtModel, PvtPreTrainedModel
from .registry import register
from .weights.backbone import BackboneLoadReport, load_pretrained_backbone
from .weights.official import load_official_checkpoint


if TYPE_CHECKING:
    from .models.image_processing_detection import PvtDetectionImageProcessor, PvtDetectionImageProcessorPil
    from .models.image_processing_detr import PvtDetrImageProcessor, PvtDetrImageProcessorPil
    from .models.image_processing_instance import PvtInstanceImageProcessor, PvtInstanceImageProcessorPil
    from .models.image_processing_semantic import PvtSemanticImageProcessor, PvtSemanticImageProcessorPil
    from .models.modeling_mask_rcnn import MaskRcnnForInstanceSegmentation
    from .models.modeling_pvt_detr import PvtDetrForObjectDetection
    from .models.modeling_retinanet import RetinaNetForObjectDetection
    from .models.modeling_semantic_fpn import SemanticFpnForSemanticSegmentation
    from .models.modeling_trans2seg import Trans2SegForSemanticSegmentation


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
    "load_official_checkpoint",
    "load_pretrained_backbone",
]

# Heads and their processors are imported when they are first asked for.
_HEADS = {
    "MaskRcnnForInstanceSegmentation": "models.modeling_mask_rcnn",
    "PvtDetectionImageProcessor": "models.image_processing_detection",
    "PvtDetectionImageProcessorPil": "models.image_processing_detection",
    "PvtDetrForObjectDetection": "models.modeling_pvt_detr",
    "PvtDetrImageProcessor": "models.image_processing_detr",
    "PvtDetrImageProcessorPil": "models.image_processing_detr",
    "PvtInstanceImageProcessor": "models.image_processing_instance",
    "PvtInstanceImageProcessorPil": "models.image_processing_instance",
    "PvtSemanticImageProcessor": "models.image_processing_semantic",
    "PvtSemanticImageProcessorPil": "models.image_processing_semantic",
    "RetinaNetForObjectDetection": "models.modeling_retinanet",
    "SemanticFpnForSemanticSegmentation": "models.modeling_semantic_fpn",
    "Trans2SegForSemanticSegmentation": "models.modeling_trans2seg",
}


def __getattr__(name: str) -> Any:
    if name not in _HEADS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HEADS[name]}", __name__), name)


register()
