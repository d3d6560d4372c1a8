"""Verifies a converted checkpoint: the model must compute what the official architecture computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..models.modeling_pvt import PvtBackbone, PvtForImageClassification
from .official_forward import official_feature_maps, official_logits


# Largest accepted difference, relative to the largest output or 1. In fp64, rounding stays far below (1e-14 in
# PVT-Large, 1e-9 with weights that amplify it a million times); a wrong layer-norm epsilon gives 1e-6.
TOLERANCE = 1e-8


@torch.no_grad()
def verify(source: Mapping[str, torch.Tensor], folder: str | Path, is_classifier: bool) -> dict[str, Any]:
    """
    Compares the outputs of a saved model with those of the official architecture, in fp64, where rounding does not hide
    small faults.

    The two share no code, see `official_forward`. Numbers of heads and sizes of position tables cannot be read from the
    tensors: both sides take them from the saved configuration, so a wrong number of heads is not detected.

    Args:
        source: the flat official state dict.
        folder: a saved [`PvtForImageClassification`], or a [`PvtBackbone`] if not `is_classifier`.
        is_classifier: whether logits are compared; otherwise feature maps.

    Returns:
        `image_sizes`: the (height, width) compared, in pixels: the model's own, and one that needs resized position
        tables; `max_abs_difference`; `max_abs_value` of the official outputs; `tolerance`, of the difference.

    Raises:
        ValueError: the difference is above the tolerance, or NaN.
    """
    model = (PvtForImageClassification if is_classifier else PvtBackbone).from_pretrained(
        folder,
        dtype=torch.float64,
        attn_implementation="sdpa",  # the eager softmax is in fp32
    )
    config, source = model.config, {key: tensor.double() for key, tensor in source.items()}
    side = config.image_size
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    image_sizes = [size, (size[0] + 33, size[1] + 65)]
    generator = torch.Generator().manual_seed(0)
    differences, values = [], []
    computed: Any
    for height, width in image_sizes:
        pixel_values = torch.randn(1, config.num_channels, height, width, generator=generator, dtype=torch.float64)
        if isinstance(model, PvtForImageClassification):
            expected = [official_logits(source, pixel_values, config.num_attention_heads, size)]
            computed = [model(pixel_values).logits]
        else:
            stages = [config.stage_names.index(name) for name in model.out_features]
            maps = official_feature_maps(source, pixel_values, config.num_attention_heads, size)
            expected, computed = [maps[stage] for stage in stages], model(pixel_values).feature_maps
        for one, other in zip(expected, computed, strict=True):
            differences.append((one - other).abs().max())
            values.append(one.abs().max())
    difference, largest = float(torch.stack(differences).max()), float(torch.stack(values).max())  # max() keeps NaN
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise ValueError(
            f"Verification failed: source and result differ by up to {difference:.3g} in values of up to {largest:.3g} "
            f"(tolerance {TOLERANCE:g} of the largest value). NaN means that the weights are damaged; otherwise the "
            "conversion is wrong: please report it."
        )
    return {
        "image_sizes": image_sizes,
        "max_abs_difference": difference,
        "max_abs_value": largest,
        "tolerance": TOLERANCE * max(largest, 1.0),
    }
