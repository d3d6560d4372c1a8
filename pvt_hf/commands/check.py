"""`pvt-hf check DATA`: reads a data set once, and says what is in it and whether a training would take it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from ..data.paths import check_dataset_path
from ..engine.output_paths import check_output_file
from ..engine.settings import parse_arguments
from ..tasks import TASKS, get_task, training_settings
from . import check_dataset


DESCRIPTION = """
Reads a data set once, with the readers of the training commands, and reports classes and counts, sizes of images,
unusable files with reasons, duplicates between splits, labels that are of no use, and images without labels. Draws
three samples as training sees them. The exit status is 1 if a training would refuse the data or stop in its first
epoch, and 130 after Ctrl-C, which ends the reading and reports what was read until then.

    pvt-hf check path/to/folder
    pvt-hf check path/to/folder --task semantic-segmentation --class_names names.txt --reduce_labels true
    pvt-hf check path/to/coco --json > report.json
    pvt-hf check org/name ade20k_semantic_fpn_pvt_small --num_workers 8

DATA is a folder, a data set on the Hub, or built in (digits, digit-scenes). A recipe may follow, and arguments of the
training command of the task (pvt-hf train-TASK --help), such as --eval_split, --eval_share, --image_column or
--max_bad_share: the data are read as a training with these arguments reads them. Few samples may need a smaller
--batch_size than the default, as in training.
"""
# The readers that refuse most come first.
GUESSES = ("object-detection", "semantic-segmentation", "image-classification")
ENDINGS = (".yaml", ".yml")  # of YOLO's data sets
SHOWN = 5  # samples of each kind; --json has more
WIDE = 30  # classes that are shown at most


def parse(words: list[str]) -> tuple[argparse.Namespace, str, list[str]]:
    """This command's own arguments, the data set, and the words for the training command."""
    parser = argparse.ArgumentParser(
        prog=sys.argv[0].rpartition("/")[2], description=DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s DATA [RECIPE] [--task TASK] [--json] [--picture FILE] [--argument value ...]",
    )  # fmt: skip
    parser.add_argument(
        "--task", choices=[*TASKS], default="", help="default: the first of these that can read DATA: detection, "
        "segmentation, classification",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
    parser.add_argument(
        "--picture", default="check.png", metavar="FILE",
        help="PNG file for the three samples, e.g. outputs/check.png; '': none (default: check.png)",
    )  # fmt: skip
    own, rest = parser.parse_known_args(words)
    if not rest or rest[0].startswith("-"):
        parser.error("the first argument is the data set: a folder, a Hub data set, digits or digit-scenes.")
    try:
        check_dataset_path(rest[0], ENDINGS)
        if own.picture:
            check_output_file("picture", own.picture)
    except (OSError, ValueError) as error:
        parser.error(str(error).replace("--dataset", "DATA"))
    return own, rest[0], rest[1:]


def training_words(data: str, words: list[str]) -> list[str]:
    """The command line of a training on `data`, in a folder where nothing is written."""
    recipe = words[:1] if words and not words[0].startswith("-") else []
    return [*recipe, "--dataset", data, "--output_dir", ".", *words[len(recipe) :]]


def guess_task(data: str, words: list[str]) -> str:
    """
    The first of `GUESSES` that can open the data set.

    Raises:
        OSError, ValueError: none of them can; or YOLO's YAML file is there, and detection cannot.
    """
    from ..data.log import logger

    split = words[words.index("--train_split") + 1] if "--train_split" in words[:-1] else "train"
    reasons, level = [], logger.level
    logger.setLevel(logging.ERROR)  # what a reader leaves out is said when the data are read for the report
    try:
        for name in GUESSES:
            task = get_task(name)
            settings: Any = training_settings(name)(dataset=data, output_dir=".")
            try:
                stream = task.open_stream(settings, split, task.build_processor(settings))
                if name == "semantic-segmentation":
                    stream.column("mask")
                return name
            except (OSError, ValueError) as error:
                if name == "object-detection" and _is_yolo(Path(data)):
                    raise
                reasons.append(f"{name}: {error}")
    finally:
        logger.setLevel(level)
        logger.warning_once.cache_clear()  # type: ignore[attr-defined]  # a functools.lru_cache
    raise ValueError(f"No task can read {data}; --task TASK gives the reason for one alone.\n" + "\n".join(reasons))


def _is_yolo(path: Path) -> bool:
    from ..tasks.detection.yolo_folder import find_yolo_data

    try:
        return path.is_file() or (path.is_dir() and find_yolo_data(path) is not None)
    except ValueError:  # a data.yaml that cannot be read
        return True


def main() -> int:
    own, data, words = parse(sys.argv[1:])
    check_dataset(data, "DATA")
    if own.task:
        settings: Any = parse_arguments(training_settings(own.task), training_words(data, words))

    from ..data.streams import StreamError
    from ..engine.check import check_data

    try:
        task_name = own.task or guess_task(data, words)
        if not own.task:
            settings = parse_arguments(training_settings(task_name), training_words(data, words))
        task = get_task(task_name)
        report = {"task": task_name, "data": data, **check_data(task, settings)}
        report["picture"] = None
        if own.picture and report["complete"] and any(split["usable"] for split in report["splits"].values()):
            from ..inference.training_samples import plot_training_samples

            Path(own.picture).parent.mkdir(parents=True, exist_ok=True)
            if settings.train_split in report["splits"] and plot_training_samples(task, settings, own.picture):
                report["picture"] = own.picture
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
    if own.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(describe(report)))
    if report["refusals"]:
        return 1
    return 0 if report["complete"] else 130


def describe(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    lines = [f"{report['data']}, read for {report['task']} (--task chooses)"]
    for name, split in report["splits"].items():
        lines += ["", *_describe_split(name, split)]
    lines += ["", *_describe_duplicates(report["duplicates"])]
    lines += [f"warning: {text}" for text in report["warnings"]]
    if report["picture"]:
        lines.append(f"Three samples as training sees them: {report['picture']}")
    if not report["complete"]:
        lines.append("Not everything was read, so the numbers are of a part.")
    if report["refusals"]:
        lines += ["", "A training would refuse these data:", *(f"- {text}" for text in report["refusals"])]
    else:
        lines += ["", "A training would take these data." if report["complete"] else "No reason to refuse them so far."]
    return lines


def _describe_split(name: str, split: dict[str, Any]) -> list[str]:
    unusable, empty, what = split["unusable"], split["empty"], split["labels"]
    without = "" if what == "samples" else f", {empty['count']:,} without {what}"
    lines = [f"{name}: {split['samples']:,} samples, {unusable['count']:,} unusable{without}"]
    if sizes := split["sizes"]:
        sides = (f"{side} {sizes[side]['smallest']} to {sizes[side]['largest']}" for side in ("height", "width"))
        common = sizes["most_common"][0]
        lines.append(
            f"  images: {', '.join(sides)} pixels; {sizes['different']:,} different size(s), most often "
            f"{common['height']}x{common['width']} ({common['images']:,})"
        )
    width = max((len(row["name"]) for row in split["classes"]), default=0)
    for row in split["classes"][:WIDE]:
        images = "" if what == "samples" else f" in {row['images']:,} images"
        lines.append(f"  {row['name']:<{width}}  {row[what]:>9,} {what}{images}")
    if len(split["classes"]) > WIDE:
        lines.append(f"  ... and {len(split['classes']) - WIDE} more classes (--json has all)")
    for title, kinds in (("of no use", split["unused_labels"]), ("changed", split["changed_labels"])):
        lines += [f"  {what} {title}: {count:,} {kind}" for kind, count in kinds.items()]
    lines += [f"  unusable: {each['sample']}: {each['reason']}" for each in unusable["first"][:SHOWN]]
    if unusable["count"] > SHOWN:
        lines.append(f"  ... and {unusable['count'] - SHOWN:,} more")
    if empty["count"]:
        shown = ", ".join(empty["first"][:SHOWN])
        lines.append(f"  without {what}: {shown}{' ...' if empty['count'] > SHOWN else ''}")
    return lines


def _describe_duplicates(duplicates: dict[str, Any]) -> list[str]:
    lines = []
    for where, found in duplicates.items():
        if found["count"]:
            what = "of these pairs" if where.startswith("with ") else "pair(s) of images with the same pixels"
            lines.append(f"{found['count']:,} {what} {where}:")
            lines += [f"  {one} = {other}" for one, other in found["first"][:SHOWN]]
    return lines or ["No image occurs twice."]
