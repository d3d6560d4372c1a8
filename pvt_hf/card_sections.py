"""What model cards of any model are put together from: usage, preprocessing, figures, limits, citation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult
from PIL import Image

from .published import OFFICIAL_URL, PAPER_URL


@dataclass(frozen=True)
class Kind:
    """
    What cards say of every model of a class.

    Attributes:
        task: the Hub's name of the task, which is also that of a pipeline.
        what: the model in a noun phrase.
        usage: Python with `{package}` for an import, `{repo_id}`, and `{remote}` for an argument.
        size_rule: what the image processor does about the stride of the model, after resizing.
        paper: where the head comes from; "" for a model without one.
        in_plain_transformers: whether Transformers has a class of its own that reads the checkpoint.
        with_own_code: whether `usage` works with the code of a repository, too.
    """

    task: str
    what: str
    usage: str
    size_rule: str = ""
    paper: str = ""
    in_plain_transformers: bool = False
    with_own_code: bool = True


_CLASSIFY = """{package}from transformers import pipeline

classifier = pipeline("image-classification", model="{repo_id}"{remote})
print(classifier("photo.jpg"))"""

_SEGMENT = """{package}from transformers import pipeline

segmenter = pipeline("image-segmentation", model="{repo_id}"{remote})
for segment in segmenter("photo.jpg"):
    print(segment["label"], segment["mask"].size)"""

_DETECT = """{package}from transformers import pipeline

detector = pipeline("object-detection", model="{repo_id}"{remote})
for found in detector("photo.jpg"):
    print(found["label"], found["score"], found["box"])"""

_DETECT_WITH_MASKS = (
    _DETECT
    + """

segmenter = pipeline("image-segmentation", model="{repo_id}"{remote})
for segment in segmenter("photo.jpg"):
    print(segment["label"], segment["score"], segment["mask"].size)"""
)

_FEATURES = """{package}import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{repo_id}"{remote})
model = AutoModel.from_pretrained("{repo_id}"{remote})
inputs = processor(Image.open("photo.jpg"), return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).last_hidden_state.shape)  # (images, tokens, channels)"""

BACKBONE_USAGE = """import torch
from pvt_hf import PvtBackbone

backbone = PvtBackbone.from_pretrained("{repo_id}", out_features=["stage1", "stage2", "stage3", "stage4"])
feature_maps = backbone(torch.randn(1, 3, 320, 480)).feature_maps  # at strides 4, 8, 16 and 32
print([tuple(feature_map.shape) for feature_map in feature_maps])"""

_ALIGNED = "then both sides up to the next multiple of 32, by resizing"
_PADDED = "then zeros at the right and below, up to the largest image of the batch and a multiple of 32"

KINDS = {
    "PvtForImageClassification": Kind(
        "image-classification", "image classifier", _CLASSIFY, in_plain_transformers=True
    ),
    "PvtModel": Kind("image-feature-extraction", "feature extractor", _FEATURES, in_plain_transformers=True),
    "PvtBackbone": Kind("image-feature-extraction", "backbone", BACKBONE_USAGE, with_own_code=False),
    "SemanticFpnForSemanticSegmentation": Kind(
        "image-segmentation", "semantic segmenter", _SEGMENT, _ALIGNED,
        "[Semantic FPN](https://arxiv.org/abs/1901.02446)",
    ),
    "Trans2SegForSemanticSegmentation": Kind(
        "image-segmentation", "semantic segmenter", _SEGMENT, _ALIGNED,
        "[Trans2Seg](https://arxiv.org/abs/2101.08461)",
    ),
    "RetinaNetForObjectDetection": Kind(
        "object-detection", "object detector", _DETECT, _PADDED, "[RetinaNet](https://arxiv.org/abs/1708.02002)"
    ),
    "MaskRcnnForInstanceSegmentation": Kind(
        "image-segmentation", "object detector and instance segmenter", _DETECT_WITH_MASKS, _PADDED,
        "[Mask R-CNN](https://arxiv.org/abs/1703.06870)",
    ),
    "PvtDetrForObjectDetection": Kind(
        "object-detection", "object detector", _DETECT, _PADDED, "[DETR](https://arxiv.org/abs/2005.12872)"
    ),
}  # fmt: skip


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


def usage_section(kind: Kind, repo_id: str, image_size: int | Sequence[int]) -> str:
    """The ways to load the model that there are for its class."""

    def python(package: str = "", remote: str = "") -> str:
        return f"```python\n{kind.usage.format(package=package, repo_id=repo_id, remote=remote)}\n```"

    parts = ["## Usage"]
    if kind.in_plain_transformers and isinstance(image_size, int):
        parts += [
            "**With Transformers alone.** Its own class takes images of the size of construction, "
            f"{image_size}x{image_size}, to which the image processor brings every photograph. It has one epsilon for "
            "all norms, so that the scores differ from those of the other ways after some digits.",
            python(),
        ]
    parts += [
        "**With the package `pvt_hf` installed**, at any image size of at least 32x32:",
        python(package="" if "pvt_hf" in kind.usage else "import pvt_hf\n"),
    ]
    if kind.with_own_code:
        parts += [
            "**With the code in this repository**, if it was pushed with its code (`modeling_pvt.py` is among the "
            "files), and nothing of ours installed. Read code before you trust it, and pin a `revision`:",
            python(remote=", trust_remote_code=True"),
        ]
    if kind.task == "image-classification":
        parts += [
            "**As a backbone** for dense prediction (the classifier's head is left out):",
            f"```python\n{BACKBONE_USAGE.format(repo_id=repo_id)}\n```",
        ]
    return "\n\n".join(parts)


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
        if kind.size_rule and type(processor).__module__.startswith(f"{__package__}."):
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
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))
    return "\n\n".join([*parts, f"RGB photographs; `{name}` does the following.", steps])


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


PVT_LIMITS = (
    "- Images of at least 32x32 pixels. Rows and columns beyond a multiple of 32 at the right and bottom are not seen, "
    "as in the official code.\n"
    "- Memory and time grow faster than the number of pixels: attention reduces keys by a fixed ratio."
)

GENERAL_LIMITS = (
    "- Nothing is known here of how scores are calibrated, of accuracy on photographs unlike the training data, or of "
    "how it differs between groups of people or regions of the world. Measure it on your own images before you rely "
    "on it; do not let it decide about people."
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
        "Transformers has a class for this checkpoint, too: the names of the tensors and the fields of `config.json` "
        "are its own. It works at the size of construction only, and gives no feature maps."
        if kind.in_plain_transformers
        else "Transformers' own PVT is a classifier and gives no feature maps, so that it cannot open this checkpoint."
    )
    return (
        "## Relation to other code\n\n"
        f"The architecture is that of the [paper]({PAPER_URL}) and its [official code]({OFFICIAL_URL}), with two "
        f"faults of the latter mended: sizes such as 448x448 work, and others such as 112x448 are right. {native}"
    )
