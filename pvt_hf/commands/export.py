"""`pvt-hf export`: exports a model to a program that runs without its Python code."""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from ..engine.arguments import ArgumentParser
from ..engine.output_paths import check_output_folder
from ..weights.export_formats import EXPORT_FORMATS
from ..weights.paths import check_model_path
from ..weights.whole_folder import check_replaceable
from .info import parse_size


# Those of `pvt_hf.families.MODELS` that a classifier can be opened as
MODEL_CLASSES = ("PvtForImageClassification", "PvtModel", "PvtBackbone")
DESCRIPTION = """
Exports a model to a program that runs without its Python code, and compares the two before anything is written.

    pvt-hf export outputs/detector --format onnx --output exports/detector
    pvt-hf predict --model exports/detector photo.jpg
    pvt-hf evaluate object-detection --model exports/detector --dataset path/to/coco

    pvt-hf export outputs/detector --format onnx --static 800x1333 --output exports/detector-800

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
    parser.add_argument("model", help="folder written by save_pretrained, or Hub id, e.g. outputs/detector")
    parser.add_argument("--format", required=True, choices=[*EXPORT_FORMATS], help="e.g. onnx")
    parser.add_argument("--output", required=True, type=Path, help="folder to create, e.g. exports/detector")
    parser.add_argument(
        "--static", type=parse_size, metavar="SIZE",
        help="take one image of one size, one side or HEIGHTxWIDTH in pixels, e.g. 800x1333; default: any size and "
        "number of images",
    )  # fmt: skip
    parser.add_argument(
        "--model_class", choices=MODEL_CLASSES, default="",
        help="open a PVT as another class, e.g. PvtBackbone for its feature maps; default: as it was saved",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an output folder that has content")
    return parser.parse_args()


def needs(extra: str) -> str:
    """How a format is installed."""
    return f'; pip install "pvt-hf[{extra}]"' if extra else ""


def stop(signal_number: int, frame: FrameType | None) -> None:
    """Ends by an exception, so that the temporary folder is removed."""
    sys.exit(128 + signal_number)


def main() -> None:
    arguments = parse_arguments()
    kind = EXPORT_FORMATS[arguments.format]
    try:
        check_model_path(arguments.model)
        check_output_folder("output", arguments.output)
        check_replaceable(arguments.output, arguments.overwrite, {})
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    if kind.missing:
        raise SystemExit(f"error: {kind.missing}")

    from ..export.folder import ExportRequest, export_checkpoint

    signal.signal(signal.SIGTERM, stop)
    request = ExportRequest(
        model=arguments.model,
        output=arguments.output,
        format=kind,
        model_class=arguments.model_class,
        fixed_size=arguments.static,
        overwrite=arguments.overwrite,
    )
    try:
        export_checkpoint(request, say=lambda line: print(line, flush=True))
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted: nothing was written.") from None
