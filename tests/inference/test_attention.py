"""
`pvt_hf.inference.attention`: the maps are the softmax of queries and reduced keys, computed here by hand from the
weights, for a PVT by itself and inside every head; and inputs have sides of which no stage ignores a row or column.

    python -m pytest tests/inference/test_attention.py
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pvt_hf.inference.attention import LARGEST_AREA, LEAST_AREA, attention_inputs, find_pvt, stage_attention

from ..support.hub_kinds import KINDS


def by_hand(attention, hidden_states: torch.Tensor, grid: tuple[int, int], ratio: int) -> torch.Tensor:
    """(queries, keys), of the modules of one block and what went into its attention."""
    keys = hidden_states
    if ratio > 1:
        image = hidden_states[0].T.reshape(1, -1, *grid)
        convolution, norm = attention.sequence_reduction, attention.layer_norm
        image = F.conv2d(image, convolution.weight, convolution.bias, stride=ratio)
        keys = F.layer_norm(image.flatten(2).transpose(1, 2), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    query, key = attention.query(hidden_states)[0], attention.key(keys)[0]
    size, maps = attention.head_dim, []
    for start in range(0, query.shape[1], size):
        scores = query[:, start : start + size] @ key[:, start : start + size].T / math.sqrt(size)
        maps.append(scores.softmax(-1))
    return torch.stack(maps).mean(0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_maps_are_those_of_the_weights(kind):
    model = KINDS[kind].model()
    pvt = find_pvt(model)
    inputs, encoder = {}, pvt.pvt.encoder if hasattr(pvt, "pvt") else pvt.encoder
    for stage, blocks in enumerate(encoder.block):

        def remember(module, arguments, stage=stage):
            inputs[stage] = arguments[0]

        blocks[-1].attention.self.register_forward_pre_hook(remember)
    pixel_values = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    stages = stage_attention(pvt, pixel_values)
    assert len(stages) == len(encoder.block) == 4
    for stage, (found, ratio) in enumerate(zip(stages, (8, 4, 2, 1))):
        stride = 4 * 2**stage
        assert found.grid == (64 // stride, 96 // stride) and found.key_grid == (2, 3)
        expected = by_hand(encoder.block[stage][-1].attention.self, inputs[stage], found.grid, ratio)
        if expected.shape[1] == 7:  # with the cls token, first on both sides
            expected = expected[1:, 1:]
        # Two orders of the same fp32 operations, on numbers from 0 to 1
        np.testing.assert_allclose(found.weights, expected.numpy(), atol=1e-5)
        assert np.abs(found.weights - found.weights[0]).max() > 1e-3  # patches differ
    row, column = stages[0].patch_at(0.5, 0.99)
    assert (row, column) == (8, 23) and stages[3].patch_at(1, 1) == (1, 2)
    assert np.array_equal(stages[0].of_patch(8, 23), stages[0].weights[8 * 24 + 23].reshape(2, 3))


def test_models_without_a_pvt_have_none():
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    assert find_pvt(model) is None


@pytest.mark.parametrize("kind", ["classifier", "semantic_fpn", "retinanet", "mask_rcnn", "detr"])
def test_what_the_model_sees(kind):
    pvt, processor = find_pvt(KINDS[kind].model()), KINDS[kind].make_processor()
    for (width, height), area in (((64, 64), 1), ((4000, 3000), 10**9), ((1, 3000), 50_000), ((200, 100), 40_000)):
        pixel_values = attention_inputs(pvt, processor, Image.new("RGB", (width, height), "white"), area)
        rows, columns = pixel_values.shape[-2:]
        assert rows % 32 == columns % 32 == 0
        # A side is rounded to 32, by at most a half of itself
        assert rows * columns <= 2.25 * LARGEST_AREA and rows * columns >= LEAST_AREA / 4
        assert torch.equal(pixel_values, pixel_values[..., :1, :1].expand_as(pixel_values))  # no padding
    assert (rows, columns) == (128, 288)
    white = [(1 - mean) / std for mean, std in zip(processor.image_mean, processor.image_std)]
    torch.testing.assert_close(pixel_values[0, :, 0, 0], torch.tensor(white, dtype=torch.float32))
