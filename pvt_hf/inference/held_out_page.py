"""A page of held-out images with their labels and predictions: `predictions.html`, and `worst_images.png`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..data.samples import short_name
from ..engine.gallery import Gallery, Shown
from .pictures import overlay_classes, overlay_objects


SMALLEST_DRAWN, SMALLEST_TILE, GAP, TEXT_SIZE = 320, 320, 8, 14  # pixels
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Predictions on held-out images</title>
<style>
body {{ font: 15px sans-serif; margin: 2em; color: #222 }}
section {{ display: flex; flex-wrap: wrap; gap: 1.5em }}
figure {{ margin: 0; max-width: 100% }}
figcaption {{ max-width: 40em; overflow-wrap: anywhere }}
img {{ max-width: 480px; min-width: 96px; vertical-align: top }}
.wrong {{ color: #B04000; font-weight: bold }}
</style>
<h1>Predictions on held-out images</h1>
<p>As the model saw them. {legend}</p>
<h2>The largest errors</h2>
<section>{worst}</section>
<h2>The first images</h2>
<section>{first}</section>
</html>
"""


def write_page(gallery: Gallery, class_names: Sequence[str], folder: Path) -> None:
    """
    Writes `predictions.html`, a page with the pictures in it, and `worst_images.png`, if there are any errors.

    Args:
        gallery: of all processes.
        class_names: of the model, by label.
        folder: for the files.
    """
    id2label = dict(enumerate(class_names))
    worst = [shown for _, _, shown in gallery.worst]
    pairs = any("classes" not in shown.truth for shown in (*worst, *gallery.first))
    legend = "On the left the labels, on the right the prediction." if pairs else ""
    sections = {
        name: "".join(_figure(shown, id2label) for shown in part) or "<p>None.</p>"
        for name, part in (("worst", worst), ("first", gallery.first))
    }
    (folder / "predictions.html").write_text(PAGE.format(legend=legend, **sections), encoding="utf-8")
    if worst:
        _plot(worst, id2label, folder / "worst_images.png")


def draw(shown: Shown, id2label: dict[int, str]) -> list[Image.Image]:
    """The image; or two, with the labels and with the prediction drawn into them."""
    image = Image.open(io.BytesIO(shown.image)).convert("RGB")
    if "classes" in shown.truth:
        return [image]
    scale = max(1, SMALLEST_DRAWN // max(image.size))  # names and legends need room
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    return [_draw(image, side, id2label, scale) for side in (shown.truth, shown.prediction)]


def _draw(image: Image.Image, side: dict[str, Any], id2label: dict[int, str], scale: int) -> Image.Image:
    """The image, `scale` times as large as the one that the labels are for, with these drawn into it."""
    if "map" in side:
        none = len(id2label)
        labels = np.asarray(Image.open(io.BytesIO(side["map"])).resize(image.size, Image.Resampling.NEAREST))
        labels = labels.astype(np.int64)
        return overlay_classes(image, np.where(labels < none, labels, none), {**id2label, none: "no class"})
    order = sorted(range(len(side["objects"])), key=lambda row: -(side["objects"][row][2] or 0))
    objects = [side["objects"][row] for row in order]
    boxes_xyxy = torch.tensor([box for box, _, _ in objects]).reshape(-1, 4) * scale
    scores = None if any(score is None for _, _, score in objects) else [score for _, _, score in objects]
    masks = None
    if "masks" in side and objects:
        pictures = [Image.open(io.BytesIO(side["masks"][row])).resize(image.size) for row in order]  # by nearest
        masks = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    return overlay_objects(image, boxes_xyxy, [label for _, label, _ in objects], scores, id2label, masks)


def caption(shown: Shown, id2label: dict[int, str]) -> str:
    """What the picture does not say: the classes of an image, and how large its error is."""
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in shown.figures.items())
    if "classes" not in shown.truth:
        return figures
    found = ", ".join(f"{id2label[label]} {score:.0%}" for label, score in shown.prediction["classes"])
    return f"{id2label[shown.truth['classes'][0][0]]}; predicted {found} ({figures})"


def is_wrong(shown: Shown) -> bool:
    """Whether the best class is not the true one; False where that is not the question."""
    return "classes" in shown.truth and shown.truth["classes"][0][0] != shown.prediction["classes"][0][0]


def _figure(shown: Shown, id2label: dict[int, str]) -> str:
    pictures = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{_base64(image)}"> ' for image in draw(shown, id2label)
    )
    kind = ' class="wrong"' if is_wrong(shown) else ""
    text = f"{escape(shown.name)}<br><span{kind}>{escape(caption(shown, id2label))}</span>"
    return f"<figure>{pictures}<figcaption>{text}</figcaption></figure>\n"


def _base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode()


def _plot(worst: list[Shown], id2label: dict[int, str], path: Path) -> None:
    """One below the other in columns, each with its name and its error below it."""
    tiles = [_tile(draw(shown, id2label), f"{short_name(shown.name)}\n{caption(shown, id2label)}") for shown in worst]
    columns = min(3, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = columns * max(tile.width for tile in tiles)
    canvas = Image.new("RGB", (width, sum(max(tile.height for tile in row) for row in rows)), "white")
    top = 0
    for row in rows:
        for column, tile in enumerate(row):
            canvas.paste(tile, (column * width // columns, top))
        top += max(tile.height for tile in row)
    canvas.save(path)


def _tile(images: Sequence[Image.Image], text: str) -> Image.Image:
    """Images side by side, small ones enlarged, above lines of text that are cut off at their width."""
    scale = max(1, SMALLEST_TILE // sum(image.width for image in images))
    parts = [image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST) for image in images]
    font = ImageFont.load_default(TEXT_SIZE)
    lines = text.split("\n")
    width, height = sum(part.width + GAP for part in parts), max(part.height for part in parts)
    canvas = Image.new("RGB", (width + GAP, height + GAP + len(lines) * (TEXT_SIZE + 5) + GAP), "white")
    left = GAP
    for part in parts:
        canvas.paste(part, (left, GAP))
        left += part.width + GAP
    pen = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        while len(line) > 8 and font.getlength(line) > width - GAP:
            line = line[:-2] + "…"
        pen.text((GAP, GAP + height + 2 + index * (TEXT_SIZE + 5)), line, "black", font)
    return canvas
