"""Configuration of RetinaNet (arXiv 1708.02002) on any backbone, PVT by default."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_head import HeadConfig


@strict
class RetinaNetConfig(HeadConfig):
    r"""
    Configuration of [`RetinaNetForObjectDetection`]. The defaults are those of the PVT paper (section 5.2; official
    `detection/configs/_base_/models/retinanet_r50_fpn.py`), on PVT-Tiny.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): Configuration of any model that `AutoBackbone`
            knows, which returns three feature maps at strides 8, 16 and 32:
            `out_features=["stage2", "stage3", "stage4"]`. PVT-Tiny if not given.
        fpn_channels (`int`, *optional*, defaults to 256): Channels of the neck and of the heads.
        num_head_convs (`int`, *optional*, defaults to 4): 3x3 convolutions in each of the two heads, before the last.
        anchor_scale (`float`, *optional*, defaults to 4): Side of the smallest square anchor, in strides of its level.
        anchor_scales_per_octave (`int`, *optional*, defaults to 3): Sizes of anchors between a level and the next.
        anchor_ratios (`list[float]`, *optional*, defaults to `[0.5, 1.0, 2.0]`): Heights of anchors by their widths.
        positive_iou (`float`, *optional*, defaults to 0.5): An anchor stands for an object from this overlap on.
        negative_iou (`float`, *optional*, defaults to 0.4): Below this one it is background; between them, ignored.
        focal_alpha (`float`, *optional*, defaults to 0.25): Weight of the positives in the focal loss.
        focal_gamma (`float`, *optional*, defaults to 2): How much the focal loss makes light of what is known well.
        prior_probability (`float`, *optional*, defaults to 0.01): Score of every class before any training.
        num_candidates (`int`, *optional*, defaults to 1000): Anchors per level, the best, that are returned.
        num_labels (`int`, *optional*, defaults to 80): Number of classes, of COCO by default; `id2label` gives them
            names. Not a field, but written to `config.json`.

    Raises:
        ValueError: a field that no model can be built from; the message names it.

    Example:

    ```python
    >>> from pvt_hf import RetinaNetConfig, RetinaNetForObjectDetection
    >>> from pvt_hf.weights.variants import get_config

    >>> backbone_config = get_config("pvt-small", out_features=["stage2", "stage3", "stage4"], drop_path_rate=0.1)
    >>> model = RetinaNetForObjectDetection(RetinaNetConfig(backbone_config=backbone_config, num_labels=10))
    ```"""

    model_type = "retinanet"
    default_out_features = ("stage2", "stage3", "stage4")

    fpn_channels: int = 256
    num_head_convs: int = 4
    anchor_scale: float | int = 4.0
    anchor_scales_per_octave: int = 3
    anchor_ratios: list[float | int] | tuple[float | int, ...] = (0.5, 1.0, 2.0)
    positive_iou: float | int = 0.5
    negative_iou: float | int = 0.4
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    prior_probability: float | int = 0.01
    num_candidates: int = 1000

    def __post_init__(self, **kwargs: Any) -> None:
        self.anchor_ratios = list(self.anchor_ratios)
        super().__post_init__(**kwargs)

    def _validate(self) -> None:
        self._check_at_least(1, "fpn_channels", "anchor_scales_per_octave", "num_candidates", "num_labels")
        self._check_at_least(0, "num_head_convs")
        self._check_anchors()
        self._check_overlaps("negative_iou", "positive_iou")
        if not 0 < self.prior_probability < 1:
            raise ValueError(f"prior_probability must be between 0 and 1, got {self.prior_probability}.")


__all__ = ["RetinaNetConfig"]
