"""What model cards say of every model of a class, and the ways to load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
        usage_of_code: as `usage`, with the code of a repository; "" where that is the same.
        requires: what that takes beside Transformers' own requirements.
    """

    task: str
    what: str
    usage: str
    size_rule: str = ""
    paper: str = ""
    in_plain_transformers: bool = False
    usage_of_code: str = ""
    requires: str = ""


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

_AUTO_BACKBONE = """import torch
from transformers import AutoBackbone

backbone = AutoBackbone.from_pretrained(
    "{repo_id}", out_features=["stage1", "stage2", "stage3", "stage4"]{remote}
)
feature_maps = backbone(torch.randn(1, 3, 320, 480)).feature_maps  # at strides 4, 8, 16 and 32
print([tuple(feature_map.shape) for feature_map in feature_maps])"""

_ALIGNED = "then both sides up to the next multiple of 32, by resizing"
_PADDED = "then zeros at the right and below, up to the largest image of the batch and a multiple of 32"

KINDS = {
    "PvtForImageClassification": Kind(
        "image-classification", "image classifier", _CLASSIFY, in_plain_transformers=True
    ),
    "PvtModel": Kind("image-feature-extraction", "feature extractor", _FEATURES, in_plain_transformers=True),
    "PvtBackbone": Kind("image-feature-extraction", "backbone", BACKBONE_USAGE, usage_of_code=_AUTO_BACKBONE),
    "SemanticFpnForSemanticSegmentation": Kind(
        "image-segmentation", "semantic segmenter", _SEGMENT, _ALIGNED,
        "[Semantic FPN](https://arxiv.org/abs/1901.02446)",
    ),
    "Trans2SegForSemanticSegmentation": Kind(
        "image-segmentation", "semantic segmenter", _SEGMENT, _ALIGNED,
        "[Trans2Seg](https://arxiv.org/abs/2101.08461)",
    ),
    "RetinaNetForObjectDetection": Kind(
        "object-detection", "object detector", _DETECT, _PADDED, "[RetinaNet](https://arxiv.org/abs/1708.02002)",
        requires="torchvision",
    ),
    "MaskRcnnForInstanceSegmentation": Kind(
        "image-segmentation", "object detector and instance segmenter", _DETECT_WITH_MASKS, _PADDED,
        "[Mask R-CNN](https://arxiv.org/abs/1703.06870)", requires="torchvision",
    ),
    "PvtDetrForObjectDetection": Kind(
        "object-detection", "object detector", _DETECT, _PADDED, "[DETR](https://arxiv.org/abs/2005.12872)"
    ),
}  # fmt: skip


def usage_section(kind: Kind, repo_id: str, config: Any, processor: Any, with_code: bool | None = None) -> str:
    """
    The ways to load the model that there are for its class.

    Args:
        config: of the backbone, or of the model if it has none.
        processor: the image processor, or None. Transformers' own class takes images of the size of construction only,
            and is left out where this does not bring them to it.
        with_code: whether the repository has the code; None if that is not known.
    """

    def python(package: str = "", remote: str = "") -> str:
        usage = (remote and kind.usage_of_code) or kind.usage
        return f"```python\n{usage.format(package=package, repo_id=repo_id, remote=remote)}\n```"

    parts = ["## Usage"]
    if kind.in_plain_transformers and _output_size(processor) == (config.image_size, config.image_size):
        parts += [
            "**With Transformers alone.** Its own class takes images of the size of construction, "
            f"{config.image_size}x{config.image_size}, to which the image processor brings every photograph. It has "
            "one epsilon for all norms, so that the scores differ from those of the other ways after some digits.",
            python(),
        ]
    parts += [
        "**With the package `pvt_hf` installed**:",
        python(package="" if "pvt_hf" in kind.usage else "import pvt_hf\n"),
    ]
    if with_code is not False:
        known = "" if with_code else ", if it was pushed with its code (`modeling_pvt.py` is among the files)"
        needed = f" (but {kind.requires})" if kind.requires else ""
        parts += [
            f"**With the code in this repository**{known}, and nothing of ours installed{needed}. Read code before you "
            "trust it, and pin a `revision`:",
            python(remote=", trust_remote_code=True"),
        ]
    if kind.task == "image-classification":
        parts += [
            "**As a backbone** for dense prediction (the classifier's head is left out):",
            f"```python\n{BACKBONE_USAGE.format(repo_id=repo_id)}\n```",
        ]
    return "\n\n".join(parts)


def _output_size(processor: Any) -> tuple[int, int] | None:
    """(height, width) of what an image processor gives for any image; None if that depends on the image."""
    settings = processor.to_dict() if processor is not None else {}
    crops = settings.get("do_center_crop")
    size = (settings.get("crop_size") if crops else settings.get("do_resize") and settings.get("size")) or {}
    return (size["height"], size["width"]) if {"height", "width"} <= size.keys() else None
