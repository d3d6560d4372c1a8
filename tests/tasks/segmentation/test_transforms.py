"""
The training transforms keep image and mask aligned, and follow mmsegmentation's rules.

    pytest tests/tasks/segmentation/test_transforms.py
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from pvt_hf.data.batches import BatchStream
from pvt_hf.tasks.segmentation.samples import SegmentationSample
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream
from pvt_hf.tasks.segmentation.transforms import (
    PhotometricDistortion,
    RandomCropOfClasses,
    RandomRescale,
    SegmentationTransform,
)

from ...support.segmentation_files import CLASSES, picture_of, write_parquet


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "photometric": False}


def blocks(height: int, width: int, side: int = 24) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] // side
    return (rows * 5 + columns * 3) % 25


@pytest.mark.parametrize(("height", "width"), [(170, 250), (256, 90), (60, 60)])
def test_image_and_mask_stay_aligned(height, width):
    """The image tells the mask: in the middle of a block, where nothing is interpolated, both must say the same."""
    labels = blocks(height, width)
    transform = SegmentationTransform(**PLAIN, crop_size=96, shortest_edge=96, longest_edge=384)
    shapes, checked, padded = set(), 0, 0
    for seed in range(40):
        torch.manual_seed(seed)
        pixels, out = transform(Image.fromarray(picture_of(labels)), labels)
        assert pixels.shape == (3, 96, 96) and pixels.dtype == torch.float32 and type(pixels) is torch.Tensor
        assert out.shape == (96, 96) and out.dtype == torch.int64 and type(out) is torch.Tensor
        told = pixels[0] * 255 / 10
        is_padding = out == 255
        assert (pixels[:, is_padding] == 0).all()
        rows, columns = int((~is_padding).any(1).sum()), int((~is_padding).any(0).sum())
        assert not is_padding[:rows, :columns].any(), "padding lies at the right and below alone"
        shapes.add((rows, columns))
        padded += int(is_padding.any())
        windows = torch.nn.functional.unfold(told[None, None], 7).reshape(49, 90, 90)
        is_flat = (windows.amax(0) - windows.amin(0) < 1e-4) & ~is_padding[3:-3, 3:-3]
        checked += int(is_flat.sum())
        assert torch.equal(told[3:-3, 3:-3][is_flat].round().long(), out[3:-3, 3:-3][is_flat])
    assert checked > 20_000 and 0 < padded < 40 and len(shapes) > 5


def test_flip_turns_both():
    labels = blocks(64, 64)
    options = {"crop_size": 64, "shortest_edge": 64, "longest_edge": 64, "min_scale": 1.0, "max_scale": 1.0}
    for probability, expected in ((0.0, labels), (1.0, labels[:, ::-1])):
        transform = SegmentationTransform(**PLAIN, **options, max_class_share=1.0, horizontal_flip=probability)
        pixels, out = transform(Image.fromarray(picture_of(labels)), labels)
        assert np.array_equal(out, expected) and np.array_equal((pixels[1] * 25.5).round(), expected)


def test_defaults_are_the_papers():
    """PAPER_FACTS section 5.2."""
    steps = SegmentationTransform((0.0,) * 3, (1.0,) * 3).steps.transforms
    rescale, crop, flip, photometric = steps[:4]
    assert (rescale.shortest_edge, rescale.longest_edge, rescale.min_scale, rescale.max_scale) == (512, 2048, 0.5, 2.0)
    assert (crop.height, crop.width, crop.max_class_share, flip.p) == (512, 512, 0.75, 0.5)
    assert photometric.contrast == photometric.saturation == (0.5, 1.5) and photometric.p == 0.5
    # mmsegmentation: 32 of 255 grey levels, 18 of OpenCV's 180 steps of hue
    assert photometric.brightness == (1 - 32 / 255, 1 + 32 / 255) and photometric.hue == (-18 / 180, 18 / 180)


@pytest.mark.parametrize(("height", "width"), [(683, 512), (512, 683), (100, 1000), (64, 64), (1500, 2250)])
def test_rescaling_has_mmcvs_sizes(height, width):
    image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
    for scale in (0.5, 0.7, 1.0, 1.33, 2.0):
        long_limit, short_limit = int(2048 * scale), int(512 * scale)
        factor = min(long_limit / max(height, width), short_limit / min(height, width))
        out = RandomRescale(512, 2048, scale, scale)(image)
        assert out.shape[1:] == (int(height * factor + 0.5), int(width * factor + 0.5))


def test_scales_are_drawn_uniformly():
    image = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
    torch.manual_seed(0)
    sides = np.array([RandomRescale(100, 400, 0.5, 2.0)(image).shape[1] for _ in range(2000)])
    assert sides.min() >= 50 and sides.max() <= 200
    # 500 expected in each quarter of the range; the standard deviation is 19
    assert all(abs(count - 500) < 80 for count in np.histogram(sides, bins=4, range=(50, 200))[0])


def test_crops_are_drawn_until_no_class_has_too_much():
    """Against mmsegmentation's rule on the same draws: one and ten more, the last one unchecked."""
    labels = np.full((40, 60), 7, dtype=np.uint8)
    labels[:, 40:] = 3
    labels[:12, :30] = 255
    crop, retried = RandomCropOfClasses(16, 16, 0.75), 0
    for seed in range(60):
        torch.manual_seed(seed)
        image, out = crop(tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8)), tv_tensors.Mask(labels))
        assert image.shape[1:] == (16, 16)
        torch.manual_seed(seed)
        for draw in range(11):
            top, left = int(torch.randint(25, ())), int(torch.randint(45, ()))
            retried += draw == 1
            window = labels[top : top + 16, left : left + 16]
            values, counts = np.unique(window[window != 255], return_counts=True)
            if len(values) > 1 and counts.max() / counts.sum() < 0.75:
                break
        assert np.array_equal(out, window)
    assert 30 < retried < 60


def test_crops_of_small_images_and_of_empty_masks():
    for labels in (np.full((20, 90), 255), np.zeros((90, 20))):
        mask_ = tv_tensors.Mask(labels.astype(np.uint8))
        image, out = RandomCropOfClasses(32, 32, 0.75)(
            tv_tensors.Image(torch.zeros(3, *labels.shape, dtype=torch.uint8)), mask_
        )
        assert image.shape[1:] == out.shape == tuple(min(32, side) for side in labels.shape)


def test_colours_are_distorted_without_exchanging_channels():
    image = tv_tensors.Image(torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).clone())
    labels = tv_tensors.Mask(torch.arange(16, dtype=torch.uint8).reshape(4, 4))
    distort, seen = PhotometricDistortion(), set()
    torch.manual_seed(0)
    for _ in range(200):
        out, kept = distort(image, labels)
        assert torch.equal(kept, labels)
        red, green, blue = out[:, 0, 0].tolist()
        assert red >= max(green, blue)  # 36 degrees of hue leave red the strongest
        seen.add((red, green, blue))
    # An image that nothing changes has a chance of 1/16.
    assert len(seen) > 100 and (200, 60, 60) in seen and any(g != b for _, g, b in seen)


def test_random_draws_belong_to_the_sample(tmp_path):
    stream = open_segmentation_stream(str(write_parquet(tmp_path)))
    transform = SegmentationTransform((0.5,) * 3, (0.5,) * 3, crop_size=32, shortest_edge=32, longest_edge=128)
    batches = BatchStream(stream, SegmentationSample(stream, transform, CLASSES), 6, shuffle_window=4, seed=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = next(iter(batches)), next(iter(batches))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in ("pixel_values", "labels"))
    batches.set_epoch(1)
    assert not torch.equal(next(iter(batches))["pixel_values"], first["pixel_values"])
