"""Small members of the families that `pvt-hf reproduce ablations` compares, with equally many parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn
from transformers import AutoBackbone, ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from ..baselines.global_context import GcResNetConfig
from ..baselines.vit_pyramid import VitPyramidConfig
from ..data.digits import DIGIT_NAMES, SCENE_CLASS_NAMES
from ..engine.recipes import find_recipe, read_recipe
from ..families import FAMILIES, load
from ..metrics.costs import build_on_meta, count_costs, count_parameters
from ..models.configuration_pvt import PvtConfig
from ..models.modeling_pvt import PvtForImageClassification
from ..tasks.labels import label_fields


DIGIT_SIZE, SCENE_SIZE = 64, 96  # side of the images in pixels
RECIPES = {
    "pvt": "digits_pvt",
    "semantic_fpn": "digits_semantic_fpn",
    "trans2seg": "digits_trans2seg",
    "retinanet": "digits_retinanet",
    "detr": "digits_detr",
}
STAGES = ("stage1", "stage2", "stage3", "stage4")
# Channels for one unit of width. Of PVT, head dimensions are the width in all stages, as in the paper.
_PVT: dict[str, dict[str, Any]] = {
    "PVT": {},
    "PVT, deeper": {"depths": [2, 2, 4, 2]},
    "PVT, R 8 4 2 1": {"sequence_reduction_ratios": [8, 4, 2, 1]},
    "PVT, R 2 1 1 1": {"sequence_reduction_ratios": [2, 1, 1, 1]},
    "PVT, R 1 1 1 1": {"sequence_reduction_ratios": [1, 1, 1, 1]},
}


def pvt_config(name: str, width: int = 32, **fields: Any) -> PvtConfig:
    """The PVT of the digit recipes: four stages of `width` times 1, 2, 3 and 4 channels."""
    values = {
        "image_size": DIGIT_SIZE, "hidden_sizes": [width, 2 * width, 3 * width, 4 * width],
        "num_attention_heads": [1, 2, 3, 4], "depths": [1, 1, 2, 1], "mlp_ratios": [4, 4, 4, 4],
        "sequence_reduction_ratios": [4, 2, 1, 1],
    }  # fmt: skip
    return PvtConfig(**{**values, **_PVT[name], **fields})


def backbone_config(name: str, stages: tuple[str, ...] = STAGES) -> Any:
    """
    Configuration of a backbone. It is built for the size of digit images, on which it may be pretrained; position
    tables are resized to scenes as the model runs. All but PVT itself, its deeper form and its other reduction ratios
    get the width that brings their parameters closest to those of PVT ("PVT, wider": of the deeper one).
    """
    fields: dict[str, Any] = {"out_features": list(stages)}
    if name in _PVT:
        return pvt_config(name, **fields)
    return _of_width(name, matched_width(name), fields)


@cache
def matched_width(name: str) -> int:
    """The width with the number of parameters closest to that of the PVT it is compared with."""
    target = _parameters(pvt_config("PVT, deeper" if name == "PVT, wider" else "PVT", out_features=list(STAGES)))
    best, smallest = 0, float("inf")
    for width in range(8, 400, 4):
        difference = abs(_parameters(_of_width(name, width, {"out_features": list(STAGES)})) - target)
        if difference > smallest:
            break
        best, smallest = width, difference
    return best


def _of_width(name: str, width: int, fields: dict[str, Any]) -> Any:
    if name == "PVT, wider":
        return pvt_config("PVT", width, **fields)
    if name.startswith("ViT/"):
        return VitPyramidConfig(**_vit(name, width), **fields)
    config_class: Any = GcResNetConfig if name == "ResNet + GC" else ResNetConfig
    return config_class(**_resnet(width), **fields)


def _vit(name: str, width: int) -> dict[str, Any]:
    return {
        "hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 4 * width,
        "patch_size": int(name.removeprefix("ViT/")), "image_size": DIGIT_SIZE, "qkv_bias": False,
    }  # fmt: skip


def _resnet(width: int) -> dict[str, Any]:
    return {"embedding_size": width, "hidden_sizes": [width, 2 * width, 3 * width, 4 * width],
            "depths": [1, 1, 1, 1], "layer_type": "basic"}  # fmt: skip


def _parameters(config: Any) -> int:
    return count_parameters(build_on_meta(lambda: AutoBackbone.from_config(config)))


def builder(head: str, name: str) -> Callable[[], nn.Module]:
    """
    What builds a model with random weights.

    Args:
        head: "pvt" for a classifier, or a family of `FAMILIES` with a head.
        name: of the backbone.
    """
    if head == "pvt":
        return lambda: _classifier(name)
    family = FAMILIES[head]
    recipe = read_recipe(find_recipe(RECIPES[head]))
    names = SCENE_CLASS_NAMES if family.task == "segmentation" else DIGIT_NAMES
    config = load(family.config)(
        backbone_config=backbone_config(name, tuple(recipe.get("out_features") or family.stages)),
        **recipe["config_overrides"],
        **label_fields(names),
    )
    return lambda: load(family.models[0].path)(config)


def _classifier(name: str) -> nn.Module:
    labels: dict[str, Any] = label_fields(DIGIT_NAMES)
    if name in _PVT:
        return PvtForImageClassification(pvt_config(name, **labels))
    width = matched_width(name)
    if name == "PVT, wider":
        return PvtForImageClassification(pvt_config("PVT", width, **labels))
    if name.startswith("ViT/"):
        return ViTForImageClassification(ViTConfig(**_vit(name, width), **labels))
    return ResNetForImageClassification(ResNetConfig(**_resnet(width), **labels))


def sizes(head: str, name: str) -> dict[str, int]:
    """Parameters of the whole model, and multiply-adds for one image."""
    size = DIGIT_SIZE if head == "pvt" else SCENE_SIZE
    model = build_on_meta(builder(head, name))
    return {"parameters": count_parameters(model), "multiply_adds": count_costs(model, size, size).multiply_adds}
