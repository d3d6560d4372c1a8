"""
pvt_hf: the Pyramid Vision Transformer (arXiv 2102.12122) for the Hugging Face ecosystem.

Importing it takes over Transformers' `pvt` model type: `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone`,
`AutoConfig` and `AutoImageProcessor` then build the classes of this package, which open every native PVT checkpoint.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .backbone_loading import BackboneLoadReport, load_pretrained_backbone
from .configuration_mask_rcnn import MaskRcnnConfig
from .configuration_pvt import PvtConfig
from .configuration_pvt_detr import PvtDetrConfig
from .configuration_retinanet import RetinaNetConfig
from .configuration_semantic_fpn import SemanticFpnConfig
from .configuration_trans2seg import Trans2SegConfig
from .conversion import load_official_checkpoint
from .image_processing_pil_pvt import PvtImageProcessorPil
from .image_processing_pvt import PvtImageProcessor
from .modeling_pvt import PvtBackbone, PvtForImageClassification, PvtModel, PvtPreTrainedModel
from .registry import register


if TYPE_CHECKING:
    from .image_processing_detection import PvtDetectionImageProcessor
    from .image_processing_detr import PvtDetrImageProcessor
    from .image_processing_instance import PvtInstanceImageProcessor
    from .image_processing_pil_detection import PvtDetectionImageProcessorPil
    from .image_processing_pil_detr import PvtDetrImageProcessorPil
    from .image_processing_pil_instance import PvtInstanceImageProcessorPil
    from .image_processing_pil_semantic import PvtSemanticImageProcessorPil
    from .image_processing_semantic import PvtSemanticImageProcessor
    from .modeling_mask_rcnn import MaskRcnnForInstanceSegmentation
    from .modeling_pvt_detr import PvtDetrForObjectDetection
    from .modeling_retinanet import RetinaNetForObjectDetection
    from .modeling_semantic_fpn import SemanticFpnForSemanticSegmentation
    from .modeling_trans2seg import Trans2SegForSemanticSegmentation


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
    "MaskRcnnForInstanceSegmentation": "modeling_mask_rcnn",
    "PvtDetectionImageProcessor": "image_processing_detection",
    "PvtDetectionImageProcessorPil": "image_processing_pil_detection",
    "PvtDetrForObjectDetection": "modeling_pvt_detr",
    "PvtDetrImageProcessor": "image_processing_detr",
    "PvtDetrImageProcessorPil": "image_processing_pil_detr",
    "PvtInstanceImageProcessor": "image_processing_instance",
    "PvtInstanceImageProcessorPil": "image_processing_pil_instance",
    "PvtSemanticImageProcessor": "image_processing_semantic",
    "PvtSemanticImageProcessorPil": "image_processing_pil_semantic",
    "RetinaNetForObjectDetection": "modeling_retinanet",
    "SemanticFpnForSemanticSegmentation": "modeling_semantic_fpn",
    "Trans2SegForSemanticSegmentation": "modeling_trans2seg",
}


def __getattr__(name: str) -> Any:
    if name not in _HEADS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HEADS[name]}", __name__), name)


register()
