"""What `pvt-hf predict` does for each task: answers of a model as text, as JSON, and as pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from transformers import Pipeline

from .pictures import (
    annotate_classes,
    caption,
    class_colors,
    class_shares,
    label_image,
    overlay_classes,
    overlay_objects,
)
from .prediction import Objects, find_objects_in, label_maps_of, top_classes_of


class Predictor(Protocol):
    """
    Attributes:
        settings: what the answers depend on, beside the model.
    """

    settings: dict[str, Any]

    def answers(self, images: Sequence[Image.Image]) -> list[Any]:
        """The answer for each image. Raises a ValueError if one is not finite."""

    def entry(self, answer: Any) -> dict[str, Any]:
        """The answer for JSON: one key, `classes`, `shares` or `objects`, with a list of dicts."""

    def files(self, image: Image.Image, answer: Any) -> dict[str, Image.Image | str]:
        """What to write for an image: content by the ending of its name."""

    def frame(self, image: Image.Image, answer: Any) -> Image.Image:
        """The annotated frame of a video, of the image's size."""


def describe(entry: dict[str, Any]) -> str:
    """One line of text for what [`Predictor.entry`] returns."""
    if "classes" in entry:
        return ", ".join(f"{one['label']} {one['score']:.1%}" for one in entry["classes"])
    if "shares" in entry:
        return ", ".join(f"{one['label']} {one['share']:.1%}" for one in entry["shares"])
    counts = Counter(one["label"] for one in entry["objects"])
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no objects"


class ClassPredictor:
    """For image-classification."""

    def __init__(self, classifier: Pipeline, top_k: int):
        self.classifier, self.settings = classifier, {"top_k": top_k}

    def answers(self, images: Sequence[Image.Image]) -> list[list[dict[str, Any]]]:
        return top_classes_of(self.classifier, images, self.settings["top_k"])

    def entry(self, answer: list[dict[str, Any]]) -> dict[str, Any]:
        return {"classes": answer}

    def files(self, image: Image.Image, answer: list[dict[str, Any]]) -> dict[str, Image.Image | str]:
        return {"classes.png": annotate_classes(image, answer)}

    def frame(self, image: Image.Image, answer: list[dict[str, Any]]) -> Image.Image:
        return caption(image, [(f"{one['label']}  {one['score']:.1%}", None) for one in answer])


class SharePredictor:
    """For semantic-segmentation. An answer is a label map, (height, width)."""

    def __init__(self, segmenter: Pipeline):
        self.segmenter, self.settings = segmenter, dict[str, Any]()
        self.config: Any = segmenter.model.config

    def answers(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        return label_maps_of(self.segmenter, images)

    def entry(self, answer: np.ndarray) -> dict[str, Any]:
        names = self.config.id2label
        return {"shares": [{"label": names[label], "share": share} for label, share in class_shares(answer)]}

    def files(self, image: Image.Image, answer: np.ndarray) -> dict[str, Image.Image | str]:
        overlay = overlay_classes(image, answer, self.config.id2label)
        return {"overlay.png": overlay, "labels.png": label_image(answer, self.config.num_labels)}

    def frame(self, image: Image.Image, answer: np.ndarray) -> Image.Image:
        names = self.config.id2label
        colors = [tuple(color.tolist()) for color in class_colors(max(names) + 1)]
        blend = overlay_classes(image, answer, names).crop((0, 0, *image.size))
        return caption(blend, [(f"{names[one]}  {share:.1%}", colors[one]) for one, share in class_shares(answer)])


class ObjectPredictor:
    """For object-detection and instance-segmentation."""

    def __init__(self, detector: Pipeline, threshold: float, with_masks: bool):
        self.detector, self.with_masks = detector, with_masks
        self.settings = {"threshold": threshold}
        self.names: Any = detector.model.config.id2label

    def answers(self, images: Sequence[Image.Image]) -> list[Objects]:
        return find_objects_in(self.detector, images, self.settings["threshold"], self.with_masks)

    def entry(self, answer: Objects) -> dict[str, Any]:
        objects: list[dict[str, Any]] = [
            {"label": self.names[label], "score": score, "box": box}
            for label, score, box in zip(answer.labels, answer.scores, answer.boxes_xyxy.tolist())
        ]
        if answer.masks is not None:
            from pycocotools.mask import encode

            for one, mask in zip(objects, answer.masks.numpy()):
                rle = encode(np.asfortranarray(mask, dtype=np.uint8))
                one["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        return {"objects": objects}

    def files(self, image: Image.Image, answer: Objects) -> dict[str, Image.Image | str]:
        objects = json.dumps(self.entry(answer)["objects"], indent=1)
        return {"objects.png": self.frame(image, answer), "objects.json": objects}

    def frame(self, image: Image.Image, answer: Objects) -> Image.Image:
        return overlay_objects(image, answer.boxes_xyxy, answer.labels, answer.scores, self.names, answer.masks)
