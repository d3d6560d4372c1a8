"""Configuration of DETR (arXiv 2005.12872) on PVT: Transformers' `DetrConfig` with a PVT backbone by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.detr.configuration_detr import DetrConfig

from .configuration_finite import check_finite_fields
from .configuration_pvt import build_backbone_config, check_num_labels, take_overrides, without_default_names


@strict
class PvtDetrConfig(DetrConfig):
    r"""
    Configuration of [`PvtDetrForObjectDetection`]: the fields of Transformers' `DetrConfig`, with the defaults of the
    PVT paper (section 5.4; official `detection/configs/detr_pvt_s_8x2_50ep_coco.py`), on PVT-Tiny.

    This class exists because a saved `DetrConfig` resolves a "pvt" backbone to Transformers' native configuration,
    which has no backbone class.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): Configuration of a model that `AutoBackbone` knows.
            Its last feature map is read. Defaults to PVT-Tiny with `out_features=["stage4"]`.
        auxiliary_loss (`bool`, *optional*, defaults to `True`): Whether every decoder layer has a loss.
        num_labels (`int`, *optional*, defaults to 80): Number of classes (80 in COCO), without "no object".

    Example:

    ```python
    >>> from pvt_hf import PvtDetrConfig, PvtDetrForObjectDetection
    >>> from pvt_hf.weights.variants import get_config

    >>> backbone_config = get_config("pvt-small", out_features=["stage4"], drop_path_rate=0.1)
    >>> model = PvtDetrForObjectDetection(PvtDetrConfig(backbone_config=backbone_config, num_labels=10))
    ```"""

    model_type = "pvt_detr"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="pvt")}

    auxiliary_loss: bool = True

    if TYPE_CHECKING:  # an argument of the constructor that is not a field
        num_labels: int = 80

    def __post_init__(self, **kwargs: Any) -> None:
        check_finite_fields({**vars(self), **kwargs})
        self.backbone_config = build_backbone_config(self.backbone_config, ("stage4",))
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = 80
        check_num_labels(kwargs.get("num_labels"))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> PvtDetrConfig:
        """
        As Transformers', but an override of `num_labels` or `id2label` replaces all labels of the file, and a field of
        a wrong type raises a ValueError.
        """
        try:
            return super().from_dict(take_overrides(cls, config_dict, kwargs), **kwargs)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(" ".join(str(error).split())) from error

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, with `num_labels`: Transformers omits `id2label` with two default names."""
        return {**without_default_names(super().to_dict()), "num_labels": self.num_labels}


__all__ = ["PvtDetrConfig"]
