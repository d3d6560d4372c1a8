"""The model that a training starts from: a checkpoint with a classifier for other classes, or a head on a backbone."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from transformers import AutoConfig, PreTrainedModel

from ..engine.settings import parse_overrides
from ..models.configuration_pvt import PvtConfig
from ..weights.backbone import load_pretrained_backbone
from ..weights.opening import check_model_path, open_complete
from ..weights.variants import get_config
from .labels import label_fields
from .settings import HeadSettings


def open_model(model: str, auto_class: Any, class_names: tuple[str, ...], drop_path_rate: float) -> PreTrainedModel:
    """
    A checkpoint to fine-tune, with a classifier for these classes: a new one if their number differs.

    Raises:
        OSError: there is no such folder or Hub id.
        ValueError: weights are missing.
    """
    check_model_path(model)
    config = AutoConfig.from_pretrained(model, **label_fields(class_names))
    with_drop_path = getattr(config, "backbone_config", None) or config
    if hasattr(with_drop_path, "drop_path_rate"):
        with_drop_path.drop_path_rate = drop_path_rate
    return open_complete(auto_class, model, new_classifier=True, config=config)


def build_head(
    settings: HeadSettings, auto_class: Any, config_class: Any, stages: list[str], class_names: tuple[str, ...]
) -> PreTrainedModel:
    """
    A new model: a head on a PVT, whose weights are those of `settings.backbone` if that is given.

    Args:
        config_class: of the head.
        stages: that the head reads, unless `settings.out_features` names others.

    Raises:
        ValueError: an override that does not exist, or a checkpoint that does not fit the backbone.
        OSError: there is no such checkpoint.
    """
    head_fields, backbone_fields = read_overrides(settings, config_class)
    backbone_fields = {"drop_path_rate": settings.drop_path_rate, **backbone_fields}
    backbone_fields["out_features"] = settings.out_features or stages
    config = config_class(
        backbone_config=get_config(settings.variant, **backbone_fields), **head_fields, **label_fields(class_names)
    )
    model = auto_class.from_config(config)
    if settings.backbone:
        report = load_pretrained_backbone(model, settings.backbone)
        PartialState().print(f"Backbone from {settings.backbone}: {report}")
    return model


def read_overrides(settings: HeadSettings, config_class: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the head's configuration and of its backbone's. ValueError for fields that do not exist."""
    head = parse_overrides("config_overrides", settings.config_overrides, config_class)
    return head, parse_overrides("backbone_overrides", settings.backbone_overrides, PvtConfig)
