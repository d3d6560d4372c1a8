"""Pictures of predictions and attention maps."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont


GOOD, BAD = "#009E73", "#D55E00"  # of Okabe and Ito's palette, for colour-blind readers
INK = "#222222"


def annotate_classes(image: Image.Image, predictions: Sequence[dict[str, Any]]) -> Image.Image:
    """
    The image above a bar chart of its labels and scores.

    Args:
        image: PIL image of any mode, enlarged by a whole factor to a width of at least 480 pixels.
        predictions: pipeline output, best first: `[{"label": str, "score": float in [0, 1]}, ...]`.
    """
    image = image.convert("RGB")
    scale = max(1, math.ceil(480 / image.width))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    size, margin = max(16, image.width // 32), max(8, image.width // 60)
    font, row = ImageFont.load_default(size), int(size * 1.6)
    canvas = Image.new("RGB", (image.width, image.height + margin * 2 + row * len(predictions)), "white")
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for index, prediction in enumerate(predictions):
        top = image.height + margin + index * row
        bar = (image.width - 2 * margin) * prediction["score"]
        draw.rectangle((margin, top, margin + bar, top + row - 4), fill="#CFE3F3" if index else "#8FC1E8")
        text = f"{prediction['label']}  {prediction['score']:.1%}"
        while len(text) > 8 and draw.textlength(text, font) > image.width - 3 * margin:
            text = text[:-2] + "…"
        draw.text((margin + 6, top + (row - 4) / 2), text, INK, font, anchor="lm")
    return canvas


@functools.cache
def class_colors(count: int) -> np.ndarray:
    """
    One colour per class: (count, 3) uint8 RGB. A class keeps its colour whatever the count.

    Chosen greedily from about 3,400 colours of medium lightness: each is the one farthest, in CIE L*a*b*, from black,
    white and all colours before it. Beyond that number the colours repeat.
    """
    levels = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)  # (4096, 3)
    # sRGB to XYZ relative to white (IEC 61966-2-1) to L*a*b* (CIE 15)
    linear = np.where(grid / 255 <= 0.04045, grid / 255 / 12.92, ((grid / 255 + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4339, 0.2126, 0.0178], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8727]])
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=-1)
    usable = (lab[:, 0] > 30) & (lab[:, 0] < 90)
    grid, lab = grid[usable], lab[usable]

    nearest = np.linalg.norm(lab[:, None] - [(0, 0, 0), (100, 0, 0)], axis=-1).min(axis=1)
    chosen = []
    for _ in range(min(count, len(grid))):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=-1))
    return np.resize(grid[chosen], (count, 3)).astype(np.uint8)


def class_shares(labels: np.ndarray) -> list[tuple[int, float]]:
    """(class, fraction of the pixels) for the classes in a (height, width) label map, largest fraction first."""
    classes, counts = np.unique(labels, return_counts=True)
    shares = zip(classes.tolist(), (counts / labels.size).tolist())
    return sorted(shares, key=lambda share: -share[1])


def label_image(labels: np.ndarray, num_labels: int) -> Image.Image:
    """A (height, width) label map as an image of class indices: mode L, or I;16 for more than 255 classes."""
    return Image.fromarray(labels.astype(np.uint8 if num_labels <= 255 else np.uint16))


def overlay_classes(
    image: Image.Image, labels: np.ndarray, id2label: Mapping[int, str], opacity: float = 0.6
) -> Image.Image:
    """
    The image blended with the colours of its classes, and a legend below.

    Args:
        image: PIL image of any mode.
        labels: (height, width) class indices, of the image's size.
        id2label: class names. Colours come from [`class_colors`].
        opacity: of the colours, from 0 to 1.

    Returns:
        An RGB image. Its upper left `image.height` x `image.width` pixels are the blend; the legend lists the classes
        in the image with their fractions, largest first. The result is wider than the image if the legend needs it.
    """
    image, colors = image.convert("RGB"), class_colors(max(id2label) + 1)
    blend = Image.blend(image, Image.fromarray(colors[labels]), opacity)

    size = max(14, image.width // 50)
    font, row, margin = ImageFont.load_default(size), int(size * 1.6), size // 2
    entries = []
    for label, share in class_shares(labels):
        name = " ".join(id2label[label].split())
        entries.append((label, f"{name if len(name) <= 40 else name[:39] + '…'}  {share:.1%}"))
    column = row + margin + math.ceil(max(font.getlength(text) for _, text in entries))
    columns = max(1, (image.width - margin) // (column + margin))
    rows = math.ceil(len(entries) / columns)
    width = max(image.width, margin + columns * (column + margin))
    canvas = Image.new("RGB", (width, image.height + margin * 2 + row * rows), "white")
    canvas.paste(blend)
    draw = ImageDraw.Draw(canvas)
    for index, (label, text) in enumerate(entries):
        left = margin + index // rows * (column + margin)
        top = image.height + margin + index % rows * row
        draw.rectangle((left, top, left + row - 4, top + row - 4), fill=tuple(colors[label].tolist()), outline=INK)
        draw.text((left + row + margin // 2, top + (row - 4) / 2), text, INK, font, anchor="lm")
    return canvas


def caption(image: Image.Image, lines: Sequence[tuple[str, tuple[int, ...] | None]]) -> Image.Image:
    """
    The image with lines of text on a dark box in its upper left corner; what does not fit is cut off.

    Args:
        image: PIL image of any mode.
        lines: text and, for a square before it, its colour.

    Returns:
        An RGB image of the same size.
    """
    canvas = image.convert("RGB")
    size = max(10, min(image.size) // 28)
    font, row, margin = ImageFont.load_default(size), int(size * 1.3), size // 2
    width = max((font.getlength(text) + row * (color is not None) for text, color in lines), default=0)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, width + 2 * margin, row * len(lines) + margin), fill=INK)
    for index, (text, color) in enumerate(lines):
        left, middle = margin, margin // 2 + row * (index + 0.5)
        if color is not None:
            draw.rectangle((left, middle - size // 2, left + size, middle + size // 2), fill=color)
            left += row
        draw.text((left, middle), text, "white", font, anchor="lm")
    return canvas


def overlay_objects(
    image: Image.Image,
    boxes_xyxy: torch.Tensor,
    labels: Sequence[int],
    scores: Sequence[float] | None,
    id2label: Mapping[int, str],
    masks: torch.Tensor | None = None,
) -> Image.Image:
    """
    The image with the boxes, names and scores of objects, in the colours of their classes ([`class_colors`]).

    Boxes are not drawn by torchvision's `draw_bounding_boxes`: without a font file it writes 10 pixels high, whatever
    the image's size, and labels may leave the image.

    Args:
        image: PIL image of any mode.
        boxes_xyxy: (objects, 4), in pixels.
        labels: class index of each object.
        scores: of each object, from 0 to 1. Objects are expected in descending order. None: no scores are written.
        id2label: class names.
        masks: (objects, height, width) bool, of the image's size, drawn below the boxes. Needs torchvision.

    Returns:
        An RGB image of the same size.
    """
    canvas = image.convert("RGB")
    if len(labels) == 0:
        return canvas
    palette = class_colors(max(id2label) + 1)
    colors = [tuple(palette[label].tolist()) for label in labels]
    if masks is not None:
        # Imported here: only models that need torchvision themselves have masks.
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
        from torchvision.utils import draw_segmentation_masks

        canvas = to_pil_image(draw_segmentation_masks(pil_to_tensor(canvas), masks, alpha=0.5, colors=colors))
    draw, width = ImageDraw.Draw(canvas), max(1, min(image.size) // 200)
    font = ImageFont.load_default(max(10, min(image.size) // 24))
    # Drawn last, and so on top: the highest scores. Pillow refuses boxes with a negative side.
    order = [i for i in reversed(range(len(labels))) if (boxes_xyxy[i, 2:] >= boxes_xyxy[i, :2]).all()]
    for i in order:
        draw.rectangle(boxes_xyxy[i].tolist(), outline=colors[i], width=width)
    for i in order:
        text = id2label[labels[i]] if scores is None else f"{id2label[labels[i]]} {scores[i]:.0%}"
        # In the box's upper left corner, moved inside the image if it would be cut off
        left, top, right, bottom = draw.textbbox((0, 0), text, font)
        x = min(max(boxes_xyxy[i, 0].item(), 0), max(image.width - right - 2 * width, 0))
        y = min(max(boxes_xyxy[i, 1].item(), 0), max(image.height - bottom - 2 * width, 0))
        draw.rectangle((x, y, x + right + 2 * width, y + bottom + 2 * width), fill=colors[i])
        light = np.dot(colors[i], (0.299, 0.587, 0.114)) > 140
        draw.text((x + width, y + width), text, INK if light else "white", font)
    return canvas


def overlay_attention(image: Image.Image, attention: np.ndarray, patch: Sequence[float] | None = None) -> Image.Image:
    """
    The image in grey, blended with a colour map of the attention, scaled so that the largest value is 1.

    Args:
        image: PIL image of any mode.
        attention: (rows, columns), on any grid over the whole image.
        patch: box (left, top, right, bottom, in pixels) of the query patch, to be outlined.

    Returns:
        An RGB image of the same size.
    """
    from matplotlib import colormaps

    # The maximum of an empty map is 0: the smallest float avoids the division by zero.
    scaled = Image.fromarray((attention / max(attention.max(), np.finfo(np.float32).tiny)).astype(np.float32))
    colors = colormaps["magma"](np.asarray(scaled.resize(image.size, Image.Resampling.BICUBIC)), bytes=True)[..., :3]
    blend = Image.blend(image.convert("L").convert("RGB"), Image.fromarray(colors), 0.6)
    if patch is not None:
        left, top, right, bottom = patch
        draw, width = ImageDraw.Draw(blend), max(2, min(image.size) // 100)
        # A white frame inside a dark one shows on any background.
        for distance, color in ((2 * width, INK), (width, "white")):
            box = (left - distance, top - distance, right + distance - 1, bottom + distance - 1)
            draw.rectangle(box, outline=color, width=width)
    return blend
