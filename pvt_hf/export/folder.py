"""Exports a checkpoint: traces it, compares program and model, and writes the folder whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..metrics.reports import versions, write_json
from ..weights.export_files import LABELS, describe_files, read_manifest
from ..weights.export_formats import EXPORT_FILES, ExportFormat
from ..weights.exported import open_exported
from ..weights.opening import weights_digest
from ..weights.paths import EXPORT_MANIFEST, EXPORT_REPORT
from ..weights.whole_folder import check_replaceable, folder_written_whole
from .accuracy import AccuracyData, accuracy_before_and_after, calibration_samples, check_data, quantizer_for
from .card import card_text, speed_text
from .comparison import Comparison, compare, measure_speed, shapes_to_compare, smallest_side
from .source import Source, check_fixed_size, open_source, preparation
from .tracing import ExportOptions, trace


@dataclass(frozen=True)
class ExportRequest:
    """
    What `pvt-hf export` was asked for.

    Attributes:
        model: folder or Hub id.
        output: folder to create.
        format: see [`pvt_hf.weights.export_formats.EXPORT_FORMATS`].
        model_class: see [`pvt_hf.export.source.open_source`].
        fixed_size: (height, width) in pixels; None: any size and batch.
        overwrite: replace `output` if it is an older export.
        precision: "fp32", "fp16", "bf16" or "int8".
        accuracy: the data to measure accuracy on, and for int8 to calibrate with; None: not measured.
    """

    model: str
    output: Path
    format: ExportFormat
    model_class: str = ""
    fixed_size: tuple[int, int] | None = None
    overwrite: bool = False
    precision: str = "fp32"
    accuracy: AccuracyData | None = None


class Disagreement(ValueError):
    """An export computes something else than its model."""


def export_checkpoint(request: ExportRequest, say: Callable[[str], None] = print) -> dict[str, Any]:
    """
    Exports a model into a folder. The files are written to a temporary folder beside it, read and compared with the
    model, and only then the folder gets its name.

    Args:
        say: told what is done.

    Returns:
        The content of `export_report.json`.

    Raises:
        FileExistsError: the output folder has content, and `overwrite` is False or it is no older export.
        ImportError: a package of the format is not installed.
        OSError, ValueError: the model cannot be opened (see [`open_source`]) or exported.
        Disagreement: the program computes something else. The message has the figures.
        StreamError: the data set of `request.accuracy` cannot be read.
    """
    output = request.output.resolve()
    check_replaceable(output, request.overwrite, EXPORT_MANIFEST, EXPORT_FILES)
    if reason := request.format.missing(quantize=request.precision == "int8"):
        raise ImportError(reason)
    source = open_source(request.model, request.model_class, request.fixed_size)
    class_name = type(source.model).__name__
    if class_name == "MaskRcnnForInstanceSegmentation" and (reason := request.format.no_mask_rcnn):
        raise ValueError(f"{class_name} cannot be exported to {request.format.title}: {reason}")
    check_fixed_size(source)
    say(f"model     {request.model}: {class_name}, {source.model.num_parameters():,} parameters")
    if (asked := request.fixed_size) and (given := source.fixed_size) and given != asked:
        sizes = f"{given[0]}x{given[1]} instead of {asked[0]}x{asked[1]}"
        say(f"size      {sizes}: the image processor brings images to multiples of 32 pixels")
    if source.fixed_size and source.processor is not None:
        say(f"prepare   images are {preparation(source.processor, *source.fixed_size)}")
    if request.accuracy:
        if source.task is None:
            raise ValueError(f"--dataset measures accuracy, which a {class_name} has not.")
        check_data(source, request.model, request.accuracy, calibrate=request.precision == "int8")
    options = ExportOptions(request.format, source.fixed_size, request.precision)
    if request.precision == "int8":
        assert request.accuracy is not None  # the command asks for it
        samples = calibration_samples(source, request.model, request.accuracy)
        say(f"calibrate with {len(samples)} images of {request.accuracy.dataset}, {request.accuracy.calibration_split}")
        options = replace(options, quantizer=quantizer_for(request.format, samples))
    with folder_written_whole(output) as folder:
        report = write_export(source, options, folder, say)
        report = {"model": request.model, **report}
        if request.accuracy:
            report["accuracy"] = accuracy_before_and_after(source, request.model, folder, request.accuracy)
            for name, (before, after) in report["accuracy"]["figures"].items():
                say(f"accuracy  {name}: {before:.4f} before, {after:.4f} after")
        write_json(folder / EXPORT_REPORT, report)
        (folder / "README.md").write_text(card_text(report))
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    say(f"written   {request.output}: {', '.join(sorted(file.name for file in output.iterdir()))}; {size:.1f} MB")
    return report


def write_export(source: Source, options: ExportOptions, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Traces the model, writes all files but report and card into `folder`, and compares. Returns the report."""
    kind, model = options.format, source.model
    exported = trace(model, options)
    exported.save_pretrained(folder)
    model.config.save_pretrained(folder)
    if source.processor is not None:
        source.processor.save_pretrained(folder)
    for name in (CONFIG_NAME, IMAGE_PROCESSOR_NAME):
        forget_code(folder / name)
    id2label: Any = model.config.id2label
    labels = [id2label[index] for index in sorted(id2label)] if source.task else []
    if labels:
        # One line each, whatever a label holds
        (folder / LABELS).write_text("".join(f"{' '.join(str(label).split())}\n" for label in labels))
    size = "x".join(map(str, options.fixed_size)) if options.fixed_size else "any height, width and number of images"
    say(f"exported  {kind.title}, {options.precision}, {size}")

    _, programs, _ = read_manifest(folder)
    files = describe_files(folder, programs)
    try:
        program = open_exported(folder, trust_remote_code=True)  # written by this process
    except RuntimeError as error:  # a runtime that lacks one of the program's operators
        raise ValueError(f"{kind.title} cannot open the program that it was given: {error}") from error
    comparisons: list[Comparison] = []
    for one in compare(model, program, shapes_to_compare(model, options.fixed_size, source.usual_size)):
        say(f"compared  {one}")
        comparisons.append(one)
    tolerance = comparisons[0].tolerance(options.precision)
    wrong = [one for one in comparisons if not one.agrees(options.precision)]
    if wrong:
        raise Disagreement(
            "The export does not compute what the model does, and nothing was written. "
            + (f"Tolerance {tolerance:g}; " if tolerance else "Values have to be finite; ")
            + "; ".join(map(str, wrong))
        )
    smallest = min(min(one.height, one.width) for one in comparisons)
    if options.fixed_size is None:
        smallest = smallest_side(model, program, options.precision, smallest)
    height, width = options.fixed_size or source.usual_size or comparisons[-1].height_width
    speed = measure_speed(model, program, height, width)
    say(f"speed     one image of {height}x{width}: {speed_text(speed)}, on this machine")
    return {
        "model_class": type(model).__name__,
        "task": source.task,
        "format": kind.name,
        "precision": options.precision,
        "fixed_size": options.fixed_size,
        "smallest_side": smallest,
        "inputs": list(program.inputs),
        "classes": len(labels) or None,
        "parameters": model.num_parameters(),
        "weights": weights_digest(model),
        "files": files,
        "comparison": [asdict(one) for one in comparisons],
        "tolerance": tolerance,
        "speed": {
            "height": height,
            "width": width,
            **speed,
            "threads": torch.get_num_threads(),
            "processors": os.cpu_count(),
        },
        "command": shlex.join([*sys.argv[0].split(), *sys.argv[1:]]),
        "versions": versions(("transformers", *kind.needed(quantize=options.precision == "int8"))),
    }


def forget_code(file: Path) -> None:
    """Removes the names of code files from a configuration: an export brings no code."""
    if file.is_file():
        values = json.loads(file.read_text())
        values.pop("auto_map", None)
        write_json(file, values)
