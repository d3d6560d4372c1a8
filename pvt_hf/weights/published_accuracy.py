"""
Accuracies that the paper prints in Tables 2 to 11, one row for each model and training, and what evaluates it here.

Figures are percentages, as printed. None was measured by us. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


TASKS = {"imagenet-1k": "image-classification", "coco": "object-detection", "ade20k": "semantic-segmentation"}
BOXES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
BOXES_AND_MASKS = ("ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75")
MASKS = ("mask_ap", "mask_ap50", "mask_ap75")
ONE_TIME, THREE_TIMES = "1x", "3x"


@dataclass(frozen=True)
class PublishedAccuracy:
    """
    A row of a table of the paper, with one training of its model.

    Attributes:
        table: its number.
        model: name of the row, as printed.
        setting: the training: "1x" or "3x" of COCO, or another that tells rows of one model apart; "" if there is one.
        data: key of [`TASKS`].
        checkpoint: name of its checkpoint, such as "retinanet-pvt-small".
        figures: printed percentages by metric. "top1_error" is the error that Tables 2 and 9 print.
        recipe: of this package, that trains it; "" if there is none.
        multi_scale: whether it is tested at several scales.
        size: of the image processor, if it is not the default one of the head.
        milliseconds: for an image on a V100; only Table 11 has it.
    """

    table: int
    model: str
    setting: str
    data: str
    checkpoint: str
    figures: dict[str, float]
    recipe: str = ""
    multi_scale: bool = False
    size: dict[str, int] | None = None
    milliseconds: float | None = None

    @property
    def task(self) -> str:
        return TASKS[self.data]


# Top-1 errors. Where the table has two, this is the one with the training of DeiT, which PVT has too,
_TABLE_2 = {
    "ResNet18": 31.5, "DeiT-Tiny/16": 27.8, "PVT-Tiny": 24.9, "ResNet50": 21.5, "ResNeXt50-32x4d": 20.5,
    "T2T-ViT_t-14": 19.3, "TNT-S": 18.7, "DeiT-Small/16": 20.1, "PVT-Small": 20.2, "ResNet101": 20.2,
    "ResNeXt101-32x4d": 19.4, "T2T-ViT_t-19": 18.6, "ViT-Small/16": 19.2, "PVT-Medium": 18.8,
    "ResNeXt101-64x4d": 18.5, "ViT-Base/16": 18.2, "T2T-ViT_t-24": 17.8, "TNT-B": 17.2, "DeiT-Base/16": 18.2,
    "PVT-Large": 18.3,
}  # fmt: skip
# and this the one with the model's own training (marked with a star)
_TABLE_2_STARRED = {
    "ResNet18": 30.2, "ResNet50": 23.9, "ResNeXt50-32x4d": 22.4, "ResNet101": 22.6, "ResNeXt101-32x4d": 21.2,
    "ResNeXt101-64x4d": 20.4,
}  # fmt: skip
OWN_TRAINING = "its own training"
# BOXES at 1x and at 3x
_TABLE_3 = {
    "ResNet18": ((31.8, 49.6, 33.6, 16.3, 34.3, 43.2), (35.4, 53.9, 37.6, 19.5, 38.2, 46.8)),
    "PVT-Tiny": ((36.7, 56.9, 38.9, 22.6, 38.8, 50.0), (39.4, 59.8, 42.0, 25.5, 42.0, 52.1)),
    "ResNet50": ((36.3, 55.3, 38.6, 19.3, 40.0, 48.8), (39.0, 58.4, 41.8, 22.4, 42.8, 51.6)),
    "PVT-Small": ((40.4, 61.3, 43.0, 25.0, 42.9, 55.7), (42.2, 62.7, 45.0, 26.2, 45.2, 57.2)),
    "ResNet101": ((38.5, 57.8, 41.2, 21.4, 42.6, 51.1), (40.9, 60.1, 44.0, 23.7, 45.0, 53.8)),
    "ResNeXt101-32x4d": ((39.9, 59.6, 42.7, 22.3, 44.2, 52.5), (41.4, 61.0, 44.3, 23.9, 45.5, 53.7)),
    "PVT-Medium": ((41.9, 63.1, 44.3, 25.0, 44.9, 57.6), (43.2, 63.8, 46.1, 27.3, 46.3, 58.9)),
    "ResNeXt101-64x4d": ((41.0, 60.9, 44.0, 23.9, 45.2, 54.0), (41.8, 61.5, 44.4, 25.2, 45.4, 54.6)),
    "PVT-Large": ((42.6, 63.7, 45.4, 25.8, 46.0, 58.4), (43.4, 63.6, 46.1, 26.1, 46.0, 59.5)),
}
# BOXES_AND_MASKS at 1x and at 3x
_TABLE_4 = {
    "ResNet18": ((34.0, 54.0, 36.7, 31.2, 51.0, 32.7), (36.9, 57.1, 40.0, 33.6, 53.9, 35.7)),
    "PVT-Tiny": ((36.7, 59.2, 39.3, 35.1, 56.7, 37.3), (39.8, 62.2, 43.0, 37.4, 59.3, 39.9)),
    "ResNet50": ((38.0, 58.6, 41.4, 34.4, 55.1, 36.7), (41.0, 61.7, 44.9, 37.1, 58.4, 40.1)),
    "PVT-Small": ((40.4, 62.9, 43.8, 37.8, 60.1, 40.3), (43.0, 65.3, 46.9, 39.9, 62.5, 42.8)),
    "ResNet101": ((40.4, 61.1, 44.2, 36.4, 57.7, 38.8), (42.8, 63.2, 47.1, 38.5, 60.1, 41.3)),
    "ResNeXt101-32x4d": ((41.9, 62.5, 45.9, 37.5, 59.4, 40.2), (44.0, 64.4, 48.0, 39.2, 61.4, 41.9)),
    "PVT-Medium": ((42.0, 64.4, 45.6, 39.0, 61.6, 42.1), (44.2, 66.0, 48.2, 40.5, 63.1, 43.5)),
    "ResNeXt101-64x4d": ((42.8, 63.8, 47.3, 38.4, 60.6, 41.3), (44.4, 64.9, 48.8, 39.7, 61.9, 42.6)),
    "PVT-Large": ((42.9, 65.0, 46.6, 39.5, 61.9, 42.5), (44.5, 66.0, 48.3, 40.7, 63.4, 43.7)),
}
_TABLE_5 = {
    "ResNet18": 32.9, "PVT-Tiny": 35.7, "ResNet50": 36.7, "PVT-Small": 39.8, "ResNet101": 38.8,
    "ResNeXt101-32x4d": 39.7, "PVT-Medium": 41.6, "ResNeXt101-64x4d": 40.2, "PVT-Large": 42.1,
}  # fmt: skip


def published_accuracies() -> tuple[PublishedAccuracy, ...]:
    """All rows, in the order of the tables."""
    return tuple(_rows())


def published_accuracy(table: int, model: str, setting: str = "") -> PublishedAccuracy:
    """The row of that table, model and setting. Raises a KeyError if there is none."""
    for row in _rows():
        if (row.table, row.model, row.setting) == (table, model, setting):
            return row
    raise KeyError(f"Table {table} has no row {model} {setting}".strip())


def _name(model: str) -> str:
    return model.lower().replace("/", "-").replace("_", "-").replace(" ", "-").replace("-+-", "-")


def _recipe(start: str, model: str, end: str = "") -> str:
    return start + _name(model).replace("-", "_") + end if model.startswith("PVT-") else ""


def _rows() -> Iterator[PublishedAccuracy]:
    for model, error in _TABLE_2.items():
        yield PublishedAccuracy(
            2, model, "", "imagenet-1k", _name(model), {"top1_error": error}, _recipe("imagenet_", model)
        )
        if model in _TABLE_2_STARRED:
            figures = {"top1_error": _TABLE_2_STARRED[model]}
            yield PublishedAccuracy(2, model, OWN_TRAINING, "imagenet-1k", f"{_name(model)}-own", figures)
    tables = ((3, "retinanet", _TABLE_3, BOXES), (4, "mask_rcnn", _TABLE_4, BOXES_AND_MASKS))
    for table, head, rows, columns in tables:
        for model, trainings in rows.items():
            for setting, values in zip((ONE_TIME, THREE_TIMES), trainings):
                yield _on_coco(table, head, model, setting, dict(zip(columns, values)))
    for model, mean_iou in _TABLE_5.items():
        yield PublishedAccuracy(
            5, model, "", "ade20k", f"semantic-fpn-{_name(model)}", {"mean_iou": mean_iou},
            _recipe("ade20k_semantic_fpn_", model),
        )  # fmt: skip
    yield PublishedAccuracy(
        5, "PVT-Large", "320k steps, several scales", "ade20k", "semantic-fpn-pvt-large-320k", {"mean_iou": 44.8},
        multi_scale=True,
    )  # fmt: skip
    for model, detr in (
        ("ResNet50", (32.3, 53.9, 32.3, 10.7, 33.8, 53.0)),
        ("PVT-Small", (34.7, 55.7, 35.4, 12.0, 36.4, 56.7)),
    ):
        figures = dict(zip(BOXES, detr))
        yield PublishedAccuracy(
            6, model, "", "coco", f"detr-{_name(model)}", figures, _recipe("coco_detr_", model, "_50e")
        )
    for model, mean_iou in (
        ("ResNet50-d8 + DeepLabV3+", 41.5),
        ("ResNet50-d16 + DeepLabV3+", 40.6),
        ("ResNet50-d16 + Trans2Seg", 39.7),
        ("PVT-Small + Trans2Seg", 42.6),
    ):
        backbone, head = model.split(" + ")
        yield PublishedAccuracy(
            7, model, "", "ade20k", f"{_name(head).replace('+', '-plus')}-{_name(backbone)}", {"mean_iou": mean_iou},
            _recipe("ade20k_trans2seg_", backbone),
        )  # fmt: skip
    yield _on_coco(8, "retinanet", "ViT-Small/32", ONE_TIME, dict(zip(BOXES, (31.7, 51.3, 32.3, 14.8, 33.7, 47.9))))
    yield _on_coco(8, "retinanet", "PVT-Small", ONE_TIME, dict(zip(BOXES, _TABLE_3["PVT-Small"][0])))
    for model, checkpoint, recipe, error, boxes in (
        ("Wider PVT-Small", "pvt-small-wide", "", 19.3, (40.8, 61.8, 43.3)),
        ("Deeper PVT-Small", "pvt-medium", "pvt_medium", 18.8, (41.9, 63.1, 44.3)),
    ):
        yield PublishedAccuracy(
            9, model, "", "imagenet-1k", checkpoint, {"top1_error": error}, recipe and f"imagenet_{recipe}"
        )
        yield PublishedAccuracy(
            9, model, ONE_TIME, "coco", f"retinanet-{checkpoint}", dict(zip(BOXES, boxes)),
            recipe and f"coco_retinanet_{recipe}_1x",
        )  # fmt: skip
    yield _on_coco(10, "mask_rcnn", "ResNet50 + GC r4", ONE_TIME, dict(zip(MASKS, (36.2, 58.7, 38.3))))
    yield _on_coco(10, "mask_rcnn", "PVT-Small", ONE_TIME, dict(zip(MASKS, _TABLE_4["PVT-Small"][0][3:])))
    for model, setting, milliseconds, ap in (
        ("ResNet50", "800", 55.9, (36.3, 55.3, 38.6)),
        ("PVT-Small", "640", 51.7, (38.7, 59.3, 40.8)),
        ("PVT-Small", "800", 76.9, (40.4, 61.3, 43.0)),
    ):
        end = "-640" if setting == "640" else ""
        yield PublishedAccuracy(
            11, model, setting, "coco", f"retinanet-{_name(model)}{end}", dict(zip(BOXES, ap)),
            _recipe("coco_retinanet_", model, f"{end.replace('-', '_')}_1x"),
            size={"shortest_edge": 640, "longest_edge": 1066} if setting == "640" else None,
            milliseconds=milliseconds,
        )  # fmt: skip


def _on_coco(table: int, head: str, model: str, setting: str, figures: dict[str, float]) -> PublishedAccuracy:
    """A detector. The package has recipes for 3x of PVT-Small only."""
    has_recipe = setting == ONE_TIME or model == "PVT-Small"
    recipe = _recipe(f"coco_{head}_", model, f"_{setting}") if has_recipe else ""
    end = "" if setting == ONE_TIME else f"-{setting}"
    name = f"{head.replace('_', '-')}-{_name(model)}{end}"
    return PublishedAccuracy(table, model, setting, "coco", name, figures, recipe)
