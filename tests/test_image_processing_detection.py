"""
The image processors of the detectors: sizes computed with fractions, Pillow's pixels and zeros around them; labels
against Transformers' own DETR processor and pycocotools; suppression, DETR's choice and the pasting of masks against
loops over boxes and pixels; the image-segmentation pipeline; files and their code in clean processes.

    pytest tests/test_image_processing_detection.py
"""

import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig, pipeline
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline
from transformers.pipelines.object_detection import ObjectDetectionPipeline

from pvt_hf import image_processing_coco, image_processing_pil_detection
from pvt_hf.image_processing_detection import PvtDetectionImageProcessor
from pvt_hf.image_processing_detr import PvtDetrImageProcessor
from pvt_hf.image_processing_instance import PvtInstanceImageProcessor
from pvt_hf.image_processing_pil_detection import PvtDetectionImageProcessorPil
from pvt_hf.image_processing_pil_detr import PvtDetrImageProcessorPil
from pvt_hf.image_processing_pil_instance import PvtInstanceImageProcessorPil

from .clean_process import run_python
from .test_image_processing import FP32, MEAN, STD, TWO_LEVELS, encode, mode_examples, noise
from .test_image_processing_semantic import half_up


# Of pycocotools' arrays, by NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKENDS = {"pil": PvtDetectionImageProcessorPil, "torchvision": PvtDetectionImageProcessor}
ALL = {
    "detection": BACKENDS,
    "detr": {"pil": PvtDetrImageProcessorPil, "torchvision": PvtDetrImageProcessor},
    "instance": {"pil": PvtInstanceImageProcessorPil, "torchvision": PvtInstanceImageProcessor},
}
RAW = {"do_resize": False, "do_rescale": False, "do_normalize": False, "return_tensors": "np"}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def processor(backend):
    return BACKENDS[backend]()


# --- Size, pixels and padding ---------------------------------------------------------------------------------------


def scaled_size(height: int, width: int, short: int = 800, long: int = 1333) -> tuple[int, int]:
    """Shorter side `short`, longer at most `long`, halves up."""
    factor = min(Fraction(short, min(height, width)), Fraction(long, max(height, width)))
    return tuple(max(half_up(side * factor), 1) for side in (height, width))


def aligned(side: int) -> int:
    return (side + 31) // 32 * 32


@pytest.mark.parametrize("size", [(40, 40), (480, 640), (426, 640), (3000, 2000), (33, 2000), (1, 1500)])
def test_defaults_are_the_papers(size):
    image = Image.fromarray(noise(*size))
    height, width = scaled_size(*size)
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
        found = processor(images, **{**RAW, **options})
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


@pytest.mark.parametrize("name", mode_examples())
def test_every_mode_of_image(name):
    image, expected = mode_examples()[name]
    for processor_class in BACKENDS.values():
        found = processor_class(size_divisor=16)(image, **RAW)["pixel_values"][0]
        np.testing.assert_array_equal(found, expected)


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
    """Polygons, then run lengths, and nothing that is left out needs to be decoded."""
    rectangle = np.zeros((50, 80), np.uint8)
    rectangle[30:50, :11] = 1
    encoded = coco_mask.encode(np.asfortranarray(rectangle))
    rle = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return [{**OBJECTS[0], "segmentation": TRIANGLES}, OBJECTS[1], {**OBJECTS[2], "segmentation": rle}, *OBJECTS[3:]]


@pytest.mark.parametrize("with_masks", [False, True])
def test_labels_are_those_of_transformers(backend, with_masks):
    """One image that needs no padding, where the rules are the same."""
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
            "annotations": [{"bbox": np.array([0, 50, 40, 50]), "category_id": 5, "segmentation": [[0] * 6]}],
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
    expected = np.zeros((256, 160), bool)
    expected[60:100, :22] = True
    np.testing.assert_array_equal(first["masks"][1], expected)
    encoded = coco_mask.merge(coco_mask.frPyObjects(TRIANGLES, 50, 80))
    doubled = coco_mask.decode(encoded).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(first["masks"][0, :100], doubled)
    assert not first["masks"][0, 100:].any()


def test_forms_of_annotations(processor):
    image = noise(50, 80)
    none = processor(image, [{"image_id": 3, "annotations": []}], return_segmentation_masks=True, **RAW)["labels"][0]
    assert none["boxes"].shape == (0, 4) and none["class_labels"].shape == (0,) and none["masks"].shape == (0, 64, 96)
    assert none["boxes"].dtype == np.float32 and none["class_labels"].dtype == np.int64
    counts = [50 * 80 - 7, 7]
    forms = [{"size": [50, 80], "counts": counts}, {"size": (50, 80), "counts": np.array(counts)}]
    forms.append(dict(coco_mask.frPyObjects(forms[0], 50, 80)))  # bytes
    for form in forms:
        item = {"bbox": [79, 43, 1, 7], "category_id": 0, "segmentation": form}
        annotation = {"image_id": 3, "annotations": [item]}
        mask = processor(image, annotation, return_segmentation_masks=True, **RAW)["labels"][0]["masks"]
        assert mask.sum() == 7 and mask[0, 43:50, 79].all()
    labels = processor(image, annotation, do_resize=False)["labels"][0]  # without return_tensors
    assert type(labels["boxes"]) is (np.ndarray if processor.backend == "pil" else torch.Tensor)


BAD_OBJECTS = {
    "negative width": ({"bbox": [0, 0, -1, 5]}, r"bbox \[0.0, 0.0, -1.0, 5.0\]; expected finite"),
    "nan": ({"bbox": [0, float("nan"), 1, 5]}, "bbox .*nan.*; expected finite"),
    "three numbers": ({"bbox": [0, 1, 5]}, "bbox .*; expected finite"),
    "negative label": ({"category_id": -1}, "category_id -1; expected a class index from 0"),
    "float label": ({"category_id": 1.5}, "'float' object cannot be interpreted as an integer"),
    "area": ({"area": float("nan")}, "area nan; expected a finite number"),
    "no segmentation": ({"segmentation": None}, "no 'segmentation', which return_segmentation_masks=True needs"),
    "two points": ({"segmentation": [[0, 0, 5, 5]]}, r"polygons with \[4\] numbers"),
    "no polygon": ({"segmentation": []}, r"polygons with \[\] numbers"),
    "nan in a polygon": ({"segmentation": [[0, 0, 5, 5, float("nan"), 9]]}, "all finite"),
    "another size": ({"segmentation": {"size": [5, 5], "counts": [25]}}, r"RLE of size \[5, 5\] for an image of 50x80"),
    "too few counts": ({"segmentation": {"size": [50, 80], "counts": [25]}}, "add up to 25; expected 50x80"),
    "text": ({"segmentation": "mask.png"}, "a segmentation of type str; expected polygons or RLE"),
}


@pytest.mark.parametrize("name", BAD_OBJECTS)
def test_bad_objects_are_named(processor, name):
    change, message = BAD_OBJECTS[name]
    good = {"bbox": [0, 0, 5, 5], "category_id": 0, "segmentation": [[0, 0, 5, 0, 5, 5]]}
    annotations = [{"image_id": 1, "annotations": [good]}, {"image_id": 2, "annotations": [good, {**good, **change}]}]
    with pytest.raises(ValueError, match=rf"^annotations\[1\]: object 1: .*{message}"):
        processor([noise(50, 80)] * 2, annotations, return_segmentation_masks=True, do_resize=False)


def test_bad_annotations(processor, monkeypatch):
    image, good = noise(50, 80), {"image_id": 1, "annotations": []}
    for annotations, count in (([], 0), ([good] * 3, 3), (good, 1)):
        with pytest.raises(ValueError, match=f"{count} annotations for 2 images"):
            processor([image, image], annotations)
    for bad, shown in (({"image_id": 1}, r"\['image_id'\]"), ([], "list")):
        with pytest.raises(ValueError, match=rf"annotations\[0\]: got {shown}; expected a dict with 'image_id'"):
            processor(image, [bad], do_resize=False)
    with pytest.raises(ValueError, match=r"object 0: got \['bbox'\]; expected a dict with 'bbox' and 'category_id'"):
        processor(image, {"image_id": 1, "annotations": [{"bbox": [0, 0, 1, 1]}]}, do_resize=False)
    monkeypatch.setattr(image_processing_coco, "coco_mask", None)
    with pytest.raises(ImportError, match=r"pip install 'pvt-hf\[detection\]'"):
        image_processing_coco.segmentation_to_mask(TRIANGLES, 50, 80)


# --- Boxes ----------------------------------------------------------------------------------------------------------


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def suppressed(logits, boxes_cxcywh, threshold: float, size: tuple[int, int], nms: float, most: int) -> list[tuple]:
    """(score, label, box) of one image by loops over Python numbers."""
    pairs = []
    for row, (cx, cy, width, height) in zip(logits.double().sigmoid().tolist(), boxes_cxcywh.double().tolist()):
        edges = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
        box = [min(max(edge, 0), 1) * size[1 - i % 2] for i, edge in enumerate(edges)]
        pairs += [(score, label, box) for label, score in enumerate(row) if score > threshold]
    kept = []
    for score, label, box in sorted(pairs, key=lambda pair: -pair[0]):
        if all(label != other or iou(box, its) <= nms for _, other, its in kept):
            kept.append((score, label, box))
    return kept[:most]


@pytest.mark.parametrize("threshold, nms, most", [(0.5, 0.5, 100), (0.05, 0.5, 100), (0.3, 0.2, 20), (0.99999, 0.5, 9)])
def test_suppression_by_class(backend, threshold, nms, most):
    torch.manual_seed(0)
    logits = torch.randn(2, 150, 4) - 1
    boxes = torch.cat([torch.rand(2, 150, 2), torch.rand(2, 150, 2) * 0.4 + 0.05], dim=-1)
    sizes = [(300, 500), (90, 41)]
    processor = BACKENDS[backend](nms_threshold=nms, max_detections=most)
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    relative = processor.post_process_object_detection(outputs, threshold)
    for target_sizes in (sizes, torch.tensor(sizes), torch.tensor(sizes).unbind()):
        found = processor.post_process_object_detection(outputs, threshold, target_sizes)
        assert len(found) == 2
        for image, size in enumerate(sizes):
            expected = suppressed(logits[image], boxes[image], threshold, size, nms, most)
            assert len(expected) == {0.05: 100, 0.3: 20, 0.99999: 0}.get(threshold, len(expected))
            assert [label for _, label, _ in expected] == found[image]["labels"].tolist()
            np.testing.assert_allclose(found[image]["scores"], [score for score, _, _ in expected], rtol=1e-6)
            wanted = np.array([box for _, _, box in expected]).reshape(-1, 4)
            np.testing.assert_allclose(found[image]["boxes"], wanted, atol=1e-4)  # float32 pixels up to 500
            assert torch.equal(relative[image]["labels"], found[image]["labels"])
            scale = torch.tensor([size[1], size[0]] * 2)
            torch.testing.assert_close(relative[image]["boxes"] * scale, found[image]["boxes"])
            shapes = [tuple(found[image][name].shape) for name in ("scores", "labels", "boxes")]
            assert shapes == [(len(expected),), (len(expected),), (len(expected), 4)]
            assert found[image]["boxes"].dtype == torch.float32 and found[image]["labels"].dtype == torch.int64


def test_detr_is_that_of_transformers():
    torch.manual_seed(0)
    logits = torch.randn(3, 40, 6) * 2
    boxes = torch.rand(3, 40, 4) * 0.5 + 0.25  # 0.25 ± 0.375 reaches beyond the image
    boxes[:2, :, :2] = 0.5  # within it, where Transformers need not clip
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    sizes = [(300, 500), (90, 41), (64, 64)]
    for processor in (PvtDetrImageProcessorPil(), PvtDetrImageProcessor()):
        for target_sizes, limits in ((sizes, sizes), (torch.tensor(sizes), sizes), (None, [(1, 1)] * 3)):
            for threshold in (0.0, 0.5, 1.0):
                arguments = (outputs, threshold, target_sizes)
                found = processor.post_process_object_detection(*arguments)
                native = DetrImageProcessorPil().post_process_object_detection(*arguments)
                for ours, theirs, (height, width) in zip(found, native, limits, strict=True):
                    order = theirs["scores"].argsort(descending=True)
                    assert len(order) == 40 if threshold == 0 else len(order) < 40
                    assert torch.equal(ours["labels"], theirs["labels"][order])
                    torch.testing.assert_close(ours["scores"], theirs["scores"][order])
                    clipped = theirs["boxes"].clamp(min=0).minimum(torch.tensor([width, height] * 2).float())
                    torch.testing.assert_close(ours["boxes"], clipped[order])
        assert not torch.equal(clipped, theirs["boxes"]) or threshold == 1.0


@pytest.mark.parametrize("sizes", [[], [(4, 4)], [(4, 4)] * 3, [(4, 4), (4, 0)], [(4, 4), (3, 4, 4)]])
@pytest.mark.parametrize("task", ALL)
def test_bad_target_sizes(task, sizes):
    with pytest.raises(ValueError, match="expected (one|a positive) .*per image"):
        ALL[task]["pil"]().post_process_object_detection(detections(2, 5), target_sizes=sizes)


def test_only_the_methods_of_the_task(backend):
    boxes = "post_process_object_detection"
    methods = {"detection": [boxes], "detr": [boxes], "instance": ["post_process_instance_segmentation", boxes]}
    for task, names in methods.items():
        assert [name for name in dir(ALL[task][backend]()) if name.startswith("post_process")] == names


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(image_processing_pil_detection, "batched_nms", None)
    with pytest.raises(ImportError, match=r"needs torchvision: pip install 'pvt-hf\[detection\]'"):
        PvtDetectionImageProcessorPil().post_process_object_detection(detections(1, 5))


# --- Masks ----------------------------------------------------------------------------------------------------------


def detections(batch: int, count: int, grid: int = 28, seed: int = 0) -> SimpleNamespace:
    """What a Mask R-CNN gives, and `logits` for the other contracts; the last two rows of each image are padding."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, count, generator=generator) * 0.9 + 0.1
    centres, sides = torch.rand(2, batch, count, 2, generator=generator)
    masks = torch.nn.functional.interpolate(torch.randn(batch, count, 4, 4, generator=generator), grid, mode="bicubic")
    return SimpleNamespace(
        logits=torch.randn(batch, count, 3, generator=generator),
        pred_scores=scores,
        pred_labels=torch.randint(0, 7, (batch, count), generator=generator),
        pred_boxes=torch.cat([centres, sides * 0.5 + 0.1], dim=-1),
        num_detections=torch.full((batch,), count - 2),
        pred_masks=masks * 3,
    )


def pasted(mask_logits: torch.Tensor, box: list[float], height: int, width: int) -> np.ndarray:
    """(height, width) probabilities by a loop over pixels: bilinear among the cell centres, zero outside of them."""
    probabilities = 1 / (1 + np.exp(-mask_logits.double().numpy()))
    rows, columns = probabilities.shape
    x0, y0, x1, y1 = box
    image = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            if not (x0 <= x + 0.5 <= x1 and y0 <= y + 0.5 <= y1 and x1 > x0 and y1 > y0):
                continue
            v = (y + 0.5 - y0) / (y1 - y0) * rows - 0.5
            u = (x + 0.5 - x0) / (x1 - x0) * columns - 0.5
            for row in (int(np.floor(v)), int(np.floor(v)) + 1):
                for column in (int(np.floor(u)), int(np.floor(u)) + 1):
                    if 0 <= row < rows and 0 <= column < columns:
                        image[y, x] += (1 - abs(v - row)) * (1 - abs(u - column)) * probabilities[row, column]
    return image


@pytest.mark.parametrize("mask_threshold", [0.5, 0.3])
@pytest.mark.parametrize("size", [(50, 70), (41, 9)])
def test_masks_are_pasted_at_pixel_centres(size, mask_threshold):
    outputs = detections(1, 12)
    outputs.pred_boxes[0, 0] = torch.tensor([0.5, 0.5, 1, 1])
    outputs.pred_boxes[0, 1] = torch.tensor([0.31, 0.5, 0.0001, 0.5])  # between two pixel centres
    outputs.pred_boxes[0, 2] = torch.tensor([0.31, 0.5, 0, 0])
    for processor in (PvtInstanceImageProcessorPil(), PvtInstanceImageProcessor()):
        found = processor.post_process_instance_segmentation(
            outputs, 0.2, mask_threshold, target_sizes=[size], return_binary_maps=True
        )[0]
        boxes = processor.post_process_object_detection(outputs, 0.2, [size])[0]
        segments = found["segments_info"]
        order = outputs.pred_scores[0, :10].argsort(descending=True)
        order = order[outputs.pred_scores[0][order] > 0.2]
        assert found["segmentation"].dtype == torch.bool and found["segmentation"].shape == (len(order), *size)
        assert [segment["id"] for segment in segments] == list(range(len(order))) and len(order) >= 8
        assert [segment["label_id"] for segment in segments] == outputs.pred_labels[0][order].tolist()
        assert [segment["score"] for segment in segments] == outputs.pred_scores[0][order].tolist()
        assert torch.equal(boxes["scores"], outputs.pred_scores[0][order])
        assert torch.equal(boxes["labels"], outputs.pred_labels[0][order])
        for mask, row, box in zip(found["segmentation"], order.tolist(), boxes["boxes"].tolist()):
            cx, cy, width, height = outputs.pred_boxes[0, row].tolist()
            edges = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
            expected = [min(max(edge, 0), 1) * size[1 - i % 2] for i, edge in enumerate(edges)]
            np.testing.assert_allclose(box, expected, atol=1e-5)  # float32 pixels up to 70
            probabilities = pasted(outputs.pred_masks[0, row], box, *size)
            clear = abs(probabilities - mask_threshold) > 1e-4  # rounding may decide the others
            np.testing.assert_array_equal(mask.numpy()[clear], (probabilities >= mask_threshold)[clear])
            assert clear.mean() > 0.99


def greedy(masks: np.ndarray, overlap: float) -> tuple[np.ndarray, list[int]]:
    """The map of masks that are ordered by score, and which of them are in it, by sets of pixels."""
    taken, kept, segmentation = set(), [], np.zeros(masks.shape[1:], int)
    for index, mask in enumerate(masks):
        pixels = set(zip(*map(tuple, np.nonzero(mask))))
        free = pixels - taken
        if free and len(free) / len(pixels) > overlap:
            kept.append(index)
            taken |= free
            for row, column in free:
                segmentation[row, column] = len(kept)
    return segmentation, kept


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_overlapping_masks_go_to_the_best(overlap):
    outputs, sizes = detections(2, 17), [(40, 60), (33, 21)]
    processor = PvtInstanceImageProcessorPil()
    maps = processor.post_process_instance_segmentation(outputs, 0.15, 0.5, overlap, target_sizes=sizes)
    binary = processor.post_process_instance_segmentation(
        outputs, 0.15, 0.5, overlap, target_sizes=torch.tensor(sizes), return_binary_maps=True
    )
    for found, each, size in zip(maps, binary, sizes, strict=True):
        expected, kept = greedy(each["segmentation"].numpy(), overlap)
        assert found["segmentation"].dtype == torch.int32 and found["segmentation"].shape == size
        np.testing.assert_array_equal(found["segmentation"], expected)
        assert 1 < len(kept) and (overlap == 0 or len(kept) < len(each["segments_info"]))
        for number, (segment, index) in enumerate(zip(found["segments_info"], kept, strict=True), start=1):
            assert segment == {**each["segments_info"][index], "id": number}


def test_no_instance():
    outputs = detections(2, 5)
    outputs.num_detections[0] = 0
    processor = PvtInstanceImageProcessorPil()
    for threshold in (0.0, 1.0):
        found = processor.post_process_instance_segmentation(outputs, threshold, target_sizes=[(9, 8)] * 2)
        assert found[0]["segments_info"] == [] and found[0]["segmentation"].eq(0).all()
        assert bool(found[1]["segments_info"]) == (threshold == 0)
        binary = processor.post_process_instance_segmentation(
            outputs, threshold, target_sizes=[(9, 8)] * 2, return_binary_maps=True
        )
        assert binary[0]["segmentation"].shape == (0, 9, 8)
        boxes = processor.post_process_object_detection(outputs, threshold)[0]
        assert [tuple(boxes[name].shape) for name in ("scores", "labels", "boxes")] == [(0,), (0,), (0, 4)]
    with pytest.raises(ValueError, match="target_sizes is None; expected the .height, width. of every image"):
        processor.post_process_instance_segmentation(outputs)


def test_memory_does_not_grow_with_the_masks(monkeypatch):
    """100 masks of a third of a large image: what is held at once is one of them."""
    outputs = detections(1, 102)
    outputs.pred_boxes[..., 2:] = 0.6
    outputs.pred_scores[:] = 0.9
    height, width = 600, 400
    largest = []
    grid_sample = torch.nn.functional.grid_sample

    def counting(image, grid, **options):
        sampled = grid_sample(image, grid, **options)
        largest.append(sampled.numel())
        return sampled

    monkeypatch.setattr(torch.nn.functional, "grid_sample", counting)
    PvtInstanceImageProcessorPil().post_process_instance_segmentation(outputs, target_sizes=[(height, width)])
    assert len(largest) == 100 and max(largest) <= 0.61**2 * height * width


def test_pipelines_read_what_we_give():
    """The post-processing of the real pipelines, on outputs as a model would give them."""
    outputs, size = detections(1, 12), (40, 60)
    processor = PvtInstanceImageProcessorPil()
    model = SimpleNamespace(config=SimpleNamespace(id2label={label: f"class {label}" for label in range(7)}))
    expected = processor.post_process_instance_segmentation(outputs, 0.3, 0.4, 0.2, target_sizes=[size])[0]

    class Outputs(dict):
        __getattr__ = dict.__getitem__

    def built(kind):
        pipe = object.__new__(kind)
        pipe.model, pipe.image_processor, pipe.tokenizer = model, processor, None
        return pipe

    model_outputs = Outputs(vars(outputs), target_size=[size])
    for subtask in (None, "instance"):
        answer = built(ImageSegmentationPipeline).postprocess(model_outputs, subtask, 0.3, 0.4, 0.2)
        assert len(answer) == len(expected["segments_info"]) > 2
        for entry, segment in zip(answer, expected["segments_info"]):
            assert entry["label"] == f"class {segment['label_id']}" and entry["score"] == segment["score"]
            mask = (expected["segmentation"] == segment["id"]).numpy()
            np.testing.assert_array_equal(np.array(entry["mask"]) == 255, mask)
    with pytest.raises(ValueError, match="Subtask semantic is not supported"):
        built(ImageSegmentationPipeline).postprocess(model_outputs, "semantic")

    model_outputs = Outputs(vars(outputs), target_size=torch.IntTensor([size]))
    boxes = processor.post_process_object_detection(outputs, 0.5, [size])[0]
    answer = built(ObjectDetectionPipeline).postprocess(model_outputs, 0.5)
    assert [entry["score"] for entry in answer] == boxes["scores"].tolist() and len(answer) > 2
    assert [list(entry["box"].values()) for entry in answer] == boxes["boxes"].int().tolist()


@pytest.mark.parametrize("size", [(40, 70), (90, 31)])
def test_object_detection_pipeline(backend, size):
    """With Transformers' own DETR, which takes `pixel_mask` and gives what our processor for DETR expects."""
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 9, "num_labels": 5}
    heads = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")}
    model = DetrForObjectDetection(DetrConfig(backbone_config=backbone, **small, **heads)).eval()
    processor = ALL["detr"][backend](size=64)
    image = Image.fromarray(noise(*size))
    inputs = processor(image, return_tensors="pt")
    assert inputs["pixel_mask"].eq(0).any()
    with torch.no_grad():
        outputs = model(**inputs)
    expected = processor.post_process_object_detection(outputs, 0.01, [size])[0]
    answer = pipeline("object-detection", model=model, image_processor=processor)(image, threshold=0.01)
    assert [entry["score"] for entry in answer] == pytest.approx(expected["scores"].tolist()) and len(answer) == 9
    for entry, label, box in zip(answer, expected["labels"].tolist(), expected["boxes"].int().tolist()):
        assert entry["label"] == f"LABEL_{label}"
        assert np.abs(np.subtract(list(entry["box"].values()), box)).max() <= 1  # rounded down, at an edge


# --- Files ----------------------------------------------------------------------------------------------------------

SETTINGS = {
    "size": {"shortest_edge": 64, "longest_edge": 100},
    "size_divisor": 16,
    "return_segmentation_masks": True,
    "image_mean": [0.5] * 3,
}

RELOAD = """
import json, sys
import numpy, PIL.Image
from transformers import AutoImageProcessor
image, annotation, *folders = sys.argv[1:]
opened, annotation = PIL.Image.open(image), json.loads(annotation)
for folder in folders:
    for backend in ("pil", "torchvision"):
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend, trust_remote_code=True)
        found = processor(opened, annotation, return_tensors="np")
        numpy.savez(f"{folder}/{backend}.npz", **found.pop("labels")[0], **found)
        processor.save_pretrained(f"{folder}/again-{backend}")
        print(type(processor).__module__.split(".")[0], type(processor).__name__)
assert "pvt_hf" not in sys.modules
"""


def test_code_travels_with_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    image = Image.fromarray(noise(50, 80))
    (tmp_path / "image.png").write_bytes(encode(image))
    annotation = {"image_id": 17, "annotations": with_segmentations()}
    folders, names = [], []
    for task, classes in ALL.items():
        for backend, processor_class in classes.items():
            monkeypatch.setattr(processor_class, "_auto_class", None)  # put back afterwards
            processor_class.register_for_auto_class()
            folders.append(tmp_path / f"{task}-{backend}")
            processor_class(**SETTINGS).save_pretrained(folders[-1])
            names += [f"transformers_modules {built.__name__}" for built in classes.values()]
    printed = run_python(RELOAD, tmp_path / "image.png", json.dumps(annotation), *folders).stdout
    assert printed.splitlines() == names
    for folder in folders:
        task = folder.name.split("-")[0]
        for again in (".", "again-pil", "again-torchvision"):  # also when saved by the travelled code
            saved = json.loads((folder / again / "preprocessor_config.json").read_text())
            classes = {backend: built.__name__ for backend, built in ALL[task].items()}
            assert saved["auto_map"]["AutoImageProcessor"] == {
                "pil": f"image_processing_pil_{task}.{classes['pil']}",
                "torchvision": f"image_processing_{task}.{classes['torchvision']}",
            }
            files = {"pvt", "pil_pvt", "boxes", "coco", task, f"pil_{task}"}
            assert {path.stem for path in (folder / again).glob("*.py")} == {f"image_processing_{n}" for n in files}
        for backend, processor_class in ALL[task].items():
            expected = processor_class(**SETTINGS)(image, annotation, return_tensors="np")
            expected = {**expected.pop("labels")[0], **expected}
            with np.load(folder / f"{backend}.npz") as found:
                assert found.keys() == expected.keys() and "masks" in found
                for name, values in expected.items():
                    np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_saved_settings(tmp_path):
    for task, classes in ALL.items():
        for processor_class in classes.values():
            own = {"nms_threshold": 0.6, "max_detections": 50} if task == "detection" else {}
            processor_class(**SETTINGS, **own).save_pretrained(tmp_path)
            saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
            assert saved["image_processor_type"] == classes["torchvision"].__name__ and "auto_map" not in saved
            for name, value in {**SETTINGS, **own, "do_pad": True, "resample": 2}.items():
                assert saved[name] == value, name
            assert own or "nms_threshold" not in saved
            again = processor_class.from_pretrained(tmp_path, size_divisor=64, size=96)
            assert again.size_divisor == 64 and dict(again.size) == {"shortest_edge": 96}
            assert all(getattr(again, name) == value for name, value in own.items())
            if own:
                assert processor_class.from_pretrained(tmp_path, nms_threshold=0.7).nms_threshold == 0.7
                assert processor_class().nms_threshold == 0.5 and processor_class().max_detections == 100
            assert processor_class.from_dict({}).to_dict() == processor_class().to_dict()


WITHOUT_TORCHVISION = """
import importlib.util, sys
find_spec = importlib.util.find_spec
hidden = ("torchvision", "pycocotools")
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in hidden else find_spec(name, *rest)
for name in hidden:
    sys.modules[name] = None
import numpy
image, shapes = numpy.zeros((40, 50, 3), dtype=numpy.uint8), []
from pvt_hf.image_processing_detection import PvtDetectionImageProcessor
from pvt_hf.image_processing_pil_detection import PvtDetectionImageProcessorPil
from pvt_hf.image_processing_detr import PvtDetrImageProcessor
from pvt_hf.image_processing_pil_detr import PvtDetrImageProcessorPil
from pvt_hf.image_processing_instance import PvtInstanceImageProcessor
from pvt_hf.image_processing_pil_instance import PvtInstanceImageProcessorPil
for pil in (PvtDetectionImageProcessorPil, PvtDetrImageProcessorPil, PvtInstanceImageProcessorPil):
    annotation = {"image_id": 1, "annotations": [{"bbox": [0, 0, 5, 5], "category_id": 0}]}
    found = pil()(image, annotation, return_tensors="pt")
    shapes.append((*found["pixel_values"].shape, *found["labels"][0]["boxes"].shape))
assert all(built.is_dummy for built in (PvtDetectionImageProcessor, PvtDetrImageProcessor, PvtInstanceImageProcessor))
print(shapes)
"""


def test_without_the_extras():
    assert run_python(WITHOUT_TORCHVISION).stdout.strip() == str([(1, 3, 800, 1024, 1, 4)] * 3)


@pytest.mark.gpu
def test_device():
    annotation = {"image_id": 1, "annotations": OBJECTS}
    found = PvtDetectionImageProcessor()(noise(50, 80), annotation, return_tensors="pt", device="cuda")
    tensors = [found["pixel_values"], found["pixel_mask"], *found["labels"][0].values()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    outputs = detections(2, 30)
    on_gpu = SimpleNamespace(**{name: value.cuda() for name, value in vars(outputs).items()})
    sizes = [(40, 60), (33, 21)]
    for classes in ALL.values():
        results = [classes["pil"]().post_process_object_detection(where, 0.3, sizes) for where in (outputs, on_gpu)]
        for on_cpu, other in zip(*results):
            assert other["boxes"].device.type == "cuda"
            assert torch.equal(on_cpu["labels"], other["labels"].cpu())
            torch.testing.assert_close(on_cpu["boxes"], other["boxes"].cpu())
    masks = [
        PvtInstanceImageProcessor().post_process_instance_segmentation(
            where, 0.3, target_sizes=sizes, return_binary_maps=True
        )
        for where in (outputs, on_gpu)
    ]
    for on_cpu, other in zip(*masks):
        assert other["segmentation"].device.type == "cuda"
        # interpolation in another order may turn a pixel at the threshold
        assert (on_cpu["segmentation"] != other["segmentation"].cpu()).float().mean() < 1e-3
