"""Predictions for single images: classes, label maps, boxes and masks. For `predict.py` and `app.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Pipeline,
    PreTrainedConfig,
    pipeline,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from ..engine.finite import check_answers, check_pixels
from ..weights.opening import open_complete, open_config, open_processor
from ..weights.paths import folder_or_id


class Task(NamedTuple):
    """
    Attributes:
        pipeline: the Transformers pipeline that runs the model.
        auto_classes: the classes that open the model; the first that knows the checkpoint's configuration is taken.
        method: the post-processing method that the image processor must have.
    """

    pipeline: str
    auto_classes: tuple[Any, ...]
    method: str | None = None


TASKS = {
    "image-classification": Task("image-classification", (AutoModelForImageClassification,)),
    "semantic-segmentation": Task(
        "image-segmentation",
        (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation),
        "post_process_semantic_segmentation",
    ),
    "object-detection": Task("object-detection", (AutoModelForObjectDetection,), "post_process_object_detection"),
    "instance-segmentation": Task(
        "object-detection", (AutoModelForObjectDetection,), "post_process_instance_segmentation"
    ),
}
_TASK_BY_ENDING = {
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForUniversalSegmentation": "semantic-segmentation",
    "ForObjectDetection": "object-detection",
    "ForInstanceSegmentation": "instance-segmentation",
}


class Objects(NamedTuple):
    """
    Detected objects, highest score first.

    Attributes:
        boxes_xyxy: (objects, 4) float32, in pixels.
        labels: class indices.
        scores: from 0 to 1.
        masks: (objects, height, width) bool; None for models without masks.
    """

    boxes_xyxy: torch.Tensor
    labels: list[int]
    scores: list[float]
    masks: torch.Tensor | None


def task_of(config: PreTrainedConfig) -> str | None:
    """
    The task that a checkpoint was saved for: one of [`TASKS`], by the ending of its class name. None for other classes
    (a bare backbone, for example). A configuration without a class name, as timm writes it, counts as a classifier.
    """
    name = (config.architectures or ["ForImageClassification"])[0]
    return next((task for ending, task in _TASK_BY_ENDING.items() if name.endswith(ending)), None)


def open_pipeline(
    model: str,
    task: str | None = None,
    *,
    device: str = "cpu",
    trust_remote_code: bool | None = None,
    **options: Any,
) -> tuple[str, Pipeline]:
    """
    Opens a complete checkpoint with its image processor. The weights are read once.

    Args:
        model: folder or Hub id.
        task: one of [`TASKS`]; by default the one that the checkpoint was saved for, see [`task_of`].
        device: "cpu", "cuda", "cuda:1" ...
        trust_remote_code: whether code that comes with the checkpoint may run; None asks on the terminal.
        options: of the model's `from_pretrained`, such as `dtype` and `use_safetensors`.

    Returns:
        The task, and a pipeline for it that also fits [`label_map`] or [`find_objects`].

    Raises:
        ValueError: the checkpoint cannot be opened, lacks weights or an image processor, or cannot do the task. The
            message is one line.
    """
    try:
        return _open(model, task, device, trust_remote_code, options)
    except Exception as error:  # configurations, weights and the Hub's client raise a dozen types
        if "trust_remote_code" in str(error):
            reason = f"{model} brings code of its own, which runs only with trust_remote_code=True."
            raise ValueError(reason) from error
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines and isinstance(error, ValueError | OSError | ImportError) else repr(error)
        raise ValueError(reason if reason.startswith(model) else f"Cannot load {model}: {reason}") from error


def _open(
    model: str, task: str | None, device: str, trust_remote_code: bool | None, options: dict[str, Any]
) -> tuple[str, Pipeline]:
    config = open_config(model, trust_remote_code=trust_remote_code)
    class_name = (config.architectures or [type(config).__name__])[0]
    task = task or task_of(config)
    if task is None:
        raise ValueError(f"{model} holds a {class_name}: give a classifier, a segmenter or a detector.")
    kind, auto_classes, method = TASKS[task]
    cannot = f"{model} holds a {class_name}, which cannot do {task}."
    auto_class = next((auto_class for auto_class in auto_classes if _opens(auto_class, config)), None)
    # Object detectors of Transformers may share a processor, and so its methods, with a model that has masks.
    if auto_class is None or task == "instance-segmentation" and task_of(config) != task:
        raise ValueError(cannot)

    folder = Path(folder_or_id(model))
    if folder.is_dir() and not any((folder / name).is_file() for name in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)):
        raise ValueError(f"{model} has no {IMAGE_PROCESSOR_NAME}: save the model's image processor in that folder.")
    processor = open_processor(model, trust_remote_code=trust_remote_code)
    if method and not hasattr(processor, method):
        raise ValueError(f"{cannot} (Its {type(processor).__name__} has no {method}.)")

    opened = open_complete(auto_class, model, config=config, trust_remote_code=trust_remote_code, **options)
    # Only the segmentation pipeline looks for a tokenizer, and does without if there is none: OneFormer has one.
    tokenizer = folder_or_id(model) if kind == "image-segmentation" else None
    built = pipeline(kind, model=opened, image_processor=processor, tokenizer=tokenizer, device=device)  # type: ignore[call-overload]  # by kind, of literals
    return task, built


def _opens(auto_class: Any, config: PreTrainedConfig) -> bool:
    """Whether an Auto class has a model for this configuration, here or in the checkpoint's own code."""
    return type(config) in auto_class._model_mapping or auto_class.__name__ in getattr(config, "auto_map", {})


def _outputs(model: Pipeline, image: Image.Image, **options: Any) -> Any:
    """
    The model's output for one image. Raises a [`pvt_hf.engine.finite.NotFiniteError`] if it is NaN or infinite, which
    the post-processing would turn into no objects, or into the first class.
    """
    inputs = model.preprocess(image, **options)
    check_pixels(inputs)
    outputs = model.forward(inputs)
    check_answers(outputs)
    return outputs


def top_classes(classifier: Pipeline, image: Image.Image, top_k: int) -> list[dict[str, Any]]:
    """
    The `top_k` best classes, best first, as dicts with `label` and `score`.

    Raises:
        ValueError: the pixels or the model's answers are NaN or infinite.
    """
    return classifier.postprocess(_outputs(classifier, image), top_k=top_k)  # type: ignore[arg-type]  # its own keyword


def label_map(segmenter: Pipeline, image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """
    The class of every pixel: (height, width) int64, at the image's size or at `size` (height, width).

    The pipeline's own answer has one mask per class name, and several classes may share a name.

    Raises:
        ValueError: the pixels or the model's answers are NaN or infinite.
    """
    processor: Any = segmenter.image_processor
    outputs = _outputs(segmenter, image, subtask="semantic")
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

    The pipelines' own answers lose something: object detection rounds coordinates down to integers, image segmentation
    lets no two masks overlap.

    Raises:
        ValueError: the pixels or the model's answers are NaN or infinite.
    """
    processor: Any = detector.image_processor
    outputs = _outputs(detector, image)
    options = {"threshold": threshold, "target_sizes": [size or (image.height, image.width)]}
    found = processor.post_process_object_detection(outputs, **options)[0]
    masks = None
    if with_masks:
        maps = processor.post_process_instance_segmentation(outputs, return_binary_maps=True, **options)[0]
        masks = maps["segmentation"].cpu()
    return Objects(found["boxes"].cpu(), found["labels"].tolist(), found["scores"].tolist(), masks)
