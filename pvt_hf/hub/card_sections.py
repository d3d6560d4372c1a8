"""What model cards of any model are put together from: figures, preprocessing, limits, citation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult
from PIL import Image

from .card_usage import Kind
from .published import OFFICIAL_URL, PAPER_URL


@dataclass(frozen=True)
class Metric:
    """
    Attributes:
        type: as in a model card's metadata.
        name: as people call it.
        task: the Hub's name of the task that it measures.
        task_name: as people call it.
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

# By the names that this package's evaluations give them; fractions of 1 there, percent in cards
METRICS = {
    **{f"accuracy@{k}": Metric("accuracy", f"Top-{k} accuracy (%)", *_CLASSIFICATION) for k in range(1, 6)},
    "mean_iou": Metric("mean_iou", "Mean IoU (%)", *_SEMANTIC),
    "mean_accuracy": Metric("accuracy", "Mean accuracy of the classes (%)", *_SEMANTIC),
    "overall_accuracy": Metric("accuracy", "Pixel accuracy (%)", *_SEMANTIC),
    **{key: Metric("mAP", f"Box {name} (%)", *_DETECTION) for key, name in _AP.items()},
    **{f"mask_{key}": Metric("mAP", f"Mask {name} (%)", *_INSTANCE) for key, name in _AP.items()},
}


@dataclass(frozen=True)
class Figure:
    """One figure: its name in [`METRICS`], its value in percent, and what it was reached with ("" for nothing)."""

    key: str
    percent: float
    setting: str = ""


def eval_results(
    figures: Iterable[Figure], dataset_type: str, dataset_name: str, split: str, source_name: str, source_url: str
) -> list[EvalResult]:
    """
    The entries of a card's `model-index`. One card takes those of one source: of results for the same task, data set
    and split, huggingface_hub keeps the first one's source.
    """
    return [
        EvalResult(
            task_type=METRICS[figure.key].task,
            task_name=METRICS[figure.key].task_name,
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_split=split,
            metric_type=METRICS[figure.key].type,
            metric_name=METRICS[figure.key].name + (f", {figure.setting}" if figure.setting else ""),
            metric_value=figure.percent,
            source_name=source_name,
            source_url=source_url,
        )
        for figure in figures
    ]


def metric_types(figures: Iterable[Figure]) -> list[str]:
    return list(dict.fromkeys(METRICS[figure.key].type for figure in figures))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; what is in a cell cannot leave it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(one_line, line)) + " |" for line in lines)


def one_line(value: Any) -> str:
    """Text for a line or a table's cell, whatever was in it."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def preprocessing_section(kind: Kind, processor: Any) -> str:
    """What an image processor does, as its settings say; None: that there is none."""
    parts = ["## Input and preprocessing"]
    if processor is None:
        return "\n\n".join([*parts, "No image processor was saved with this model."])
    name, settings = type(processor).__name__.removesuffix("Pil"), processor.to_dict()
    steps = []
    if settings.get("do_resize"):
        step = f"Resize: {_size_rule(settings.get('size') or {})}"
        if settings.get("resample") is not None:
            step += f", {Image.Resampling(settings['resample']).name.lower()} filter"
        if kind.size_rule and type(processor).__module__.startswith("pvt_hf."):
            step += f"; {kind.size_rule}"
        steps.append(f"{step}.")
    if settings.get("do_center_crop"):
        crop = settings["crop_size"]
        steps.append(f"Centre crop of {crop['height']}x{crop['width']} pixels (height x width).")
    if settings.get("do_rescale"):
        steps.append(f"Values of 8 bits times {settings['rescale_factor']:.6g}: 0 to 1.")
    if settings.get("do_normalize"):
        steps.append(
            "Normalisation of red, green and blue: minus "
            f"{_numbers(settings['image_mean'])}, divided by {_numbers(settings['image_std'])}."
        )
    if settings.get("do_reduce_labels"):
        steps.append("Segmentation maps, in training: 0 is no class (255, ignored), and label n becomes n - 1.")
    numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))
    return "\n\n".join([*parts, f"RGB photographs; `{name}` does the following.", numbered])


def _size_rule(size: Mapping[str, int]) -> str:
    if size.get("shortest_edge") and size.get("longest_edge"):
        return (
            f"one factor that makes the shorter side {size['shortest_edge']} pixels, but the longer at most "
            f"{size['longest_edge']}"
        )
    if size.get("shortest_edge"):
        return f"shorter side to {size['shortest_edge']} pixels"
    if size.get("height"):
        return f"to {size['height']}x{size['width']} pixels (height x width), whatever the ratio"
    return ", ".join(f"{name} {value}" for name, value in size.items() if value)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


_GENERAL_LIMITS = (
    "- Nothing is known here of how scores are calibrated, of accuracy on photographs unlike the training data, or of "
    "how it differs between groups of people or regions of the world. Measure it on your own images before you rely "
    "on it; do not let it decide about people."
)


def limits_section(config: Any) -> str:
    """
    Args:
        config: of the backbone, or of the model if it has none. What is known of a PVT is told of a PVT only.
    """
    if config.model_type != "pvt":
        return f"## Limits\n\n{_GENERAL_LIMITS}"
    side, stride = config.minimum_image_size, math.prod(config.patch_sizes)
    return (
        "## Limits\n\n"
        f"- Images of at least {side}x{side} pixels. Rows and columns beyond a multiple of {stride} at the right and "
        "bottom are not seen, as in the official code.\n"
        "- Memory and time grow faster than the number of pixels: attention reduces keys by a fixed ratio.\n"
        f"{_GENERAL_LIMITS}"
    )


CITATION = """## Citation

```bibtex
@inproceedings{wang2021pyramid,
  title = {Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions},
  author = {Wang, Wenhai and Xie, Enze and Li, Xiang and Fan, Deng-Ping and Song, Kaitao and Liang, Ding and
            Lu, Tong and Luo, Ping and Shao, Ling},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year = {2021}
}
```"""


def relation_section(kind: Kind) -> str:
    """How the model stands to the official code and to Transformers."""
    native = (
        "Transformers has a class for this checkpoint, too: the names of the tensors are its own, and it ignores the "
        "fields of `config.json` that it does not know. It works at the size of construction only, and gives no "
        "feature maps."
        if kind.in_plain_transformers
        else "Transformers' own PVT is a classifier and gives no feature maps: it is of no use for this checkpoint."
    )
    return (
        "## Relation to other code\n\n"
        f"The architecture is that of the [paper]({PAPER_URL}) and its [official code]({OFFICIAL_URL}), with two "
        f"faults of the latter mended: sizes such as 448x448 work, and others such as 112x448 are right. {native}"
    )
