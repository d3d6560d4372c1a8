"""What trained models answer on single images, in whole label maps, boxes and masks: for `predict.py` and `app.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import Pipeline, PreTrainedConfig, pipeline
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, logging


# The pipeline that opens a model of the task, and the method that its processor has to have
TASKS: dict[str, tuple[str, str | None]] = {
    "image-classification": ("image-classification", None),
    "semantic-segmentation": ("image-segmentation", "post_process_semantic_segmentation"),
    "object-detection": ("object-detection", "post_process_object_detection"),
    "instance-segmentation": ("object-detection", "post_process_instance_segmentation"),
}
_TASK_BY_ENDING = {
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForUniversalSegmentation": "semantic-segmentation",
    "ForObjectDetection": "object-detection",
    "ForInstanceSegmentation": "instance-segmentation",
}


class Objects(NamedTuple):
    """The likeliest first: `boxes_xyxy` (objects, 4) and `masks` (objects, height, width) bool, in pixels."""

    boxes_xyxy: torch.Tensor
    labels: list[int]
    scores: list[float]
    masks: torch.Tensor | None


def task_of(config: PreTrainedConfig) -> str | None:
    """One of [`TASKS`] by the name of the class that the checkpoint was saved from; None for all other classes."""
    name = (config.architectures or [""])[0]
    return next((task for ending, task in _TASK_BY_ENDING.items() if name.endswith(ending)), None)


def open_pipeline(task: str, model: str, **options: Any) -> Pipeline:
    """
    The pipeline of a checkpoint, fit for the functions below.

    Args:
        task: one of [`TASKS`].
        model: folder or Hub id.
        options: of `transformers.pipeline`, such as `device`.

    Raises:
        ValueError: it cannot be opened, another kind of model comes of it, or it lacks weights.
    """
    kind, method = TASKS[task]
    folder = Path(model)
    if folder.is_dir() and not any((folder / name).is_file() for name in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)):
        raise ValueError(
            f"Cannot load {model}: it has no {IMAGE_PROCESSOR_NAME}. Save the model's image processor there."
        )
    try:
        opened = pipeline(kind, model=model, **options)  # type: ignore[call-overload]  # by kind, of literals
    except (OSError, ValueError, SafetensorError) as error:
        source = "the folder" if folder.is_dir() else "no such folder here, and as a Hub id it"
        lines = str(error).splitlines()
        # Where `pipeline` tried several classes, it quotes the traceback of each
        reason = next((line for line in lines if re.match(r"[\w.]*Error: ", line)), lines[0])
        raise ValueError(f"Cannot load {model} for {kind}: {source} gave: {reason}") from error
    name, processor = type(opened.model).__name__, opened.image_processor
    # The image-segmentation pipeline opens others, with a message; Transformers' processors of DETR have methods for
    # two kinds of models
    if method and not hasattr(processor, method) or task.endswith("segmentation") and "Segmentation" not in name:
        raise ValueError(f"{model} holds a {name} with a {type(processor).__name__}: no {task} comes of it.")
    missing = _missing_weights(opened.model, model, options.get("model_kwargs", {}))
    if missing:
        raise ValueError(
            f"Cannot load {model}: it is no trained {name}, without weights for {', '.join(missing[:4])}"
            f"{' ...' * (len(missing) > 4)}."
        )
    return opened


def _missing_weights(opened: Any, model: str, options: dict[str, Any]) -> list[str]:
    """What is random in `opened`. A pipeline does not tell: the checkpoint is read a second time."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        _, loaded = type(opened).from_pretrained(model, config=opened.config, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    return sorted(loaded["missing_keys"])


def label_map(segmenter: Pipeline, image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """
    The class of every pixel: (height, width) integers, of the image's size or of `size` (height, width).

    Not the pipeline's own answer: its masks are told apart by names, which several classes may share.
    """
    processor: Any = segmenter.image_processor
    outputs = segmenter.forward(segmenter.preprocess(image, subtask="semantic"))  # type: ignore[arg-type]
    sizes = [size or (image.height, image.width)]
    labels = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0]
    return labels.cpu().numpy()


def find_objects(
    detector: Pipeline,
    image: Image.Image,
    threshold: float,
    with_masks: bool = False,
    size: tuple[int, int] | None = None,
) -> Objects:
    """
    Objects with a score above `threshold`, in pixels of the image or of a copy of `size` (height, width).

    Not the pipelines' own answers: one cuts coordinates to whole numbers, the other lets no masks overlap.
    """
    processor: Any = detector.image_processor
    outputs = detector.forward(detector.preprocess(image))
    options = {"threshold": threshold, "target_sizes": [size or (image.height, image.width)]}
    found = processor.post_process_object_detection(outputs, **options)[0]
    masks = None
    if with_masks:
        maps = processor.post_process_instance_segmentation(outputs, return_binary_maps=True, **options)[0]
        masks = maps["segmentation"].cpu()
    return Objects(found["boxes"].cpu(), found["labels"].tolist(), found["scores"].tolist(), masks)
