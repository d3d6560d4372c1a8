"""`pvt-hf reproduce tableN`: evaluates checkpoints, and shows the figures beside the paper's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..engine.evaluation import evaluate_checkpoint
from ..families import FAMILIES, load
from ..hub.published_accuracy import PublishedAccuracy, published_accuracies
from ..hub.published_costs import TITLES
from ..metrics.reports import versions, write_json
from ..tasks import evaluation_settings, get_task
from ..weights.convert import convert_checkpoint
from ..weights.official_files import download_checkpoint
from ..weights.variants import VARIANTS
from .reproduce_cost import write_csv
from .reproduce_data import MISSING, TABLE_DATA


COLUMNS = ("table", "model", "setting", "metric", "paper", "ours", "difference", "checkpoint", "note")


class MissingCheckpointError(Exception):
    """There is no checkpoint for a row; the message says how to get one."""


def reproduce_accuracy(table: int, arguments: Any) -> int:
    """
    Evaluates every row of a table that has a checkpoint, prints each figure as soon as it is there, and writes
    `tableN.csv` and `tableN.json` after each row.

    Args:
        arguments: `data`, one folder for each data set of the table; `checkpoints`, "official" or a folder; `models`,
            names of rows, or none for all; `output_dir`, `device` and `workers`.

    Returns:
        The exit status: 0, or 2 if no row has a checkpoint.

    Raises:
        SystemExit: there is no such row.
    """
    rows = [row for row in published_accuracies() if row.table == table]
    unknown = sorted(set(arguments.models) - {row.model for row in rows})
    if unknown:
        known = ", ".join(dict.fromkeys(row.model for row in rows))
        raise SystemExit(f"error: --models {unknown[0]}: Table {table} has {known}.")
    if arguments.models:
        rows = [row for row in rows if row.model in arguments.models]
    data = dict(zip(TABLE_DATA[table], arguments.data))
    entries: list[dict[str, Any]] = []
    reports: dict[str, Any] = {}
    print(f"Table {table}: {TITLES[table]}. Percent; ours less the paper's in brackets.", flush=True)
    evaluated = 0
    for row in rows:
        try:
            report, note = _evaluate(row, data[row.data], arguments)
        except MissingCheckpointError as error:
            report, note = None, str(error)
        else:
            evaluated += 1
            reports[row.checkpoint] = report
        made = [_entry(row, metric, report, note) for metric in row.figures]
        entries += made
        print(_line(row, made), flush=True)
        write_csv(arguments.output_dir / f"table{table}.csv", COLUMNS, entries)
        content = {"versions": versions(("transformers", "timm")), "rows": entries, "evaluations": reports}
        write_json(arguments.output_dir / f"table{table}.json", content)
    print(f"{evaluated} of {len(rows)} rows evaluated. Written: table{table}.csv and table{table}.json in "
          f"{arguments.output_dir}")  # fmt: skip
    return 0 if evaluated else MISSING


def _evaluate(row: PublishedAccuracy, data: Path, arguments: Any) -> tuple[dict[str, Any], str]:
    """The report of the row's evaluation, and a note where it is not as in the paper."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = find_checkpoint(row, arguments.checkpoints, Path(temporary) / "model")
        options: dict[str, Any] = {"mode": "multi_scale"} if row.multi_scale else {}
        settings: Any = evaluation_settings(row.task)(
            model=str(folder), dataset=str(data), split="validation", cpu=arguments.device == "cpu",
            num_workers=arguments.workers, **options,
        )  # fmt: skip
        return evaluate_checkpoint(get_task(row.task), settings), protocol_note(folder)


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
        return "this package has no recipe for it"
    return f"train it: pvt-hf train-{row.task} {row.recipe} --output_dir CHECKPOINTS/{row.checkpoint}"


def protocol_note(folder: Path) -> str:
    """Says where a checkpoint's image processor differs from the paper's evaluation; "" if it does not."""
    from transformers import AutoConfig, AutoImageProcessor

    model_type = AutoConfig.from_pretrained(folder).model_type
    family = next((family for family in FAMILIES.values() if family.model_type == model_type), None)
    if family is None:
        return ""
    processor: Any = AutoImageProcessor.from_pretrained(folder)
    fields = {"do_reduce_labels": True} if family.task == "segmentation" else {}
    paper = load(family.processor)(**fields).to_dict()
    ours = processor.to_dict()
    names = ("size", "crop_size", "do_center_crop", "resample", "image_mean", "image_std", "do_reduce_labels")
    different = [f"{name} {ours.get(name)}, not {paper[name]}" for name in names if _differs(ours, paper, name)]
    return f"not the paper's preparation of images: {'; '.join(different)}" if different else ""


def _differs(ours: dict[str, Any], paper: dict[str, Any], name: str) -> bool:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, list | tuple) else dict(value) if hasattr(value, "keys") else value

    return name in paper and plain(ours.get(name)) != plain(paper[name])


def our_figure(report: dict[str, Any] | None, metric: str) -> str:
    """A metric of an evaluation in percent, with one decimal as the paper prints it; "" if it is undefined."""
    if report is None:
        return ""
    results = report["results"]
    results = results[0] if isinstance(results, list) else results
    value = results["accuracy@1"] if metric == "top1_error" else results.get(metric)
    if value is None:
        return ""
    return f"{100 * (1 - value if metric == 'top1_error' else value):.1f}"


def _entry(row: PublishedAccuracy, metric: str, report: dict[str, Any] | None, note: str) -> dict[str, Any]:
    ours = our_figure(report, metric)
    paper = row.figures[metric]
    values = (
        row.table, row.model, row.setting, metric, paper, float(ours) if ours else None,
        float(Decimal(ours) - Decimal(str(paper))) if ours else None, row.checkpoint, note,
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
