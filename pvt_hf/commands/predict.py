"""`pvt-hf predict`: runs a model on images and videos."""

import argparse
import importlib.util
import math
import re
from pathlib import Path

from ..engine.arguments import ArgumentParser
from ..engine.output_paths import check_output_file, check_output_folder
from ..weights.paths import check_model_path


# Those of `pvt_hf.inference.prediction.TASKS`
TASKS = ("image-classification", "instance-segmentation", "object-detection", "semantic-segmentation")
DESCRIPTION = """
Runs a trained model on images and videos: prints its predictions and writes them to a folder.

    pvt-hf predict --model DIR photo.jpg other.png --output_dir predictions
    pvt-hf predict --model official:pvt-small photo:china photo:flower
    pvt-hf predict --model DIR --task object-detection --threshold 0.3 photos "more/**/*.jpg" clip.mp4
    find photos -newer model | pvt-hf predict --model DIR --json answers.json --csv answers.csv -

Inputs are image files, video files, folders (with what is below them), patterns, and - for a list of names on standard
input, one a line or separated by zero bytes. photo:china and photo:flower are photographs that scikit-learn installs,
photo:astronaut, photo:chelsea, photo:coffee, photo:coins and photo:rocket those of scikit-image, and photo:digits is a
scene of digits of this package. A file in a folder is named in the results by its path in that folder:
photos/cat/1.jpg gives cat/1.classes.png. Two inputs of the same name get NAME and NAME-2. Files in folders that are
neither images nor videos are left out, counted and reported.

The task is that of the model, unless --task names another one:

- image-classification prints the best labels and writes NAME.classes.png: the image with labels and scores.
- semantic-segmentation prints the share of each class and writes NAME.overlay.png, the image blended with the colours
  of its classes, with a legend, and NAME.labels.png, the class index of every pixel (8 bits; 16 bits for more than 255
  classes).
- object-detection and instance-segmentation print the number of objects per class and write NAME.objects.png, the image
  with boxes (and masks), labels and scores, and NAME.objects.json, a list of objects, highest score first: `label`,
  `score`, `box` (left, top, right, bottom, in pixels) and, with masks, `segmentation` (COCO's compressed RLE).

Of a video, every frame is predicted, or those that --every or --fps choose. It writes NAME.annotated.mp4, these frames
at their own times and without sound, and NAME.frames.jsonl, one line of JSON for each: `frame` (its number, from 0),
`time` (seconds since the first frame), `width`, `height`, and `classes`, `shares` or `objects`. Frames are turned as
the file says. Needs the extra `video`: `pip install "pvt-hf[video]"`.

predictions.jsonl in the output folder has a line for each file that is done. Ctrl-C (or SIGTERM) keeps these, and the
same command with --resume goes on with the others. The exit status is then 130.

Takes any Auto model of these tasks, from a folder or the Hub; PVT models open as this package's classes. Images may
have any mode and up to 89 million pixels (the environment variable PVT_HF_MAX_IMAGE_PIXELS sets another limit); their
EXIF orientation is applied; of several pages or pictures in a file, the first counts. A file that cannot be used, or
for which the model's answer is NaN or infinite, is reported and skipped, and the exit status is then 1. Needs the extra
`train`, and `detection` for masks: `pip install "pvt-hf[train,detection]"`.
"""


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder, pattern, photo:NAME or -, e.g. photo.jpg",
    )
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
        "--resume",
        action="store_true",
        help="skip files whose results are in the output folder already, made by this model with these arguments; "
        "a video that was interrupted starts again",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=1,
        help="images or frames that go through the model together, if they have one size after the image processor, "
        "e.g. 8; the answers do not depend on it; default: %(default)s",
    )
    parser.add_argument(
        "--top_k", type=int, default=5, help="classification: number of labels per image, e.g. 3; default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5,
        help="detection: lowest score of an object, from 0 to 1, e.g. 0.3; default: %(default)s",
    )  # fmt: skip
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument(
        "--every", type=int, default=1, metavar="N", help="videos: take each N-th frame, e.g. 5; default: %(default)s"
    )
    frames.add_argument("--fps", type=float, help="videos: take this many frames of each second, e.g. 2; default: all")
    parser.add_argument(
        "--json", metavar="FILE",
        help="also write all answers as a JSON list (.json) or JSON lines (.jsonl), one entry for each image or frame, "
        "e.g. answers.json; - for standard output",
    )  # fmt: skip
    parser.add_argument(
        "--csv", metavar="FILE",
        help="also write all answers as a table (.csv), one row for each class or object, e.g. answers.csv; - for "
        "standard output",
    )  # fmt: skip
    parser.add_argument(
        "--trust_remote_code", action="store_true",
        help="run the code that comes with the model, also an export that holds code; read it first; default: ask on "
        "the terminal, and refuse where there is none",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or mps; default: %(default)s")
    arguments = parser.parse_args()
    if not 0 <= arguments.threshold <= 1:
        parser.error(f"--threshold must be from 0 to 1, got {arguments.threshold}.")
    for name in ("top_k", "batch_size", "every"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", arguments.device):
        parser.error(f"--device {arguments.device}: expected cpu, cuda, cuda:0 (a number) or mps.")
    if arguments.fps is not None and not (arguments.fps > 0 and math.isfinite(arguments.fps)):
        parser.error(f"--fps must be above 0, got {arguments.fps}.")
    for name, endings in (("json", (".json", ".jsonl")), ("csv", (".csv",))):
        file = getattr(arguments, name)
        if file not in (None, "-") and Path(file).suffix not in endings:
            parser.error(f"--{name} {file}: give a name that ends with {' or '.join(endings)}, or - .")
    if arguments.json == arguments.csv == "-":
        parser.error("--json and --csv cannot both be written to standard output: name a file for one of them.")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    from ..inference.inputs import find_inputs, is_video
    from ..inference.record import NAME, Record

    try:
        check_model_path(arguments.model)
        check_output_folder("output_dir", arguments.output_dir)
        for name in ("json", "csv"):
            file = getattr(arguments, name)
            if file not in (None, "-"):
                check_output_file(name, file)
                if Path(file).resolve() == (arguments.output_dir / NAME).resolve():
                    raise FileExistsError(f"--{name} {file} is the record of the run: give another name.")
        record = Record(arguments.output_dir)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    inputs = find_inputs(arguments.images, arguments.output_dir, record.results())
    if not inputs.found:
        left_out = [f"left out {inputs.left_out}"] if inputs.left_out.paths else []
        problems = [*inputs.problems, *left_out] or ["no file is named."]
        raise SystemExit("\n".join(f"error: {problem}" for problem in problems))
    if importlib.util.find_spec("av") is None and any(is_video(one.path) for one in inputs.found):
        raise SystemExit('error: videos need PyAV, which is not installed: pip install "pvt-hf[video]"')

    from ..inference.files import predict_files
    from ..inference.progress import say
    from .allocator import keep_freed_memory

    for problem in inputs.problems:
        say(problem, to_errors=True)
    if inputs.left_out.paths:
        say(f"left out {inputs.left_out}", to_errors=True)
    keep_freed_memory(on_cpu=arguments.device == "cpu")
    predict_files(arguments, inputs, record)
