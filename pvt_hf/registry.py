"""Registers the installed package with Transformers' Auto classes. Takes over the `pvt` model type (`exist_ok`)."""

from transformers import (
    IMAGE_PROCESSOR_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
)

from .configuration_pvt import PvtConfig
from .image_processing_pil_pvt import PvtImageProcessorPil
from .image_processing_pvt import PvtImageProcessor
from .modeling_pvt import PvtBackbone, PvtForImageClassification, PvtModel


def register() -> None:
    """Makes `AutoX.from_pretrained` and `AutoX.from_config` build this package's classes for `model_type` "pvt"."""
    AutoConfig.register("pvt", PvtConfig, exist_ok=True)
    AutoModel.register(PvtConfig, PvtModel, exist_ok=True)
    AutoModelForImageClassification.register(PvtConfig, PvtForImageClassification, exist_ok=True)
    AutoBackbone.register(PvtConfig, PvtBackbone, exist_ok=True)
    # AutoImageProcessor.register first looks up what the name "PvtConfig" stands for natively, which imports the native
    # processors and, without torchvision, warns of a fallback that concerns nobody.
    IMAGE_PROCESSOR_MAPPING.register(
        PvtConfig, {"pil": PvtImageProcessorPil, "torchvision": PvtImageProcessor}, exist_ok=True
    )
