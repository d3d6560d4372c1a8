"""`pvt-hf reproduce tableN`: evaluates checkpoints, and shows the figures beside the paper's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from ..data.streams import Stream, StreamError
from ..engine.evaluation import evaluate_checkpoint
from ..families import FAMILIES, load
from ..hub.published_costs import TITLES, count_frozen, count_row, published_costs
from ..metrics.costs import build_on_meta
from ..metrics.reports import versions, write_json
from ..tasks import evaluation_settings, get_task
from ..weights.convert import convert_checkpoint
from ..weights.official_files import download_checkpoint
from ..weights.published_accuracy import TASKS, PublishedAccuracy, published_accuracies
from ..weights.variants import VARIANTS
from .benchmark_report import describe_environment
from .reproduce_cost import write_csv
from .reproduce_data import DATA, MISSING, missing_text
from .reproduce_latency import milliseconds_per_image


COLUMNS = ("table", "model", "setting", "metric", "paper", "ours", "difference", "checkpoint", "note")
MILLISECONDS = "ms_per_image"
REMARKS = {
    2: " The paper's text gives 18.3 for DeiT-Base, its table 18.2.",
    4: " The paper says learning rate 1e-4, its code 2e-4.",
    5: " The released code, which trains half the steps with twice the batch and rate, reaches 36.6 (PVT-Tiny), 41.9, "
    "43.5 and 43.5.",
    8: " The paper has no figures for ViT-Small/4: it did not fit into 32 GB of a GPU.",
    11: f" {MILLISECONDS} is in milliseconds.",
}


class MissingCheckpointError(Exception):
    """There is no checkpoint for a row; the message says how to get one."""


def reproduce_accuracy(arguments: Any) -> int:
    """
    Evaluates every row of a table that has a checkpoint, prints each figure as soon as it is there, and writes
    `tableN.csv` and `tableN.json` after each row.

    Args:
        arguments: `table`; `sources`, see [`pvt_hf.commands.reproduce_data.find_sources`]; `checkpoints`, "official" or
            a folder; `models`, names of rows, or none for all; `output_dir`, `device` and `workers`.

    Returns:
        The exit status: 0; 1 if a checkpoint could not be evaluated; 2 if the data cannot be opened, or no row has a
        checkpoint.
    """
    table = arguments.table
    streams, missing = open_data(table, arguments.sources)
    if missing:
        print(missing)
        return MISSING
    rows = [row for row in published_accuracies()
            if row.table == table and (not arguments.models or row.model in arguments.models)]  # fmt: skip
    entries: list[dict[str, Any]] = []
    reports: dict[str, Any] = {}
    print(f"Table {table}: {TITLES[table]}. Percent; ours less the paper's in brackets.{REMARKS.get(table, '')}",
          flush=True)  # fmt: skip
    failed = 0
    for row in rows:
        report: dict[str, Any] = {}
        try:
            report = _evaluate(row, streams[row.data], arguments)
            reports[row.checkpoint] = report
        except MissingCheckpointError as error:
            report["note"] = str(error)
        except (OSError, ValueError, StreamError) as error:  # the other rows do not suffer
            report["note"] = f"not evaluated: {error}"
            failed += 1
        made = [_entry(row, metric, report) for metric in _printed(row)]
        entries += made
        print(_line(row, made), flush=True)
        write_csv(arguments.output_dir / f"table{table}.csv", COLUMNS, entries)
        content = {"versions": versions(("transformers", "timm")), "rows": entries, "evaluations": reports}
        write_json(arguments.output_dir / f"table{table}.json", content)
    errors = f", {failed} could not be" if failed else ""
    print(f"{len(reports)} of {len(rows)} rows evaluated{errors}. Written: table{table}.csv and table{table}.json in "
          f"{arguments.output_dir}")  # fmt: skip
    return 1 if failed else 0 if reports else MISSING


def open_data(table: int, sources: dict[str, str]) -> tuple[dict[str, Stream], str]:
    """
    Opens the data of a table, so that what is wrong with them shows before a model is opened.

    Returns:
        The validation splits, and a text about those that cannot be opened: why, and how to get the data.
    """
    streams: dict[str, Stream] = {}
    missing = []
    for key, source in sources.items():
        try:
            streams[key] = get_task(TASKS[key]).open_stream(_settings(key, "no-model", source), "validation", None)
        except (OSError, ValueError, StreamError) as error:
            missing.append(missing_text(table, key, str(error)))
    return streams, "\n".join(missing)


def _settings(key: str, model: str, source: str, **options: Any) -> Any:
    """The settings of an evaluation on a data set of the paper."""
    settings: Any = evaluation_settings(TASKS[key])
    return settings(model=model, dataset=source, split="validation", **options)


def _evaluate(row: PublishedAccuracy, stream: Stream, arguments: Any) -> dict[str, Any]:
    """The report of the row's evaluation, with a `note` where it is not as in the paper."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = find_checkpoint(row, arguments.checkpoints, Path(temporary) / "model")
        options: dict[str, Any] = {"mode": "multi_scale"} if row.multi_scale else {}
        settings = _settings(
            row.data, str(folder), arguments.sources[row.data], cpu=arguments.device == "cpu",
            num_workers=arguments.workers, **options,
        )  # fmt: skip
        report = evaluate_checkpoint(get_task(row.task), settings)
        notes = [_number_note(row, report), size_note(row, report["parameters"]), protocol_note(row, folder)]
        if row.milliseconds is not None:
            device = "cpu" if report["device"] == "cpu" else "cuda"
            report[MILLISECONDS] = milliseconds_per_image(folder, stream, device)
            environment = describe_environment(device, torch.get_num_threads())
            ours = environment["device"] if device == "cuda" else "{cpu}, threads: {threads}".format(**environment)
            notes.append(f"{MILLISECONDS}: the paper's on a V100, ours on {ours}")
        return {**report, "note": "; ".join(filter(None, notes))}


def find_checkpoint(row: PublishedAccuracy, source: str, converted: Path) -> Path:
    """
    The folder of a row's checkpoint. An official file is converted to the folder `converted`, and the result compared
    with it.

    Args:
        source: "official", for the files of the official release; or a folder with such files (pvt_small.pth) or with
            folders of models, named like the row's checkpoint.

    Raises:
        MissingCheckpointError: there is none.
    """
    variant = VARIANTS.get(row.checkpoint)
    if source == "official":
        if variant is None or variant.checkpoint_url is None:
            raise MissingCheckpointError(f"no official weights; {_how_to_train(row)}")
        try:
            file = download_checkpoint(variant)
        except ConnectionError as error:
            raise MissingCheckpointError(
                f"{error} Download {variant.checkpoint_url} elsewhere, and give its folder: --checkpoints FOLDER"
            ) from None
        convert_checkpoint(file, converted, source_url=variant.checkpoint_url, **variant.config)
        return converted
    folder, file = Path(source, row.checkpoint), Path(source, f"{row.checkpoint.replace('-', '_')}.pth")
    if folder.is_dir():
        return folder
    if row.data == "imagenet-1k" and file.is_file():
        convert_checkpoint(file, converted)
        return converted
    files = f" or {file.name}" if row.data == "imagenet-1k" else ""
    raise MissingCheckpointError(f"no {row.checkpoint}/{files} in {source}; {_how_to_train(row)}")


def _how_to_train(row: PublishedAccuracy) -> str:
    if not row.recipe:
        return "this package has no recipe for it: docs/paper.md says how to change the nearest one"
    return f"train it: pvt-hf train-{row.task} {row.recipe} --output_dir CHECKPOINTS/{row.checkpoint}"


def _number_note(row: PublishedAccuracy, report: dict[str, Any]) -> str:
    """Says that not all images of the validation split were evaluated; "" if they were."""
    found, all_images = _results(report)["eval_samples"], DATA[row.data].images
    return f"{found:,} images, not {all_images:,}" if found != all_images else ""


def size_note(row: PublishedAccuracy, parameters: int) -> str:
    """Says that a checkpoint is not the row's model, by its number of parameters; "" if it may be."""
    cost = next((cost for cost in published_costs()
                 if cost.table == row.table and cost.model.partition(", ")[0] == row.model), None)  # fmt: skip
    if cost is None or (row.table == 9 and row.data == "coco"):  # Table 9 has the parameters of classifiers
        return ""
    counted = count_row(cost)
    expected = counted.parameters + count_frozen(cost, build_on_meta(cost.build))
    if abs(parameters - expected) <= 0.02 * expected:  # buffers, and heads for other numbers of classes
        return ""
    return f"not the paper's model: {parameters / 1e6:.1f} M parameters, not {expected / 1e6:.1f} M"


def protocol_note(row: PublishedAccuracy, folder: Path) -> str:
    """Says where a checkpoint's image processor differs from the paper's evaluation; "" if it does not."""
    from transformers import AutoConfig, AutoImageProcessor

    model_type = AutoConfig.from_pretrained(folder).model_type
    family = next((family for family in FAMILIES.values() if family.model_type == model_type), None)
    if family is None:
        return ""
    processor: Any = AutoImageProcessor.from_pretrained(folder)
    fields: dict[str, Any] = {"do_reduce_labels": True} if family.task == "segmentation" else {}
    paper = load(family.processor)(**fields, **({"size": row.size} if row.size else {})).to_dict()
    ours = processor.to_dict()
    names = ("size", "crop_size", "do_center_crop", "resample", "image_mean", "image_std", "do_reduce_labels")
    different = [f"{name} {ours.get(name)}, not {paper[name]}" for name in names if _differs(ours, paper, name)]
    return f"not the paper's preparation of images: {'; '.join(different)}" if different else ""


def _differs(ours: dict[str, Any], paper: dict[str, Any], name: str) -> bool:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, list | tuple) else dict(value) if hasattr(value, "keys") else value

    return name in paper and plain(ours.get(name)) != plain(paper[name])


def _results(report: dict[str, Any]) -> dict[str, Any]:
    results = report["results"]
    return results[0] if isinstance(results, list) else results


def _printed(row: PublishedAccuracy) -> dict[str, float]:
    """What the paper prints of a row, by metric."""
    return row.figures if row.milliseconds is None else {**row.figures, MILLISECONDS: row.milliseconds}


def our_figure(report: dict[str, Any], metric: str) -> str:
    """A figure of an evaluation, in percent or milliseconds, with one decimal as the paper's; "" if it is undefined."""
    if "results" not in report:
        return ""
    if metric == MILLISECONDS:
        return f"{report[metric]:.1f}"
    value = _results(report).get("accuracy@1" if metric == "top1_error" else metric)
    if value is None:
        return ""
    return f"{100 * (1 - value if metric == 'top1_error' else value):.1f}"


def _entry(row: PublishedAccuracy, metric: str, report: dict[str, Any]) -> dict[str, Any]:
    ours = our_figure(report, metric)
    paper = _printed(row)[metric]
    values = (
        row.table, row.model, row.setting, metric, paper, float(ours) if ours else None,
        float(Decimal(ours) - Decimal(str(paper))) if ours else None, row.checkpoint, report["note"],
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _line(row: PublishedAccuracy, entries: Sequence[dict[str, Any]]) -> str:
    def cells() -> Iterator[str]:
        for entry in entries:
            ours = "-" if entry["ours"] is None else f"{entry['ours']} ({entry['difference']:+})"
            yield f"{entry['metric']}: paper {entry['paper']}, ours {ours}"

    name = f"{row.model}, {row.setting}" if row.setting else row.model
    note = f"\n    {entries[0]['note']}" if entries[0]["note"] else ""
    return f"  {name}: {'; '.join(cells())}{note}"
