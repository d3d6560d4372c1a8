"""
Anchors, their assignment to objects and the conversions of labels equal what is computed here one by one, by the rules
of the paper's framework (mmdetection 2.x).

    python -m pytest tests/models/test_modeling_anchors.py
"""

import math

import pytest
import torch

from pvt_hf.models.modeling_anchors import (
    IGNORED,
    NEGATIVE,
    AnchorGrid,
    assign_to_objects,
    box_coder,
    boxes_in_pixels,
    check_detection_labels,
    image_sizes_of,
    normalised_boxes,
)

from ..support.references import assign_boxes


RETINANET = AnchorGrid(
    [8, 16, 32, 64, 128], [[4 * s * 2 ** (i / 3) for i in range(3)] for s in (8, 16, 32, 64, 128)], [0.5, 1, 2]
)


def random_boxes(count: int, generator: torch.Generator, size: float = 100.0) -> torch.Tensor:
    corners = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * size / 2 + 1], dim=1)


def test_anchors_of_retinanet_one_by_one():
    """At 800x1344 the grids of 13x21 and 7x11 cells are not the image's size divided by 64 and 128."""
    grids = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    maps = [torch.empty(1, 1, *grid) for grid in grids]
    generator = torch.Generator().manual_seed(0)
    for anchors, (rows, columns), stride in zip(RETINANET(maps), grids, (8, 16, 32, 64, 128)):
        assert anchors.shape == (rows * columns * 9, 4)
        for _ in range(50):
            row = torch.randint(rows, (1,), generator=generator).item()
            column = torch.randint(columns, (1,), generator=generator).item()
            for ratio_index, ratio in enumerate((0.5, 1.0, 2.0)):
                for scale_index in range(3):
                    side = 4 * stride * 2 ** (scale_index / 3)
                    width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
                    x, y = column * stride, row * stride
                    expected = torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
                    actual = anchors[(row * columns + column) * 9 + ratio_index * 3 + scale_index]
                    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-3)


def test_anchors_of_region_proposals_one_by_one():
    grid = AnchorGrid([4, 8], [[32.0], [64.0]], [0.5, 1, 2])
    fine, coarse = grid([torch.empty(1, 1, 5, 7), torch.empty(1, 1, 3, 4)])
    assert fine.shape == (105, 4) and coarse.shape == (36, 4)
    # cell (row 2, column 1) of the coarse level: centre (8, 16), side 64, square
    assert coarse[(2 * 4 + 1) * 3 + 1].tolist() == [8 - 32, 16 - 32, 8 + 32, 16 + 32]
    # height is half of the width, area 32 * 32
    x0, y0, x1, y1 = fine[0].tolist()
    assert math.isclose((y1 - y0) / (x1 - x0), 0.5, rel_tol=1e-6)
    assert math.isclose((y1 - y0) * (x1 - x0), 1024, rel_tol=1e-5)


def test_anchors_in_the_padding_of_a_batch():
    """An image of 33x70 in a batch of 128x128. Alone it would be padded to 64x96: anchors in there are used."""
    maps = [torch.empty(2, 1, 16, 16), torch.empty(2, 1, 8, 8)]
    grid = AnchorGrid([8, 16], [[1.0], [2.0]], [1.0])
    inside = grid.inside(maps, torch.tensor([[33, 70], [128, 128]]))
    fine, coarse = inside[0, :256].view(16, 16), inside[0, 256:].view(8, 8)
    assert fine[:8, :12].all() and fine.sum() == 96 and coarse[:4, :6].all() and coarse.sum() == 24
    assert inside[1].all()


@pytest.mark.parametrize(
    ("positive", "negative", "low_quality"), [(0.5, 0.4, 0.0), (0.7, 0.3, 0.3), (0.5, 0.5, None), (0.9, 0.1, 0.0)]
)
def test_assignment_one_by_one(positive, negative, low_quality):
    kinds = set()
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        count = [0, 1, 3, 12, 40, 70][seed]  # objects are taken 32 at a time
        # Halves of pixels are exact in both precisions, so that equal overlaps are equal here and there.
        boxes = (random_boxes(150, generator).double() * 2).round() / 2
        objects = (random_boxes(count, generator).double() * 2).round() / 2
        actual = assign_to_objects(
            boxes, objects, positive_iou=positive, negative_iou=negative, low_quality_iou=low_quality
        )
        assert actual.tolist() == assign_boxes(boxes.tolist(), objects.tolist(), positive, negative, low_quality)
        kinds |= {min(value, 0) for value in actual.tolist()}
    assert kinds == {0, NEGATIVE} if positive == negative else kinds == {0, NEGATIVE, IGNORED}


def test_an_object_takes_its_best_box_though_that_overlaps_another_more():
    """torchvision's Matcher differs here: it would give the box to the other object."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    objects = torch.tensor([[0.0, 0, 10, 9], [8, 0, 30, 10]])  # the second has no better box than the first box
    assigned = assign_to_objects(boxes, objects, positive_iou=0.95, negative_iou=0.4, low_quality_iou=0.0)
    assert assigned.tolist() == [1, NEGATIVE]


def test_an_object_beside_all_boxes_takes_none():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    objects = torch.tensor([[100.0, 100, 110, 110], [5, 5, 5, 5]])  # far away; without area
    assigned = assign_to_objects(boxes, objects, positive_iou=0.5, negative_iou=0.4, low_quality_iou=0.0)
    assert assigned.tolist() == [NEGATIVE, NEGATIVE]


@pytest.mark.parametrize("deviations", [(1, 1, 1, 1), (0.1, 0.1, 0.2, 0.2)])
def test_box_codes(deviations):
    generator = torch.Generator().manual_seed(3)
    anchors, objects = random_boxes(20, generator), random_boxes(20, generator)
    coder = box_coder(deviations)
    codes = coder.encode_single(objects, anchors)
    for anchor, obj, code in zip(anchors.tolist(), objects.tolist(), codes.tolist()):
        width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
        expected = [
            ((obj[0] + obj[2]) - (anchor[0] + anchor[2])) / 2 / width,
            ((obj[1] + obj[3]) - (anchor[1] + anchor[3])) / 2 / height,
            math.log((obj[2] - obj[0]) / width),
            math.log((obj[3] - obj[1]) / height),
        ]
        # fp32: differences of coordinates up to 150
        assert code == pytest.approx([value / d for value, d in zip(expected, deviations)], rel=1e-4, abs=1e-4)
    torch.testing.assert_close(coder.decode_single(codes, anchors), objects, rtol=1e-5, atol=1e-3)
    # mmdetection bounds widths and heights by 1000 / 16 times the anchor's
    huge = coder.decode_single(torch.tensor([[0.0, 0, 1e4, 1e4]]), torch.tensor([[0.0, 0, 10, 10]]))
    assert huge[0, 2] - huge[0, 0] == pytest.approx(10 * 1000 / 16, rel=1e-4)


def test_boxes_in_pixels_and_back():
    size = torch.tensor([60, 200])  # height, width
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.05, 0.9, 0.1, 0.2]])
    pixels = boxes_in_pixels(boxes, size)
    torch.testing.assert_close(pixels, torch.tensor([[50.0, 15, 150, 45], [0, 48, 20, 60]]))
    torch.testing.assert_close(normalised_boxes(pixels, size), boxes)
    outside = normalised_boxes(torch.tensor([[-50.0, -10, 100, 30], [300, 70, 400, 90]]), size)
    torch.testing.assert_close(outside, torch.tensor([[0.25, 0.25, 0.5, 0.5], [1.0, 1, 0, 0]]))


def test_sizes_of_images_in_a_padded_batch():
    mask = torch.zeros(2, 64, 96, dtype=torch.long)
    mask[0, :50, :96] = 1
    mask[1, :64, :33] = 1
    pixels = torch.zeros(2, 3, 64, 96)
    assert image_sizes_of(pixels, mask).tolist() == [[50, 96], [64, 33]]
    assert image_sizes_of(pixels, None).tolist() == [[64, 96], [64, 96]]
    with pytest.raises(ValueError, match=r"\(2, 32, 96\).*\(2, 64, 96\)"):
        image_sizes_of(pixels, mask[:, :32])
    with pytest.raises(ValueError, match="all padding"):
        image_sizes_of(pixels, torch.zeros_like(mask))


def label(classes, boxes):
    return {"class_labels": torch.tensor(classes), "boxes": torch.tensor(boxes)}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], ["2 images", "got 0"]),
        ({"boxes": 1}, ["2 images", "dict"]),
        ([label([0], [[0.5, 0.5, 0.1, 0.1]]), {"boxes": torch.zeros(0, 4)}], ["labels[1]", "class_labels"]),
        ([label([0, 1], [[0.5, 0.5, 0.1, 0.1]])] * 2, ["labels[0]", "(2,)", "(1, 4)"]),
        ([label([0], [[0.5, 0.5, 0.1, 0.1]]), label([7], [[0.5, 0.5, 0.1, 0.1]])], ["labels[1]", "7", "0 to 4"]),
        ([label([-1], [[0.5, 0.5, 0.1, 0.1]])] * 2, ["labels[0]", "-1"]),
        ([label([0], [[30.0, 20.0, 10.0, 10.0]])] * 2, ["labels[0]", "30", "from 0 to 1", "Pixels"]),
        ([label([0], [[0.5, 1.1, 0.1, 0.1]])] * 2, ["labels[0]", "1.1", "from 0 to 1"]),
        ([label([0], [[0.5, 0.5, -0.1, 0.1]])] * 2, ["labels[0]", "negative"]),
        ([label([0], [[0.5, math.nan, 0.1, 0.1]])] * 2, ["labels[0]", "finite"]),
    ],
)
def test_labels_that_cannot_be(labels, words):
    with pytest.raises(ValueError) as error:
        check_detection_labels(labels, 2, 5)
    for word in words:
        assert word in str(error.value)


def test_labels_that_can_be():
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    check_detection_labels([empty, label([4], [[0.5, 0.5, 1.0, 1.0]])], 2, 5)


@pytest.mark.slow
def test_a_thousand_objects_hold_no_table_of_all_overlaps():
    """1,000 objects and 201,600 anchors would be 0.8 GB of overlaps; some 32 objects' are held at once."""
    maps = [torch.empty(1, 1, *grid) for grid in ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))]
    anchors = torch.cat(RETINANET(maps))
    objects = random_boxes(1000, torch.Generator().manual_seed(0), size=700)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            nonlocal largest
            result = function(*arguments, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        assigned = assign_to_objects(anchors, objects, positive_iou=0.5, negative_iou=0.4, low_quality_iou=0.0)
    assert largest <= 2 * 32 * len(anchors)  # corners of intersections are pairs
    assert len(assigned[assigned >= 0].unique()) > 900  # two objects may want the same anchor
