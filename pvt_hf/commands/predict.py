"""`pvt-hf predict`: runs a model on image files."""

import argparse
from pathlib import Path

from ..engine.output_paths import check_output_folder
from ..weights.paths import check_model_path


# Those of `pvt_hf.inference.prediction.TASKS`
TASKS = ("image-classification", "instance-segmentation", "object-detection", "semantic-segmentation")
DESCRIPTION = """
Runs a trained model on image files: prints its predictions and writes them to a folder.

    pvt-hf predict --model DIR photo.jpg other.png --output_dir predictions
    pvt-hf predict --model DIR --task object-detection --threshold 0.3 photo.jpg other.png

The task is that of the model, unless --task names another one:

- image-classification prints the best labels and writes NAME.classes.png: the image with labels and scores.
- semantic-segmentation prints the share of each class and writes NAME.overlay.png, the image blended with the colours
  of its classes, with a legend, and NAME.labels.png, the class index of every pixel (8 bits; 16 bits for more than 255
  classes).
- object-detection and instance-segmentation print the number of objects per class and write NAME.objects.png, the image
  with boxes (and masks), labels and scores, and NAME.objects.json, a list of objects, highest score first: `label`,
  `score`, `box` (left, top, right, bottom, in pixels) and, with masks, `segmentation` (COCO's compressed RLE).

Takes any Auto model of these tasks, from a folder or the Hub; PVT models open as this package's classes. Images may
have any mode and up to 89 million pixels (the environment variable PVT_HF_MAX_IMAGE_PIXELS sets another limit); their
EXIF orientation is applied. A file that cannot be used, or for which the model's answer is NaN or infinite, is reported
and skipped, and the exit status is then 1. Needs the extra `train`, and `detection` for masks:
`pip install "pvt-hf[train,detection]"`.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files, e.g. photo.jpg other.png")
    parser.add_argument(
        "--model",
        required=True,
        help="folder written by save_pretrained, Hub id, official:pvt-small (downloads the official release) or "
        "sample:digits-detector (part of this package), e.g. outputs/detector",
    )
    parser.add_argument("--task", choices=TASKS, help="default: the task that the model was saved for")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("predictions"),
        help="folder for the results, e.g. out; default: %(default)s",
    )
    parser.add_argument(
        "--top_k", type=int, default=5, help="classification: number of labels per image, e.g. 3; default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5,
        help="detection: lowest score of an object, from 0 to 1, e.g. 0.3; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...; default: %(default)s")
    arguments = parser.parse_args()
    if not 0 <= arguments.threshold <= 1:
        parser.error(f"--threshold must be from 0 to 1, got {arguments.threshold}.")
    if arguments.top_k < 1:
        parser.error(f"--top_k must be at least 1, got {arguments.top_k}.")
    return arguments


def _reason(image: str) -> str:
    """Why there is no image file."""
    if not Path(image).is_dir():
        return f"there is no file {image}."
    return f"{image} is a folder: name its image files, such as {Path(image) / '*.jpg'}."


def main() -> None:
    arguments = parse_arguments()
    try:
        check_model_path(arguments.model)
        check_output_folder("output_dir", arguments.output_dir)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    if not any(Path(image).is_file() for image in arguments.images):
        raise SystemExit("\n".join(f"error: {_reason(image)}" for image in arguments.images))

    from ..inference.files import predict_files

    predict_files(arguments)
