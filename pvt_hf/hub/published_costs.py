"""
Parameters and GFLOPs that the paper prints in Tables 2 to 11, and the models here that are counted beside them.

GFLOPs in the paper are multiply-adds, see `metrics/costs.py`. Numbers are text, as printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from ..families import FAMILIES, load
from ..metrics.costs import Costs, as_printed, build_on_meta, count_costs, count_parameters
from ..weights.variants import get_config, get_variant


TITLES = {
    2: "ImageNet-1K classification, 224x224",
    3: "RetinaNet, COCO",
    4: "Mask R-CNN, COCO",
    5: "Semantic FPN, ADE20K, 512x512",
    6: "DETR, COCO",
    7: "Trans2Seg, ADE20K, 512x512",
    8: "pyramid or columnar, RetinaNet",
    9: "deeper or wider, ImageNet-1K classification",
    10: "PVT or a CNN with non-local blocks, Mask R-CNN",
    11: "input sizes, RetinaNet",
}
COCO_SIZE = (800, 1280)  # height and width that detection's counts are for, in pixels
VARIANTS = {f"PVT-{size.capitalize()}": f"pvt-{size}" for size in ("tiny", "small", "medium", "large")}
# Stem and first stage of a ResNet, in timm and Transformers
_FROZEN = ("backbone._backbone.conv1.", "backbone._backbone.bn1.", "backbone._backbone.layer1.",
           "backbone.embedder.", "backbone.encoder.stages.0.")  # fmt: skip


@dataclass(frozen=True)
class PublishedCost:
    """
    A row of a table of the paper.

    Attributes:
        table: its number.
        model: name of the row, as printed.
        params_m: millions of parameters, as printed; "" where the paper gives none.
        gflops: 10^9 multiply-adds of one forward pass, as printed; "" where the paper gives none.
        size: (height, width) in pixels of the image that is counted here.
        build: builds the model.
        batch_norm: operations per element of BatchNorm, see [`pvt_hf.metrics.costs.count_costs`]: 2 where a ResNet has
            plain BatchNorm in the paper's framework.
        explanation: why our count differs from the printed one; "" if it does not.
    """

    table: int
    model: str
    params_m: str
    gflops: str
    size: tuple[int, int]
    build: Callable[[], nn.Module]
    batch_norm: int = 0
    explanation: str = ""


@dataclass(frozen=True)
class CountedCost:
    """
    A row with our count.

    Attributes:
        published: the row.
        costs: of the model.
        parameters: those that the paper counts: without the frozen ones of a detector on a ResNet.
    """

    published: PublishedCost
    costs: Costs
    parameters: int

    @property
    def params_m(self) -> str:
        """Millions of parameters, with the paper's decimals."""
        return as_printed(self.parameters)

    @property
    def gflops(self) -> str:
        """10^9 multiply-adds, with the paper's decimals."""
        return as_printed(max(self.costs.multiply_adds, 1e9))

    @property
    def differs(self) -> bool:
        """Whether a printed figure is not the one that ours rounds to."""
        printed, ours = (self.published.params_m, self.published.gflops), (self.params_m, self.gflops)
        return any(paper and paper != count for paper, count in zip(printed, ours))


@cache
def count_row(row: PublishedCost) -> CountedCost:
    """Counts the model of a row, in about a second; the same row only once."""
    model = build_on_meta(row.build)
    costs = count_costs(model, *row.size, batch_norm=row.batch_norm)
    return CountedCost(row, costs, count_parameters(model) - count_frozen(row, model))


@cache
def count_pvt(architecture: str, variant: str) -> Costs:
    """
    Costs of a PVT of the paper at the size that the paper counts at: 224x224 in classification, 512x512 in
    segmentation, 800x1280 in detection.

    Args:
        architecture: in [`pvt_hf.families.FAMILIES`].
        variant: "pvt-tiny", "pvt-small", "pvt-medium" or "pvt-large".
    """
    sizes = {"classification": (224, 224), "segmentation": (512, 512), "detection": COCO_SIZE}
    (model,) = (title for title, name in VARIANTS.items() if name == variant)
    build = _on(architecture, model) if FAMILIES[architecture].stages else _classifier(model)
    return count_costs(build_on_meta(build), *sizes[FAMILIES[architecture].task])


def count_frozen(row: PublishedCost, model: nn.Module) -> int:
    """Parameters of the row's model that the paper does not count: a detector's stem and first stage of a ResNet."""
    if row.table not in (3, 4, 8, 10, 11):
        return 0
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith(_FROZEN))


@cache
def published_costs() -> tuple[PublishedCost, ...]:
    """All rows, in the order of the tables."""
    return tuple(
        row for table in (_classifiers, _detectors, _segmentors, _detr, _trans2seg, _ablations) for row in table()
    )


def _of_variant(name: str) -> tuple[str, str]:
    variant = get_variant(name)
    return str(variant.paper_params_m), str(variant.paper_gflops)


_WHOLE_MILLIONS = "The table rounds this model's parameters to whole millions."
_TABLE_2 = (
    ("ResNet18", "11.7", "1.8"),
    ("DeiT-Tiny/16", "5.7", "1.3"),
    ("PVT-Tiny", *_of_variant("pvt-tiny")),
    ("ResNet50", "25.6", "4.1"),
    ("ResNeXt50-32x4d", "25.0", "4.3"),
    ("T2T-ViT_t-14", "22.0", "6.1", "21.5 M also in the README of T2T-ViT. " + _WHOLE_MILLIONS),
    ("TNT-S", "23.8", "5.2"),
    ("DeiT-Small/16", "22.1", "4.6"),
    ("PVT-Small", *_of_variant("pvt-small")),
    ("ResNet101", "44.7", "7.9", "44.7 M with the statistics of BatchNorm, which are no parameters."),
    ("ResNeXt101-32x4d", "44.2", "8.0"),
    ("T2T-ViT_t-19", "39.0", "9.8", _WHOLE_MILLIONS),
    ("ViT-Small/16", "48.8", "9.9"),
    ("PVT-Medium", *_of_variant("pvt-medium")),
    ("ResNeXt101-64x4d", "83.5", "15.6"),
    ("ViT-Base/16", "86.6", "17.6"),
    ("T2T-ViT_t-24", "64.0", "15.0"),
    ("TNT-B", "66.0", "14.1", _WHOLE_MILLIONS),
    ("DeiT-Base/16", "86.6", "17.6"),
    ("PVT-Large", *_of_variant("pvt-large")),
)
# Parameters with RetinaNet (Table 3) and Mask R-CNN (Table 4); parameters and GFLOPs with Semantic FPN (Table 5)
_TABLES_3_TO_5 = (
    ("ResNet18", "21.3", "31.2", "15.5", "32.2"),
    ("PVT-Tiny", "23.0", "32.9", "17.0", "33.2"),
    ("ResNet50", "37.7", "44.2", "28.5", "45.6"),
    ("PVT-Small", "34.2", "44.1", "28.2", "44.5"),
    ("ResNet101", "56.7", "63.2", "47.5", "65.1"),
    ("ResNeXt101-32x4d", "56.4", "62.8", "47.1", "64.7"),
    ("PVT-Medium", "53.9", "63.9", "48.0", "61.0"),
    ("ResNeXt101-64x4d", "95.5", "101.9", "86.4", "103.9"),
    ("PVT-Large", "71.1", "81.0", "65.1", "79.6"),
)
_TRANS2SEG = (
    "The paper does not say which sizes its Trans2Seg has. The released code also has MLPs over positions, which we "
    "leave out because they tie the weights to one image size; with them it would be {}."
)


def _classifiers() -> Iterator[PublishedCost]:
    for model, params_m, gflops, *explanation in _TABLE_2:
        yield PublishedCost(
            2, model, params_m, gflops, (224, 224), _classifier(model), _batch_norm(model), "".join(explanation)
        )


def _detectors() -> Iterator[PublishedCost]:
    for table, head, column in ((3, "retinanet", 1), (4, "mask_rcnn", 2)):
        for row in _TABLES_3_TO_5:
            yield PublishedCost(table, row[0], row[column], "", COCO_SIZE, _on(head, row[0]), _batch_norm(row[0]))


def _segmentors() -> Iterator[PublishedCost]:
    unexplained = "We cannot explain it: all other rows agree, among them the smaller ResNets and the ResNeXts."
    for model, *_, params_m, gflops in _TABLES_3_TO_5:
        yield PublishedCost(
            5, model, params_m, gflops, (512, 512), _on("semantic_fpn", model, deep_stem=True),
            explanation=unexplained if model == "ResNet101" else "",
        )  # fmt: skip


def _detr() -> Iterator[PublishedCost]:
    for model in ("ResNet50", "PVT-Small"):
        yield PublishedCost(6, model, "", "", COCO_SIZE, _on("detr", model), _batch_norm(model))


def _trans2seg() -> Iterator[PublishedCost]:
    def deeplab(output_stride: int) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            from ..baselines.deeplab import DeepLabV3Plus

            return DeepLabV3Plus(output_stride)

        return build

    counted = (
        "The paper does not say how this was counted. Without BatchNorm's parameters it is 26.8 M, and with one "
        "operation per element of BatchNorm {} GFLOPs."
    )
    size = (512, 512)
    yield PublishedCost(
        7, "ResNet50-d8 + DeepLabV3+", "26.8", "120.5", size, deeplab(8), explanation=counted.format("120.6")
    )
    yield PublishedCost(
        7, "ResNet50-d16 + DeepLabV3+", "26.8", "45.5", size, deeplab(16), explanation=counted.format("45.5")
    )
    yield PublishedCost(
        7, "ResNet50-d16 + Trans2Seg", "56.1", "79.3", size, _trans2seg_on_resnet,
        explanation=_TRANS2SEG.format("56.7 M and 83.7 GFLOPs"),
    )  # fmt: skip
    yield PublishedCost(
        7, "PVT-Small + Trans2Seg", "32.1", "31.6", size, _on("trans2seg", "PVT-Small"),
        explanation=_TRANS2SEG.format("33.0 M and 32.0 GFLOPs"),
    )  # fmt: skip


def _ablations() -> Iterator[PublishedCost]:
    for patch_size, params_m in ((4, "60.9"), (32, "60.8")):
        yield PublishedCost(8, f"ViT-Small/{patch_size}", params_m, "", COCO_SIZE, _retinanet_on_vit(patch_size))
    yield PublishedCost(8, "PVT-Small", "34.2", "", COCO_SIZE, _on("retinanet", "PVT-Small"))
    yield PublishedCost(
        9,
        "Wider PVT-Small",
        str(get_variant("pvt-small-wide").paper_params_m),
        "",
        (224, 224),
        _classifier("pvt-small-wide"),
    )
    yield PublishedCost(9, "Deeper PVT-Small", "44.2", "", (224, 224), _classifier("PVT-Medium"))
    yield PublishedCost(
        10, "ResNet50 + GC r4", "54.2", "279.6", COCO_SIZE, _mask_rcnn_with_context, 2,
        "The figure is quoted from GCNet. The blocks cost 0.1 of our GFLOPs; the difference is in how the rest of Mask "
        "R-CNN was counted there.",
    )  # fmt: skip
    yield PublishedCost(10, "PVT-Small", "44.1", "304.4", COCO_SIZE, _on("mask_rcnn", "PVT-Small"))
    yield PublishedCost(11, "ResNet50, 800", "", "239.3", COCO_SIZE, _on("retinanet", "ResNet50"), 2)
    yield PublishedCost(11, "PVT-Small, 640", "", "157.2", (640, 960), _on("retinanet", "PVT-Small"))
    yield PublishedCost(11, "PVT-Small, 800", "", "285.8", COCO_SIZE, _on("retinanet", "PVT-Small"))


def _batch_norm(model: str) -> int:
    return 2 if model.startswith("ResNe") else 0


def _classifier(model: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        if model in VARIANTS or model.startswith("pvt-"):
            return load(FAMILIES["pvt"].models[0].path)(get_config(VARIANTS.get(model, model)))
        from ..baselines.names import build_classifier

        return build_classifier(model)

    return build


def _on(head: str, model: str, deep_stem: bool = False) -> Callable[[], nn.Module]:
    """The head of a family on a PVT or a ResNet."""
    stages = [int(stage.removeprefix("stage")) for stage in FAMILIES[head].stages]

    def build() -> nn.Module:
        if model in VARIANTS:
            return _head(head, get_config(VARIANTS[model], out_features=[f"stage{stage}" for stage in stages]))
        from ..baselines.names import DEEP_STEMS, RESNETS

        name = {**RESNETS, **(DEEP_STEMS if deep_stem else {})}[model]
        return _head(head, _timm(name, stages))

    return build


def _head(head: str, backbone_config: Any) -> nn.Module:
    family = FAMILIES[head]
    return load(family.models[0].path)(load(family.config)(backbone_config=backbone_config))


def _trans2seg_on_resnet() -> nn.Module:
    from ..baselines.deeplab import BACKBONE

    return _head("trans2seg", _timm(BACKBONE, [1, 4], output_stride=16))


def _timm(name: str, stages: list[int], **fields: Any) -> Any:
    """Configuration of a backbone of timm."""
    from transformers import TimmBackboneConfig

    config_class: Any = TimmBackboneConfig  # `out_indices` is no field
    return config_class(backbone=name, out_indices=stages, **fields)


def _retinanet_on_vit(patch_size: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from ..baselines.vit_pyramid import VitPyramidConfig

        return _head("retinanet", VitPyramidConfig(patch_size=patch_size, out_features=["stage2", "stage3", "stage4"]))

    return build


def _mask_rcnn_with_context() -> nn.Module:
    from ..baselines.global_context import GcResNetConfig

    return _head("mask_rcnn", GcResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"]))
