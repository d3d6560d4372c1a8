"""
Answers a trained model gives on image files: labels on the terminal, an annotated PNG beside them.

    python scripts/predict.py --model DIR --task image-classification photo.jpg other.png --output_dir predictions

Works with any Auto model of the task, from a folder or the Hub; PVT models load as this package's classes.
"""

import argparse
import sys
from pathlib import Path

from transformers import pipeline
from transformers.utils import logging

import pvt_hf  # noqa: F401  registers PVT with the Auto classes
from pvt_hf.data.samples import BadSample, decode_rgb
from pvt_hf.visualization import annotate_classes


def classify(arguments: argparse.Namespace) -> int:
    """Prints the best labels of every image and writes `NAME.classes.png`; returns the number of failures."""
    try:
        classifier = pipeline("image-classification", model=arguments.model, device=arguments.device)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"Cannot load {arguments.model}: no such folder with a model here, and as a Hub id it gave: "
            f"{str(error).splitlines()[0]}"
        ) from None
    failures = 0
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    written = set()
    for file in arguments.images:
        try:
            # RGB here: the pipeline's own loader would saturate 16-bit images and drop transparency.
            image = decode_rgb({"path": file, "bytes": None})
        except BadSample as error:
            print(f"{file}: {error}", file=sys.stderr)
            failures += 1
            continue
        predictions = classifier(image, top_k=arguments.top_k)
        stem, number = Path(file).stem, 1
        while (target := arguments.output_dir / f"{stem}{'' if number == 1 else f'-{number}'}.classes.png") in written:
            number += 1
        written.add(target)
        annotate_classes(image, predictions).save(target)
        labels = ", ".join(f"{prediction['label']} {prediction['score']:.1%}" for prediction in predictions)
        print(f"{file}: {labels}  -> {target}")
    return failures


TASKS = {"image-classification": classify}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--task", required=True, choices=sorted(TASKS))
    parser.add_argument("--output_dir", type=Path, default=Path("predictions"))
    parser.add_argument("--top_k", type=int, default=5, help="labels per image")
    parser.add_argument("--device", default="cpu", help='"cpu", "cuda", "cuda:1" ...')
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    failures = TASKS[arguments.task](arguments)
    if failures:
        raise SystemExit(f"{failures} of {len(arguments.images)} images could not be read.")


if __name__ == "__main__":
    main()
