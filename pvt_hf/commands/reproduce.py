"""`pvt-hf reproduce`: the paper's tables and figures, counted, measured and evaluated again."""

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..engine.arguments import ArgumentParser
from ..engine.output_paths import check_output_folder
from ..weights.published_accuracy import published_accuracies
from .reproduce_data import DATA, FIGURE_5, MISSING, TABLE_DATA, find_sources, missing_data, missing_runs


DESCRIPTION = """
Checks what the paper prints.

    pvt-hf reproduce cost
    pvt-hf reproduce cost --tables 2 5
    pvt-hf reproduce figure6 --output_dir figure6
    pvt-hf reproduce table2 --data imagenet-1k --checkpoints official
    pvt-hf reproduce table3 --data coco --checkpoints outputs
    pvt-hf reproduce figure5 --runs pretrained-1x=outputs/a scratch-1x=outputs/b

- cost counts parameters and GFLOPs of every model in Tables 2 to 11 and shows them beside the printed ones, with the
  difference, and a line for each difference above rounding. No weights, no data, less than a minute.
- figure6 counts and measures one forward pass at growing image sizes: multiply-adds, time and memory.
- table2 to table11 evaluate checkpoints and show the figures beside the paper's. figure5 reads runs. If data or
  checkpoints are missing, they say which, how large they are and how to get them, with exit status 2.

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
TABLE_DESCRIPTION = """
Evaluates the models of Table {table} of the paper with this package's own evaluation, and shows the figures beside the
paper's.

    pvt-hf reproduce table{table} --data {data} --checkpoints {checkpoints}

--data is a folder, or a data set on the Hub, for {titles}. What is missing is named, with its size
and how to get it. --checkpoints official takes the official release (classifiers only), downloads its files and
converts them. A folder has the official files (pvt_small.pth, for classifiers), or one folder for each model, such as
{example}. The model's image processor prepares the images; a note says where that, the number of images or
the number of parameters is not the paper's.{time}

Exit status: 2 if the data, or all checkpoints, are missing; 1 if a checkpoint could not be evaluated; 130 after Ctrl-C.

Writes, after each row, DIR/table{table}.csv and DIR/table{table}.json.
"""
FIGURE_5_DESCRIPTION = """
Draws AP over epochs of trainings of RetinaNet on COCO, from their run.json, and shows the last AP beside the paper's.

    pvt-hf reproduce figure5 --runs pretrained-1x=outputs/a scratch-1x=outputs/b

Names that the paper has: {names}. Exit status 2: a run is missing; the message has the commands.

Writes DIR/figure5.png and DIR/figure5.json.
"""
ABLATIONS_DESCRIPTION = """
Asks the paper's questions again on built-in digits and scenes of digits, with small models, equal parameters and three
seeds: pyramid or columnar, deeper or wider, pretrained or from scratch, PVT or ResNet (with and without global
context), which reduction ratios, which test sizes. The report says what came out, also where that contradicts
the paper.

    pvt-hf reproduce ablations --budget smoke
    pvt-hf reproduce ablations --budget small --pilot
    pvt-hf reproduce ablations --budget small --report_dir model_cards
    pvt-hf reproduce ablations --budget small --max_minutes 8       # a slice; repeat it until the exit status is 0

It runs in parts, on CPUs. A part that is done is not run again, so the command can be stopped with Ctrl-C and repeated.
small is sized for 90 minutes on two cores. smoke takes about three minutes; its figures mean nothing. Exit status 3:
parts are left.

Writes DIR/BUDGET/parts/*.json, and to the folder of --report_dir ablations.md, ablations.json and charts.
"""
MILLISECONDS = """

Milliseconds per image are measured too: the median of 20 images, one at a time, of the model and the selection of boxes
in float32, without reading and preparing the images. The paper's were measured on a V100."""
INTERRUPTED = 130  # exit status after Ctrl-C
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

    figure = _add_figure_6(commands)
    tables = [_add_table(commands, table) for table in TABLE_DATA]
    curves = commands.add_parser(
        "figure5", help="pretrained or from scratch: AP over epochs, from runs",
        description=FIGURE_5_DESCRIPTION.format(names=", ".join(FIGURE_5)), **raw,
    )  # fmt: skip
    curves.add_argument(
        "--runs", nargs="+", default=[], type=_named_folder, metavar="NAME=FOLDER",
        help="output folders of trainings, e.g. pretrained-1x=outputs/a; default: none",
    )  # fmt: skip

    ablations = _add_ablations(commands)
    for command in (cost, figure, curves, ablations, *tables):
        command.add_argument(
            "--output_dir", type=Path, default=Path("reproduced"), metavar="DIR",
            help="folder for the results, e.g. out; default: %(default)s",
        )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.what.startswith("table"):
        arguments.table = int(arguments.what.removeprefix("table"))
        _check_table(arguments, parser)
    if arguments.what == "figure5":
        names = [name for name, _ in arguments.runs]
        if len(set(names)) < len(names):
            curves.error(f"--runs {' '.join(names)}: give each name once.")
    if arguments.what == "ablations":
        arguments.report_dir = arguments.report_dir or arguments.output_dir
        if arguments.jobs < 1 or not arguments.max_minutes >= 0:  # nan is neither
            ablations.error("--jobs must be at least 1, and --max_minutes must not be negative.")
    if arguments.what == "figure6":
        if any(size < 64 or size % 32 for size in arguments.sizes):
            figure.error(f"--sizes {' '.join(map(str, arguments.sizes))}: each must be a multiple of 32, at least 64.")
        for name in ("repeats", "max_seconds", "threads"):
            value = getattr(arguments, name)
            if value is not None and value <= 0:
                figure.error(f"--{name} must be positive, got {value}.")
    try:
        check_output_folder("output_dir", arguments.output_dir)
        if arguments.what == "ablations":
            check_output_folder("report_dir", arguments.report_dir)
    except OSError as error:
        parser.error(str(error))
    return arguments


def _add_figure_6(commands: Any) -> argparse.ArgumentParser:
    figure = commands.add_parser(
        "figure6", help="multiply-adds, time and memory against image size", description=FIGURE_6_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
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
    return figure


def _add_ablations(commands: Any) -> argparse.ArgumentParser:
    ablations = commands.add_parser(
        "ablations", help="the paper's questions, asked again with small models on digits",
        description=ABLATIONS_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    ablations.add_argument(
        "--budget", choices=("small", "smoke"), default="small", help="e.g. smoke; default: %(default)s"
    )
    ablations.add_argument("--pilot", action="store_true", help="only check the setting, with plain PVT and one seed")
    ablations.add_argument("--jobs", type=int, default=2, help="parts at a time, e.g. 4; default: %(default)s")
    ablations.add_argument(
        "--max_minutes", type=float, default=0.0,
        help="start no part that would probably end later, in minutes, e.g. 8; 0: no limit; default: %(default)s",
    )  # fmt: skip
    ablations.add_argument(
        "--report_dir", type=Path, default=None, metavar="DIR",
        help="folder for the report, e.g. model_cards; default: --output_dir",
    )  # fmt: skip
    return ablations


def _check_table(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exits if an argument of a table cannot work."""
    folder = Path(arguments.checkpoints)
    if folder.is_file():
        parser.error(f"--checkpoints {folder} is a file: give the folder that has it, {folder.parent}.")
    if (folder / "config.json").is_file():
        parser.error(f"--checkpoints {folder} is one model: give the folder that has it, {folder.absolute().parent}.")
    if arguments.checkpoints != "official" and not folder.is_dir():
        parser.error(f"--checkpoints {folder}: there is no such folder. Give a folder, or official.")
    rows = _rows(arguments.table)
    for name in arguments.models:
        if name not in rows:
            similar = get_close_matches(name, rows, n=1)
            meant = f" Did you mean {similar[0]}?" if similar else ""
            parser.error(f"--models {name}: Table {arguments.table} has {', '.join(rows)}.{meant}")
    needed = TABLE_DATA[arguments.table]
    if len(arguments.data) > len(needed):
        parser.error(f"--data {' '.join(arguments.data)}: Table {arguments.table} needs {' and '.join(needed)} only.")
    if arguments.workers < 0:
        parser.error(f"--workers must not be negative, got {arguments.workers}.")


def _rows(table: int) -> list[str]:
    """The models of a table for which the paper has accuracies."""
    return list(dict.fromkeys(row.model for row in published_accuracies() if row.table == table))


def _add_table(commands: Any, table: int) -> argparse.ArgumentParser:
    data = TABLE_DATA[table]
    examples = {2: "pvt-small", 4: "mask-rcnn-pvt-small", 5: "semantic-fpn-pvt-small", 6: "detr-pvt-small",
                7: "trans2seg-pvt-small", 10: "mask-rcnn-pvt-small"}  # fmt: skip
    parser = commands.add_parser(
        f"table{table}", help=f"accuracies on {' and '.join(data)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=TABLE_DESCRIPTION.format(
            table=table, data=" ".join(data), checkpoints="official" if table == 2 else "outputs",
            example=examples.get(table, "retinanet-pvt-small"),
            titles=" and ".join(DATA[key].title.partition(",")[0] for key in data),
            time=MILLISECONDS if table == 11 else "",
        ),
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", default=list(data), metavar="DATA",
        help=f"folder or Hub id of {' and another of '.join(data)}, e.g. path/to/{data[0]}; default: {' '.join(data)}",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoints", default="official", metavar="FOLDER",
        help="official, or a folder with checkpoints, e.g. outputs; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="ROW",
        help=f"rows, e.g. {_rows(table)[0]!r}; default: all of {', '.join(_rows(table))}",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU if there is one; default: %(default)s"
    )
    parser.add_argument("--workers", type=int, default=2, help="loader processes, e.g. 8; default: %(default)s")
    return parser


def _named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=FOLDER, e.g. pretrained-1x=outputs/a")
    return name, Path(folder)


def main() -> int:
    arguments = parse_arguments()
    missing = ""
    if arguments.what.startswith("table"):
        arguments.sources = find_sources(arguments.table, arguments.data)
        missing = missing_data(arguments.table, arguments.sources)
    elif arguments.what == "figure5":
        missing = missing_runs(dict(arguments.runs))
    if missing:
        print(missing)
        return MISSING
    try:
        import matplotlib  # noqa: F401
        import timm  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise SystemExit(f'{error.name} is missing: `pip install "pvt-hf[train,detection]"`.') from None
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        return _reproduce(arguments)
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was done before is in {arguments.output_dir}.")
        return INTERRUPTED


def _reproduce(arguments: argparse.Namespace) -> int:
    if arguments.what in ("cost", "figure6"):
        from transformers.utils import logging

        logging.set_verbosity_error()  # models are built to be counted, with what they would warn of in use
    if arguments.what == "cost":
        from .reproduce_cost import reproduce_cost

        reproduce_cost(arguments.tables, arguments.output_dir)
    elif arguments.what.startswith("table"):
        from .reproduce_accuracy import reproduce_accuracy

        return reproduce_accuracy(arguments)
    elif arguments.what == "ablations":
        from .reproduce_ablations import reproduce_ablations

        return reproduce_ablations(arguments)
    elif arguments.what == "figure5":
        from .reproduce_figure5 import reproduce_figure5

        return reproduce_figure5(dict(arguments.runs), arguments.output_dir)
    else:
        from .reproduce_figure6 import reproduce_figure6

        reproduce_figure6(arguments)
    return 0
