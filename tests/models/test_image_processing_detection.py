"""
The image processors of the detectors prepare images and labels: sizes computed with fractions, Pillow's pixels and
zeros around them; labels against Transformers' own DETR processor and pycocotools. What they make of outputs is in
test_detection_post_processing.py, and which objects they refuse or drop in test_image_processing_coco.py.

    pytest tests/models/test_image_processing_detection.py
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from ..support.image_processing_cases import (
    CLASSES,
    FP32,
    MEAN,
    RAW,
    STD,
    TWO_LEVELS,
    noise,
    scaled_size,
)  # fmt: skip


pytest_plugins = ["tests.support.image_processing_cases"]

# Of pycocotools' arrays, by NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKENDS = CLASSES["detection"]


@pytest.fixture
def processor(backend):
    return BACKENDS[backend]()


# --- Size, pixels and padding ---------------------------------------------------------------------------------------


def aligned(side: int) -> int:
    return (side + 31) // 32 * 32


@pytest.mark.parametrize("size", [(40, 40), (480, 640), (426, 640), (3000, 2000), (33, 2000), (1, 1500)])
def test_defaults_are_the_papers(size):
    image = Image.fromarray(noise(*size))
    height, width = scaled_size(*size, 800, 1333)
    if size in ((480, 640), (426, 640), (3000, 2000)):  # by hand: mmdetection's (1333, 800)
        assert (height, width) == {480: (800, 1067), 426: (800, 1202), 3000: (1200, 800)}[size[0]]
    expected = np.zeros((3, aligned(height), aligned(width)))
    resized = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    expected[:, :height, :width] = ((resized / 255 - MEAN) / STD).transpose(2, 0, 1)
    mask = np.zeros(expected.shape[1:], int)
    mask[:height, :width] = 1
    for backend, tolerance in (("pil", FP32), ("torchvision", TWO_LEVELS)):
        found = BACKENDS[backend]()(image, return_tensors="np")
        assert found.keys() == {"pixel_values", "pixel_mask"}
        assert found["pixel_values"].dtype == np.float32 and found["pixel_mask"].dtype == np.int64
        assert found["pixel_values"].shape == (1, *expected.shape)
        np.testing.assert_allclose(found["pixel_values"][0], expected, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(found["pixel_mask"][0], mask)
        assert (found["pixel_values"][0][:, mask == 0] == 0).all()


def test_a_batch_is_padded_to_the_largest(processor):
    images = [noise(40, 60), noise(70, 30), noise(20, 20)]
    for options, shape in (
        ({}, (96, 64)),
        ({"size_divisor": 1}, (70, 60)),
        ({"size_divisor": 50}, (100, 100)),
        ({"pad_size": {"height": 100, "width": 65}}, (128, 96)),
    ):
        found = processor(images, **{**RAW, **options}, return_tensors="np")
        assert found["pixel_values"].shape == (3, 3, *shape) and found["pixel_mask"].shape == (3, *shape)
        for pixels, mask, image in zip(found["pixel_values"], found["pixel_mask"], images):
            height, width = image.shape[:2]
            np.testing.assert_array_equal(pixels[:, :height, :width], image.transpose(2, 0, 1))
            assert mask[:height, :width].all() and mask.sum() == height * width
            assert (pixels[:, mask == 0] == 0).all()
    listed = processor(images, do_resize=False)
    assert [tuple(pixels.shape) for pixels in listed["pixel_values"]] == [(3, 96, 64)] * 3
    tensors = processor(images, do_resize=False, return_tensors="pt")
    assert tensors["pixel_values"].dtype == torch.float32 and tensors["pixel_mask"].dtype == torch.int64


@pytest.mark.parametrize("max_size", [(100, 100), (50, 500), (300, 90), (31, 33)])
def test_the_largest_size_within_a_frame(backend, max_size):
    """As in Transformers' DETR: enlarged, too, until one side touches the frame."""
    size = {"max_height": max_size[0], "max_width": max_size[1]}
    theirs = DetrImageProcessorPil(size=size, do_pad=False)
    for shape in ((200, 100), (40, 60), (333, 500)):
        height, width = theirs(noise(*shape))["pixel_values"][0].shape[-2:]
        for built, options in ((BACKENDS[backend](size=size), {}), (BACKENDS[backend](), {"size": size})):
            found = built(noise(*shape), **options, return_tensors="pt")
            mask = found["pixel_mask"][0]
            assert (mask.any(1).sum(), mask.any(0).sum()) == (height, width)
            assert found["pixel_values"].shape[-2:] == (aligned(height), aligned(width))
    line = BACKENDS[backend](size=size)(Image.new("RGB", (700, 1)), return_tensors="pt")
    assert line["pixel_mask"][0].any(1).sum() == 1  # Transformers' rule gives 0 rows


def test_bad_settings(processor):
    image = noise(40, 40)
    for options, message in (
        ({"do_center_crop": True, "crop_size": 32}, "do_center_crop=True; boxes are relative to the whole image"),
        ({"do_pad": False}, "do_pad=False; a batch holds images of different sizes"),
        ({"size_divisor": 0}, "size_divisor=0; expected at least 1"),
        ({"pad_size": 32, "do_resize": False}, "larger than the"),
        ({"size": {"longest_edge": 64}}, "expected positive 'shortest_edge'"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(image, **options)


# --- Annotations ----------------------------------------------------------------------------------------------------

OBJECTS = [
    {"bbox": [10, 20, 30, 15], "category_id": 3, "area": 400.0, "iscrowd": 0},
    {"bbox": [5, 5, 50, 30], "category_id": 1, "area": 99.0, "iscrowd": 1},  # a crowd
    {"bbox": [-8.5, 30, 20, 40], "category_id": 0, "area": 300.0},  # beyond the left and the lower edge
    {"bbox": [12, 12, 0, 9], "category_id": 2, "area": 1.0, "iscrowd": 0},  # no area
    {"bbox": [200, 10, 5, 5], "category_id": 2, "area": 25.0, "iscrowd": 0},  # outside
]
TRIANGLES = [[12, 21, 38, 22, 20, 34], [30, 24, 39, 24, 39, 33]]


def with_segmentations() -> list[dict]:
    """Polygons, then run lengths; the objects that are dropped have none."""
    rectangle = np.zeros((50, 80), np.uint8)
    rectangle[30:50, :11] = 1
    encoded = coco_mask.encode(np.asfortranarray(rectangle))
    rle = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return [{**OBJECTS[0], "segmentation": TRIANGLES}, OBJECTS[1], {**OBJECTS[2], "segmentation": rle}, *OBJECTS[3:]]


@pytest.mark.parametrize("with_masks", [False, True])
def test_labels_are_those_of_transformers(backend, with_masks):
    """For an image that needs no padding, where the rules are the same."""
    annotation = {"image_id": 17, "annotations": with_segmentations() if with_masks else OBJECTS}
    reference = json.loads(json.dumps(annotation))
    if with_masks:  # Transformers knows polygons only
        reference["annotations"][2]["segmentation"] = [[0, 30, 11, 30, 11, 50, 0, 50]]
        reference["annotations"][3]["segmentation"] = reference["annotations"][4]["segmentation"] = TRIANGLES
    size = {"height": 96, "width": 160}
    options = {"size": size, "return_segmentation_masks": with_masks, "return_tensors": "pt"}
    found = BACKENDS[backend]()(noise(50, 80), annotation, **options)["labels"]
    native = DetrImageProcessorPil()(noise(50, 80), reference, **options)["labels"]
    assert len(found) == len(native) == 1 and found[0].keys() == native[0].keys()
    for name, values in native[0].items():
        assert found[0][name].dtype == values.dtype and found[0][name].shape == values.shape, name
        if values.is_floating_point():  # several roundings in float32 there, one here
            torch.testing.assert_close(found[0][name], values, rtol=1e-6, atol=1e-6, msg=name)
        else:
            assert torch.equal(found[0][name], values), name
    assert found[0]["class_labels"].tolist() == [3, 0]
    assert not with_masks or found[0]["masks"].sum(dim=(1, 2)).min() > 100


def test_labels_by_hand(backend):
    """Two images that are padded: boxes are relative to the image without its padding, masks are padded."""
    images = [noise(50, 80), noise(100, 40)]
    annotations = [
        {"image_id": 1, "annotations": with_segmentations()},
        {
            "image_id": 2,
            "annotations": [
                {"bbox": np.array([0, 50, 40, 50]), "category_id": 5, "segmentation": [[0, 50, 40, 50, 40, 90, 0, 90]]},
                {"bbox": [0, 50, 40, 50], "category_id": 6, "segmentation": [[0] * 6]},  # a mask without pixels
            ],
        },
    ]
    processor = BACKENDS[backend](size=100, return_segmentation_masks=True)
    labels = processor(images, annotations, return_tensors="np")["labels"]
    first, second = labels
    np.testing.assert_allclose(first["boxes"][0], [25 / 80, 27.5 / 50, 30 / 80, 15 / 50], rtol=1e-6)
    np.testing.assert_allclose(first["boxes"][1], [11.5 / 2 / 80, 40 / 50, 11.5 / 80, 20 / 50], rtol=1e-6)
    np.testing.assert_allclose(first["area"], [1600, 1200], rtol=1e-6)
    assert first["orig_size"].tolist() == [50, 80] and first["size"].tolist() == [100, 160]
    np.testing.assert_allclose(second["boxes"], [[0.5, 0.75, 1, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(second["area"], [2000 * 2.5**2], rtol=1e-6)  # no area was given
    assert second["size"].tolist() == [250, 100] and second["image_id"].tolist() == [2]
    assert first["masks"].shape == (2, 256, 160) and second["masks"].shape == (1, 256, 160)
    assert second["masks"][0, 125:225, :100].all() and second["masks"].sum() == 100 * 100
    expected = np.zeros((256, 160), bool)
    expected[60:100, :22] = True
    np.testing.assert_array_equal(first["masks"][1], expected)
    encoded = coco_mask.merge(coco_mask.frPyObjects(TRIANGLES, 50, 80))
    doubled = coco_mask.decode(encoded).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(first["masks"][0, :100], doubled)
    assert not first["masks"][0, 100:].any()


def test_forms_of_annotations(processor):
    image = noise(50, 80)
    none = processor(
        image, [{"image_id": 3, "annotations": []}], return_segmentation_masks=True, **RAW, return_tensors="np"
    )["labels"][0]
    assert none["boxes"].shape == (0, 4) and none["class_labels"].shape == (0,) and none["masks"].shape == (0, 64, 96)
    assert none["boxes"].dtype == np.float32 and none["class_labels"].dtype == np.int64
    counts = [50 * 80 - 7, 7]
    forms = [{"size": [50, 80], "counts": counts}, {"size": (50, 80), "counts": np.array(counts)}]
    forms.append(dict(coco_mask.frPyObjects(forms[0], 50, 80)))  # bytes
    for form in forms:
        item = {"bbox": [79, 43, 1, 7], "category_id": 0, "segmentation": form}
        annotation = {"image_id": 3, "annotations": [item]}
        mask = processor(image, annotation, return_segmentation_masks=True, **RAW, return_tensors="np")["labels"][0][
            "masks"
        ]
        assert mask.sum() == 7 and mask[0, 43:50, 79].all()
    labels = processor(image, annotation, do_resize=False)["labels"][0]  # without return_tensors
    assert type(labels["boxes"]) is (np.ndarray if processor.backend == "pil" else torch.Tensor)


BAD_OBJECTS = {  # more of them in test_image_processing_coco.py
    "box": ({"bbox": [0, 0, -1, 5]}, r"bbox \[0, 0, -1, 5\]; expected finite"),
    "label": ({"category_id": 1.5}, "category 1.5; expected a class index from 0"),
    "no segmentation": ({"segmentation": None}, "no 'segmentation', which masks need"),
    "size": ({"segmentation": {"size": [5, 5], "counts": [25]}}, r"run lengths of size \[5, 5\] for an image of 50x80"),
}


@pytest.mark.parametrize("name", BAD_OBJECTS)
def test_bad_objects_are_named(processor, name):
    change, message = BAD_OBJECTS[name]
    good = {"bbox": [0, 0, 5, 5], "category_id": 0, "segmentation": [[0, 0, 5, 0, 5, 5]]}
    annotations = [{"image_id": 1, "annotations": [good]}, {"image_id": 2, "annotations": [good, {**good, **change}]}]
    with pytest.raises(ValueError, match=rf"^annotations\[1\]: object 1: .*{message}"):
        processor([noise(50, 80)] * 2, annotations, return_segmentation_masks=True, do_resize=False)


def test_bad_annotations(processor):
    image, good = noise(50, 80), {"image_id": 1, "annotations": []}
    for annotations, count in (([], 0), ([good] * 3, 3), (good, 1)):
        with pytest.raises(ValueError, match=f"{count} annotations for 2 images"):
            processor([image, image], annotations)
    for bad, shown in (({"image_id": 1}, r"\['image_id'\]"), ([], "list")):
        with pytest.raises(ValueError, match=rf"annotations\[0\]: got {shown}; expected a dict with 'image_id'"):
            processor(image, [bad], do_resize=False)


@pytest.mark.gpu
def test_device():
    annotation = {"image_id": 1, "annotations": OBJECTS}
    found = BACKENDS["torchvision"]()(noise(50, 80), annotation, return_tensors="pt", device="cuda")
    tensors = [found["pixel_values"], found["pixel_mask"], *found["labels"][0].values()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
