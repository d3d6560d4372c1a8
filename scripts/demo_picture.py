"""The picture of `make demo`: digits and their labels; below, scenes, truth, answers and attention."""

from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.patches
import numpy as np
import torch
from PIL import Image

from pvt_hf.data.digits import DIGIT_NAMES, SCENE_CLASS_NAMES
from pvt_hf.inference.attention import attention_inputs, find_pvt, stage_attention
from pvt_hf.inference.pictures import BAD, GOOD, class_colors, overlay_attention, overlay_objects


DIGITS, SCENES = 12, 6
SIDE = 225  # of a scene in the picture, in pixels
STAGE = 2  # the third: its keys are not reduced
ROWS = ("scene", "truth", "segmented", "detected", "attention")


def draw(strip: list[tuple], columns: list[tuple], segmenter: Any, path: Path, figures: dict[str, Any]) -> None:
    """
    Args:
        strip: (image, `{"label": str, "score": float}`, whether it is right) of digits.
        columns: (scene, class indices (height, width), objects found) of scenes; see `demo_answers.py`.
        segmenter: pipeline whose backbone's attention is drawn.
        path: of the PNG.
        figures: for the titles.
    """
    figure = matplotlib.figure.Figure(figsize=(9.6, 10.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 7.2))
    upper.suptitle(
        f"{figures['accuracy']:.1%} of {figures['digits']} held-out digits are right. The first:", fontsize=11
    )
    lower.suptitle(
        f"{figures['scenes']} held-out scenes: mean IoU {figures['mean_iou']:.2f}, AP50 {figures['ap50']:.2f}. "
        "The first; last row: where the framed patch looks",
        fontsize=11,
    )
    for panel, (image, found, right) in zip(upper.subplots(1, DIGITS), strip, strict=True):
        panel.imshow(image)
        panel.set_title(f"{found['label']}  {found['score']:.0%}", fontsize=9, color=GOOD if right else BAD)
        panel.axis("off")
    panels = lower.subplots(len(ROWS), SCENES)
    for column, (scene, classes, objects) in enumerate(columns):
        for row, image in enumerate(scene_pictures(scene, classes, objects, segmenter)):
            panels[row, column].imshow(image)
            panels[row, column].set(xticks=[], yticks=[])
            panels[row, column].spines[:].set_visible(False)
            if column == 0:
                panels[row, column].set_ylabel(ROWS[row], fontsize=11)
    colors = mask_colors() / 255
    patches = [matplotlib.patches.Patch(color=color, label=name) for color, name in zip(colors, SCENE_CLASS_NAMES)]
    lower.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    # 256 colours make the file a third as large.
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def mask_colors() -> np.ndarray:
    """Colours of the classes of scenes, (11, 3) uint8: the background is light."""
    return np.concatenate([np.full((1, 3), 235, dtype=np.uint8), class_colors(len(SCENE_CLASS_NAMES))[1:]])


def scene_pictures(scene: dict, classes: np.ndarray, objects: dict, segmenter: Any) -> list[Image.Image]:
    """The rows of a column, RGB images with a side of `SIDE` pixels."""
    image = scene["image"].resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    colors, scale = mask_colors(), SIDE / scene["width"]
    truth, found = (
        Image.fromarray(colors[one]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        for one in (np.asarray(scene["semantic_map"]), classes)
    )
    sure = [index for index, score in enumerate(objects["scores"]) if score >= 0.5]
    names = {index + 1: name for index, name in enumerate(DIGIT_NAMES)}  # in the colours of the masks
    detected = overlay_objects(
        image, objects["boxes_xyxy"][sure] * scale, [objects["labels"][index] + 1 for index in sure],
        [objects["scores"][index] for index in sure], {0: "", **names},
    )  # fmt: skip
    return [image, truth, found, detected, attention_picture(scene, image, segmenter)]


def attention_picture(scene: dict, image: Image.Image, segmenter: Any) -> Image.Image:
    """Where the patch in the middle of the largest digit looks."""
    pvt = find_pvt(segmenter.model)
    assert pvt is not None
    area = segmenter.image_processor.size["shortest_edge"] ** 2
    pixel_values = attention_inputs(pvt, segmenter.image_processor, scene["image"], area)
    with torch.no_grad():
        stage = stage_attention(pvt, pixel_values)[STAGE]
    largest = max(range(len(scene["masks"])), key=lambda index: scene["objects"]["area"][index])
    rows, columns = np.nonzero(np.asarray(scene["masks"][largest]))
    middle = len(rows) // 2
    row, column = stage.patch_at(rows[middle] / scene["height"], columns[middle] / scene["width"])
    height, width = image.height / stage.grid[0], image.width / stage.grid[1]
    frame = (column * width, row * height, (column + 1) * width, (row + 1) * height)
    return overlay_attention(image, stage.of_patch(row, column), frame)
