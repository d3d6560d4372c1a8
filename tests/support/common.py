"""A tiny PVT, random weights and images, and the tolerance for fp32 sums in another order."""

import torch
from torch import nn

from pvt_hf import PvtConfig


# Two orders of summation of the same fp32 numbers; outputs of the tiny random models are of order 1.
FP32_TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}

TINY = {
    "image_size": 64,
    "hidden_sizes": [16, 32, 80, 128],
    "num_attention_heads": [1, 2, 5, 8],
    "depths": [1, 2, 1, 1],
    "mlp_ratios": [4, 4, 2, 2],
}


def tiny_pvt_config(**overrides) -> PvtConfig:
    """A four-stage PVT of 0.4 M parameters with the paper's strides, reduction ratios and heads."""
    return PvtConfig(**{**TINY, "num_labels": 5, **overrides})


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Puts random values into every parameter, also into norms and biases: a zero or a one could hide a fault."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = name.endswith("weight") and parameter.ndim == 1
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "embeddings" not in name else 25
            parameter.copy_((1.0 if is_gain else 0.0) + noise * (0.1 if parameter.ndim == 1 else fan_in**-0.5))
    return model


def random_images(batch: int, height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """(batch, channels, height, width), standard normal."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
