"""
The commands: `pvt-hf NAME`, which is also `python -m pvt_hf NAME`. `scripts/` has a door to each, for launchers.

The files named in `COMMANDS` import nothing heavy until the arguments have been read, so that `--help` and wrong
arguments are answered at once.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from types import FrameType
from typing import NamedTuple


class Command(NamedTuple):
    """
    Attributes:
        module: file in this folder with a function `main`.
        help: one line for the list of commands.
        arguments: of `main`.
    """

    module: str
    help: str
    arguments: tuple[str, ...] = ()


COMMANDS = {
    "train-image-classification": Command("train", "train or fine-tune a classifier", ("image-classification",)),
    "train-semantic-segmentation": Command("train", "train a model for segmentation", ("semantic-segmentation",)),
    "train-object-detection": Command("train", "train a detector, with or without masks", ("object-detection",)),
    "finetune": Command("finetune", "fine-tune a model of any task with Transformers' Trainer"),
    "check": Command("check", "read a whole data set, and say what is in it and what is wrong with it"),
    "evaluate": Command("evaluate", "compute the metrics of a model of any task"),
    "predict": Command("predict", "run a model on images and videos, and write pictures of its predictions"),
    "convert": Command("convert", "convert an official PVT checkpoint"),
    "export": Command("export", "export a model to ONNX and other formats that run without its Python code"),
    "push": Command("push", "push a model to the Hub, with a model card"),
    "info": Command("info", "say what a model is, what it costs and what it can be used for"),
    "app": Command("app", "serve a web page to try a model"),
    "benchmark": Command("benchmark", "measure speed and memory on this machine"),
    "reproduce": Command("reproduce", "count and measure what the paper's tables and figures give"),
}


# Packages of the extras, by the names that are imported
EXTRAS = {
    **dict.fromkeys(
        ("accelerate", "datasets", "evaluate", "matplotlib", "sklearn", "timm", "torchdata", "torchvision"), "train"
    ),
    "pycocotools": "detection",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
    **dict.fromkeys(("nncf", "openvino"), "openvino"),
    "executorch": "executorch",
    "av": "video",
    "gradio": "demo",
}


def check_dataset(source: str, argument: str = "--dataset") -> None:
    """Exits with a message about `argument` if a data set is neither here nor on the Hub; see `check_on_hub`."""
    from ..data import paths

    try:
        paths.check_on_hub(source)
    except FileNotFoundError as error:
        raise SystemExit(f"error: {str(error).replace('--dataset', argument)}") from None


def clean_up_on_sigterm() -> None:
    """SIGTERM now ends the command by an exception, so that temporary folders are removed. Status: 128 + 15."""
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    sys.exit(128 + number)


def main() -> None:
    """Runs the command that the first argument names."""
    import pvt_hf

    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
        print("usage: pvt-hf COMMAND [ARGUMENT ...]\n\nCommands:", *lines, sep="\n")
        print("\npvt-hf COMMAND --help describes a command, pvt-hf --version prints the version.")
        return
    if name == "--version":
        print(pvt_hf.__version__)
        return
    if name not in COMMANDS:
        from difflib import get_close_matches

        similar = get_close_matches(name, COMMANDS, n=1)
        raise SystemExit(
            f"error: there is no command {name}{f'; did you mean {similar[0]}?' if similar else '.'} See pvt-hf --help."
        )
    command = COMMANDS[name]
    sys.argv = [f"pvt-hf {name}", *arguments]  # argparse and run.json name the program by its first word
    try:
        raise SystemExit(import_module(f".{command.module}", __name__).main(*command.arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise SystemExit(
            f'error: pvt-hf {name} needs {package}, which is not installed: pip install "pvt-hf[{EXTRAS[package]}]"'
        ) from None
