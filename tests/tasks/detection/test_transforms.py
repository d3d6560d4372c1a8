"""
The training transform keeps image, boxes and masks together, with mmdetection's sizes.

    pytest tests/tasks/detection/test_transforms.py
"""

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_hf.tasks.detection.samples import DetectionSample
from pvt_hf.tasks.detection.streams import open_detection_stream
from pvt_hf.tasks.detection.transforms import DetectionTransform


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def scene(seed: int, height: int, width: int, count: int):
    """Rectangles, each in a grey of its own above the next; with their boxes and their masks, all visible."""
    rng = np.random.default_rng(seed)
    pixels, masks = np.zeros((height, width, 3), dtype=np.uint8), []
    for index in range(count):
        # In a cell of its own, so that nothing hides it
        left, right = width * index // count, width * (index + 1) // count
        x0, x1 = left + np.sort(rng.choice(right - left + 1, 2, replace=False))
        y0, y1 = np.sort(rng.choice(height + 1, 2, replace=False))
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[y0:y1, x0:x1] = 1
        pixels[mask == 1] = 20 * (index + 1)
        masks.append(mask)
    masks = torch.from_numpy(np.stack(masks))
    return Image.fromarray(pixels), tight_boxes(masks), masks


def tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """boxes_xyxy around the pixels of each mask."""
    boxes = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return torch.tensor(boxes, dtype=torch.float32)


def mmcv_size(height: int, width: int, shortest_edge: int, longest_edge: int) -> tuple[int, int]:
    factor = min(longest_edge / max(height, width), shortest_edge / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize(("height", "width"), [(60, 100), (110, 70), (64, 64), (33, 400)])
@pytest.mark.parametrize("shortest_edges", [(96,), (64, 80, 144), range(40, 200)])
def test_boxes_after_the_transform_are_those_of_the_masks(height, width, shortest_edges):
    transform = DetectionTransform(**PLAIN, shortest_edges=shortest_edges, longest_edge=250)
    flipped, checked = 0, 0
    for seed in range(10):
        image, boxes, masks = scene(seed, height, width, 3)
        torch.manual_seed(seed)
        pixels, out, out_masks = transform(image, boxes, masks)
        size = tuple(pixels.shape[1:])
        assert size in {mmcv_size(height, width, edge, 250) for edge in shortest_edges} and max(size) <= 250
        assert all(type(value) is torch.Tensor for value in (pixels, out, out_masks))
        assert pixels.dtype == out.dtype == torch.float32 and out_masks.dtype == torch.uint8
        assert out_masks.shape == (3, *size) and set(out_masks.unique().tolist()) <= {0, 1}
        # Where the image shrinks, a mask of one pixel may fall between the pixels that are kept.
        drawn = (out_masks != 0).flatten(1).any(1)
        # Nearest neighbours move an outline by less than a pixel of the larger of the two grids.
        tolerance = 1.001 * max(1.0, size[0] / height, size[1] / width)
        assert (out[drawn] - tight_boxes(out_masks[drawn])).abs().max() <= tolerance
        # In the middle of an object the image has its grey.
        for index in drawn.nonzero()[:, 0].tolist():
            outside = torch.nn.functional.pad(1.0 - out_masks[index][None], [7] * 4, value=1.0)
            inner = torch.nn.functional.max_pool2d(outside, 15, 1)[0] == 0
            greys = pixels[:, inner] * 255
            assert torch.allclose(greys, torch.tensor(20.0 * (index + 1)), atol=1e-3)
            checked += int(inner.any())
        flipped += int(out[0, 0] > out[2, 0])
    assert 0 < flipped < 10 and (checked or height == 33)


def test_without_masks_and_without_objects():
    transform = DetectionTransform(**PLAIN, shortest_edges=(96,), longest_edge=250)
    image, boxes, masks = scene(0, 60, 100, 4)
    torch.manual_seed(3)
    expected = transform(image, boxes, masks)
    torch.manual_seed(3)
    pixels, out, none = transform(image, boxes)
    assert torch.equal(pixels, expected[0]) and torch.equal(out, expected[1]) and none is None
    pixels, out, out_masks = transform(image, torch.zeros(0, 4), torch.zeros(0, 60, 100, dtype=torch.uint8))
    assert pixels.shape == (3, 96, 160) and out.shape == (0, 4) and out_masks.shape == (0, 96, 160)


def test_flip_and_normalisation_by_hand():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    boxes = torch.tensor([[3.0, 4.0, 13.5, 24.0]])
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    for flip, expected, box in (
        (0.0, pixels, [3.0, 4.0, 13.5, 24.0]),
        (1.0, pixels[:, ::-1], [36.5, 4.0, 47.0, 24.0]),
    ):
        transform = DetectionTransform(mean, std, shortest_edges=(40,), longest_edge=50, horizontal_flip=flip)
        out, out_boxes, _ = transform(Image.fromarray(pixels), boxes)
        assert out_boxes.tolist() == [box]
        np.testing.assert_allclose(out.permute(1, 2, 0), (expected / 255 - mean) / std, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427), (33, 2000), (2000, 33), (1, 1), (800, 1333)])
def test_sizes_of_the_papers_recipes(height, width):
    """PAPER_FACTS 4.1: (1333, 800), (1066, 640), and a shorter side from 640 to 800; 4.5: one of a list."""
    image, boxes = Image.new("RGB", (width, height)), torch.zeros(0, 4)
    modes = (((800,), 1333), ((640,), 1066), (range(640, 801), 1333), ((640, 672, 704, 736, 768, 800), 1333))
    for edges, longest in modes:
        torch.manual_seed(0)
        transform = DetectionTransform(**PLAIN, shortest_edges=edges, longest_edge=longest)
        pixels = transform(image, boxes)[0]
        assert pixels.shape[1:] in {mmcv_size(height, width, edge, longest) for edge in edges}
    first = DetectionTransform(**PLAIN).steps.transforms
    assert (first[0].shortest_edges, first[0].longest_edge, first[1].p) == ((800,), 1333, 0.5)


def test_sides_are_drawn_uniformly():
    image, boxes = Image.new("RGB", (8, 8)), torch.zeros(0, 4)
    torch.manual_seed(0)
    transform = DetectionTransform(**PLAIN, shortest_edges=range(8, 24), longest_edge=100)
    sides = [transform(image, boxes)[0].shape[1] for _ in range(800)]
    # 50 expected of each of the 16; the standard deviation is 6.8
    counts = np.bincount(sides, minlength=24)
    assert len(counts) == 24 and not counts[:8].any() and abs(counts[8:] - 50).max() < 35


def test_impossible_sides():
    for settings in ({"shortest_edges": ()}, {"shortest_edges": (0,)}, {"longest_edge": 0}):
        with pytest.raises(ValueError, match="expected at least one side in pixels, all positive"):
            DetectionTransform(**PLAIN, **settings)


def test_labels_are_shares_of_the_resized_image():
    """Of scenes, whose boxes are tight: shares of a box times the size are the mask's box, within a pixel."""
    stream = open_detection_stream("digit-scenes", image_size=64)
    transform = DetectionTransform(**PLAIN, shortest_edges=(96, 128), longest_edge=200)
    sample, sizes = DetectionSample(stream, transform, with_masks=True), set()
    for seed, example in enumerate(stream.dataset.take(6)):
        torch.manual_seed(seed)
        made = sample(example)
        labels = made["labels"]
        height, width = labels["size"].tolist()
        assert made["pixel_values"].shape == (3, height, width) and labels["orig_size"].tolist() == [64, 64]
        center, sides = labels["boxes"].split(2, dim=1)
        boxes = torch.cat([center - sides / 2, center + sides / 2], dim=1) * torch.tensor([width, height] * 2)
        assert (boxes - tight_boxes(labels["masks"])).abs().max() <= 2.001  # a pixel of 64 is two of 128
        sizes.add(height)
    assert sizes == {96, 128}
