"""
DETR (arXiv 2005.12872) on PVT, as in section 5.4 of the PVT paper: Transformers' `DetrForObjectDetection` with a
backbone that travels with it. Parameter names, outputs, matching and losses are Transformers' own.
"""

from __future__ import annotations

from torch import nn
from transformers import AutoBackbone, AutoModelForObjectDetection, DetrForObjectDetection, PreTrainedConfig
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from .configuration_pvt_detr import PvtDetrConfig
from .modeling_pvt import PvtBackbone


class PvtDetrForObjectDetection(DetrForObjectDetection):
    """
    DETR on a [`PvtBackbone`], or on any other backbone. It starts from random weights.

    `forward` is that of `DetrForObjectDetection`. Boxes of labels and predictions are relative to the image without its
    padding, as in the paper and as [`PvtDetrImageProcessor`] makes them (Transformers' processor relates them to the
    padded image). New weights of encoder and decoder are Xavier-uniform, as in the original code; in Transformers they
    are normal with a standard deviation of 0.02.
    """

    config: PvtDetrConfig
    config_class = PvtDetrConfig

    def __init__(self, config: PvtDetrConfig):
        backbone_config = config.backbone_config
        assert isinstance(backbone_config, PreTrainedConfig)  # PvtDetrConfig makes one of what it is given
        if backbone_config.model_type == "pvt":
            # DETR asks AutoBackbone, which goes by class: of code loaded from a folder there may be several modules.
            AutoBackbone.register(type(backbone_config), PvtBackbone, exist_ok=True)
        super().__init__(config)
        for part in (self.model.encoder, self.model.decoder):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    init.xavier_uniform_(module.weight)


# Pipelines look the name up in this table and print an error if it is not there.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["pvt_detr"] = "PvtDetrForObjectDetection"
AutoModelForObjectDetection.register(PvtDetrConfig, PvtDetrForObjectDetection, exist_ok=True)

__all__ = ["PvtDetrForObjectDetection"]
