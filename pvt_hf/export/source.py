"""Opens the model to export, with its image processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from ..families import MODELS, load
from ..inference.prediction import TASKS, task_of
from ..weights.opening import open_complete, open_config, open_processor
from ..weights.paths import is_exported


PHOTOGRAPH = (640, 480)  # width and height of the image that says what a processor usually gives


@dataclass(frozen=True)
class Source:
    """
    A model to export.

    Attributes:
        model: complete, in eval mode, fp32, on the CPU.
        processor: its image processor; None if it has none and does without.
        task: one of `pvt_hf.inference.prediction.TASKS`; None for feature extractors and backbones.
        fixed_size: (height, width) in pixels that the processor gives all images; None if sizes stay open.
        usual_size: (height, width) in pixels that it gives a photograph; None without processor.
    """

    model: PreTrainedModel
    processor: Any
    task: str | None
    fixed_size: tuple[int, int] | None = None
    usual_size: tuple[int, int] | None = None


def open_source(model: str, model_class: str = "", fixed_size: tuple[int, int] | None = None) -> Source:
    """
    Opens a complete checkpoint.

    Args:
        model: folder or Hub id.
        model_class: a class of this package to open it as, such as "PvtBackbone"; "": the one that it was saved from.
        fixed_size: (height, width) in pixels. The processor then gives all images that size, those of
            segmenters and detectors rounded up to multiples of 32.

    Raises:
        OSError: there is no such model, or it lacks a file.
        ValueError: it lacks weights, is exported already, or has no image processor.
    """
    if is_exported(model):
        raise ValueError(f"{model} is an export already: give the model that it was exported from.")
    config = open_config(model)
    name = model_class or (config.architectures or [""])[0]
    if name in MODELS:
        opened = open_complete(load(MODELS[name][1].path), model)
    else:
        task = task_of(config)
        if task is None:
            raise ValueError(f"{model} holds a {name}: give a classifier, a segmenter, a detector or a PVT.")
        auto_class = next((one for one in TASKS[task].auto_classes if type(config) in one._model_mapping), None)
        if auto_class is None:
            raise ValueError(f"{model} holds a {name}, which no Auto class for {task} knows.")
        opened = open_complete(auto_class, model)
    opened.config.architectures = [type(opened).__name__]
    task = task_of(opened.config)
    try:
        processor = open_processor(model)
        if fixed_size:
            processor = open_processor(model, **sizes_of_processor(processor, *fixed_size))
    except OSError as error:
        if task:
            raise ValueError(
                f"{model} has no image processor, which an export needs to answer like the model: save it in that "
                "folder."
            ) from error
        processor = None
    usual = size_after(processor, *PHOTOGRAPH) if processor else None
    if fixed_size and processor:
        fixed_size = usual
    return Source(opened.float(), processor, task, fixed_size, usual)


def sizes_of_processor(processor: Any, height: int, width: int) -> dict[str, Any]:
    """The settings that make an image processor give all images one size."""
    crop = getattr(processor, "crop_size", None)
    if getattr(processor, "do_center_crop", False) and crop:
        edge = dict(processor.size).get("shortest_edge") or max(crop["height"], crop["width"])
        ratio = edge / max(crop["height"], crop["width"])
        return {"size": {"shortest_edge": round(max(height, width) * ratio)},
                "crop_size": {"height": height, "width": width}}  # fmt: skip
    if getattr(processor, "do_pad", False):
        within = {"max_height": height, "max_width": width}
        return {"size": within, "pad_size": {"height": height, "width": width}}
    return {"size": {"height": height, "width": width}}


def preparation(processor: Any, height: int, width: int) -> str:
    """What an image processor with [`sizes_of_processor`] does with images, in words."""
    size = dict(processor.size)
    if size.get("shortest_edge"):
        return f"resized until the shorter side has {size['shortest_edge']} pixels, then cropped to {height}x{width}"
    if size.get("max_height"):
        fit = f"{size['max_height']}x{size['max_width']}"
        return f"resized to fit into {fit} pixels, then padded at the right and bottom to {height}x{width}"
    return f"resized to {height}x{width} pixels, whatever their shape"


def check_fixed_size(source: Source) -> None:
    """Raises a ValueError if a model does not take images of the size that a program is to be for."""
    backbone = getattr(source.model.config, "backbone_config", None) or source.model.config
    minimum = getattr(backbone, "minimum_image_size", 1)
    if source.fixed_size and min(source.fixed_size) < minimum:
        given = "x".join(map(str, source.fixed_size))
        raise ValueError(f"--static {given}: this model takes images of at least {minimum}x{minimum} pixels.")


def size_after(processor: Any, width: int, height: int) -> tuple[int, int]:
    """(height, width) in pixels that a processor gives an image of `width` x `height` pixels."""
    shape = processor(Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"].shape
    return int(shape[-2]), int(shape[-1])


def name_of(model: str) -> str:
    """The last part of a folder or Hub id, for titles."""
    return Path(model).resolve().name if Path(model).is_dir() else model
