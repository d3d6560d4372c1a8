"""
Answers a trained model gives on image files: on the terminal, and as PNG files in a folder.

    python scripts/predict.py --model DIR photo.jpg other.png --output_dir predictions
    python scripts/predict.py --model DIR --task object-detection --threshold 0.3 photo.jpg other.png

Without --task it is that of the class that the model was saved from. image-classification prints the best labels and
writes NAME.classes.png, the image with them. semantic-segmentation prints the share of each class and writes
NAME.overlay.png, the image under the colours of the classes with a legend, and NAME.labels.png, the number of each
pixel's class (8 bits, or 16 for more than 255 classes). object-detection and instance-segmentation print how many
objects of each class there are and write NAME.objects.png, the image with their boxes (and masks), labels and scores,
and NAME.objects.json, a list of objects, the likeliest first: `label`, `score`, `box` (x and y of two corners, in
pixels), and `segmentation` (COCO's compressed run lengths) of those with masks.

Works with any Auto model of the task, from a folder or the Hub; PVT models load as this package's classes. Images of
any mode and size, turned upright by their EXIF orientation. A file that cannot be used is named, the others are done,
and the exit status is 1.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoConfig, Pipeline
from transformers.utils import logging

import pvt_hf  # noqa: F401  registers PVT with the Auto classes
from pvt_hf.data.samples import decode_rgb
from pvt_hf.inference.pictures import annotate_classes, class_shares, label_image, overlay_classes, overlay_objects
from pvt_hf.inference.prediction import find_objects, label_map, open_pipeline, task_of


# From an RGB image to a line of text, and pictures or texts by the ending of their files' names
Files = dict[str, Image.Image | str]
Answer = Callable[[Image.Image], tuple[str, Files]]


def open_for(task: str, arguments: argparse.Namespace) -> Pipeline:
    try:
        return open_pipeline(task, arguments.model, device=arguments.device)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def find_task(model: str) -> str:
    """The task of a model that was saved; image classification if its configuration does not tell, or is not there."""
    try:
        return task_of(AutoConfig.from_pretrained(model)) or "image-classification"
    except (OSError, ValueError):  # opening it will say why
        return "image-classification"


def classify(arguments: argparse.Namespace) -> Answer:
    classifier = open_for("image-classification", arguments)

    def answer(image: Image.Image) -> tuple[str, Files]:
        predictions = classifier(image, top_k=arguments.top_k)
        text = ", ".join(f"{prediction['label']} {prediction['score']:.1%}" for prediction in predictions)
        return text, {"classes.png": annotate_classes(image, predictions)}

    return answer


def segment(arguments: argparse.Namespace) -> Answer:
    segmenter = open_for("semantic-segmentation", arguments)
    config = segmenter.model.config

    def answer(image: Image.Image) -> tuple[str, Files]:
        labels = label_map(segmenter, image)
        text = ", ".join(f"{config.id2label[label]} {share:.1%}" for label, share in class_shares(labels))
        overlay = overlay_classes(image, labels, config.id2label)
        return text, {"overlay.png": overlay, "labels.png": label_image(labels, config.num_labels)}

    return answer


def detect(arguments: argparse.Namespace, with_masks: bool = False) -> Answer:
    detector = open_for(arguments.task, arguments)
    config = detector.model.config
    if with_masks:
        try:
            from pycocotools.mask import encode
        except ImportError:
            raise SystemExit("Masks are written by pycocotools: `pip install pvt-hf[detection]`.") from None

    def answer(image: Image.Image) -> tuple[str, Files]:
        found = find_objects(detector, image, arguments.threshold, with_masks)
        names = [config.id2label[label] for label in found.labels]
        objects = [
            {"label": name, "score": score, "box": box}
            for name, score, box in zip(names, found.scores, found.boxes_xyxy.tolist())
        ]
        if found.masks is not None:
            for one, mask in zip(objects, found.masks.numpy()):
                rle = encode(np.asfortranarray(mask, dtype=np.uint8))
                one["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        counts = ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
        picture = overlay_objects(image, found.boxes_xyxy, found.labels, found.scores, config.id2label, found.masks)
        return counts or "no objects", {"objects.png": picture, "objects.json": json.dumps(objects, indent=1)}

    return answer


TASKS = {
    "image-classification": classify,
    "semantic-segmentation": segment,
    "object-detection": detect,
    "instance-segmentation": partial(detect, with_masks=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[1], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--task", choices=sorted(TASKS), help="by default what the model was saved for")
    parser.add_argument("--output_dir", type=Path, default=Path("predictions"), help="folder for the answers")
    parser.add_argument("--top_k", type=int, default=5, help="labels per image, in classification")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of an object")
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda", "cuda:1" ...')
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    arguments.task = arguments.task or find_task(arguments.model)
    answer = TASKS[arguments.task](arguments)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    failures = 0
    taken = {Path(file).resolve() for file in arguments.images}  # not to be written over
    for file in arguments.images:
        try:
            # RGB here: the pipeline's own loader would saturate 16-bit images and drop transparency.
            text, files = answer(decode_rgb({"path": file, "bytes": None}))
        except ValueError as error:  # also what processor and model say about an image that they cannot take
            print(f"{file}: {error}", file=sys.stderr)
            failures += 1
            continue
        name, number = Path(file).stem, 1
        while taken & {(arguments.output_dir / f"{name}.{ending}").resolve() for ending in files}:
            number += 1
            name = f"{Path(file).stem}-{number}"
        targets = [arguments.output_dir / f"{name}.{ending}" for ending in files]
        for target, content in zip(targets, files.values()):
            if isinstance(content, Image.Image):
                content.save(target)
            else:
                target.write_text(content)
            taken.add(target.resolve())
        print(f"{file}: {text}  -> {', '.join(map(str, targets))}")
    if failures:
        raise SystemExit(f"{failures} of {len(arguments.images)} images could not be read.")


if __name__ == "__main__":
    main()
