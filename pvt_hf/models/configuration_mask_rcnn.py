"""Configuration of Mask R-CNN (arXiv 1703.06870) on any backbone, PVT by default."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_head import HeadConfig


@strict
class MaskRcnnConfig(HeadConfig):
    r"""
    Configuration of [`MaskRcnnForInstanceSegmentation`]. The defaults are those of the PVT paper (section 5.2; official
    `detection/configs/_base_/models/mask_rcnn_r50_fpn.py`), on PVT-Tiny.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVT-Tiny): Configuration of a model that
            `AutoBackbone` knows. It must return four feature maps at strides 4, 8, 16 and 32:
            `out_features=["stage1", "stage2", "stage3", "stage4"]`.
        fpn_channels (`int`, *optional*, defaults to 256): Channels of the FPN, the proposal head and the mask head.
        box_head_size (`int`, *optional*, defaults to 1024): Width of the two fully connected layers of the box head.
        num_mask_convs (`int`, *optional*, defaults to 4): Number of 3x3 convolutions in the mask head.
        anchor_scale (`float`, *optional*, defaults to 8): Side of the square anchor, in strides of its level.
        anchor_ratios (`list[float]`, *optional*, defaults to `[0.5, 1.0, 2.0]`): Height / width of anchors.
        rpn_positive_iou (`float`, *optional*, defaults to 0.7): Anchors are positive from this IoU with an object.
        rpn_negative_iou (`float`, *optional*, defaults to 0.3): Anchors are background below this IoU with all objects,
            and ignored between the two thresholds. The best anchors of an object are positive from this IoU on.
        rpn_num_samples (`int`, *optional*, defaults to 256): Anchors per image in the proposal loss, at most half of
            them positive.
        num_train_candidates (`int`, *optional*, defaults to 2000): Highest-scoring anchors per level that enter NMS, in
            training.
        num_candidates (`int`, *optional*, defaults to 1000): The same in evaluation.
        num_proposals (`int`, *optional*, defaults to 1000): Proposals per image after NMS, at most.
        rpn_nms_threshold (`float`, *optional*, defaults to 0.7): IoU threshold of NMS among proposals.
        finest_scale (`int`, *optional*, defaults to 56): Regions with a scale (square root of the area) below twice
            this number of pixels are pooled from the finest level. Each doubling moves one level up.
        box_positive_iou (`float`, *optional*, defaults to 0.5): Regions are positive from this IoU with an object, and
            background below.
        box_num_samples (`int`, *optional*, defaults to 512): Regions per image in the box and mask losses, at most a
            quarter of them positive.
        box_code_std (`list[float]`, *optional*, defaults to `[0.1, 0.1, 0.2, 0.2]`): Standard deviations by which box
            offsets (dx, dy, dw, dh) are divided.
        score_threshold (`float`, *optional*, defaults to 0.05): Minimum score of a detection.
        nms_threshold (`float`, *optional*, defaults to 0.5): IoU threshold of NMS among detections of the same class.
        max_detections (`int`, *optional*, defaults to 100): Detections per image, at most.
        num_labels (`int`, *optional*, defaults to 80): Number of classes without background (80 in COCO). Not a field:
            it follows `id2label`. It is written to `config.json`.

    Raises:
        ValueError: a field has an invalid value; the message names it.

    Example:

    ```python
    >>> from pvt_hf import MaskRcnnConfig, MaskRcnnForInstanceSegmentation
    >>> from pvt_hf.weights.variants import get_config

    >>> backbone_config = get_config("pvt-small", out_indices=[0, 1, 2, 3], drop_path_rate=0.1)
    >>> model = MaskRcnnForInstanceSegmentation(MaskRcnnConfig(backbone_config=backbone_config, num_labels=10))
    ```"""

    model_type = "mask_rcnn"

    fpn_channels: int = 256
    box_head_size: int = 1024
    num_mask_convs: int = 4
    anchor_scale: float | int = 8.0
    anchor_ratios: list[float | int] | tuple[float | int, ...] = (0.5, 1.0, 2.0)
    rpn_positive_iou: float | int = 0.7
    rpn_negative_iou: float | int = 0.3
    rpn_num_samples: int = 256
    num_train_candidates: int = 2000
    num_candidates: int = 1000
    num_proposals: int = 1000
    rpn_nms_threshold: float | int = 0.7
    finest_scale: int = 56
    box_positive_iou: float | int = 0.5
    box_num_samples: int = 512
    box_code_std: list[float | int] | tuple[float | int, ...] = (0.1, 0.1, 0.2, 0.2)
    score_threshold: float | int = 0.05
    nms_threshold: float | int = 0.5
    max_detections: int = 100

    def __post_init__(self, **kwargs: Any) -> None:
        self.anchor_ratios, self.box_code_std = list(self.anchor_ratios), list(self.box_code_std)
        super().__post_init__(**kwargs)

    def _validate(self) -> None:
        self._check_at_least(
            1, "fpn_channels", "box_head_size", "rpn_num_samples", "num_train_candidates", "num_candidates",
            "num_proposals", "finest_scale", "box_num_samples", "max_detections", "num_labels",
        )  # fmt: skip
        self._check_at_least(0, "num_mask_convs")
        self._check_anchors()
        if len(self.box_code_std) != 4 or min(self.box_code_std) <= 0:
            raise ValueError(f"box_code_std must be four positive numbers, got {self.box_code_std}.")
        self._check_overlaps("rpn_negative_iou", "rpn_positive_iou")
        self._check_from_zero_to_one("rpn_nms_threshold", "box_positive_iou", "score_threshold", "nms_threshold")


__all__ = ["MaskRcnnConfig"]
