"""
Answers a trained model gives on image files: on the terminal, and as PNG files in a folder.

    python scripts/predict.py --model DIR photo.jpg other.png --output_dir predictions
    python scripts/predict.py --model DIR --task semantic-segmentation photo.jpg other.png
    python scripts/predict.py --model DIR --task object-detection photo.jpg other.png
    python scripts/predict.py --model DIR --task instance-segmentation photo.jpg other.png

image-classification prints the best labels and writes NAME.classes.png, the image with them. semantic-segmentation
prints the share of each class and writes NAME.overlay.png, the image under the colours of the classes with a legend,
and NAME.labels.png, the number of each pixel's class (8 bits, or 16 for more than 255 classes). object-detection and
instance-segmentation print how many objects of each class there are and write NAME.objects.png, the image with their
boxes (and masks), labels and scores, and NAME.objects.json, a list of objects, the likeliest first: `label`, `score`,
`box` (x and y of two corners, in pixels), and `segmentation` (COCO's compressed run lengths) of those with masks.

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
from transformers import Pipeline, pipeline
from transformers.utils import logging

import pvt_hf  # noqa: F401  registers PVT with the Auto classes
from pvt_hf.data.samples import decode_rgb
from pvt_hf.visualization import annotate_classes, class_shares, label_image, overlay_classes, overlay_objects


# From an RGB image to a line of text, and pictures or texts by the ending of their files' names
Files = dict[str, Image.Image | str]
Answer = Callable[[Image.Image], tuple[str, Files]]


def open_pipeline(task: str, arguments: argparse.Namespace) -> Pipeline:
    try:
        return pipeline(task, model=arguments.model, device=arguments.device)
    except (OSError, ValueError) as error:
        source = "the folder" if Path(arguments.model).is_dir() else "no such folder here, and as a Hub id it"
        reason = str(error).splitlines()[0]
        raise SystemExit(f"Cannot load {arguments.model} for {task}: {source} gave: {reason}") from None


def classify(arguments: argparse.Namespace) -> Answer:
    classifier = open_pipeline("image-classification", arguments)

    def answer(image: Image.Image) -> tuple[str, Files]:
        predictions = classifier(image, top_k=arguments.top_k)
        text = ", ".join(f"{prediction['label']} {prediction['score']:.1%}" for prediction in predictions)
        return text, {"classes.png": annotate_classes(image, predictions)}

    return answer


def segment(arguments: argparse.Namespace) -> Answer:
    segmenter = open_pipeline("image-segmentation", arguments)
    config, processor = segmenter.model.config, segmenter.image_processor
    name = type(segmenter.model).__name__  # the pipeline opens others, with a message
    if "Segmentation" not in name or not hasattr(processor, "post_process_semantic_segmentation"):
        raise SystemExit(
            f"{arguments.model} holds a {name} with a {type(processor).__name__}: no semantic segmentation comes of it."
        )

    def answer(image: Image.Image) -> tuple[str, Files]:
        # Not the pipeline's own answer: its masks are told apart by names, which several classes may share.
        outputs = segmenter.forward(segmenter.preprocess(image, subtask="semantic"))
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])[0]
        labels = labels.numpy()
        text = ", ".join(f"{config.id2label[label]} {share:.1%}" for label, share in class_shares(labels))
        overlay = overlay_classes(image, labels, config.id2label)
        return text, {"overlay.png": overlay, "labels.png": label_image(labels, config.num_labels)}

    return answer


def find_objects(arguments: argparse.Namespace, with_masks: bool = False) -> Answer:
    detector = open_pipeline("object-detection", arguments)
    config, processor = detector.model.config, detector.image_processor
    wanted = "post_process_instance_segmentation" if with_masks else "post_process_object_detection"
    # Transformers' processors of DETR have the method for another model as well
    is_masked = "Segmentation" in type(detector.model).__name__
    if not hasattr(processor, wanted) or with_masks and not is_masked:
        raise SystemExit(
            f"{arguments.model} holds a {type(detector.model).__name__} with a {type(processor).__name__}: no "
            f"{arguments.task} comes of it."
        )

    if with_masks:
        try:
            from pycocotools.mask import encode
        except ImportError:
            raise SystemExit("Masks are written by pycocotools: `pip install pvt-hf[detection]`.") from None

    def answer(image: Image.Image) -> tuple[str, Files]:
        # Not the pipelines' own answers: one cuts coordinates to whole numbers, the other lets no masks overlap.
        outputs, size = detector.forward(detector.preprocess(image)), [(image.height, image.width)]
        options = {"threshold": arguments.threshold, "target_sizes": size}
        found = processor.post_process_object_detection(outputs, **options)[0]
        labels, scores = found["labels"].tolist(), found["scores"].tolist()
        objects = [
            {"label": config.id2label[label], "score": score, "box": box}
            for label, score, box in zip(labels, scores, found["boxes"].tolist())
        ]
        masks = None
        if with_masks:
            maps = processor.post_process_instance_segmentation(outputs, return_binary_maps=True, **options)[0]
            masks = maps["segmentation"]
            for one, mask in zip(objects, masks.numpy()):
                rle = encode(np.asfortranarray(mask, dtype=np.uint8))
                one["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        names = [config.id2label[label] for label in labels]
        counts = ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
        picture = overlay_objects(image, found["boxes"], labels, scores, config.id2label, masks)
        return counts or "no objects", {"objects.png": picture, "objects.json": json.dumps(objects, indent=1)}

    return answer


TASKS = {
    "image-classification": classify,
    "semantic-segmentation": segment,
    "object-detection": find_objects,
    "instance-segmentation": partial(find_objects, with_masks=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--task", default="image-classification", choices=sorted(TASKS))
    parser.add_argument("--output_dir", type=Path, default=Path("predictions"))
    parser.add_argument("--top_k", type=int, default=5, help="labels per image, in classification")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of an object")
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda", "cuda:1" ...')
    arguments = parser.parse_args()
    logging.disable_progress_bar()
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
