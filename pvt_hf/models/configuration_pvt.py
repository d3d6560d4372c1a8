"""Configuration of the Pyramid Vision Transformer (PVT, arXiv 2102.12122)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .configuration_finite import check_finite_fields, check_number_fields, is_integer


# Fields with one entry per stage
_STAGE_FIELDS = (
    "patch_sizes",
    "strides",
    "hidden_sizes",
    "depths",
    "num_attention_heads",
    "sequence_reduction_ratios",
    "mlp_ratios",
)
# Larger values are mistakes, and building the model would fill the memory or take hours.
_LARGEST = {
    "patch_sizes": 1024,
    "strides": 1024,
    "hidden_sizes": 65_536,
    "depths": 1000,
    "num_attention_heads": 65_536,
    "sequence_reduction_ratios": 1024,
    "mlp_ratios": 1024,
    "num_channels": 65_536,
}
LARGEST_IMAGE_SIDE = 16_384
LARGEST_NUM_LABELS = 1_000_000


@strict
class PvtConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of [`PvtModel`], [`PvtForImageClassification`] and [`PvtBackbone`]. The defaults are PVT-Tiny (paper
    Table 1; official `pvt_tiny` in `classification/pvt.py`), the architecture of
    [Zetatech/pvt-tiny-224](https://huggingface.co/Zetatech/pvt-tiny-224).

    Field names are those of Transformers' native `PvtConfig`, so that one `config.json` serves both classes. There are
    three more: `reduction_layer_norm_eps`, and the backbone's `out_features` and `out_indices`.

    Args:
        image_size (`int` or `(int, int)`, *optional*, defaults to 224):
            Image size in pixels, one number for squares or (height, width), that the position tables are built for.
            Inputs may have any size: the model resizes the tables. A square pair is stored as an int, the only form
            that the native class accepts.
        num_channels (`int`, *optional*, defaults to 3): Channels of the images.
        num_encoder_blocks (`int`, *optional*, defaults to 4): Number of stages. Every list below has this length.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 2, 2]`): Transformer blocks per stage. (Table 1 of the
            paper prints 3 for stage 2 of Small and Medium. The official code has 4, which also matches the paper's
            parameter counts.)
        sequence_reduction_ratios (`list[int]`, *optional*, defaults to `[8, 4, 2, 1]`): Reduction ratio of keys and
            values in each stage, R_i in the paper: an R x R square of tokens becomes one token.
        hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 320, 512]`): Channels per stage.
        patch_sizes (`list[int]`, *optional*, defaults to `[4, 2, 2, 2]`): Side of the patches of each stage, in cells
            of the previous stage (in pixels for the first).
        strides (`list[int]`, *optional*, defaults to `[4, 2, 2, 2]`): Must equal `patch_sizes`: PVT's patches do not
            overlap. (The native class swaps the two lists, which has no effect as long as they are equal.)
        num_attention_heads (`list[int]`, *optional*, defaults to `[1, 2, 5, 8]`): Attention heads per stage.
        mlp_ratios (`list[int]`, *optional*, defaults to `[8, 8, 4, 4]`): Hidden size of the MLPs of each stage, in
            multiples of its `hidden_sizes`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the MLPs (exact GELU).
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout after embeddings, projections and MLPs.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout of attention weights.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of the initial values of linear
            weights, position tables and cls token. Convolutions keep PyTorch's default, as in the official code.
        drop_path_rate (`float`, *optional*, defaults to 0.0): Stochastic depth rate of the last block. Rates grow
            linearly from 0 in the first block. Recipes set it: 0.1 for Tiny and Small, 0.3 for Medium and Large.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of the norms in the blocks and the final norm.
        reduction_layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the norms after patch embeddings
            and sequence reductions, which have PyTorch's default in the official code. The native class uses
            `layer_norm_eps` for all norms. If a `config.json` has `layer_norm_eps` but not this field, the native class
            wrote it, and this field takes the same value, so that logits do not change.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether query, key and value projections have a bias.
        out_features (`list[str]`, *optional*): Stages that [`PvtBackbone`] returns, from `"stage1"` to `"stage4"`. By
            default the last one.
        out_indices (`list[int]`, *optional*): The same as indices; 0 is `"stage1"`.
        num_labels (`int`, *optional*, defaults to 1000): Number of classes. Not a field: it follows `id2label`. It is
            written to `config.json`, where the native class reads it.

    Raises:
        ValueError: a field has an invalid value; the message names field and stage.

    Example:

    ```python
    >>> from pvt_hf import PvtConfig, PvtForImageClassification

    >>> model = PvtForImageClassification(PvtConfig(num_labels=10))
    ```"""

    model_type = "pvt"

    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    num_encoder_blocks: int = 4
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    sequence_reduction_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    patch_sizes: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    strides: list[int] | tuple[int, ...] = (4, 2, 2, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: list[int] | tuple[int, ...] = (8, 8, 4, 4)
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float = 1e-6
    reduction_layer_norm_eps: float = 1e-5
    qkv_bias: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    if TYPE_CHECKING:  # arguments of the constructor that are not fields
        num_labels: int = 1000
        out_features: list[str] | None = None
        out_indices: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_finite_fields({**vars(self), **kwargs})
        self._validate()
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = 1000  # ImageNet-1K, as the native default
        check_num_labels(kwargs.get("num_labels"))
        self.image_size = _square_as_int(self.image_size)
        kwargs.pop("stage_names", None)  # derived below; those in a file may not fit an overridden number of stages
        self.stage_names = [f"stage{index}" for index in range(1, self.num_encoder_blocks + 1)]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> PvtConfig:
        """
        Builds a configuration from the content of a `config.json`; `kwargs` override its fields.

        Differs from the base class in three ways: overrides are validated; an override of `num_labels` or `id2label`
        replaces all labels of the file; files of the native class keep their meaning (one epsilon for all norms, and
        `num_labels` classes even if `id2label` names fewer).

        Raises:
            ValueError: as the constructor.
        """
        config_dict = take_overrides(cls, config_dict, kwargs)
        _name_all_labels(config_dict)
        if "layer_norm_eps" in config_dict:
            config_dict.setdefault("reduction_layer_norm_eps", config_dict["layer_norm_eps"])
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, with `num_labels` and a square `image_size` as an int; see the class."""
        output = super().to_dict()
        output["num_labels"] = self.num_labels
        output["image_size"] = _square_as_int(output["image_size"])
        return output

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks in all stages. Transformers expects that many hidden states."""
        return sum(self.depths)

    @property
    def num_backbone_blocks(self) -> int:
        """Number of blocks up to the last stage in `out_features`: all that a backbone has, and its hidden states."""
        assert self.out_features is not None
        return sum(self.depths[: self.stage_names.index(self.out_features[-1]) + 1])

    @property
    def minimum_image_size(self) -> int:
        """Smallest height or width, in pixels, that leaves every stage at least one key: 32 for the paper's models."""
        minimum, stride = 1, 1
        for patch_size, ratio in zip(self.patch_sizes, self.sequence_reduction_ratios):
            stride *= patch_size
            minimum = max(minimum, stride * ratio)
        return minimum

    def grid_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Grid (rows, columns) of every stage for an image of `height` x `width` pixels. All divisions round down."""
        grids = []
        for patch_size in self.patch_sizes:
            height, width = height // patch_size, width // patch_size
            grids.append((height, width))
        return grids

    def _validate(self) -> None:
        stages = self.num_encoder_blocks
        for name in _STAGE_FIELDS:
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(map(is_integer, values)):
                raise ValueError(f"{name} must be a list of {stages} integers, one per stage, got {values!r}.")
        check_number_fields(self)
        if stages < 1:
            raise ValueError(f"num_encoder_blocks must be at least 1, got {stages}.")
        for name in _STAGE_FIELDS:
            values = getattr(self, name)
            if len(values) != stages:
                raise ValueError(
                    f"{name} has {len(values)} entries ({list(values)}) but num_encoder_blocks is {stages}: "
                    f"give {name} one entry per stage, or change num_encoder_blocks."
                )
            for stage, value in enumerate(values, start=1):
                if not 1 <= value <= _LARGEST[name]:
                    raise ValueError(f"{name} of stage {stage} must be from 1 to {_LARGEST[name]:,}, got {value}.")
        for stage, (size, heads) in enumerate(zip(self.hidden_sizes, self.num_attention_heads), start=1):
            if size % heads:
                raise ValueError(
                    f"hidden_sizes of stage {stage} is {size}, which num_attention_heads of stage {stage}, {heads}, "
                    f"does not divide: use {size // heads * heads} or {(size // heads + 1) * heads} channels, or other "
                    "heads."
                )
        if list(self.strides) != list(self.patch_sizes):
            raise ValueError(
                f"strides {list(self.strides)} differ from patch_sizes {list(self.patch_sizes)}: PVT's patches do not "
                "overlap, so give both lists the same values (PVTv2 has overlapping patches)."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a probability of at least 0 and below 1, got {getattr(self, name)}.")
        for name in ("layer_norm_eps", "reduction_layer_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        _check_activation(self.hidden_act)
        if not 1 <= self.num_channels <= _LARGEST["num_channels"]:
            raise ValueError(f"num_channels must be from 1 to {_LARGEST['num_channels']:,}, got {self.num_channels}.")
        sides = (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)
        if len(sides) != 2 or min(sides) < self.minimum_image_size or max(sides) > LARGEST_IMAGE_SIDE:
            raise ValueError(
                f"image_size must be one number or (height, width), each at least {self.minimum_image_size} pixels for "
                f"these patch_sizes and sequence_reduction_ratios, and at most {LARGEST_IMAGE_SIDE:,}, got "
                f"{self.image_size}."
            )


def _check_activation(name: str) -> None:
    """Raises a ValueError for an activation that Transformers does not have."""
    if name == "gelu":
        return
    from transformers.activations import ACT2FN  # takes as long to import as PyTorch

    if name not in ACT2FN:
        raise ValueError(f"hidden_act {name!r} is unknown: choose one of {', '.join(sorted(ACT2FN))}.")


def check_num_labels(num_labels: int | None) -> None:
    """Raises a ValueError for what is no integer, negative or absurdly large. None, the default number, passes."""
    if num_labels is not None and not (is_integer(num_labels) and 0 <= num_labels <= LARGEST_NUM_LABELS):
        raise ValueError(
            f"num_labels must be from 1 to {LARGEST_NUM_LABELS:,}, or 0 for no head where that is possible, got "
            f"{num_labels}."
        )


def _square_as_int(image_size: int | list[int] | tuple[int, int]) -> int | list[int]:
    if isinstance(image_size, int):
        return image_size
    height, width = image_size
    return height if height == width else [height, width]


def take_overrides(cls: type, config_dict: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    Returns `config_dict` with the overrides of labels and of the fields that `cls` declares, and removes these from
    `kwargs`. The constructor then checks them; Transformers would set them on the finished configuration, unchecked.

    An override of `num_labels` or `id2label` replaces all labels of the file. Raises a ValueError for a number
    that is NaN or infinite, in the file or the overrides.
    """
    check_finite_fields({**config_dict, **kwargs})
    config_dict = dict(config_dict)
    if "id2label" in kwargs or kwargs.get("num_labels") not in (None, _number_of_labels(config_dict)):
        for key in ("id2label", "label2id", "num_labels"):
            config_dict.pop(key, None)
    own_fields = {*cls.__annotations__, "id2label", "label2id", "problem_type"}
    config_dict.update({key: kwargs.pop(key) for key in list(kwargs) if key in own_fields})
    return config_dict


def _number_of_labels(config_dict: dict[str, Any]) -> int | None:
    id2label, num_labels = config_dict.get("id2label"), config_dict.get("num_labels")
    return len(id2label) if num_labels is None and id2label is not None else num_labels


def _name_all_labels(config_dict: dict[str, Any]) -> None:
    """Extends or cuts `id2label` to `num_labels` names: in the native class they may differ; `num_labels` counts."""
    id2label, num_labels = config_dict.get("id2label"), config_dict.get("num_labels")
    if id2label is None or num_labels is None or len(id2label) == num_labels:
        return
    check_num_labels(num_labels)
    names = {int(index): name for index, name in id2label.items()}
    names = {index: names.get(index, f"LABEL_{index}") for index in range(num_labels)}
    config_dict["id2label"] = names
    config_dict["label2id"] = {name: index for index, name in names.items()}


def without_default_names(settings: dict[str, Any]) -> dict[str, Any]:
    """
    The content of a head's `config.json` without default class names of its PVT backbone: its 1,000 classes, which it
    does not use, would be listed twice. `num_labels` restores them.
    """
    backbone = settings["backbone_config"]
    names = {label: f"LABEL_{label}" for label in range(backbone.get("num_labels", 0))}
    if names and backbone.get("id2label") == names:
        backbone = {key: value for key, value in backbone.items() if key not in ("id2label", "label2id")}
    return {**settings, "backbone_config": backbone}


def build_backbone_config(
    backbone_config: dict[str, Any] | PreTrainedConfig | None,
    default_out_features: Sequence[str] = ("stage1", "stage2", "stage3", "stage4"),
) -> PreTrainedConfig:
    """
    Builds the configuration object that a head keeps as its `backbone_config`.

    A "pvt" configuration of any class becomes the `PvtConfig` of this very file: the native class has no backbone, and
    Transformers may load this file from a model's folder several times, as different modules.

    Args:
        backbone_config: a configuration or its `to_dict()`. None means PVT-Tiny.
        default_out_features: the `out_features` of that PVT-Tiny.

    Raises:
        ValueError: unknown `model_type`, or as [`PvtConfig`].
    """
    if backbone_config is None:
        return PvtConfig(out_features=list(default_out_features))
    if isinstance(backbone_config, PreTrainedConfig):
        if backbone_config.model_type != "pvt" or isinstance(backbone_config, PvtConfig):
            return backbone_config
        return PvtConfig.from_dict(backbone_config.to_dict())
    model_type = backbone_config.get("model_type", "pvt")
    if model_type == "pvt":
        return PvtConfig.from_dict(backbone_config)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config has the model_type {model_type!r}, which Transformers does not know: use one with an "
            'AutoBackbone class ("pvt", "resnet", "swin", "pvt_v2", "timm_backbone" ...).'
        )
    return CONFIG_MAPPING[model_type].from_dict(dict(backbone_config))


__all__ = [
    "LARGEST_IMAGE_SIDE",
    "PvtConfig",
    "build_backbone_config",
    "check_num_labels",
    "take_overrides",
    "without_default_names",
]
