"""The model at the start of a training: a checkpoint of the task, or a new head on a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedConfig, PreTrainedModel

from ..families import Family, load
from ..weights.backbone import load_pretrained_backbone
from ..weights.official import load_official_checkpoint
from ..weights.opening import open_complete, open_config, open_processor
from ..weights.variants import get_config
from .labels import label_fields
from .settings import HeadSettings, read_overrides


def open_model(model: str, auto_class: Any, class_names: tuple[str, ...], drop_path_rate: float) -> PreTrainedModel:
    """
    Opens a checkpoint to fine-tune. If it has another number of classes, its classifier is initialised anew.

    Args:
        model: folder or Hub id.
        auto_class: Transformers' Auto class of the task.
        class_names: of the data, in the order of the labels.
        drop_path_rate: largest probability of dropping a block; ignored if the architecture has no drop path.

    Raises:
        OSError: there is no such folder or Hub id.
        ValueError: the checkpoint lacks weights.
    """
    config = open_config(model, **label_fields(class_names))
    with_drop_path = getattr(config, "backbone_config", None) or config
    if hasattr(with_drop_path, "drop_path_rate"):
        with_drop_path.drop_path_rate = drop_path_rate
    return open_complete(auto_class, model, new_classifier=True, config=config)


def build_head(
    settings: HeadSettings, auto_class: Any, family: Family, class_names: tuple[str, ...]
) -> PreTrainedModel:
    """
    Builds a new head on a backbone. The backbone is the PVT of `settings.variant`, with the weights of
    `settings.backbone` if that is given. If `settings.variant` is empty, its architecture is that of the checkpoint
    `settings.backbone`, which need not be a PVT.

    Args:
        auto_class: Transformers' Auto class of the task.
        family: of the head. It says which backbone stages are read, unless `settings.out_features` does.
        class_names: in the order of the labels.

    Raises:
        ValueError: an override names a field that does not exist, or the checkpoint does not fit the backbone.
        OSError: there is no such checkpoint.
    """
    head_fields, backbone_fields = read_overrides(settings, family.config)
    backbone_fields = {"drop_path_rate": settings.drop_path_rate, **backbone_fields}
    backbone_fields["out_features"] = settings.out_features or list(family.stages)
    backbone_config: PreTrainedConfig
    if settings.backbone and not settings.variant:
        backbone_config = config_of(settings.backbone, backbone_fields)
    else:
        backbone_config = get_config(settings.variant, **backbone_fields)
    config = load(family.config)(backbone_config=backbone_config, **head_fields, **label_fields(class_names))
    model = auto_class.from_config(config)
    if settings.backbone:
        report = load_pretrained_backbone(model, settings.backbone)
        PartialState().print(f"Backbone from {settings.backbone}: {report}")
    return model


def config_of(backbone: str, fields: dict[str, Any]) -> PreTrainedConfig:
    """
    Reads the backbone configuration of a checkpoint, and changes some of its fields.

    Args:
        backbone: folder or Hub id of a classifier or of a model with a backbone, or an official PVT `.pth` file.
        fields: new values. `drop_path_rate` is ignored if the architecture has no such field.

    Raises:
        ValueError: the configuration lacks another of `fields`.
        OSError: there is no such checkpoint.
    """
    if Path(backbone).is_file():
        return load_official_checkpoint(backbone, **fields).config
    config = open_config(backbone)
    config = getattr(config, "backbone_config", None) or config
    config.num_labels = 2  # Transformers' default, because the classifier's labels are not the head's
    for name, value in fields.items():
        if hasattr(config, name):
            setattr(config, name, value)
        elif name != "drop_path_rate":
            raise ValueError(f"--backbone_overrides sets {name}, which {type(config).__name__} does not have.")
    return config


def normalization_of(backbone: str) -> dict[str, Any]:
    """`image_mean` and `image_std` of the image processor saved with a backbone checkpoint; {} if there is none."""
    if not backbone or Path(backbone).is_file():
        return {}
    try:
        processor = open_processor(backbone)
    except (OSError, ValueError):
        return {}
    return {"image_mean": processor.image_mean, "image_std": processor.image_std}
