"""
pvt_hf: the Pyramid Vision Transformer (arXiv 2102.12122) for the Hugging Face ecosystem.

Importing it takes over Transformers' `pvt` model type: `AutoModel`, `AutoModelForImageClassification`, `AutoBackbone`,
`AutoConfig` and `AutoImageProcessor` then build the classes of this package, which open every native PVT checkpoint.
"""

from .backbone_loading import BackboneLoadReport, load_pretrained_backbone
from .configuration_pvt import PvtConfig
from .conversion import load_official_checkpoint
from .image_processing_pil_pvt import PvtImageProcessorPil
from .image_processing_pvt import PvtImageProcessor
from .modeling_pvt import PvtBackbone, PvtForImageClassification, PvtModel, PvtPreTrainedModel
from .registry import register


__version__ = "0.1.0"

__all__ = [
    "BackboneLoadReport",
    "PvtBackbone",
    "PvtConfig",
    "PvtForImageClassification",
    "PvtImageProcessor",
    "PvtImageProcessorPil",
    "PvtModel",
    "PvtPreTrainedModel",
    "load_official_checkpoint",
    "load_pretrained_backbone",
]

register()
