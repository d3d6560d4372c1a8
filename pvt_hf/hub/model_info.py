"""What a model is, what it costs, and what can be done with it: the text of `pvt-hf info`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from ..families import FAMILIES, MODELS, load
from ..inference.prediction import TASKS, task_of
from ..metrics.costs import Costs, build_on_meta, count_costs
from ..weights.exported import exported_folder
from ..weights.official import load_official_checkpoint
from ..weights.opening import open_config, open_processor, shorten
from ..weights.paths import folder_or_id, official_variant
from ..weights.release import from_official
from ..weights.variants import get_config, get_variant
from .card import describe
from .card_usage import opens_natively, preprocessing_steps
from .export_info import Export, open_export


SHOWN_CLASSES = 10
FALLBACK_SIZE = (224, 224)


@dataclass(frozen=True)
class Opened:
    """
    A model to describe.

    Attributes:
        name: as the user gave it.
        model_class: its class.
        config: its configuration.
        processor: its image processor; None if there is none.
        weights: lines about the weights; of an export, about its program.
        bytes: of the weights, as they are stored; None without weights.
        export: the export that it is; None for other models.
    """

    name: str
    model_class: Any
    config: Any
    processor: Any
    weights: tuple[str, ...]
    bytes: int | None = None
    export: Export | None = None

    def image_size(self, asked: tuple[int, int] | None) -> tuple[int, int]:
        """
        (height, width) in pixels of the image to count for: as `asked`, or what an export is fixed to, or
        [`default_size`]. Raises a ValueError if an export does not take it.
        """
        fixed = self.export.fixed_size if self.export else None
        size = asked or fixed or default_size(self.config, self.processor)
        if self.export:
            self.export.check_size(*size)
        return size


def open_variant(variant: str, architecture: str = "pvt") -> Opened:
    """
    A model of the paper without weights.

    Args:
        variant: in `weights/variants.py`.
        architecture: in [`pvt_hf.families.FAMILIES`].

    Raises:
        ValueError: there is no such variant.
    """
    family, row = FAMILIES[architecture], get_variant(variant)
    config = get_config(variant)
    if family.stages:
        config = load(family.config)(backbone_config=get_config(variant, out_features=list(family.stages)))
    weights = ["none: an architecture"]
    if architecture == "pvt" and row.checkpoint_url:
        weights.append(f"official checkpoint: {row.checkpoint_url} (pvt-hf convert --variant {variant})")
    model_class, processor = load(family.models[0].path), load(family.processors["pil"])()
    return Opened(f"{family.title}, {variant}" if family.stages else variant, model_class, config, processor,
                  tuple(weights))  # fmt: skip


def open_checkpoint(model: str) -> Opened:
    """
    A checkpoint, with its weights read once to see whether they are complete; or an export, whose files are checked.

    Args:
        model: folder, Hub id, "official:pvt-small", "sample:NAME", or an official `.pth` or `.safetensors` file.

    Raises:
        OSError: there is no such model, or an export lacks a file.
        ValueError: it has a configuration of no known class, or a damaged one; or an export is damaged.
    """
    if Path(model).is_file():
        official = load_official_checkpoint(model)
        weights = ("complete; an official checkpoint (pvt-hf convert opens it for Transformers)",)
        return Opened(model, type(official), official.config, None, weights, _size_of(official))
    folder = exported_folder(model)
    config = open_config(model)
    export = open_export(folder, config) if folder else None
    model_class = _class_of(model, config)
    if name := official_variant(model):
        classifier, official_processor = from_official(name)
        weights = ("complete; of the official release",)
        return Opened(model, type(classifier), classifier.config, official_processor, weights, _size_of(classifier))
    try:
        processor = open_processor(model)
    except (OSError, ValueError):
        processor = None
    if export:
        return Opened(model, model_class, config, processor, tuple(export.facts()), export=export)
    try:
        opened, loaded = model_class.from_pretrained(
            folder_or_id(model), config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        return Opened(model, model_class, config, processor, (f"cannot be read: {reason}",))
    return Opened(model, model_class, config, processor, _completeness(loaded), _size_of(opened))


def _class_of(model: str, config: PreTrainedConfig) -> Any:
    name = (config.architectures or ["(none)"])[0]
    if name in MODELS:
        return load(MODELS[name][1].path)
    found = getattr(transformers, name, None)
    if found is None:
        raise ValueError(
            f"{model} holds a {name}, which neither this package nor Transformers has: its config.json must name a "
            "model class in `architectures`."
        )
    return found


def _size_of(model: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _completeness(loaded: dict[str, Any]) -> tuple[str, ...]:
    """Lines about the result of `from_pretrained`."""
    mismatched = sorted(name for name, *_ in loaded["mismatched_keys"])
    faults = (
        ("missing", sorted(loaded["missing_keys"])),
        ("of another shape than the configuration says", mismatched),
        ("left over", sorted(loaded["unexpected_keys"])),
    )
    lines = [f"{len(names)} {fault}: {shorten(names, limit=4)}" for fault, names in faults if names]
    incomplete = loaded["missing_keys"] or mismatched
    return ("incomplete" if incomplete else "complete", *lines)


def default_size(config: Any, processor: Any) -> tuple[int, int]:
    """
    Height and width of a usual image after the image processor: the size that it crops or resizes to; for a shorter
    side of S pixels S x S, and S x 1.6 S in detection, as the paper counts; otherwise that of the configuration.
    """
    settings = processor.to_dict() if processor is not None else {}
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    size = size or {}
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    if size.get("shortest_edge"):
        shorter = size["shortest_edge"]
        is_detector = (task_of(config) or "") in ("object-detection", "instance-segmentation")
        return shorter, (round(1.6 * shorter / 32) * 32 if is_detector else shorter)
    backbone = getattr(config, "backbone_config", None) or config
    side = getattr(backbone, "image_size", FALLBACK_SIZE)
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def describe_model(opened: Opened, size: tuple[int, int] | None = None) -> list[str]:
    """
    The lines that `pvt-hf info` prints.

    Args:
        size: (height, width) in pixels of the image that operations are counted for; see [`Opened.image_size`].

    Raises:
        ValueError: the model does not take images of this size.
    """
    config = opened.config
    if not config.architectures:  # of a variant
        config.architectures = [opened.model_class.__name__]
    costs = count_costs(build_on_meta(lambda: opened.model_class(config)), *opened.image_size(size))
    sections = {
        "model": _identity(opened),
        "classes": [_classes(config)],
        **({"program": opened.weights} if opened.export else {"weights": [*opened.weights, _memory(opened, costs)]}),
        "images": _images(opened),
        "use": _uses(opened),
    }
    lines = [opened.name, ""]
    for title, texts in sections.items():
        lines += [f"{title if index == 0 else '':<9}{text}" for index, text in enumerate(texts)]
    return [*lines, "", *cost_lines(costs)]


def _identity(opened: Opened) -> list[str]:
    name, config = opened.model_class.__name__, opened.config
    if name not in MODELS:
        return [f"{name} of Transformers, model type {config.model_type}"]
    backbone = getattr(config, "backbone_config", None) or config
    text = describe(*MODELS[name], backbone)
    return [re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text), f"{name}, model type {config.model_type}"]


def _classes(config: Any) -> str:
    names = [config.id2label[index] for index in sorted(config.id2label)]
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    if unnamed:
        return f"{len(names)}, without names"
    rest = len(names) - SHOWN_CLASSES
    return f"{len(names)}: {', '.join(names[:SHOWN_CLASSES])}{f' and {rest} more' if rest > 0 else ''}"


def _memory(opened: Opened, costs: Costs) -> str:
    in_fp32 = f"{4 * costs.parameters / 2**20:,.1f} MiB in float32, {2 * costs.parameters / 2**20:,.1f} in 16 bits"
    return in_fp32 if opened.bytes is None else f"{opened.bytes / 2**20:,.1f} MiB as stored; {in_fp32}"


def _images(opened: Opened) -> list[str]:
    if opened.processor is None:
        return ["no image processor: give the model tensors, or save a processor beside it"]
    family = MODELS[opened.model_class.__name__][0] if opened.model_class.__name__ in MODELS else FAMILIES["pvt"]
    return [
        f"{type(opened.processor).__name__}:",
        *(f"- {step}" for step in preprocessing_steps(family, opened.processor)),
    ]


def _uses(opened: Opened) -> list[str]:
    name, task = opened.model_class.__name__, task_of(opened.config)
    tasks = [task] if task else []
    if task == "instance-segmentation":
        tasks.insert(0, "object-detection")
    if opened.export:
        return opened.export.uses(tasks)
    if name in MODELS:
        pipelines: Sequence[str] = MODELS[name][1].pipelines
    else:
        pipelines = (TASKS[task].pipeline,) if task else ()
    lines = [f"pipelines of Transformers: {', '.join(pipelines) or 'none; it is a backbone for other models'}"]
    lines.append(f"pvt-hf predict, evaluate: {', '.join(tasks) or 'no task'}")
    if name in MODELS and opens_natively(MODELS[name][1], opened.config, opened.processor):
        lines.append("also opens in plain Transformers, without this package, at its own image size")
    return lines


def cost_lines(costs: Costs) -> list[str]:
    """A table of the parts of a model."""
    rows = [(part.name, part.parameters, part.multiply_adds, part.torch_flops) for part in costs.parts]
    total = (costs.parameters, costs.multiply_adds, costs.torch_flops)
    parameters, multiply_adds, flops = (
        whole - sum(counts) for whole, counts in zip(total, zip(*(row[1:] for row in rows)))
    )
    if max(parameters, multiply_adds, flops) >= 1e6:  # less would show as zeros
        rows.append(("other", parameters, multiply_adds, flops))
    rows.append(("total", *total))
    width = max(len(name) for name, *_ in rows)
    lines = [f"For one image of {costs.height}x{costs.width} pixels (height x width):",
             f"{'':{width}}  {'parameters':>12}  {'multiply-adds':>15}  {'FLOP (PyTorch)':>15}"]  # fmt: skip
    for name, parameters, multiply_adds, flops in rows:
        lines.append(f"{name:{width}}  {parameters:>12,}  {multiply_adds / 1e9:>13.3f} G  {flops / 1e9:>13.3f} G")
    lines.append("Multiply-adds are the paper's GFLOPs. PyTorch counts 2 FLOP for each, and neither ReLU nor pooling.")
    return lines
