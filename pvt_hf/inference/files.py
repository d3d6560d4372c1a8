"""Predicts image files and writes the results beside each other in a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import Pipeline
from transformers.utils import logging

from ..data.samples import decode_rgb
from .pictures import annotate_classes, class_shares, label_image, overlay_classes, overlay_objects
from .prediction import find_objects, label_map, open_pipeline, top_classes


# One line of text, and the content of files to write by the ending of their names
Prediction = tuple[str, dict[str, Image.Image | str]]


def classify(classifier: Pipeline, top_k: int, image: Image.Image) -> Prediction:
    predictions = top_classes(classifier, image, top_k)
    text = ", ".join(f"{prediction['label']} {prediction['score']:.1%}" for prediction in predictions)
    return text, {"classes.png": annotate_classes(image, predictions)}


def segment(segmenter: Pipeline, image: Image.Image) -> Prediction:
    config: Any = segmenter.model.config
    labels = label_map(segmenter, image)
    text = ", ".join(f"{config.id2label[label]} {share:.1%}" for label, share in class_shares(labels))
    overlay = overlay_classes(image, labels, config.id2label)
    return text, {"overlay.png": overlay, "labels.png": label_image(labels, config.num_labels)}


def detect(detector: Pipeline, threshold: float, with_masks: bool, image: Image.Image) -> Prediction:
    id2label: Any = detector.model.config.id2label
    found = find_objects(detector, image, threshold, with_masks)
    names = [id2label[label] for label in found.labels]
    objects: list[dict[str, Any]] = [
        {"label": name, "score": score, "box": box}
        for name, score, box in zip(names, found.scores, found.boxes_xyxy.tolist())
    ]
    if found.masks is not None:
        from pycocotools.mask import encode

        for one, mask in zip(objects, found.masks.numpy()):
            rle = encode(np.asfortranarray(mask, dtype=np.uint8))
            one["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    text = ", ".join(f"{count} {name}" for name, count in Counter(names).most_common()) or "no objects"
    picture = overlay_objects(image, found.boxes_xyxy, found.labels, found.scores, id2label, found.masks)
    return text, {"objects.png": picture, "objects.json": json.dumps(objects, indent=1)}


def open_predictor(arguments: argparse.Namespace) -> Callable[[Image.Image], Prediction]:
    """
    Opens the model.

    Raises:
        SystemExit: with one line of text, if the model cannot be opened or a package is missing.
    """
    try:
        task, pipeline = open_pipeline(arguments.model, arguments.task, device=arguments.device)
        if task == "instance-segmentation":
            import pycocotools.mask  # noqa: F401  a missing package should show before the first image is predicted
    except ImportError:
        raise SystemExit('Masks are written with pycocotools: `pip install "pvt-hf[detection]"`.') from None
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if task == "image-classification":
        return partial(classify, pipeline, arguments.top_k)
    if task == "semantic-segmentation":
        return partial(segment, pipeline)
    return partial(detect, pipeline, arguments.threshold, task == "instance-segmentation")


def write_files(folder: Path, stem: str, files: dict[str, Image.Image | str], taken: set[Path]) -> list[Path]:
    """
    Writes `STEM.ENDING` for each entry of `files`, or `STEM-2.ENDING` and so on if a name is taken.

    Args:
        folder: exists.
        stem: of an image's file name.
        files: content by ending.
        taken: resolved paths that must not be overwritten: input images and earlier results. The new ones are added.
    """
    name, number = stem, 1
    while taken & {(folder / f"{name}.{ending}").resolve() for ending in files}:
        number += 1
        name = f"{stem}-{number}"
    targets = [folder / f"{name}.{ending}" for ending in files]
    for target, content in zip(targets, files.values()):
        if isinstance(content, Image.Image):
            content.save(target)
        else:
            target.write_text(content)
    taken.update(target.resolve() for target in targets)
    return targets


def predict_files(arguments: argparse.Namespace) -> None:
    """
    Predicts the images that the `arguments` of `pvt-hf predict` name, prints a line for each and writes the results.

    Raises:
        SystemExit: with one line of text, if the model or the output folder cannot be used, or an image was skipped.
    """
    logging.disable_progress_bar()
    predict = open_predictor(arguments)
    try:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--output_dir {arguments.output_dir} cannot be used as a folder: {error}") from None
    taken, failures = {Path(file).resolve() for file in arguments.images}, 0
    for file in arguments.images:
        try:
            # Decoded here: the pipeline's own loader saturates 16-bit images and drops transparency.
            text, files = predict(decode_rgb({"path": file, "bytes": None}))
        except ValueError as error:  # a damaged file, an image that cannot be taken, an answer that is not finite
            print(f"{file}: {error}", file=sys.stderr)
            failures += 1
            continue
        try:
            targets = write_files(arguments.output_dir, Path(file).stem, files, taken)
        except OSError as error:
            raise SystemExit(f"The results of {file} cannot be written to {arguments.output_dir}: {error}") from None
        print(f"{file}: {text}  -> {', '.join(map(str, targets))}")
    if failures:
        raise SystemExit(f"{failures} of {len(arguments.images)} images could not be predicted.")
