"""The work behind `app.py`: opening checkpoints, predictions as pictures and HTML, attention maps."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple, cast

import gradio as gr
import numpy as np
import torch
from gradio.utils import get_upload_folder
from PIL import Image
from transformers import Pipeline

from ..data.samples import decode_rgb
from ..inference.attention import StageAttention, attention_inputs, find_pvt, stage_attention
from ..inference.photographs import installed_photos
from ..inference.pictures import class_colors, class_shares, overlay_attention, overlay_classes, overlay_objects
from ..inference.prediction import Objects, find_objects, label_map, open_pipeline, top_classes


STAGES = 4
# Longer sides of pictures, in pixels: smallest and largest of the answer, and of the attention maps
SIZES, SMALL = (512, 1024), 320
ROWS = 50  # at most, in the table of objects
EXAMPLES = 4  # at most


class Problem(Exception):
    """An error whose text is shown on the page."""


@dataclass(frozen=True)
class Checkpoint:
    pipeline: Pipeline
    task: str
    pvt: Any  # the PVT in it, a PreTrainedModel, or None

    @property
    def id2label(self) -> dict[int, str]:
        config: Any = self.pipeline.model.config
        return config.id2label


@lru_cache(maxsize=2)
def open_checkpoint(name: str, trust_remote_code: bool) -> Checkpoint:
    source = Path(name).expanduser()
    if source.is_dir() and not (source / "config.json").is_file():
        raise Problem(f"The folder {name} has no config.json: give a folder written by save_pretrained.")
    if source.is_file():
        raise Problem(f"{name} is a file: give the folder that save_pretrained wrote.")
    model = str(source) if source.is_dir() else name
    try:
        task, pipeline = open_pipeline(model, trust_remote_code=trust_remote_code, use_safetensors=True)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise Problem(
                f"{name} brings code of its own, which runs only if the page was started with --trust_remote_code."
            ) from error
        raise Problem(str(error)) from error
    return Checkpoint(pipeline, task, find_pvt(pipeline.model))


def read_image(path: str) -> Image.Image:
    try:
        return decode_rgb({"path": path, "bytes": None})
    except ValueError as error:
        reason = str(error).replace(path, Path(path).name)
        raise Problem(f"{Path(path).name} cannot be read as an image: {reason}") from error


def examples() -> list[str]:
    """Names for [`pvt_hf.photo`]."""
    return installed_photos()[:EXAMPLES]


def lend(path: str) -> str:
    """A copy of a file of this machine among the uploads: the events of the page take nothing else."""
    folder = Path(get_upload_folder(), "examples")
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, delete=False) as partial:
        partial.write(Path(path).read_bytes())
    return str(Path(partial.name).replace(folder / Path(path).name))


def copy_of(image: Image.Image, least: int, most: int) -> Image.Image:
    """A resized copy to show, its longer side between `least` and `most` pixels."""
    scale = min(max(least / max(image.size), 1), most / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


class View(NamedTuple):
    """
    The attention view of an image.

    Attributes:
        picture: a copy of the image, to choose a patch in.
        small: a copy to draw the attention maps on.
        stages: attention, stage by stage.
        size: (height, width) in pixels of the model's input.
    """

    picture: Image.Image
    small: Image.Image
    stages: list[StageAttention]
    size: tuple[int, int]


@lru_cache(maxsize=4)
def view_of(checkpoint: Checkpoint, path: str) -> View:
    image, processor = read_image(path), cast(Any, checkpoint.pipeline.image_processor)
    height, width = processor(image, return_tensors="pt")["pixel_values"].shape[-2:]
    pixel_values = attention_inputs(checkpoint.pvt, processor, image, height * width)
    stages = stage_attention(checkpoint.pvt, pixel_values)
    return View(
        copy_of(image, *SIZES), copy_of(image, SMALL, SMALL), stages, (pixel_values.shape[-2], pixel_values.shape[-1])
    )


def stage_updates(view: View, down: float, across: float) -> list[dict[str, Any]]:
    """Updates for the pictures of the stages, for the patch at these percentages of height and width."""
    updates, image = [], view.small
    for number, stage in enumerate(view.stages, start=1):
        row, column = stage.patch_at(down / 100, across / 100)
        height, width = image.height / stage.grid[0], image.width / stage.grid[1]
        patch = (column * width, row * height, (column + 1) * width, (row + 1) * height)
        picture = overlay_attention(image, stage.of_patch(row, column), patch)
        label = f"Stage {number}: row {row + 1} of {stage.grid[0]}, column {column + 1} of {stage.grid[1]}"
        updates.append(gr.update(value=picture, label=label, visible=True))
    return updates + [gr.update(value=None, visible=False)] * (STAGES - len(updates))


def message(text: str) -> str:
    return f'<p id="status" role="status">{escape(text)}</p>'


def legend(labels: np.ndarray, id2label: dict[int, str]) -> str:
    colors = class_colors(max(id2label) + 1)
    entries = [
        f'<li><i style="background: rgb({", ".join(map(str, colors[label]))})"></i> '
        f"{escape(id2label[label])}: {share:.1%}</li>"
        for label, share in class_shares(labels)
    ]
    return f"<ul>{''.join(entries)}</ul>"


def table(found: Objects, id2label: dict[int, str]) -> str:
    rows = [
        f"<tr><td>{escape(id2label[label])}</td><td>{score:.1%}</td><td>{', '.join(f'{x:.0f}' for x in box)}</td></tr>"
        for label, score, box in zip(found.labels[:ROWS], found.scores, found.boxes_xyxy.tolist())
    ]
    head = "<tr><th>Object</th><th>Score</th><th>Box in the picture (left, top, right, bottom)</th></tr>"
    more = f"<p>... and {len(found.labels) - ROWS} more.</p>" if len(found.labels) > ROWS else ""
    return f"<table>{head}{''.join(rows)}</table>{more}" if rows else ""


@torch.no_grad()
def predict(checkpoint: Checkpoint, image: Image.Image, threshold: float) -> tuple[str, dict | None, Any, str]:
    """
    Runs the model.

    Returns:
        A sentence; the content of a gr.Label (classification) or None; a picture (segmentation, detection) or None;
        HTML with details, which may be empty.
    """
    id2label, picture = checkpoint.id2label, copy_of(image, *SIZES)
    size = (
        picture.height,
        picture.width,
    )  # of label maps and masks, too: a large image's could fill the memory
    if checkpoint.task == "image-classification":
        predictions = top_classes(checkpoint.pipeline, image, top_k=5)
        confidences: dict[str, float] = {}
        for one in predictions:
            name = one["label"]
            while name in confidences:  # several classes may share a name
                name += " "
            confidences[name] = one["score"]
        return f"{predictions[0]['label']}, {predictions[0]['score']:.1%}", confidences, None, ""
    if checkpoint.task == "semantic-segmentation":
        labels = label_map(checkpoint.pipeline, image, size)
        overlay = overlay_classes(picture, labels, id2label).crop((0, 0, *picture.size))
        shares = ", ".join(f"{id2label[label]}: {share:.1%}" for label, share in class_shares(labels)[:5])
        return shares, None, overlay, legend(labels, id2label)
    found = find_objects(checkpoint.pipeline, image, threshold, checkpoint.task == "instance-segmentation", size)
    overlay = overlay_objects(picture, found.boxes_xyxy, found.labels, found.scores, id2label, found.masks)
    counts = Counter(id2label[label] for label in found.labels).most_common()
    text = ", ".join(f"{count} × {name}" for name, count in counts) or f"no objects with a score above {threshold:.2f}"
    return text, None, overlay, table(found, id2label)
