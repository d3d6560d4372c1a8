"""Base class of the configurations of heads: the backbone, the default number of classes, checks of ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_finite import check_finite_fields, check_number_fields
from .configuration_pvt import build_backbone_config, check_num_labels, take_overrides, without_default_names


# Larger numbers of channels, layers, candidates and so on are mistakes, and would fill the memory.
LARGEST = 1_000_000


@strict
class HeadConfig(PreTrainedConfig):
    """
    Base class for configurations of heads. Subclasses set the class attributes and check their fields in `_validate`.

    Attributes:
        default_out_features: stages of the PVT-Tiny that is used if no `backbone_config` is given.
        default_num_labels: number of classes if neither `num_labels` nor `id2label` is given.
    """

    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="pvt")}
    default_out_features: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4")
    default_num_labels: ClassVar[int] = 80

    backbone_config: dict | PreTrainedConfig | None = None

    if TYPE_CHECKING:  # an argument of the constructor that is not a field; the default is `default_num_labels`
        num_labels: int = 80

    def __post_init__(self, **kwargs: Any) -> None:
        check_finite_fields({**vars(self), **kwargs})
        check_number_fields(self)
        self.backbone_config = build_backbone_config(self.backbone_config, self.default_out_features)
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = self.default_num_labels
        check_num_labels(kwargs.get("num_labels"))
        super().__post_init__(**kwargs)
        self._validate()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> HeadConfig:
        """
        Builds a configuration from the content of a `config.json`; `kwargs` override its fields, and are validated. An
        override of `num_labels` or `id2label` replaces all labels of the file.

        Raises:
            ValueError: as the constructor.
        """
        return super().from_dict(take_overrides(cls, config_dict, kwargs), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, with `num_labels`: Transformers omits `id2label` with two default names."""
        return {**without_default_names(super().to_dict()), "num_labels": self.num_labels}

    def _validate(self) -> None:
        """Raises a ValueError that names an invalid field."""

    def _check_at_least(self, minimum: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}.")
            if getattr(self, name) > LARGEST:
                raise ValueError(f"{name} must be at most {LARGEST:,}, got {getattr(self, name)}.")

    def _check_from_zero_to_one(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}.")

    def _check_overlaps(self, lower: str, upper: str) -> None:
        if not 0 <= getattr(self, lower) <= getattr(self, upper) <= 1:
            raise ValueError(
                f"{lower} must be from 0 to {upper}, and that at most 1, got {getattr(self, lower)} and "
                f"{getattr(self, upper)}."
            )

    def _check_anchors(self) -> None:
        if self.anchor_scale <= 0:
            raise ValueError(f"anchor_scale must be positive, got {self.anchor_scale}.")
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            raise ValueError(f"anchor_ratios must be positive, and at least one, got {self.anchor_ratios}.")

    def _check_semantic_labels(self) -> None:
        if self.num_labels < 2:
            raise ValueError(f"num_labels must be at least 2 (background counts as a class), got {self.num_labels}.")
        if 0 <= self.semantic_loss_ignore_index < self.num_labels:
            raise ValueError(
                f"semantic_loss_ignore_index is {self.semantic_loss_ignore_index}, which is also one of the "
                f"{self.num_labels} classes: choose a number that is none, such as -100."
            )


__all__ = ["HeadConfig"]
