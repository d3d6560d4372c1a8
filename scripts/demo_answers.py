"""
The new process of `make demo`: opens the saved models with `pipeline`, measures their answers, draws `demo.png`.

    python scripts/demo_answers.py outputs/demo

Writes `answers.json`.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

import demo_picture
import numpy as np
import torch
from transformers import pipeline
from transformers.utils import logging

import pvt_hf  # noqa: F401  (registers the models)
from pvt_hf.data.digits import DIGIT_NAMES, SCENE_CLASS_NAMES, digit_images, digit_scenes
from pvt_hf.engine.recipes import find_recipe, read_recipe
from pvt_hf.metrics.coco_ap import CocoAP
from pvt_hf.metrics.mean_iou import MeanIoU


SCENES = 200


def classify(classifier: Any, digits: list[dict]) -> list[dict]:
    """The best label of each held-out digit, `{"label": str, "score": float}`."""
    return [one[0] for one in classifier([digit["image"] for digit in digits], batch_size=32, top_k=1)]


def segment(segmenter: Any, scene: dict) -> np.ndarray:
    """Indices into `SCENE_CLASS_NAMES`, (height, width) int64."""
    classes = np.zeros((scene["height"], scene["width"]), dtype=np.int64)
    for segment in segmenter(scene["image"]):
        classes[np.asarray(segment["mask"]) > 0] = SCENE_CLASS_NAMES.index(segment["label"])
    return classes


def detect(detector: Any, scene: dict) -> dict[str, Any]:
    """
    Scores, labels (indices into `DIGIT_NAMES`) and boxes (objects, 4) in pixels. The pipeline truncates coordinates to
    whole pixels, which lowers the IoU of small objects a little.
    """
    found = detector(scene["image"], threshold=0.05)
    boxes = torch.tensor([list(one["box"].values()) for one in found], dtype=torch.float32).reshape(-1, 4)
    labels = [DIGIT_NAMES.index(one["label"]) for one in found]
    return {"scores": [one["score"] for one in found], "labels": labels, "boxes_xyxy": boxes}


def held_out_scenes(recipe: str, count: int) -> list[dict]:
    """Scenes like those of a recipe, of digits that nothing was trained on."""
    settings = read_recipe(find_recipe(recipe))
    side, digit_sizes = settings["scene_size"], settings["digit_sizes"]
    return list(islice(digit_scenes("test", side, side, digit_sizes=digit_sizes, length=400), count))


def main(output_dir: Path) -> None:
    logging.disable_progress_bar()
    classifier = pipeline("image-classification", model=str(output_dir / "classifier"), device="cpu")
    segmenter = pipeline("image-segmentation", model=str(output_dir / "segmenter"), device="cpu")
    detector = pipeline("object-detection", model=str(output_dir / "detector"), device="cpu")

    digits = list(digit_images("test", image_size=32))
    labels = classify(classifier, digits)
    right = [found["label"] == DIGIT_NAMES[digit["label"]] for found, digit in zip(labels, digits)]
    mean_iou, average_precision = MeanIoU(num_labels=len(SCENE_CLASS_NAMES)), CocoAP(num_labels=len(DIGIT_NAMES))
    for scene in held_out_scenes("digits_demo_segmenter", SCENES):
        mean_iou.add_batch(predictions=[segment(segmenter, scene)], references=[np.asarray(scene["semantic_map"])])
    for scene in held_out_scenes("digits_demo_detector", SCENES):
        objects = scene["objects"]
        reference = {"image_id": scene["image_id"], "labels": objects["category"], "boxes_xywh": objects["bbox"],
                     "area": objects["area"]}  # fmt: skip
        average_precision.add(prediction=detect(detector, scene), reference=reference)
    answers = {
        "accuracy": sum(right) / len(right), "digits": len(right), "mean_iou": mean_iou.compute()["mean_iou"],
        "ap50": average_precision.compute()["ap50"], "scenes": SCENES,
    }  # fmt: skip
    strip = list(zip((digit["image"] for digit in digits), labels, right))[: demo_picture.DIGITS]
    columns = []
    for scene in held_out_scenes("digits_demo_segmenter", demo_picture.SCENES):
        columns.append((scene, segment(segmenter, scene), detect(detector, scene)))
    demo_picture.draw(strip, columns, segmenter, output_dir / "demo.png", answers)
    (output_dir / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder of `make demo`, e.g. outputs/demo")
    folder = parser.parse_args().output_dir
    missing = [
        name for name in ("classifier", "segmenter", "detector") if not (folder / name / "config.json").is_file()
    ]
    if missing:
        parser.error(f"{folder} has no trained {', '.join(missing)}: run make demo first.")
    main(folder)
