"""
The paper's checkpoints, one row for each model card: what the model is, its recipe, and the published figures.

All figures are from the paper (arXiv 2102.12122, Tables 2 to 7, 10 and 11) or its official repository. None was
measured by us. Those of the paper's tables are in `weights/published_accuracy.py`, parameters and GFLOPs in
`published_costs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..weights.published_accuracy import published_accuracy
from ..weights.variants import VARIANTS
from .card_figures import Results, Source
from .published_costs import published_costs


PAPER_URL = "https://arxiv.org/abs/2102.12122"
OFFICIAL_URL = "https://github.com/whai362/PVT"


@dataclass(frozen=True)
class DataSet:
    """
    Attributes:
        name: for readers.
        hub_id: on the Hub, for the metadata of model cards.
        split: the one that the figures were measured on, as the data set calls it.
        content: number of images and classes.
        terms: what its owners allow.
    """

    name: str
    hub_id: str
    split: str
    content: str
    terms: str


IMAGENET = DataSet(
    "ImageNet-1K",
    "ILSVRC/imagenet-1k",
    "validation",
    "1.28 million training and 50,000 validation images of 1000 classes",
    "ImageNet's terms of access allow non-commercial research and educational use; the Hub asks to accept them.",
)
COCO = DataSet(
    "COCO 2017",
    "coco",
    "val2017",
    "118,000 training (train2017) and 5,000 validation images (val2017), 80 classes of objects with boxes and masks",
    "The annotations are licensed under CC BY 4.0. The images belong to others and are under Flickr's terms of use.",
)
ADE20K = DataSet(
    "ADE20K",
    "zhoubolei/scene_parse_150",
    "validation",
    "20,210 training, 2,000 validation and 3,352 test images of the scene parsing benchmark, 150 classes",
    "The images are for non-commercial research and education; the benchmark is distributed under BSD 3-clause.",
)


@dataclass(frozen=True)
class PublishedModel:
    """
    Attributes:
        name: of the card and of a repository, e.g. "retinanet-pvt-small".
        title: e.g. "RetinaNet, PVT-Small".
        model_class: a key of [`pvt_hf.families.MODELS`].
        variant: the backbone's row in `weights/variants.py`.
        data: training and evaluation data.
        recipe: file in `scripts/recipes`.
        hardware: of the paper's training.
        params_m: millions of parameters, as printed; "" where the paper gives none.
        gflops: multiply-adds of a forward pass in 10^9, with the image size and the table; "" where there are none.
        results: those of the recipe's training first, then those of other trainings or tests of the same model.
    """

    name: str
    title: str
    model_class: str
    variant: str
    data: DataSet
    recipe: str
    hardware: str
    params_m: str
    gflops: str
    results: tuple[Results, ...]


def _paper(table: int) -> Source:
    return Source(f"PVT paper, Table {table}", PAPER_URL)


OFFICIAL = Source("official repository", OFFICIAL_URL)
SIZES = ("tiny", "small", "medium", "large")
ONE_TIME = "1x schedule: 12 epochs, shorter side 800"
THREE_TIMES = "3x schedule: 36 epochs, shorter side from 640 to 800 in training"

# Mean IoU of the released code, from its README
_RELEASED_SEMANTIC_FPN = {"tiny": 36.6, "small": 41.9, "medium": 43.5, "large": 43.5}
# Results that are published for one size only
_MORE_RESULTS = {
    "pvt-small": (
        Results({"accuracy@1": 79.764, "accuracy@5": 94.950}, OFFICIAL, "evaluation log, 224x224 centre crop of 256"),
    ),
    "semantic-fpn-pvt-large": (
        Results({"mean_iou": 44.8}, _paper(5), "320,000 steps; several scales, each also mirrored"),
    ),
    "retinanet-pvt-small": (
        Results(
            published_accuracy(11, "PVT-Small", "640").figures, _paper(11), "1x schedule: 12 epochs, shorter side 640"
        ),
    ),
}
# (parameters, GFLOPs) of a row, "" where the paper gives none
_PRINTED = {(row.table, row.model): (row.params_m, row.gflops) for row in published_costs()}
_GFLOPS = {
    "retinanet-pvt-small": f"{_PRINTED[11, 'PVT-Small, 800'][1]} (shorter side 800; Table 11)",
    "mask-rcnn-pvt-small": f"{_PRINTED[10, 'PVT-Small'][1]} (Table 10)",
}


def _classifier(size: str) -> PublishedModel:
    variant = VARIANTS[f"pvt-{size}"]
    accuracy = round(100 - variant.paper_top1_error, 1)
    results = Results({"accuracy@1": accuracy}, _paper(2), "224x224 centre crop of 256")
    return PublishedModel(
        variant.name, f"PVT-{size.capitalize()}", "PvtForImageClassification", variant.name, IMAGENET,
        f"imagenet_pvt_{size}.yaml", "8 V100, 128 images each", str(variant.paper_params_m),
        f"{variant.paper_gflops} (224x224; Table 2)", (results, *_MORE_RESULTS.get(variant.name, ())),
    )  # fmt: skip


def _semantic_fpn(size: str) -> PublishedModel:
    name = f"semantic-fpn-pvt-{size}"
    paper = published_accuracy(5, f"PVT-{size.capitalize()}").figures
    params, gflops = _PRINTED[5, f"PVT-{size.capitalize()}"]
    results = (
        Results(paper, _paper(5), "80,000 steps of 16 images; single scale, no flip"),
        Results(
            {"mean_iou": _RELEASED_SEMANTIC_FPN[size]}, OFFICIAL, "40,000 steps of 32 images; single scale, no flip"
        ),
        *_MORE_RESULTS.get(name, ()),
    )
    return PublishedModel(
        name, f"Semantic FPN, PVT-{size.capitalize()}", "SemanticFpnForSemanticSegmentation", f"pvt-{size}", ADE20K,
        f"ade20k_semantic_fpn_pvt_{size}.yaml", "4 V100, 4 images each", params, f"{gflops} (512x512; Table 5)",
        results,
    )  # fmt: skip


def _detector(size: str, key: str, title: str, model_class: str, table: int) -> PublishedModel:
    once, three_times = (
        published_accuracy(table, f"PVT-{size.capitalize()}", setting).figures for setting in ("1x", "3x")
    )
    params, _ = _PRINTED[table, f"PVT-{size.capitalize()}"]
    name = f"{key}-pvt-{size}"
    results = (
        Results(once, _paper(table), ONE_TIME),
        Results(three_times, _paper(table), THREE_TIMES),
        *_MORE_RESULTS.get(name, ()),
    )
    images = "1 image" if name == "mask-rcnn-pvt-large" else "2 images"
    return PublishedModel(
        name, f"{title}, PVT-{size.capitalize()}", model_class, f"pvt-{size}", COCO,
        f"coco_{key.replace('-', '_')}_pvt_{size}_1x.yaml", f"8 V100, {images} each", params, _GFLOPS.get(name, ""),
        results,
    )  # fmt: skip


PUBLISHED: dict[str, PublishedModel] = {
    model.name: model
    for model in (
        *map(_classifier, SIZES),
        *map(_semantic_fpn, SIZES),
        PublishedModel(
            "trans2seg-pvt-small", "Trans2Seg, PVT-Small", "Trans2SegForSemanticSegmentation", "pvt-small", ADE20K,
            "ade20k_trans2seg_pvt_small.yaml", "4 V100, 4 images each", _PRINTED[7, "PVT-Small + Trans2Seg"][0],
            f"{_PRINTED[7, 'PVT-Small + Trans2Seg'][1]} (Table 7)",
            (
                Results(
                    published_accuracy(7, "PVT-Small + Trans2Seg").figures, _paper(7),
                    "40,000 steps of 16 images; single scale, no flip"
                ),
            ),
        ),
        *(
            _detector(size, "retinanet", "RetinaNet", "RetinaNetForObjectDetection", 3)
            for size in SIZES
        ),
        *(
            _detector(size, "mask-rcnn", "Mask R-CNN", "MaskRcnnForInstanceSegmentation", 4)
            for size in SIZES
        ),
        PublishedModel(
            "detr-pvt-small", "DETR, PVT-Small", "PvtDetrForObjectDetection", "pvt-small", COCO,
            "coco_detr_pvt_small_50e.yaml", "8 V100, 2 images each", "", "",
            (Results(published_accuracy(6, "PVT-Small").figures, _paper(6), "50 epochs"),),
        ),
    )
}  # fmt: skip
