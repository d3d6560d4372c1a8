"""
COCO's objects and masks: what is kept and clipped is what painting on a canvas shows, masks are those of pycocotools,
and broken annotations are refused with the reason.

    pytest tests/models/test_image_processing_coco.py
"""

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pvt_hf.models import image_processing_masks
from pvt_hf.models.image_processing_coco import clean_objects, decode_masks, may_have_objects, read_objects
from pvt_hf.models.image_processing_masks import segmentation_to_mask, segmentation_to_rle

from ..support.detection_files import random_mask, run_lengths


# Of pycocotools' arrays, by NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def objects_of(*boxes, **fields):
    return read_objects({"bbox": list(boxes), "category": [0] * len(boxes), **fields})


# --- Objects --------------------------------------------------------------------------------------------------------


def test_every_form_of_objects():
    items = [{"bbox": np.array([1, 2, 3, 4]), "category_id": 7, "iscrowd": 1}, {"bbox": (5, 6, 7, 8), "category_id": 0}]
    lists = {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": np.array([7, 0]), "iscrowd": [True, False], "area": []}
    for value in (items, tuple(items), lists):
        found = read_objects(value)
        assert found.boxes_xywh.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]] and found.class_labels.tolist() == [7, 0]
        assert found.is_crowd.tolist() == [True, False] and found.areas.tolist() == [12, 56]
        assert found.masks == (None, None)
    named = read_objects({"bbox": [[1, 2, 3, 4]] * 2, "category": ["cat", 90], "area": [None, 5]}, {"cat": 5, 90: 6})
    assert named.class_labels.tolist() == [5, 6] and named.areas.tolist() == [12, 5]
    for nothing in (None, [], {}, {"bbox": [], "category": []}):
        assert read_objects(nothing).boxes_xywh.shape == (0, 4)


def test_cleaning_equals_painting():
    """A box of whole pixels, painted on a canvas that contains the image, is what is visible of it in the image."""
    rng, height, width, margin = np.random.default_rng(0), 30, 40, 60
    boxes = np.concatenate([rng.integers(-50, 50, (500, 2)), rng.integers(0, 50, (500, 2))], axis=1)
    crowds = rng.integers(0, 5, 500) == 0
    expected, positions = [], []
    for index, ((x, y, w, h), crowd) in enumerate(zip(boxes + [margin, margin, 0, 0], crowds)):
        canvas = np.zeros((height + 2 * margin + 50, width + 2 * margin + 50), dtype=bool)
        canvas[y : y + h, x : x + w] = True
        seen = canvas[margin : margin + height, margin : margin + width]
        if seen.any() and not crowd:
            rows, columns = seen.any(1).nonzero()[0], seen.any(0).nonzero()[0]
            expected.append([columns[0], rows[0], len(columns), len(rows)])
            positions.append(index)
    found = clean_objects(objects_of(*boxes.tolist(), iscrowd=crowds.tolist()), height, width)
    assert 50 < len(expected) < 400 and np.array_equal(found.boxes_xywh, expected)
    assert found.positions.tolist() == positions


def test_cleaning_drops_slivers_and_keeps_single_pixels():
    boxes = [[3.25, 4.5, 1, 1], [3.25, 4.5, 1, 0.5], [39.5, 2, 9, 9], [38.9, 2, 9, 9], [0, 0, 0, 5], [1e9, 0, 5, 5]]
    found = clean_objects(objects_of(*boxes), 30, 40)
    np.testing.assert_allclose(found.boxes_xywh, [[3.25, 4.5, 1, 1], [38.9, 2, 1.1, 9]])


def test_objects_are_foreseen_without_the_image():
    box, sliver = [1, 2, 3, 4], [1, 2, 3, 0.5]
    for boxes, crowds, expected in (
        ([box], [0], True), ([box], [1], False), ([sliver], [0], False), ([sliver, box], [0, 0], True), ([], [], False)
    ):  # fmt: skip
        assert may_have_objects({"bbox": boxes, "iscrowd": crowds}) == expected
    assert may_have_objects([{"bbox": [1, 2]}]) and may_have_objects("broken")  # reported where it is read


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bbox": [[1, 2, -3, 4]]}, "object 0: bbox .*no negative sides"),
        ({"bbox": [[1, 2, 3, float("nan")]]}, "nan"),
        ({"bbox": [[float("inf"), 2, 3, 4]]}, "inf"),
        ({"bbox": [[1, 2, 3]]}, r"\[1, 2, 3\]; expected finite \[x, y, width, height\]"),
        ({"bbox": [None]}, "None"),
        ({"category": [7]}, "category 7, which is not among the classes"),
        ({"category": [None]}, "category None"),
        ({"category": ["dog"]}, "category 'dog'"),
        ({"category": [[]]}, r"category \[\]"),
        ({"category": None}, "category None"),
        ({"category": [0, 1]}, "different lengths: .*'bbox': 1, 'category': 2"),
        ({"iscrowd": [0, 0]}, "different lengths"),
        ({"segmentation": [None, None]}, "different lengths"),
        ({"area": ["large"]}, "'large'"),
        ({"area": [-1]}, "area -1.0; expected a finite number"),
        ({"area": [float("inf")]}, "area inf"),
    ],
)
def test_impossible_objects(change, words):
    value = {"bbox": [[1, 2, 3, 4]], "category": ["cat"]}
    with pytest.raises(ValueError, match=words):
        read_objects({**value, **change}, {"cat": 5, 0: 5, 1: 6})


def test_impossible_labels_and_containers():
    for category in (-1, 1.5, "cat", None):
        with pytest.raises(ValueError, match=f"object 0: category {category!r}; expected a class index from 0"):
            read_objects([{"bbox": [1, 2, 3, 4], "category_id": category}])
    for value in ("text", [3], 7):
        with pytest.raises(ValueError, match="expected a list of dicts or a dict of lists"):
            read_objects(value)


# --- Masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_every_form_of_run_lengths(share):
    mask = random_mask(0, 30, 41, share)
    counts = mask_api.encode(np.asfortranarray(mask))["counts"]
    for form in (run_lengths(mask), tuple(run_lengths(mask)), np.array(run_lengths(mask)), counts.decode(), counts):
        for size in ([30, 41], (30, 41)):
            segmentation = {"size": size, "counts": form}
            assert np.array_equal(segmentation_to_mask(segmentation, 30, 41), mask)
            assert segmentation_to_rle(segmentation, 30, 41) == {"size": [30, 41], "counts": counts}


def test_polygons_are_filled():
    """pycocotools fills exactly the pixels between whole coordinates."""
    expected = np.zeros((30, 40), dtype=np.uint8)
    expected[4:10, 3:20] = expected[20:30, 35:40] = 1
    parts = [[3, 4, 20, 4, 20, 10, 3, 10], [35, 20, 60, 20, 60, 50, 35, 50]]
    for polygons in (parts, tuple(parts), [*parts, [1, 2], [5, 5, 9, 9]], [np.array(part) for part in parts]):
        assert np.array_equal(segmentation_to_mask(polygons, 30, 40), expected)
    for nothing in ([[5, 5, 9, 9]], []):
        assert not segmentation_to_mask(nothing, 30, 40).any()


def test_objects_without_pixels_are_dropped():
    square = [[3, 4, 20, 4, 20, 10, 3, 10]]
    objects = objects_of([1, 1, 9, 9], [2, 2, 9, 9], [3, 3, 9, 9], segmentation=[square, [[1, 1, 6, 6]], square])
    found, masks = decode_masks(objects, 30, 40)
    assert found.positions.tolist() == [0, 2] and len(masks) == 2
    assert all(mask.sum() == 17 * 6 for mask in masks)
    with pytest.raises(ValueError, match="object 2: no 'segmentation', which masks need"):
        decode_masks(objects_of([1, 1, 9, 9], [2, 2, 9, 9], [3, 3, 9, 9], segmentation=[square, square, None]), 30, 40)


BROKEN_MASKS = [
    (None, "no 'segmentation'"),
    ([[1, 1, 5, 1, 5]], r"expected \[x1, y1, x2, y2"),
    ([[1, 1, 5, 1, 5, "a"]], "the polygon"),
    ([[1, 1, 5, 1, 5, float("nan")]], "NaN, or far outside its image of 30x40"),
    ([[1, 1, 5, 1, 5, 1e9]], "far outside"),
    ([[1, 1, 5, 1, 5, 5], 7], "the polygon 7"),
    (7, "a segmentation of type int; expected polygons or run lengths"),
    ({"size": [40, 30], "counts": [1200]}, r"run lengths of size \[40, 30\] for an image of 30x40"),
    ({"size": [30, 40], "counts": [1199]}, "add up to 1199; expected 30x40"),
    ({"size": [30, 40], "counts": [-1, 1201]}, "none negative"),
    ({"size": [30, 40], "counts": []}, "add up to 0"),
    ({"size": [30, 40], "counts": [600.5, 599.5]}, "a list of integers"),
    ({"size": [30, 40], "counts": "~~~"}, "invalid characters"),
    ({"size": [30, 40], "counts": b""}, "add up to 0"),
    ({"counts": "abc"}, "expected 'size' and 'counts'"),
    ({"size": 30, "counts": [1200]}, "expected 'size' and 'counts'"),
]


@pytest.mark.parametrize(("segmentation", "words"), BROKEN_MASKS)
def test_broken_segmentations(segmentation, words):
    for function in (segmentation_to_mask, segmentation_to_rle):
        with pytest.raises((TypeError, ValueError), match=words):
            function(segmentation, 30, 40)


def test_run_lengths_that_are_cut_off_anywhere():
    """pycocotools decodes most of them, partly from memory that it does not own."""
    counts = mask_api.encode(np.asfortranarray(random_mask(0, 30, 40)))["counts"]
    for length in range(len(counts)):
        with pytest.raises(ValueError, match="cut off|add up"):
            segmentation_to_mask({"size": [30, 40], "counts": counts[:length]}, 30, 40)
    long_runs = np.zeros((500, 700), dtype=np.uint8)
    long_runs[100:, 300:650] = 1
    rle = mask_api.encode(np.asfortranarray(long_runs))
    assert np.array_equal(segmentation_to_mask(rle, 500, 700), long_runs)


def test_without_pycocotools_the_error_names_it(monkeypatch):
    monkeypatch.setattr(image_processing_masks, "coco_mask", None)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        segmentation_to_mask([[1, 1, 5, 1, 5, 5]], 30, 40)
