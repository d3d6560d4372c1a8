"""The model card of a model that somebody trained or converted, from the model's own files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedModel

from ..families import MODELS, Family, Model
from ..weights.opening import weights_digest
from .card_figures import (
    Results,
    Source,
    eval_results,
    evaluation_results,
    one_line,
    require,
    results_table,
    table,
    training_results,
    without_certain,
)
from .card_usage import backbone_usage, opens_natively, package_usage, preprocessing_steps, remote_usage
from .published import IMAGENET, OFFICIAL_URL, PAPER_URL


MAX_CLASS_NAMES = 50
# Settings of a training that do not change its result, or that name places on the machine it ran on
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
        model: of a class in [`pvt_hf.families.MODELS`].
        processor: its image processor, or None.
        repo_id: `org/name`.
        run: content of the `run.json` that a training writes. Paths in it do not get into the card.
        evaluation: content of an evaluation command's `--output`, for this model with these weights.
        conversion: content of the `conversion.json` that [`pvt_hf.weights.convert.convert_checkpoint`] writes.
        license: of the weights, as the Hub calls it. By default that of the official release, if `conversion` is of a
            file downloaded from there. Otherwise none: the author of the weights has to say.
        with_code: whether the repository has the code; None if that is not known.

    Raises:
        ValueError: no card exists for the model's class, `repo_id` is invalid, or `evaluation`, `run` or `conversion`
            does not have the expected content or is of another model.
    """
    _check_input(model, repo_id, run, conversion)
    family, row = MODELS[type(model).__name__]
    backbone = getattr(model.config, "backbone_config", model.config)
    title = repo_id.rsplit("/", 1)[-1]
    settings, results = _measured(model, run, evaluation, f"https://huggingface.co/{repo_id}#evaluation")
    results = without_certain(results, len(model.config.id2label or ()))
    data_name, data_id = dataset_label(settings.get("dataset", ""))
    split = _split(settings)
    entries, metrics = eval_results(results, data_id or data_name, data_name, split)
    if conversion is not None and conversion["source"].get("url"):
        license = license or "apache-2.0"
    card_data = ModelCardData(
        license=license,
        datasets=_training_data(run, conversion),
        base_model=[hub_id for _, hub_id in _starts(run) if hub_id] or None,
        metrics=metrics or None,
        model_name=title if entries else None,
        eval_results=entries or None,
        **card_metadata(row, backbone),
    )
    num_images = f" ({results[0].num_images:,} images)" if results and results[0].num_images else ""
    precision = settings.get("mixed_precision", "no")
    precision = "" if precision == "no" else f", in {precision}"
    return render_card(
        card_data, family, row, backbone, processor, repo_id, with_code,
        title=title,
        summary=f"{describe(family, row, backbone)} {model.num_parameters():,} parameters.",
        class_names=_class_names(model.config) if row.hub_task != "image-feature-extraction" else "",
        results_table=results_table(results),
        evaluated_on=f"On {one_line(data_name)}, {one_line(split)}{num_images}{precision}.",
        origin=_origin(conversion) if conversion is not None else None,
        training=_training(run) if run is not None else "",
    )  # fmt: skip


def _check_input(
    model: PreTrainedModel, repo_id: str, run: Mapping[str, Any] | None, conversion: Mapping[str, Any] | None
) -> None:
    if type(model).__name__ not in MODELS:
        raise ValueError(f"There is no model card for {type(model).__name__}, only for {', '.join(MODELS)}.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id {repo_id!r} is not of the form org/name: {error}") from None
    if run is not None:
        require(run, "run", "the content of run.json", "settings", "metrics", "steps", "versions")
        expected = "the settings of a training"
        require(run["settings"], "run['settings']", expected, "dataset", "batch_size", "gradient_accumulation_steps")
    if conversion is not None:
        require(conversion, "conversion", "the content of conversion.json", "source", "model", "verification")


def _measured(
    model: PreTrainedModel, run: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None, url: str
) -> tuple[Mapping[str, Any], list[Results]]:
    """Settings and results of the evaluation, or else of the training."""
    if evaluation is not None:
        source, name = Source("evaluation with pvt_hf", url), type(model).__name__
        results = evaluation_results(evaluation, source, name, weights_digest(model))
        return evaluation["settings"], results
    if run is not None:
        return run["settings"], training_results(run, Source("evaluation in training", url))
    return {}, []


def card_metadata(model: Model, backbone: Any) -> dict[str, Any]:
    """What the metadata of every card of a model class says. `backbone`: configuration of the backbone."""
    tags = ["vision", *(["pvt"] if backbone.model_type == "pvt" else []), model.hub_task]
    return {"library_name": "transformers", "pipeline_tag": model.hub_task, "tags": tags}


def render_card(
    card_data: ModelCardData,
    family: Family,
    model: Model,
    backbone: Any,
    processor: Any,
    repo_id: str,
    with_code: bool | None,
    **values: Any,
) -> ModelCard:
    """
    Fills `card_template.md` (with Jinja, which torch requires).

    Args:
        backbone: configuration of the backbone, or of the model if it has no head.
        processor: the image processor, or None.
        with_code: as in [`build_card`].
        values: for the template, besides what follows from the other arguments.
    """
    is_pvt = backbone.model_type == "pvt"
    return ModelCard.from_template(
        card_data,
        template_path=str(Path(__file__).with_name("card_template.md")),
        package_usage=package_usage(model, repo_id),
        native_size=backbone.image_size if opens_natively(model, backbone, processor) else None,
        remote_usage="" if with_code is False else remote_usage(model, repo_id),
        code_is_known=bool(with_code),
        requires=family.requires,
        backbone_usage=backbone_usage(repo_id) if model.hub_task == "image-classification" else "",
        processor_name=type(processor).__name__.removesuffix("Pil") if processor is not None else "",
        steps=preprocessing_steps(family, processor) if processor is not None else [],
        is_pvt=is_pvt,
        minimum_size=backbone.minimum_image_size if is_pvt else None,
        stride=math.prod(backbone.patch_sizes) if is_pvt else None,
        official_url=OFFICIAL_URL,
        **values,
    )


def describe(family: Family, model: Model, backbone: Any) -> str:
    """One sentence on what a model is. `backbone`: configuration of the backbone, or of the model without a head."""
    noun = f"{'An' if model.description[0] in 'aeio' else 'A'} {model.description}"
    head = f" [{family.title}]({family.paper_url}) on" if family.paper_url else ""
    if backbone.model_type != "pvt":
        return f"{noun}:{head} a backbone of type `{backbone.model_type}`."
    depths, widths = (", ".join(map(str, sizes)) for sizes in (backbone.depths, backbone.hidden_sizes))
    return (
        f"{noun}:{head} a [Pyramid Vision Transformer]({PAPER_URL}) with stages of {depths} blocks and {widths} "
        "channels."
    )


def dataset_label(name: str) -> tuple[str, str | None]:
    """
    What a card calls a data set or a checkpoint, given as a path or a Hub id: the last part of a path, or the Hub id,
    which is also the second value. `org/name` counts as a Hub id unless there is such a folder or file here.
    """
    is_path = name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).exists()
    return (Path(name).name, None) if is_path else (name, name)


def _split(settings: Mapping[str, Any]) -> str:
    if settings.get("eval_share"):
        return f"{100 * settings['eval_share']:g} % of {settings.get('train_split', 'train')}, held out"
    return settings.get("split") or settings.get("eval_split") or ""


def _training_data(run: Mapping[str, Any] | None, conversion: Mapping[str, Any] | None) -> list[str] | None:
    """Data sets on the Hub that the model was trained on."""
    hub_id = dataset_label(run["settings"]["dataset"])[1] if run is not None else None
    # An official classifier with the names of ImageNet-1K was trained on it. Of other files nothing is known.
    if not hub_id and conversion is not None and (conversion["model"].get("labels") or "").startswith("ImageNet-1K"):
        hub_id = IMAGENET.hub_id
    return [hub_id] if hub_id else None


def _starts(run: Mapping[str, Any] | None) -> list[tuple[str, str | None]]:
    """The checkpoints that a training started from, as [`dataset_label`] names them."""
    settings = run["settings"] if run is not None else {}
    return [dataset_label(settings[key]) for key in ("model", "backbone") if settings.get(key)]


def _class_names(config: Any) -> str:
    names = [re.sub(r"([\[`*])", r"\\\1", one_line(config.id2label[label])) for label in range(config.num_labels)]
    hidden = len(names) - MAX_CLASS_NAMES
    return "; ".join(names[:MAX_CLASS_NAMES]) + (f"; and {hidden} more (see `config.json`)" if hidden > 0 else "")


def _training(run: Mapping[str, Any]) -> str:
    settings = run["settings"]
    world = run.get("world_size", 1)
    per_step = settings["batch_size"] * settings["gradient_accumulation_steps"] * world
    used = [
        f"{name} {value}"
        for name, value in settings.items()
        if name not in _NOT_SHOWN and value not in (None, "", "{}", "no", 0, [])  # False equals 0
    ]
    facts = [
        ("data", f"{dataset_label(settings['dataset'])[0]}, split {settings.get('train_split', 'train')}"),
        ("started from", ", ".join(name for name, _ in _starts(run)) or "random weights"),
        ("recipe", Path(run["recipe"]).name if run.get("recipe") else "none"),
        ("steps", f"{run['steps']:,} of {per_step} images ({world} x {run.get('device', 'unknown device')})"),
        ("time", f"{run['seconds'] / 60:,.1f} minutes" if run.get("seconds") else "not recorded"),
        ("seed", settings.get("seed")),
        ("versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())),
        ("other settings", ", ".join(used)),
    ]
    return table(("", ""), facts)


def _origin(conversion: Mapping[str, Any]) -> dict[str, Any]:
    source, verification = conversion["source"], conversion["verification"]
    return {
        "file": one_line(source["file"]),
        "url": source.get("url"),
        "sha256": source["sha256"],
        "keys": source["keys"],
        "sizes": ", ".join(f"{height}x{width}" for height, width in verification["image_sizes"]),
        "difference": f"{verification['max_abs_difference']:.2g}",
        "largest": f"{verification['max_abs_value']:.3g}",
    }
