"""Configuration of Semantic FPN (arXiv 1901.02446) on any backbone, PVT by default."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from .configuration_head import HeadConfig


@strict
class SemanticFpnConfig(HeadConfig):
    r"""
    Configuration of [`SemanticFpnForSemanticSegmentation`]. The defaults are those of the PVT paper (section 5.3;
    official `segmentation/configs/_base_/models/fpn_r50.py`), on PVT-Tiny.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVT-Tiny): Configuration of a model that
            `AutoBackbone` knows. It must return four feature maps at strides 4, 8, 16 and 32:
            `out_features=["stage1", "stage2", "stage3", "stage4"]`.
        fpn_channels (`int`, *optional*, defaults to 256): Channels of the FPN.
        head_channels (`int`, *optional*, defaults to 128): Channels of the head, before the classifier.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.1): Probability of dropping a channel of the
            classifier's input (Dropout2d).
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255): Label of pixels without a class, which the loss
            ignores.
        num_labels (`int`, *optional*, defaults to 150): Number of classes (150 in ADE20K). Not a field: it follows
            `id2label`. It is written to `config.json`.

    Raises:
        ValueError: a field has an invalid value; the message names it.

    Example:

    ```python
    >>> from pvt_hf import SemanticFpnConfig, SemanticFpnForSemanticSegmentation
    >>> from pvt_hf.weights.variants import get_config

    >>> backbone_config = get_config("pvt-small", out_indices=[0, 1, 2, 3], drop_path_rate=0.1)
    >>> model = SemanticFpnForSemanticSegmentation(SemanticFpnConfig(backbone_config=backbone_config, num_labels=11))
    ```"""

    model_type = "semantic_fpn"
    default_num_labels = 150

    fpn_channels: int = 256
    head_channels: int = 128
    classifier_dropout_prob: float | int = 0.1
    semantic_loss_ignore_index: int = 255

    def _validate(self) -> None:
        self._check_at_least(1, "fpn_channels", "head_channels")
        if not 0 <= self.classifier_dropout_prob < 1:
            raise ValueError(
                "classifier_dropout_prob is a probability of at least 0 and below 1, got "
                f"{self.classifier_dropout_prob}."
            )
        self._check_semantic_labels()


__all__ = ["SemanticFpnConfig"]
