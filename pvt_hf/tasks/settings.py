"""Arguments that several tasks share: for the model to train, and for the built-in digit scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.settings import Settings, check_side, option, parse_overrides
from ..families import FAMILIES, load
from ..weights.paths import check_model_path
from ..weights.variants import VARIANTS, get_config


@dataclass(kw_only=True)
class CheckpointSettings(Settings):
    """A checkpoint to train."""

    model: str = option(
        "",
        "Checkpoint to fine-tune, with its image processor: a folder, Hub id, or official:pvt-small, which downloads "
        "the official release, e.g. outputs/fruit; '': a new one.",
    )
    drop_path_rate: float = option(
        0.1, "Drop path: probability of dropping the last block; it rises from 0 with depth, e.g. 0.3."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model:
            check_model_path(self.model)


@dataclass(kw_only=True)
class ModelSettings(CheckpointSettings):
    """The model to train: a checkpoint, or a new PVT."""

    variant: str = option("pvt-tiny", "PVT to build if --model is not given.", choices=[*VARIANTS])
    config_overrides: str = option(
        "{}", "Configuration fields of the new model to change, as JSON, e.g. '{\"hidden_dropout_prob\": 0.1}'."
    )


@dataclass(kw_only=True)
class HeadSettings(ModelSettings):
    """The model to train: a checkpoint, or a new head on a backbone."""

    variant: str = option(
        "pvt-tiny", "PVT to build as backbone; '': the architecture of --backbone.", choices=["", *VARIANTS]
    )
    config_overrides: str = option(
        "{}", "Configuration fields of the new head to change, as JSON, e.g. '{\"fpn_channels\": 128}'."
    )
    backbone: str = option(
        "",
        "Initial weights of the backbone: a classifier or another model with a backbone, as a folder, Hub id or "
        "official .pth file, or official:pvt-small, which downloads one, e.g. models/pvt-small; '': random.",
    )
    backbone_overrides: str = option(
        "{}", "Fields of the backbone's PvtConfig to change, as JSON, e.g. '{\"depths\": [2, 2, 2, 2]}'."
    )
    out_features: list[str] = option(
        [], "Backbone stages that the head reads, e.g. stage3 stage4; default: those of the paper."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model and self.backbone:
            raise ValueError("--backbone is for a new model, and --model has its own backbone. Give one of them.")
        if self.backbone.endswith(".pth") and not Path(self.backbone).is_file():
            raise FileNotFoundError(f"--backbone {self.backbone}: there is no such file.")
        if self.backbone and not Path(self.backbone).is_file():
            check_model_path(self.backbone)


@dataclass(kw_only=True)
class HeadFinetuning(HeadSettings):
    """The model to fine-tune: a checkpoint, or a new head on a trained backbone."""

    variant: str = option(
        "", "PVT to load --backbone into; default: the architecture of --backbone.", choices=["", *VARIANTS]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model and not self.backbone:
            raise ValueError("There is nothing to fine-tune: give --model, or --backbone for a new head on it.")


@dataclass(kw_only=True)
class SceneSettings(Settings):
    """The built-in digit scenes."""

    scene_size: int = option(128, "Side of the built-in digit scenes, in pixels.")
    digit_sizes: list[int] = option(
        [], "Smallest and largest digit in these scenes, in pixels, e.g. 20 60; default: 1/6 and 1/2 of --scene_size."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_side(self, 32, "scene_size")


def read_overrides(settings: HeadSettings, config: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Parses `--config_overrides` and `--backbone_overrides`: fields of the head's configuration, "file.Class", and of the
    backbone's. Raises a ValueError for invalid JSON, for fields that do not exist, and for invalid values.
    """
    flags = ("config_overrides", config), ("backbone_overrides", FAMILIES["pvt"].config)
    head = parse_overrides(flags[0][0], settings.config_overrides, flags[0][1], other=flags[1])
    backbone = parse_overrides(flags[1][0], settings.backbone_overrides, flags[1][1], other=flags[0])
    if head and not settings.model:  # the class need not be imported without any fields
        load(config).from_dict(head)
    if backbone and settings.variant:
        get_config(settings.variant, **backbone)
    return head, backbone
