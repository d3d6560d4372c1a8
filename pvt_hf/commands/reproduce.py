"""`pvt-hf reproduce`: the paper's tables and figures, counted and measured again."""

import argparse
from pathlib import Path
from typing import Any

from ..engine.arguments import ArgumentParser


DESCRIPTION = """
Checks what the paper prints.

    pvt-hf reproduce cost
    pvt-hf reproduce cost --tables 2 5
    pvt-hf reproduce figure6 --output_dir figure6

- cost counts parameters and GFLOPs of every model in Tables 2 to 11 and shows them beside the printed ones, with the
  difference, and a line for each difference above rounding. No weights, no data, less than a minute.
- figure6 counts and measures one forward pass at growing image sizes: multiply-adds, time and memory.

Needs the extras `train` and `detection`: `pip install "pvt-hf[train,detection]"`.
"""
COST_DESCRIPTION = """
Counts parameters and GFLOPs of every model in Tables 2 to 11 of the paper, and shows them beside the printed ones.

GFLOPs of the paper are 10^9 multiply-adds: of convolutions, linear layers and the two products of attention; a ReLU or
a pooling counts one per element. "PyTorch" is what torch.utils.flop_counter counts: two FLOP for a multiply-add, and
nothing for ReLU and pooling. Detectors are counted for an image of 800x1280 pixels (height x width), Mask R-CNN with
1,000 boxes and 100 masks. Parameters of detectors on a ResNet are those that are trained, as in the paper.

Writes DIR/cost.csv and DIR/cost.json.
"""
FIGURE_6_DESCRIPTION = """
Counts and measures one forward pass with one image against the side of the image, as in Figure 6 of the paper:
PVT-Small, ResNet50 and the paper's ViT-Small/16. ViT-Small/32 is counted only.

Each measurement runs in a process of its own. Time is the median of --repeats passes after one that does not count.
Memory is what the first pass needs beyond weights and image: on CUDA of allocated tensors, on a CPU of resident memory
(Linux only). Run it on a machine that does nothing else. 1344 pixels need some minutes per pass on a few CPU cores.

Writes DIR/figure6.png, DIR/figure6.csv and DIR/figure6.json.
"""
MODELS = ("PVT-Small", "ResNet50", "ViT-Small/16")
SIZES = (224, 320, 448, 576, 704, 832, 960, 1088, 1216, 1344)


def parse_arguments() -> argparse.Namespace:
    raw: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = ArgumentParser(description=DESCRIPTION, **raw)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")

    cost = commands.add_parser(
        "cost", help="parameters and GFLOPs of Tables 2 to 11", description=COST_DESCRIPTION, **raw
    )
    cost.add_argument(
        "--tables", type=int, nargs="+", choices=range(2, 12), metavar="N", default=list(range(2, 12)),
        help="tables of the paper, from 2 to 11, e.g. 2 5; default: all",
    )  # fmt: skip

    figure = commands.add_parser(
        "figure6", help="multiply-adds, time and memory against image size", description=FIGURE_6_DESCRIPTION, **raw
    )
    figure.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to measure; default: all"
    )
    figure.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), metavar="PIXELS",
        help="sides of the image, multiples of 32 from 64, e.g. 224 448 896; default: %(default)s",
    )  # fmt: skip
    figure.add_argument("--repeats", type=int, default=3, help="passes that are timed, e.g. 5; default: %(default)s")
    figure.add_argument(
        "--attention", choices=("sdpa", "eager"), default="sdpa",
        help="sdpa: PyTorch's fused attention; eager: the plain formula, which keeps all weights; default: %(default)s",
    )  # fmt: skip
    figure.add_argument(
        "--max_seconds", type=float, default=120.0,
        help="a model whose pass takes longer is not measured at larger sizes, e.g. 30; default: %(default)s",
    )  # fmt: skip
    figure.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="e.g. cuda; default: %(default)s")
    figure.add_argument("--threads", type=int, default=None, help="CPU threads, e.g. 2; default: PyTorch's choice")

    for command in (cost, figure):
        command.add_argument(
            "--output_dir", type=Path, default=Path("reproduced"), metavar="DIR",
            help="folder for the results, e.g. out; default: %(default)s",
        )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.what == "figure6":
        if any(size < 64 or size % 32 for size in arguments.sizes):
            figure.error(f"--sizes {' '.join(map(str, arguments.sizes))}: each must be a multiple of 32, at least 64.")
        for name in ("repeats", "max_seconds", "threads"):
            value = getattr(arguments, name)
            if value is not None and value <= 0:
                figure.error(f"--{name} must be positive, got {value}.")
    if arguments.output_dir.exists() and not arguments.output_dir.is_dir():
        parser.error(f"--output_dir {arguments.output_dir} is a file: give a folder.")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    try:
        import matplotlib  # noqa: F401
        import timm  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise SystemExit(f'{error.name} is missing: `pip install "pvt-hf[train,detection]"`.') from None
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    if arguments.what == "cost":
        from .reproduce_cost import reproduce_cost

        reproduce_cost(arguments.tables, arguments.output_dir)
    else:
        from .reproduce_figure6 import reproduce_figure6

        reproduce_figure6(arguments)
