import pytest
import safetensors.torch
import torch

from ..support.golden import GOLDEN_OUTPUTS, GOLDEN_WEIGHTS


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Inputs and outputs of the official code."""
    return safetensors.torch.load_file(GOLDEN_OUTPUTS)


@pytest.fixture(scope="session")
def golden_weights() -> dict[str, torch.Tensor]:
    """A classifier's state dict in the official layout."""
    return torch.load(GOLDEN_WEIGHTS, weights_only=True)
