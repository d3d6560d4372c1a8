"""Dense-prediction models of Transformers on a tiny PVT."""

from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from .common import tiny_pvt_config


STAGES = ["stage1", "stage2", "stage3", "stage4"]


def make_mask2former(**overrides) -> Mask2FormerForUniversalSegmentation:
    """With three classes; `overrides` are fields of the PVT's configuration."""
    config = Mask2FormerConfig(
        backbone_config=tiny_pvt_config(**{"out_features": STAGES, **overrides}),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=5,
        train_num_points=64,
        num_labels=3,
    )
    return Mask2FormerForUniversalSegmentation(config)
