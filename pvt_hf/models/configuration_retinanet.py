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
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVT-Tiny): Configuration of a model that
            `AutoBackbone` knows. It must return three feature maps at strides 8, 16 and 32:
            `out_features=["stage2", "stage3", "stage4"]`.
        fpn_channels (`int`, *optional*, defaults to 256): Channels of the FPN and of the two branches of the head.
        num_head_convs (`int`, *optional*, defaults to 4): Number of 3x3 convolutions in each branch of the head, before
            the predicting one.
        anchor_scale (`float`, *optional*, defaults to 4): Side of the smallest square anchor, in strides of its level.
        anchor_scales_per_octave (`int`, *optional*, defaults to 3): Number of anchor sizes per level, spread evenly (in
            the logarithm) up to the smallest size of the next level.
        anchor_ratios (`list[float]`, *optional*, defaults to `[0.5, 1.0, 2.0]`): Height / width of anchors.
        positive_iou (`float`, *optional*, defaults to 0.5): Anchors are positive from this IoU with an object.
        negative_iou (`float`, *optional*, defaults to 0.4): Anchors are background below this IoU with all objects, and
            ignored between the two thresholds. The best anchors of an object are always positive.
        focal_alpha (`float`, *optional*, defaults to 0.25): Weight of positive anchors in the focal loss; background
            has 1 - alpha.
        focal_gamma (`float`, *optional*, defaults to 2): Focusing exponent: down-weights easy anchors.
        prior_probability (`float`, *optional*, defaults to 0.01): Score of every class at initialisation, which keeps
            the loss of the many background anchors small.
        num_candidates (`int`, *optional*, defaults to 1000): Highest-scoring anchors per level in the output.
        num_labels (`int`, *optional*, defaults to 80): Number of classes (80 in COCO). Not a field: it follows
            `id2label`. It is written to `config.json`.

    Raises:
        ValueError: a field has an invalid value; the message names it.

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
