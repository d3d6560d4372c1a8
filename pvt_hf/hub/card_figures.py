"""Figures on a model card: what the metrics are called, the metadata, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import EvalResult


@dataclass(frozen=True)
class Metric:
    """
    Attributes:
        type: in the metadata of a model card.
        name: for readers.
        task: what it measures, as the Hub calls it.
        task_name: for readers.
    """

    type: str
    name: str
    task: str
    task_name: str


_CLASSIFICATION = ("image-classification", "Image classification")
_SEMANTIC = ("image-segmentation", "Semantic segmentation")
_DETECTION = ("object-detection", "Object detection")
_INSTANCE = ("image-segmentation", "Instance segmentation")
_AP = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small", "ap_medium": "AP medium",
       "ap_large": "AP large"}  # fmt: skip

# By the names in this package's evaluations, where they are fractions of 1; cards have percent
METRICS = {
    **{f"accuracy@{k}": Metric("accuracy", f"Top-{k} accuracy (%)", *_CLASSIFICATION) for k in (1, 5)},
    "mean_iou": Metric("mean_iou", "Mean IoU (%)", *_SEMANTIC),
    "mean_accuracy": Metric("accuracy", "Mean accuracy of the classes (%)", *_SEMANTIC),
    "overall_accuracy": Metric("accuracy", "Pixel accuracy (%)", *_SEMANTIC),
    **{key: Metric("mAP", f"Box {name} (%)", *_DETECTION) for key, name in _AP.items()},
    **{f"mask_{key}": Metric("mAP", f"Mask {name} (%)", *_INSTANCE) for key, name in _AP.items()},
}


@dataclass(frozen=True)
class Source:
    """Where figures come from: a name and a link."""

    name: str
    url: str


@dataclass(frozen=True)
class Results:
    """
    Attributes:
        figures: percent, by the names in [`METRICS`].
        source: who measured them.
        setting: how the model was trained or tested; "" for the usual way.
        num_images: evaluated; None if that is not known.
    """

    figures: dict[str, float]
    source: Source
    setting: str = ""
    num_images: int | None = None


def training_results(run: Mapping[str, Any], source: Source) -> list[Results]:
    """The last evaluation of a training, which is that of the saved weights. `run`: content of `run.json`."""
    return _results(run["metrics"], source)


def evaluation_results(
    evaluation: Mapping[str, Any], source: Source, model_class: str, weights: str | None = None
) -> list[Results]:
    """
    The results in an evaluation command's `--output`: several for a classifier that was evaluated at several sizes.

    Args:
        evaluation: the file's content.
        model_class: class of the model that it has to be of.
        weights: [`pvt_hf.weights.opening.weights_digest`] of that model; None accepts any.

    Raises:
        ValueError: it is of another model, or not the output of an evaluation command.
    """
    expected = "what an evaluation command writes with --output"
    require(evaluation, "evaluation", expected, "settings", "results", "model_class", "weights")
    if evaluation["model_class"] != model_class:
        raise ValueError(
            f"evaluation is of a {evaluation['model_class']}, expected a {model_class}: evaluate this model."
        )
    if weights is not None and evaluation["weights"] != weights:
        raise ValueError(f"evaluation is of a {model_class} with other weights: evaluate this model.")
    if isinstance(evaluation["results"], list):
        return [
            found
            for result in evaluation["results"]
            for found in _results(result, source, f"{result['height']}x{result['width']} pixels")
        ]
    mode = evaluation["settings"].get("mode", "single")
    return _results(evaluation["results"], source, "" if mode == "single" else mode.replace("_", " "))


def _results(values: Mapping[str, Any], source: Source, setting: str = "") -> list[Results]:
    figures = {
        key: round(100 * values[key], 2)
        for key in METRICS
        if isinstance(values.get(key), int | float)  # null where there is nothing to measure
    }
    return [Results(figures, source, setting, values.get("eval_samples"))] if figures else []


def without_certain(results: Sequence[Results], num_labels: int) -> list[Results]:
    """Leaves out the top-5 accuracy of a model of five or fewer classes, which is 100 % whatever it predicts."""
    certain = {"accuracy@5"} if num_labels <= 5 else set()
    return [
        replace(one, figures={key: one.figures[key] for key in one.figures if key not in certain}) for one in results
    ]


def eval_results(
    results: Iterable[Results], dataset_type: str, dataset_name: str, split: str
) -> tuple[list[EvalResult], list[str]]:
    """
    The entries of `model-index` in a card's metadata, and the types of their metrics.

    All results must be from one source: huggingface_hub keeps the first source for the same task, data set and split.
    """
    entries = [
        EvalResult(
            task_type=METRICS[key].task,
            task_name=METRICS[key].task_name,
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_split=split,
            metric_type=METRICS[key].type,
            metric_name=METRICS[key].name + (f", {one.setting}" if one.setting else ""),
            metric_value=percent,
            source_name=one.source.name,
            source_url=one.source.url,
        )
        for one in results
        for key, percent in one.figures.items()
    ]
    return entries, list(dict.fromkeys(entry.metric_type for entry in entries))


def results_table(results: Sequence[Results]) -> str:
    """A Markdown table with a row for each of the results and a column for each metric; "" without results."""
    if not results:
        return ""
    keys = [key for key in METRICS if any(key in one.figures for one in results)]
    rows = [
        [
            one.setting or "default",
            *(one.figures.get(key, "") for key in keys),
            f"[{one.source.name}]({one.source.url})",
        ]
        for one in results
    ]
    return table(["setting", *(METRICS[key].name for key in keys), "source"], rows)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table. No cell can end early, whatever is in it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(one_line, line)) + " |" for line in lines)


def one_line(value: Any) -> str:
    """Text for one line or one cell of a table, from any value."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def require(content: Mapping[str, Any], name: str, expected: str, *keys: str) -> None:
    """Raises a ValueError if `content` lacks one of `keys`."""
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{name} has no {', '.join(missing)}: expected {expected}.")
