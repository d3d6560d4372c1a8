"""Arguments that several tasks share: of their models and of the built-in scenes."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine.settings import Settings, check_at_least, option


@dataclass(kw_only=True)
class CheckpointSettings(Settings):
    """A checkpoint to train."""

    model: str = option("", "Checkpoint to fine-tune, with its image processor: a folder or Hub id.")
    drop_path_rate: float = option(0.1, "Stochastic depth of the PVT: largest probability of dropping a block.")


@dataclass(kw_only=True)
class ModelSettings(CheckpointSettings):
    """The model to train: a checkpoint, or a new PVT."""

    variant: str = option("pvt-tiny", "PVT to build if --model is not given, e.g. pvt-small.")
    config_overrides: str = option("{}", "JSON of fields of the new model's configuration, e.g. '{\"dropout\": 0.1}'.")


@dataclass(kw_only=True)
class HeadSettings(ModelSettings):
    """A head on a backbone."""

    variant: str = option("pvt-tiny", "Backbone of a new model, e.g. pvt-small; '': the architecture of --backbone.")
    backbone: str = option(
        "", "Initial weights of the backbone: a classifier, or another model's backbone; a folder, Hub id or .pth file."
    )
    backbone_overrides: str = option(
        "{}", "JSON of fields of the backbone's PvtConfig, e.g. '{\"depths\": [2, 2, 2, 2]}'."
    )
    out_features: list[str] = option(
        [], "Stages of the backbone that the head reads, e.g. stage3 stage4; default: the paper's."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model and self.backbone:
            raise ValueError("--backbone goes with a new model; --model has a trained backbone. Give one of them.")


@dataclass(kw_only=True)
class HeadFinetuning(HeadSettings):
    """A trained model, or a new head on a trained backbone."""

    variant: str = option("", "PVT to load --backbone into, e.g. pvt-small; default: the architecture of --backbone.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model and not self.backbone:
            raise ValueError("There is nothing to fine-tune: give --model, or --backbone to train a new head on it.")


@dataclass(kw_only=True)
class SceneSettings(Settings):
    """The built-in scenes of digits."""

    scene_size: int = option(128, "Side of the built-in scenes, in pixels.")
    digit_sizes: list[int] = option(
        [],
        "Smallest and largest digit in the built-in scenes, in pixels, e.g. 20 60; default: 1/6 and 1/2 of the side.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 32, "scene_size")
