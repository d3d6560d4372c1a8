"""Predictions for images: classes, label maps, boxes and masks. For `pvt-hf predict` and `pvt-hf app`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
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
from ..weights.opening import open_config, open_processor, open_to_run
from ..weights.paths import folder_or_id
from ..weights.trust import UntrustedProgram


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

    def as_transformers(self) -> dict[str, torch.Tensor]:
        """
        The objects as Transformers' post-processing gives them: `boxes` (objects, 4) xyxy in pixels, `labels` int64,
        `scores` float32 and, if there are masks, `masks` (objects, 1, height, width) bool. For
        `supervision.Detections.from_transformers`.
        """
        found = {
            "boxes": self.boxes_xyxy,
            "labels": torch.tensor(self.labels, dtype=torch.int64),
            "scores": torch.tensor(self.scores, dtype=torch.float32),
        }
        return found if self.masks is None else {**found, "masks": self.masks[:, None]}


def task_of(config: PreTrainedConfig) -> str | None:
    """
    The task that a checkpoint was saved for: one of [`TASKS`], by the ending of its class name. None for other classes
    (a bare backbone, for example). A configuration without a class name, as timm writes it, counts as a classifier.
    """
    name = (config.architectures or ["ForImageClassification"])[0]
    return next((task for ending, task in _TASK_BY_ENDING.items() if name.endswith(ending)), None)


def check_device(device: str) -> None:
    """Raises a ValueError for a device, such as "cuda:1", that PyTorch does not find on this machine."""
    wanted, found = torch.device(device), torch.accelerator.current_accelerator(check_available=True)
    if wanted.type in ("cpu", "meta"):
        return
    count = torch.accelerator.device_count() if found else 0
    if found is None or found.type != wanted.type or (wanted.index or 0) >= count:
        there = "".join(f", {found}:{number}" for number in range(count)) if found else ""
        raise ValueError(f"PyTorch finds no device {device} on this machine. There is: cpu{there}.")


def open_pipeline(
    model: str,
    task: str | None = None,
    *,
    device: str = "cpu",
    trust_remote_code: bool | None = None,
    **options: Any,
) -> tuple[str, Pipeline]:
    """
    Opens a complete checkpoint or an export with its image processor. The weights are read once.

    Args:
        model: folder or Hub id; or a folder that `pvt-hf export` has written.
        task: one of [`TASKS`]; by default the one that the checkpoint was saved for, see [`task_of`].
        device: "cpu", "cuda", "cuda:1" ...
        trust_remote_code: whether code that comes with the checkpoint may run; None asks on the terminal.
        options: of the model's `from_pretrained`, such as `dtype` and `use_safetensors`; not for exports.

    Returns:
        The task, and a pipeline for it that also fits [`label_maps_of`] or [`find_objects_in`].

    Raises:
        ValueError: there is no such device; or the checkpoint cannot be opened, lacks weights or an image processor, or
            cannot do the task. The message is one line.
    """
    check_device(device)
    try:
        return _open(model, task, device, trust_remote_code, options)
    except UntrustedProgram:
        raise
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

    opened = open_to_run(auto_class, model, config=config, trust_remote_code=trust_remote_code, **options)
    # Only the segmentation pipeline looks for a tokenizer, and does without if there is none: OneFormer has one.
    tokenizer = folder_or_id(model) if kind == "image-segmentation" else None
    built = pipeline(kind, model=opened, image_processor=processor, tokenizer=tokenizer, device=device)  # type: ignore[call-overload]  # by kind, of literals
    return task, built


def _opens(auto_class: Any, config: PreTrainedConfig) -> bool:
    """Whether an Auto class has a model for this configuration, here or in the checkpoint's own code."""
    return type(config) in auto_class._model_mapping or auto_class.__name__ in getattr(config, "auto_map", {})


def _answers(
    model: Pipeline,
    images: Sequence[Image.Image],
    answers_of: Callable[[Any, list[tuple[int, int]]], list[Any]],
    sizes: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> list[Any]:
    """
    The answer for each image. Images that the processor brings to one shape go through the model together. Nothing is
    padded for it, so that an answer does not depend on the other images.

    Args:
        answers_of: from the model's output for several images, and their sizes (height, width), to their answers.
        sizes: (height, width) for the answers; by default those of the images.
        options: of the pipeline's preprocessing.

    Raises:
        NotFiniteError: pixels or outputs are NaN or infinite. The post-processing would turn them into no objects, or
            into the first class.
    """
    sizes = sizes or [(image.height, image.width) for image in images]
    prepared: list[Any] = [model.preprocess(image, **options) for image in images]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, inputs in enumerate(prepared):
        check_pixels(inputs)
        groups[tuple(inputs["pixel_values"].shape)].append(index)
    answers: list[Any] = [None] * len(images)
    for members in groups.values():
        outputs = model.forward(_joined([prepared[index] for index in members]))
        check_answers(outputs)
        for index, answer in zip(members, answers_of(outputs, [sizes[index] for index in members]), strict=True):
            answers[index] = answer
    return answers


def _joined(prepared: list[Any]) -> Any:
    """The inputs of several images of one shape, as those of a batch."""
    first = prepared[0]
    for name in first if len(prepared) > 1 else ():
        values = [inputs[name] for inputs in prepared]
        first[name] = torch.cat(values) if isinstance(values[0], torch.Tensor) else sum(values, start=[])
    return first


def top_classes_of(classifier: Pipeline, images: Sequence[Image.Image], top_k: int) -> list[list[dict[str, Any]]]:
    """
    For each image the `top_k` best classes, best first, as dicts with `label` and `score`.

    Raises:
        ValueError: the pixels or the model's answers are NaN or infinite.
    """

    def answers_of(outputs: Any, sizes: list[tuple[int, int]]) -> list[Any]:
        rows = [{"logits": outputs["logits"][index : index + 1]} for index in range(len(sizes))]
        return [classifier.postprocess(row, top_k=top_k) for row in rows]  # type: ignore[arg-type]  # its own keyword

    return _answers(classifier, images, answers_of)


def top_classes(classifier: Pipeline, image: Image.Image, top_k: int) -> list[dict[str, Any]]:
    """[`top_classes_of`] one image."""
    return top_classes_of(classifier, [image], top_k)[0]


def label_maps_of(
    segmenter: Pipeline, images: Sequence[Image.Image], sizes: Sequence[tuple[int, int]] | None = None
) -> list[np.ndarray]:
    """
    For each image the class of every pixel: (height, width) int64, at the image's size or at its entry in `sizes`
    (height, width).

    The pipeline's own answer has one mask per class name, and several classes may share a name.

    Raises:
        ValueError: the pixels or the model's answers are NaN or infinite.
    """
    processor: Any = segmenter.image_processor

    def answers_of(outputs: Any, sizes: list[tuple[int, int]]) -> list[Any]:
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return [labels.cpu().numpy() for labels in maps]

    return _answers(segmenter, images, answers_of, sizes, subtask="semantic")


def label_map(segmenter: Pipeline, image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """[`label_maps_of`] one image."""
    return label_maps_of(segmenter, [image], size and [size])[0]


def find_objects_in(
    detector: Pipeline,
    images: Sequence[Image.Image],
    threshold: float,
    with_masks: bool = False,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> list[Objects]:
    """
    For each image the objects with a score above `threshold`, in pixels of the image or of a copy of the size
    (height, width) in `sizes`.

    The pipelines' own answers lose something: object detection rounds coordinates down to integers, image segmentation
    lets no two masks overlap.

    Raises:
        ValueError: the pixels or the model's answers are NaN or infinite.
    """
    processor: Any = detector.image_processor

    def answers_of(outputs: Any, sizes: list[tuple[int, int]]) -> list[Objects]:
        options = {"threshold": threshold, "target_sizes": sizes}
        boxes, masks = processor.post_process_object_detection(outputs, **options), [None] * len(sizes)
        if with_masks:
            maps = processor.post_process_instance_segmentation(outputs, return_binary_maps=True, **options)
            masks = [one["segmentation"].cpu() for one in maps]
        return [
            Objects(found["boxes"].cpu(), found["labels"].tolist(), found["scores"].tolist(), mask)
            for found, mask in zip(boxes, masks, strict=True)
        ]

    return _answers(detector, images, answers_of, sizes)


def find_objects(
    detector: Pipeline,
    image: Image.Image,
    threshold: float,
    with_masks: bool = False,
    size: tuple[int, int] | None = None,
) -> Objects:
    """[`find_objects_in`] one image."""
    return find_objects_in(detector, [image], threshold, with_masks, size and [size])[0]
