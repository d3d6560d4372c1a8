"""
Both PVT image processors give the pixels of torchvision's transforms on a Pillow image (the official evaluation), for
arrays, tensors and batches of any layout, and in a pipeline.

    pytest tests/models/test_image_processing.py
"""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

import pvt_hf
from pvt_hf import PvtImageProcessor, PvtImageProcessorPil

from ..support.image_processing_cases import (
    CLASSES,
    FLOAT_RESIZE,
    FP32,
    MEAN,
    STD,
    TWO_LEVELS,
    encode,
    half_contrast,
    noise,
    official_eval,
    pixels,
)  # fmt: skip


pytest_plugins = ["tests.support.image_processing_cases"]

# 256x259 and 258x256 leave margins of 35 and 34: 17.5 rounds to 18 in torchvision and to 17 in Transformers' helpers.
SIZES = [(256, 256), (256, 259), (258, 256), (333, 500), (501, 334), (31, 45), (224, 224), (2, 3), (1, 1), (600, 257)]


@pytest.fixture
def processor(backend):
    return CLASSES["pvt"][backend]()


@pytest.mark.parametrize("height, width", SIZES)
def test_defaults_are_the_official_evaluation(height, width):
    array = noise(height, width)
    image, soft = Image.fromarray(array), Image.fromarray(half_contrast(array))
    np.testing.assert_allclose(pixels(PvtImageProcessorPil(), image), official_eval(image), rtol=0, atol=FP32)
    np.testing.assert_allclose(pixels(PvtImageProcessor(), soft), official_eval(soft), rtol=0, atol=TWO_LEVELS)
    # Two roundings of up to half a level each average less than half a level, rare clipped pixels included.
    assert np.abs(pixels(PvtImageProcessor(), image) - official_eval(image)).mean() < 0.5 / 255 / min(STD)


@pytest.mark.parametrize("height, width", [(97, 203), (203, 97), (40, 41)])
@pytest.mark.parametrize("shortest, longest", [(48, 64), (48, 101), (33, 69)])
def test_longest_edge_is_torchvisions_max_size(processor, height, width, shortest, longest):
    image = Image.fromarray(noise(height, width))
    size = {"shortest_edge": shortest, "longest_edge": longest}
    expected = T.Resize(shortest, max_size=longest)(image).size[::-1]
    assert pixels(processor, image, size=size, do_center_crop=False).shape[1:] == expected


def test_crop_pads_like_torchvision(processor, backend):
    image = Image.fromarray(half_contrast(noise(40, 61)))
    with pytest.warns(UserWarning, match="padded with black"):
        found = pixels(processor, image, size=40, crop_size=55)
    tolerance = FP32 if backend == "pil" else TWO_LEVELS
    np.testing.assert_allclose(found, official_eval(image, 40, 55), rtol=0, atol=tolerance)


def test_forms_of_size(backend):
    processor_class = CLASSES["pvt"][backend]
    image = Image.fromarray(noise(60, 90))
    built = processor_class(size=48, crop_size=32)
    assert dict(built.size) == {"shortest_edge": 48} and dict(built.crop_size) == {"height": 32, "width": 32}
    expected = pixels(built, image)
    assert expected.shape == (3, 32, 32)
    for size, crop_size in (
        (48, 32),
        ({"shortest_edge": 48}, {"height": 32, "width": 32}),
        ({"height": 48, "width": 72}, 32),
    ):
        np.testing.assert_array_equal(pixels(processor_class(), image, size=size, crop_size=crop_size), expected)
    for size, shape in (
        (48, (48, 72)),
        ({"height": 20, "width": 30}, (20, 30)),
        ((20, 30), (20, 30)),
        ({"longest_edge": 45}, (30, 45)),
        ({"max_height": 30, "max_width": 30}, (20, 30)),
    ):
        assert pixels(processor_class(do_center_crop=False), image, size=size).shape[1:] == shape


@pytest.mark.parametrize("height, width", [(1, 1), (2000, 1), (1, 2000)])
def test_extreme_shapes(processor, backend, height, width):
    image = Image.fromarray(half_contrast(noise(height, width)))
    tolerance = FP32 if backend == "pil" else TWO_LEVELS
    np.testing.assert_allclose(
        pixels(processor, image, size=64, crop_size=56), official_eval(image, 64, 56), rtol=0, atol=tolerance
    )
    shape = pixels(processor, image, size={"shortest_edge": 32, "longest_edge": 64}, do_center_crop=False).shape
    assert min(shape) > 0 and max(shape) <= 64


def test_elongated_image_at_the_default_size(processor):
    found = pixels(processor, Image.fromarray(noise(1, 300)))
    assert found.shape == (3, 224, 224) and np.isfinite(found).all()
    with pytest.raises(ValueError, match=r"image of 1x100000 is so elongated .*256x25600000"):
        processor(Image.new("RGB", (100_000, 1)))


# --- Arrays, tensors, batches ----------------------------------------------------------------------------------------


def test_array_layouts_give_the_same_pixels(processor):
    array = noise(70, 90)
    expected = pixels(processor, Image.fromarray(array))
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    frozen = array.copy()
    frozen.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of read-only arrays
        for image in (
            array,
            first,
            frozen,
            array[::-1].copy()[::-1],  # negative stride
            array.astype(np.int64),
            torch.from_numpy(array),
            torch.from_numpy(first),
            torch.from_numpy(array).permute(2, 0, 1),  # not contiguous
        ):
            np.testing.assert_array_equal(pixels(processor, image), expected)
    np.testing.assert_array_equal(pixels(processor, array, input_data_format="channels_last"), expected)
    np.testing.assert_array_equal(pixels(processor, first, input_data_format="channels_first"), expected)


def test_ambiguous_layout_follows_the_argument(processor):
    array = noise(3, 50)  # (3, 50, 3)
    expected = pixels(processor, Image.fromarray(array))
    np.testing.assert_array_equal(pixels(processor, array, input_data_format="channels_last"), expected)
    transposed = Image.fromarray(array.transpose(1, 2, 0))
    np.testing.assert_array_equal(pixels(processor, array), pixels(processor, transposed))


def test_grey_and_bool_arrays(processor):
    grey = noise(60, 80, 1)
    expected = pixels(processor, Image.fromarray(grey[..., 0]))
    for image in (grey, grey[..., 0], grey.transpose(2, 0, 1), torch.from_numpy(grey[..., 0])):
        np.testing.assert_array_equal(pixels(processor, image), expected)
    mask = grey[..., 0] > 127
    expected = pixels(processor, Image.fromarray(mask))
    for image in (mask, torch.from_numpy(mask), np.dstack([mask] * 3)):
        np.testing.assert_array_equal(pixels(processor, image), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("height, width", [(333, 500), (90, 61)])
def test_floats_are_resized_as_torchvision_resizes_floats(processor, dtype, height, width):
    array = np.round(noise(height, width) / 255 * 16) / 16  # exact in every dtype
    image = array.astype(dtype) if isinstance(dtype, type) else torch.from_numpy(array).permute(2, 0, 1).to(dtype)
    steps = [T.Resize(256, interpolation=T.InterpolationMode.BICUBIC, antialias=True), T.CenterCrop(224)]
    expected = T.Compose([*steps, T.Normalize(MEAN, STD)])(torch.from_numpy(array).permute(2, 0, 1).float()).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels(processor, image, do_rescale=False)
        scaled = pixels(processor, image * 255)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT_RESIZE)
    if "16" not in str(dtype):  # products with 255 are not exact in 16 bits
        np.testing.assert_allclose(scaled, expected, rtol=0, atol=FLOAT_RESIZE)


def test_float_of_a_smooth_picture_is_its_uint8_twin(processor):
    """A smooth ramp does not overshoot, so that only the two roundings of 8-bit resizing remain."""
    rows, columns = np.mgrid[0:200, 0:300]
    array = np.stack([rows, columns * 0.8, (rows + columns) / 2], axis=-1).astype(np.uint8)
    expected = pixels(processor, array)
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    np.testing.assert_allclose(pixels(processor, tensor, do_rescale=False), expected, rtol=0, atol=TWO_LEVELS)


def test_float_range_that_does_not_fit_the_scaling_warns(processor):
    image = noise(40, 40).astype(np.float32)
    with pytest.warns(UserWarning, match=r"only in \[0, 1\] while do_rescale=True"):
        processor(image / 255)
    with pytest.warns(UserWarning, match=r"only in \[0, 1\] while do_rescale=True"):
        processor(torch.from_numpy(image / 255))
    for strange in (image * 257, image - 100, Image.fromarray(image[..., 0] * 257)):
        with pytest.warns(UserWarning, match=r"outside 0..255 while do_rescale=True"):
            processor(strange)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor([image, image * 0, (image / 255 > 2).astype(np.uint8)])


def test_batches(processor):
    images = [Image.fromarray(noise(*size, seed=i)) for i, size in enumerate([(60, 90), (90, 60), (60, 90), (33, 33)])]
    expected = np.stack([pixels(processor, image) for image in images])
    for disable_grouping in (None, False, True):
        found = processor(images, return_tensors="np", disable_grouping=disable_grouping)["pixel_values"]
        np.testing.assert_array_equal(found, expected)
    nested = [images[:1], images[1:3], [], images[3:]]
    np.testing.assert_array_equal(processor(nested, return_tensors="np")["pixel_values"], expected)
    mixed = [images[0], np.array(images[1]), torch.from_numpy(np.array(images[2])), encode(images[3])]
    np.testing.assert_array_equal(processor(tuple(mixed), return_tensors="np")["pixel_values"], expected)
    stack = np.stack([np.array(images[0]), np.array(images[2])])
    for batch in (stack, torch.from_numpy(stack), stack.transpose(0, 3, 1, 2), [stack], [stack[:1], stack[1]]):
        np.testing.assert_array_equal(processor(batch, return_tensors="np")["pixel_values"], expected[[0, 2]])


def test_return_types(processor, backend):
    image = Image.fromarray(noise(40, 50))
    assert isinstance(processor(image, return_tensors="pt")["pixel_values"], torch.Tensor)
    assert processor(image, return_tensors="pt", device="cpu")["pixel_values"].dtype == torch.float32
    assert processor(image, return_tensors="np")["pixel_values"].dtype == np.float32
    plain = processor([image, image])["pixel_values"]
    assert isinstance(plain, list) and len(plain) == 2
    assert isinstance(plain[0], np.ndarray if backend == "pil" else torch.Tensor) and plain[0].shape == (3, 224, 224)


@pytest.mark.gpu
def test_device():
    image = noise(300, 400)
    expected = pixels(PvtImageProcessor(), image)
    for given in (image, noise(300, 400, 4)[..., :3], torch.from_numpy(image).cuda()):
        found = PvtImageProcessor()(given, return_tensors="pt", device="cuda")["pixel_values"]
        assert found.device.type == "cuda" and found.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(found[0].cpu().numpy(), expected, rtol=0, atol=TWO_LEVELS)


# --- In use ---------------------------------------------------------------------------------------------------------


def test_pipeline_gives_the_models_own_answer(processor):
    from transformers import pipeline

    config = pvt_hf.PvtConfig(hidden_sizes=[16, 32, 80, 128], depths=[1, 1, 1, 1], num_labels=3)
    model = pvt_hf.PvtForImageClassification(config).eval()
    images = [Image.fromarray(noise(80, 60)), Image.fromarray(noise(90, 120))]
    answers = pipeline("image-classification", model=model, image_processor=processor)(images, top_k=3)
    with torch.no_grad():
        expected = model(**processor(images, return_tensors="pt")).logits.softmax(-1)
    for answer, probabilities in zip(answers, expected):
        found = {entry["label"]: entry["score"] for entry in answer}
        # one forward pass per image against one for both: float32 sums in another order
        np.testing.assert_allclose([found[f"LABEL_{i}"] for i in range(3)], probabilities.numpy(), rtol=0, atol=1e-5)
