"""Model cards for the Hub: of a model that somebody trained or converted, from its own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedModel

from ..weights.opening import weights_digest
from .card_sections import (
    CITATION,
    METRICS,
    Figure,
    eval_results,
    limits_section,
    metric_types,
    one_line,
    preprocessing_section,
    relation_section,
    table,
)
from .card_usage import KINDS, Kind, usage_section
from .published import IMAGENET, OFFICIAL_URL, PAPER_URL


MAX_NAMES = 200
# Settings of a run that say nothing of the result, or name places on the machine it ran on
_NOT_SHOWN = {
    "output_dir", "dataset", "model", "backbone", "class_names", "image_column", "label_column", "mask_column",
    "objects_column", "num_workers", "resume_from_checkpoint", "save_every_steps", "save_total_limit",
    "log_every_steps", "report_to", "cpu", "seed",
}  # fmt: skip


def build_card(
    model: PreTrainedModel,
    processor: Any,
    *,
    repo_id: str,
    run: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    conversion: Mapping[str, Any] | None = None,
    license: str | None = None,
    with_code: bool | None = None,
) -> ModelCard:
    """
    The card of a model that is pushed to `repo_id`. Its figures are those of `evaluation`, or else of `run`; without
    either it has none.

    Args:
        model: of a class of this package, see [`pvt_hf.hub.card_usage.KINDS`].
        processor: its image processor, or None.
        repo_id: `org/name`.
        run: content of the `run.json` that a training leaves. Paths in it do not get into the card.
        evaluation: content of an evaluation script's `--output`, of this model with these weights.
        conversion: content of the `conversion.json` that [`pvt_hf.weights.convert.convert_checkpoint`] writes.
        license: of the weights, by the Hub's identifier; by default that of the official release for a `conversion` of
            a file that was downloaded from there, and none otherwise: that is for their author to say.
        with_code: whether the code lies beside the weights; None if that is not known.

    Raises:
        ValueError: another class of model, a `repo_id` that is none, or an `evaluation`, `run` or `conversion` that is
            not of such a file or not of this model; the message says what is wrong.
    """
    name = type(model).__name__
    if name not in KINDS:
        raise ValueError(f"There is no model card for {name}: it is written for {', '.join(KINDS)}.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id {repo_id!r} is not of the form org/name: {error}") from None
    kind, config = KINDS[name], model.config
    backbone = getattr(config, "backbone_config", config)
    is_pvt = backbone.model_type == "pvt"
    source, figures, images = "", [], None
    if run is not None:
        _require(run, "run", "the content of run.json", "settings", "metrics", "steps", "versions")
        expected = "the settings of a training"
        _require(run["settings"], "run['settings']", expected, "dataset", "batch_size", "gradient_accumulation_steps")
        source, figures = "the training's own evaluation", run_figures(run)
        images = run["metrics"].get("eval_samples")
    if evaluation is not None:
        source, figures = "an evaluation with pvt_hf", evaluation_figures(evaluation, name, weights_digest(model))
        results = evaluation["results"]
        images = (results if isinstance(results, Mapping) else results[0] if results else {}).get("eval_samples")
    if conversion is not None:
        _require(conversion, "conversion", "the content of conversion.json", "source", "model", "verification")

    training_data = dataset_label(run["settings"]["dataset"]) if run is not None else None
    measured = evaluation["settings"] if evaluation is not None else run["settings"] if run is not None else {}
    data, split = dataset_label(measured.get("dataset", "")), _split(measured)
    starts = [dataset_label(run["settings"].get(key, "")) for key in ("model", "backbone")] if run is not None else []
    card_data = ModelCardData(
        license=license or ("apache-2.0" if conversion is not None and conversion["source"].get("url") else None),
        library_name="transformers",
        pipeline_tag=kind.task,
        tags=["vision", *(["pvt"] if is_pvt else []), kind.task],
        datasets=[training_data[1]] if training_data and training_data[1] else _pretraining(conversion),
        base_model=[hub_id for _, hub_id in starts if hub_id] or None,
        metrics=metric_types(figures) or None,
    )
    if figures:
        card_data.model_name = repo_id.rsplit("/", 1)[-1]
        url = f"https://huggingface.co/{repo_id}#evaluation"
        card_data.eval_results = eval_results(figures, data[1] or data[0], data[0], split, source, url)

    parts = [
        f"# {repo_id.rsplit('/', 1)[-1]}",
        _summary(model, kind, backbone),
        usage_section(kind, repo_id, backbone, processor, with_code),
        _classes(config) if kind.task != "image-feature-extraction" else "",
        preprocessing_section(kind, processor),
        _training(run, training_data, starts) if run is not None and training_data is not None else "",
        _provenance(conversion) if conversion is not None else "",
        _evaluation(figures, source, measured, data[0], split, images) if figures else "",
        limits_section(backbone),
        *((relation_section(kind), CITATION) if is_pvt else ()),
    ]
    return make_card(card_data, parts)


def make_card(data: ModelCardData, parts: list[str]) -> ModelCard:
    """A card of its metadata and its sections, of which empty ones are left out."""
    body = "\n\n".join(part for part in parts if part)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def run_figures(run: Mapping[str, Any]) -> list[Figure]:
    """Those of the last evaluation of a training, which is that of the weights that it saves."""
    return _figures(run["metrics"], "")


def evaluation_figures(evaluation: Mapping[str, Any], model_class: str, weights: str | None = None) -> list[Figure]:
    """
    The figures of an evaluation script's output.

    Args:
        model_class, weights: of the model that it has to be of; `weights` is its [`weights_digest`], None takes any.

    Raises:
        ValueError: it is of another model, or no such output.
    """
    expected = "what an evaluation script writes with --output"
    _require(evaluation, "evaluation", expected, "settings", "results", "model_class", "weights")
    if evaluation["model_class"] != model_class:
        raise ValueError(
            f"evaluation is of a {evaluation['model_class']}, expected a {model_class}: evaluate this model."
        )
    if weights is not None and evaluation["weights"] != weights:
        raise ValueError(f"evaluation is of a {model_class} with other weights: evaluate this model.")
    results, settings = evaluation["results"], evaluation["settings"]
    if isinstance(results, list):  # of a classifier, one for each size
        return [
            figure for result in results for figure in _figures(result, f"{result['height']}x{result['width']} pixels")
        ]
    mode = settings.get("mode", "single")
    return _figures(results, "" if mode == "single" else mode.replace("_", " "))


def dataset_label(name: str) -> tuple[str, str | None]:
    """
    What a card calls a data set or a checkpoint that a command named: the last part of a path, or a Hub id, which also
    comes second. `org/name` counts as a Hub id unless there is such a folder or file here.
    """
    is_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).exists()
    return (Path(name).name, None) if is_path else (name, name)


def _figures(values: Mapping[str, Any], setting: str) -> list[Figure]:
    return [
        Figure(key, round(100 * values[key], 2), setting)
        for key in METRICS
        if isinstance(values.get(key), int | float)  # null where there is nothing to measure
    ]


def _require(content: Mapping[str, Any], name: str, expected: str, *keys: str) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{name} has no {', '.join(missing)}: expected {expected}.")


def _split(settings: Mapping[str, Any]) -> str:
    if settings.get("eval_share"):
        return f"{100 * settings['eval_share']:g} % of {settings.get('train_split', 'train')}, held out"
    return settings.get("split") or settings.get("eval_split") or ""


def _pretraining(conversion: Mapping[str, Any] | None) -> list[str] | None:
    """An official classifier of 1000 classes was trained on ImageNet-1K; of other files nothing is known."""
    is_imagenet = conversion is not None and (conversion["model"].get("labels") or "").startswith("ImageNet-1K")
    return [IMAGENET.hub_id] if is_imagenet else None


def _summary(model: PreTrainedModel, kind: Kind, backbone: Any) -> str:
    head = f" {kind.paper} on" if kind.paper else ""
    if backbone.model_type != "pvt":
        return f"A {kind.what}:{head} a backbone of type `{backbone.model_type}`, with {_millions(model)}."
    depths = ", ".join(map(str, backbone.depths))
    widths = ", ".join(map(str, backbone.hidden_sizes))
    return (
        f"{'An' if kind.what[0] in 'aeio' else 'A'} {kind.what}:{head} a [Pyramid Vision Transformer]({PAPER_URL}) "
        f"with stages of {depths} blocks and {widths} channels, {_millions(model)} in all."
    )


def _millions(model: PreTrainedModel) -> str:
    return f"{model.num_parameters():,} parameters"


def _classes(config: Any) -> str:
    names = [re.sub(r"([\[`*])", r"\\\1", one_line(config.id2label[label])) for label in range(config.num_labels)]
    shown = "; ".join(names[:MAX_NAMES])
    more = f"; and {len(names) - MAX_NAMES} more (`id2label` in `config.json`)" if len(names) > MAX_NAMES else ""
    return f"## Classes\n\n{len(names)} classes: {shown}{more}."


def _training(run: Mapping[str, Any], data: tuple[str, str | None], starts: list[tuple[str, str | None]]) -> str:
    settings = run["settings"]
    world = run.get("world_size", 1)
    per_step = settings["batch_size"] * settings["gradient_accumulation_steps"] * world
    facts = [
        ("data", f"{data[0]}, split {settings.get('train_split', 'train')}"),
        ("started from", ", ".join(name for name, _ in starts if name) or "random weights"),
        ("recipe", Path(run["recipe"]).name if run.get("recipe") else "arguments only"),
        ("steps", f"{run['steps']:,} of {per_step} images ({world} x {run.get('device', 'unknown device')})"),
        ("time", f"{run['seconds'] / 60:,.1f} minutes" if run.get("seconds") else "not recorded"),
        ("seed", settings.get("seed")),
        ("versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())),
    ]
    used = [(f"`{name}`", value) for name, value in settings.items() if name not in _NOT_SHOWN and _is_on(value)]
    return "\n\n".join(
        [
            "## Training",
            table(("", ""), facts),
            "Settings; what is off (0, or empty), names a place or does not change the result is left out:",
            table(("setting", "value"), used),
            "Energy and emissions were not measured.",
        ]
    )


def _is_on(value: Any) -> bool:
    return value not in (None, "", "{}", "no", 0, [])  # False equals 0


def _provenance(conversion: Mapping[str, Any]) -> str:
    source, verification = conversion["source"], conversion["verification"]
    url = f" from <{source['url']}>" if source.get("url") else ""
    sizes = ", ".join(f"{height}x{width}" for height, width in verification["image_sizes"])
    return (
        "## Origin of the weights\n\n"
        f"Converted from `{one_line(source['file'])}`{url} (sha256 `{source['sha256']}`, {source['keys']} tensors), in "
        f"the layout of the [official code]({OFFICIAL_URL}), by `scripts/convert_checkpoint.py`. "
        f"The result was compared with a separate implementation of the official forward pass in fp64, at {sizes} "
        f"pixels: the largest difference is {verification['max_abs_difference']:.2g}, in values of up to "
        f"{verification['max_abs_value']:.3g}."
    )


def _evaluation(
    figures: list[Figure], source: str, settings: Mapping[str, Any], data: str, split: str, images: int | None
) -> str:
    rows = [
        (METRICS[figure.key].name, figure.setting or "as the image processor", figure.percent) for figure in figures
    ]
    precision = settings.get("mixed_precision", "no")
    how = f"{source[0].upper()}{source[1:]}, on {one_line(data)} ({one_line(split)}"
    how += f"; {images:,} images)" if images else ")"
    how += "." if precision == "no" else f", in {precision}."
    return "\n\n".join(["## Evaluation", how, table(("metric", "size or mode", "value"), rows)])
