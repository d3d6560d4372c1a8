"""
Masks in the forms that data sets have besides COCO's, and unusable objects as `BadSample`. The rules themselves are
tested in tests/models/test_image_processing_coco.py.

    pytest tests/tasks/detection/test_objects.py
"""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pvt_hf.data.samples import BadSample
from pvt_hf.models import image_processing_masks
from pvt_hf.tasks.detection.objects import decode_masks, encode_masks, mask_to_array, mask_to_rle, read_objects

from ...support.detection_files import encoded, noise, random_mask, run_lengths


# Of pycocotools' arrays, by NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_form_of_a_mask(share):
    mask = random_mask(0, 30, 41, share)
    counts = mask_api.encode(np.asfortranarray(mask))["counts"].decode()
    forms = [{"size": [30, 41], "counts": form} for form in (run_lengths(mask), counts)]
    forms += [json.dumps(form) for form in forms]
    forms += [{"bytes": encoded(image), "path": None} for image in (mask, mask * 255, mask.astype(bool))]
    for form in forms:
        assert np.array_equal(mask_to_array(form, 30, 41), mask)
        assert mask_to_rle(form, 30, 41) == {"size": [30, 41], "counts": counts}


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (None, "no 'segmentation'"),
        ("no json", "not JSON: 'no json'"),
        ([[1, 1, 5, 1, 5]], r"expected \[x1, y1, x2, y2"),
        ({"bytes": encoded(random_mask(0, 40, 30)), "path": None}, "a mask of 40x30 for an image of 30x40"),
        ({"bytes": encoded(noise(0, 30, 40)), "path": None}, "colour image"),
        ({"bytes": b"damaged", "path": None}, "not an image"),
    ],
)
def test_unusable_masks_name_the_object(mask, words):
    square = [[1, 1, 9, 1, 9, 9]]
    value = {"bbox": [[1, 1, 8, 8]] * 2, "category": ["a", "a"], "segmentation": [square, mask]}
    objects = read_objects(value, {"a": 0})
    for function in (decode_masks, encode_masks):
        with pytest.raises(BadSample, match=f"object 1: .*{words}"):
            function(objects, 30, 40)
    with pytest.raises(BadSample, match="object 0: category 'a', which is not among the classes"):
        read_objects(value, {"b": 0})


def test_masks_that_are_images_need_no_pycocotools(monkeypatch):
    monkeypatch.setattr(image_processing_masks, "coco_mask", None)
    mask = random_mask(1, 30, 40)
    assert np.array_equal(mask_to_array({"bytes": encoded(mask), "path": None}, 30, 40), mask)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        mask_to_array([[1, 1, 5, 1, 5, 5]], 30, 40)
