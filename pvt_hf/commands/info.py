"""`pvt-hf info`: what a model is, and what it costs."""

import argparse
import re
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..engine.arguments import ArgumentParser
from ..weights.paths import check_model_path


# Those of `pvt_hf.weights.variants.VARIANTS` and `pvt_hf.families.FAMILIES`
VARIANTS = ("pvt-tiny", "pvt-small", "pvt-medium", "pvt-large", "pvt-small-wide")
ARCHITECTURES = ("pvt", "semantic_fpn", "trans2seg", "retinanet", "mask_rcnn", "detr")
LARGEST_SIDE = 16_384  # as in `pvt_hf.engine.settings`
DESCRIPTION = """
Says what a model is: its classes, parameters and multiply-adds of its parts, memory of its weights and whether they are
complete, what its image processor does, and which tasks and pipelines it serves. Of an export: its format, precision,
sizes and files, and the parameters and multiply-adds of the model that it was exported from.

    pvt-hf info DIR
    pvt-hf info Zetatech/pvt-tiny-224 --size 512
    pvt-hf info --variant pvt-small
    pvt-hf info --variant pvt-small --architecture retinanet --size 640x1024
    pvt-hf info --variant pvt-small --time

MODEL is a folder or a Hub id of a model that this package or Transformers has, or of an export, an official .pth file,
official:pvt-small (the official release) or sample:digits-detector (part of this package). Mask R-CNN is
counted with all its proposals and detections. The exit status is 1 if weights, or files of an export, are missing or
damaged.
"""


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "512" or "800x1280"."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None or int(match[1]) < 1 or int(match[2] or 1) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give one like 512 or 800x1280 (height x width).")
    height, width = int(match[1]), int(match[2] or match[1])
    if max(height, width) > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}: a side may have at most {LARGEST_SIDE:,} pixels.")
    return height, width


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="which model, e.g. outputs/detector or official:pvt-small")
    parser.add_argument("--variant", choices=VARIANTS, help="a model of the paper, without weights, e.g. pvt-small")
    parser.add_argument(
        "--architecture", choices=ARCHITECTURES, default="pvt", help="head on the --variant; default: the classifier"
    )
    parser.add_argument(
        "--size", type=parse_size, metavar="SIZE",
        help="image to count for, one side or HEIGHTxWIDTH in pixels, e.g. 512; default: what the processor makes",
    )  # fmt: skip
    parser.add_argument(
        "--time", action="store_true",
        help="also measure forward passes of one such image on this machine's processor, for about 5 seconds: of an "
        "export its program, of other models with random weights",
    )  # fmt: skip
    parser.add_argument(
        "--trust_remote_code", action="store_true",
        help="with --time: run an export that holds code; default: ask on the terminal, and refuse where there is none",
    )  # fmt: skip
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.variant is None):
        parser.error("give either a MODEL or a --variant.")
    if arguments.model is not None and arguments.architecture != "pvt":
        parser.error("--architecture goes with --variant: the architecture of a MODEL is in its config.json.")
    return arguments


def latency_lines(opened: Any, size: tuple[int, int] | None, trust_remote_code: bool | None) -> list[str]:
    """
    Lines with the time of a forward pass of one image of this size, (height, width), measured here on the CPU.

    Args:
        trust_remote_code: as `pvt_hf.weights.exported.open_exported` takes it.

    Raises:
        ImportError, OSError, ValueError: an export cannot run here, or may not.
    """
    import torch

    from ..metrics.costs import time_passes
    from ..weights.exported import open_exported
    from .benchmark_report import describe_environment

    what, runtime = "float32, random weights", ""
    if opened.export:
        model = open_exported(opened.export.folder, trust_remote_code=trust_remote_code)
        what, runtime = f"{opened.export.precision}, the exported program", opened.export.kind.runtime
    else:
        model = opened.model_class(opened.config).eval()
    times = [1000 * one for one in time_passes(model, *opened.image_size(size))]
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    machine = describe_environment("cpu", torch.get_num_threads())
    return [
        f"A forward pass takes {median:,.0f} ms ({lower:,.0f} to {upper:,.0f}; median and quartiles of {len(times)}), "
        f"one image, {what}:",
        f"{machine['cpu']}, threads: {machine['threads']}, load average {machine['load_average']}; "
        f"PyTorch {machine['torch']}, Transformers {machine['transformers']}"
        + (f", {runtime} {version(runtime)}." if runtime not in ("", "torch") else "."),
    ]


def main() -> int:
    arguments = parse_arguments()
    try:
        if arguments.model and not Path(arguments.model).is_file():
            check_model_path(arguments.model)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None

    from ..hub.model_info import describe_model, open_checkpoint, open_variant

    try:
        if arguments.variant:
            opened = open_variant(arguments.variant, arguments.architecture)
        else:
            opened = open_checkpoint(arguments.model)
        lines = describe_model(opened, arguments.size)
        if arguments.time:
            lines += latency_lines(opened, arguments.size, arguments.trust_remote_code or None)
    except ModuleNotFoundError:
        raise  # `pvt-hf` names the extra
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        name = arguments.model or arguments.variant
        raise SystemExit(f"error: {reason if name in reason else f'cannot describe {name}: {reason}'}") from None
    print("\n".join(lines))
    return int(bool(arguments.model) and not opened.weights[0].startswith("complete"))
