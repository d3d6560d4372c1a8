"""
`pvt_hf.inference.pictures`: class colours that can be told apart, legends of the classes in the image, label maps that
keep every index, and objects drawn where they are.

    python -m pytest tests/inference/test_pictures.py
"""

import numpy as np
import torch
from PIL import Image

from pvt_hf.inference.pictures import class_colors, class_shares, label_image, overlay_classes, overlay_objects


def test_colors_differ_and_stay():
    colors = class_colors(300).astype(int)
    assert len({tuple(color) for color in colors}) == 300
    assert np.array_equal(class_colors(150), colors[:150]) and class_colors(150).dtype == np.uint8
    distances = np.abs(colors[:150, None] - colors[None, :150]).sum(-1)
    assert distances[~np.eye(150, dtype=bool)].min() >= 34  # two steps of the 16 levels
    assert np.array_equal(class_colors(11), colors[:11])
    assert class_colors(5000).shape == (5000, 3)


def test_the_legend_has_the_classes_that_are_there():
    labels = np.zeros((60, 300), dtype=np.int64)
    labels[:, 100:], labels[:, 290:] = 149, 7
    names = {index: f"class {index}\nof a long name {'x' * 100}" for index in range(150)}
    picture = overlay_classes(Image.new("LA", (300, 60)), labels, names)
    legend = np.asarray(picture)[60:].reshape(-1, 3)
    found = [label for label, color in enumerate(class_colors(150)) if (legend == color).all(1).sum() > 100]
    assert found == [0, 7, 149]
    first_rows = [np.argmax((legend == class_colors(150)[label]).all(1)) for label in (149, 0, 7)]
    assert first_rows == sorted(first_rows)  # the largest share comes first
    assert class_shares(labels) == [(149, 190 / 300), (0, 100 / 300), (7, 10 / 300)]
    many = overlay_classes(Image.new("RGB", (1200, 300)), np.arange(150).repeat(2400).reshape(300, 1200), names)
    legend = np.asarray(many)[300:].astype(int) @ [1 << 16, 1 << 8, 1]
    assert many.width == 1200 and set(class_colors(150).astype(int) @ [1 << 16, 1 << 8, 1]) < set(legend.flat)


def test_label_images():
    labels = np.array([[0, 254], [3, 17]])
    for count, mode in ((255, "L"), (256, "I;16")):
        image = label_image(labels, count)
        assert image.mode == mode and np.array_equal(np.asarray(image), labels)


def test_objects_are_drawn_where_they_are():
    """On black, so that every other colour was drawn. Labels stay in the image, the highest score lies on top."""
    image, colors = Image.new("RGB", (400, 300)), class_colors(3)
    boxes = torch.tensor([[100.0, 100, 300, 250], [110, 90, 310, 240], [-30, 200, 60, 330], [90, 20, 80, 40]])
    masks = torch.zeros(4, 300, 400, dtype=torch.bool)
    masks[0, 150:240, 200:280] = True
    names = {0: "zebra", 1: "car", 2: "a name of some length"}
    drawn = overlay_objects(image, boxes, [0, 1, 2, 1], [0.9, 0.8, 0.7, 0.6], names, masks)
    assert drawn.size == image.size and drawn.mode == "RGB"
    pixels = np.asarray(drawn).astype(int)
    assert (pixels[250, 100:301] == colors[0]).all() and (pixels[150:241, 310] == colors[1]).all()
    assert (pixels[240, 300] == colors[0]).all() and (pixels[240, 301:311] == colors[1]).all()  # where they cross
    assert (np.abs(pixels[200, 220:270] - colors[0] / 2) <= 1).all()  # the mask, half transparent
    label = (pixels[200:225, :100] == colors[2]).all(axis=2)
    assert label[:, :10].any() and label.any(axis=0).sum() > 60  # begins at the left edge, wider than the box
    assert (pixels[:80, :90] == 0).all()  # the fourth box is inside out: not drawn
    assert overlay_objects(image, boxes[:0], [], [], names, masks[:0]).tobytes() == image.tobytes()
