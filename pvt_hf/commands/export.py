"""`pvt-hf export`: exports a model to a program that runs without its Python code."""

import argparse
import signal
import sys
from pathlib import Path

from ..engine.arguments import ArgumentParser
from ..engine.output_paths import check_output_folder
from ..weights.export_formats import EXPORT_FILES, EXPORT_FORMATS
from ..weights.paths import EXPORT_MANIFEST, check_model_path
from ..weights.whole_folder import check_replaceable
from . import check_dataset, clean_up_on_sigterm
from .info import parse_size


# Those of `pvt_hf.families.MODELS` that a classifier can be opened as
MODEL_CLASSES = ("PvtForImageClassification", "PvtModel", "PvtBackbone")
DESCRIPTION = """
Exports a model to a program that runs without its Python code, and compares the two before anything is written.

    pvt-hf export outputs/detector --format onnx --output exports/detector
    pvt-hf predict --model exports/detector photo.jpg
    pvt-hf evaluate object-detection --model exports/detector --dataset path/to/coco

    pvt-hf export outputs/detector --format onnx --static 800x1333 --output exports/detector-800
    pvt-hf export outputs/detector --format openvino --int8 --dataset path/to/coco --output exports/detector-int8

Formats:

FORMATS

The program takes any number of images of any size, or with --static one image of one size. It is compared with the
model at several sizes, also not square and larger than that of the training; if they disagree, the figures are printed
and nothing is written. The output folder holds the program, config.json, the image processor, labels.txt,
export_report.json and README.md with the comparison and the measured speed. predict, evaluate, app and
pvt_hf.open_pipeline take it like a model. Interrupting leaves nothing.

The exit status is 0 on success, and 1 after an error.
"""


def parse_arguments() -> argparse.Namespace:
    formats = "\n".join(f"    {one.name:<12}{one.title}{needs(one.extra)}" for one in EXPORT_FORMATS.values())
    parser = ArgumentParser(
        description=DESCRIPTION.replace("FORMATS", formats), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        help="folder written by save_pretrained, Hub id, official:pvt-small (downloads the official release) or "
        "sample:digits-detector (part of this package), e.g. outputs/detector",
    )
    parser.add_argument("--format", required=True, choices=[*EXPORT_FORMATS], help="e.g. onnx")
    parser.add_argument("--output", required=True, type=Path, help="folder to create, e.g. exports/detector")
    parser.add_argument(
        "--static", type=parse_size, metavar="SIZE",
        help="take one image of one size, one side or HEIGHTxWIDTH in pixels, e.g. 224 or 800x1333; for segmenters "
        "and detectors rounded up to multiples of 32, as their image processors do, e.g. to 800x1344; default: any "
        "size and number of images",
    )  # fmt: skip
    parser.add_argument(
        "--model_class", choices=MODEL_CLASSES, default="",
        help="open a PVT as another class, e.g. PvtBackbone for its feature maps; default: as it was saved",
    )  # fmt: skip
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="16-bit floats; default: fp32")
    precision.add_argument("--bf16", action="store_true", help="bfloat16, on processors that have it; default: fp32")
    precision.add_argument(
        "--int8", action="store_true", help="8-bit integers, calibrated on images of --dataset; default: fp32"
    )
    parser.add_argument(
        "--dataset",
        help="data set to measure accuracy on, before and after, as in pvt-hf evaluate, e.g. path/to/coco or digits",
    )
    parser.add_argument("--split", default="validation", help="its split, e.g. test; default: %(default)s")
    parser.add_argument(
        "--calibration_split",
        default="train",
        help="its split to calibrate with, e.g. validation; default: %(default)s",
    )
    parser.add_argument(
        "--calibration_images", type=int, default=300, help="images to calibrate with, e.g. 100; default: %(default)s"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an older export; a folder with other files is refused"
    )
    arguments = parser.parse_args()
    kind, precision_name = EXPORT_FORMATS[arguments.format], precision_of(arguments)
    if precision_name in ("fp16", "bf16") and precision_name not in kind.precisions:
        parser.error(f"--{precision_name}: {kind.title} has {', '.join(('fp32', *kind.precisions))}.")
    if not kind.dynamic and arguments.static is None:
        parser.error(f"{kind.title} programs are for one size: give --static, e.g. --static 224.")
    if arguments.int8 and not kind.quantizer:
        able = [one.name for one in EXPORT_FORMATS.values() if one.quantizer]
        parser.error(f"--int8: {kind.title} is not quantised here; {' and '.join(able)} are.")
    if arguments.int8 and not arguments.dataset:
        parser.error("--int8 is calibrated on images: give a --dataset, as for pvt-hf evaluate.")
    if arguments.calibration_images < 1:
        parser.error(f"--calibration_images must be at least 1, got {arguments.calibration_images}.")
    return arguments


def precision_of(arguments: argparse.Namespace) -> str:
    """The precision that was chosen."""
    return next((name for name in ("fp16", "bf16", "int8") if getattr(arguments, name)), "fp32")


def needs(extra: str) -> str:
    """How a format is installed."""
    return f'; pip install "pvt-hf[{extra}]"' if extra else ""


def main() -> None:
    arguments = parse_arguments()
    kind = EXPORT_FORMATS[arguments.format]
    try:
        check_model_path(arguments.model)
        check_output_folder("output", arguments.output)
        check_replaceable(arguments.output, arguments.overwrite, EXPORT_MANIFEST, EXPORT_FILES)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.dataset:
        check_dataset(arguments.dataset)
    if reason := kind.missing(quantize=arguments.int8):
        raise SystemExit(f"error: {reason}")

    from ..data.streams import StreamError
    from ..export.accuracy import AccuracyData
    from ..export.folder import ExportRequest, export_checkpoint

    clean_up_on_sigterm()
    request = ExportRequest(
        model=arguments.model,
        output=arguments.output,
        format=kind,
        model_class=arguments.model_class,
        fixed_size=arguments.static,
        overwrite=arguments.overwrite,
        precision=precision_of(arguments),
        accuracy=AccuracyData(
            arguments.dataset, arguments.split, arguments.calibration_split, arguments.calibration_images
        )
        if arguments.dataset
        else None,
    )
    try:
        export_checkpoint(request, say=lambda line: print(line, flush=True))
    except ModuleNotFoundError:
        raise  # `pvt-hf` names the extra
    except (ImportError, OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
    except (KeyboardInterrupt, SystemExit) as end:  # Ctrl-C, SIGTERM
        print("interrupted: nothing was written.", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT if isinstance(end, KeyboardInterrupt) else end.code) from None
