"""COCO average precision (AP) as an `evaluate` metric around pycocotools: no download, usable by class or by path."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


try:
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError:
    COCOeval = None

# In the order of COCOeval's `stats`
FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def coco_figures(images: Mapping[int | str, dict[str, dict[str, Any]]], num_labels: int, masks: bool) -> dict[str, Any]:
    """
    The figures of [`CocoAP`] for its `images`, without prefix, by IoU of boxes or of `masks`. pycocotools computes
    them, with its own parameters; its printing is swallowed.
    """
    detections: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    # by id, as pycocotools does: of equal scores the first counts first, whatever process saw which image
    names = sorted(images, key=lambda name: (isinstance(name, str), name))
    for index, name in enumerate(names):
        for entries, record in ((detections, images[name]["prediction"]), (references, images[name]["reference"])):
            for row, (label, box) in enumerate(zip(record["labels"].tolist(), record["boxes_xywh"].tolist())):
                # numbered from 1: COCOeval takes a match with number 0 for none
                entry = {"id": len(entries) + 1, "image_id": index, "category_id": label, "bbox": box, "iscrowd": 0}
                if masks:
                    entry["segmentation"] = record["masks"][row]
                if entries is references:
                    entry |= {"area": float(record["area"][row]), "iscrowd": int(record["iscrowd"][row])}
                else:
                    area = coco_mask.area(entry["segmentation"]) if masks else box[2] * box[3]
                    entry |= {"area": float(area), "score": float(record["scores"][row])}
                entries.append(entry)

    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for entries in (references, detections):
            side = COCO()
            side.dataset = {
                "images": [{"id": index, "height": 0, "width": 0} for index in range(len(names))],  # sizes are in RLE
                "categories": [{"id": label} for label in range(num_labels)],
                "annotations": entries,
            }
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType="segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures: dict[str, Any] = {name: _known(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}
    # (IoU thresholds, recalls, categories, areas, detections): all areas, the 100 best detections
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    figures["per_category_ap"] = [_known(precision[:, :, label].mean()) for label in range(num_labels)]
    return figures


def coco_results(
    images: Mapping[int | str, dict[str, dict[str, Any]]], category_ids: Sequence[int] | Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """
    The predictions of a [`CocoAP`]'s `images` as entries of a COCO results file, ready for `json.dump`:
    `{"image_id", "category_id", "bbox": [x, y, width, height], "score", "segmentation"}`, the last one (compressed RLE)
    with masks only. `category_ids` gives the category id of each label; None means that they are the same.

    With both `bbox` and `segmentation`, pycocotools' `loadRes` takes the box for the object's area, which changes AP of
    masks by size: leave `bbox` out in a file for that.
    """
    entries = []
    for name, image in images.items():
        record = image["prediction"]
        for row, (label, box, score) in enumerate(
            zip(*(record[key].tolist() for key in ("labels", "boxes_xywh", "scores")))
        ):
            category = label if category_ids is None else int(category_ids[label])
            entries.append({"image_id": name, "category_id": category, "bbox": box, "score": score})
            if "masks" in record:
                rle = record["masks"][row]
                entries[-1]["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    return entries


class CocoAP(evaluate.Metric):
    """
    COCO's average precision and recall of boxes and, if `masks`, of masks, as pycocotools computes them.

        metric = CocoAP(num_labels=80)  # or evaluate.load("pvt_hf/metrics/coco_ap.py", num_labels=80)
        metric.add_batch(predictions=predictions, references=references)
        metric.compute()

    `predictions`: per image a dict with
        scores (n,); labels (n,), 0 to num_labels - 1; boxes_xyxy (n, 4), in pixels of the original image; if `masks`,
        masks: (n, height, width) bool or integer of that image's size, or n compressed RLE dicts.
    `references`: per image a dict with
        image_id: int or str, different for every image; labels (n,); boxes_xywh (n, 4), as in COCO's files; and
        optionally iscrowd (n,), else 0; area (n,), else that of the mask or, without masks, of the box; if `masks`,
        masks as above.
    Arrays, tensors or lists. An image without objects has n = 0, and so has one without predictions: give it all the
    same, because false alarms there count. A prediction that lies in a crowd is neither right nor wrong.

    Only boxes, scores and RLE are kept, in `images`, by image_id; all that can be pickled. Other processes' images are
    added by [`CocoAP.merge`] before `compute`; `evaluate`'s own way, files with everything (`num_process`), is refused.

    Args:
        num_labels: number of classes.
        masks: whether masks are evaluated, too.

    `compute` empties the metric, as everywhere in `evaluate`, and returns, as fractions of 1 and NaN where there is no
    object to find:
        ap (IoU 0.50 to 0.95), ap50, ap75; ap_small (less than 32x32 pixels of area), ap_medium, ap_large (more than
        96x96); ar1, ar10, ar100 (recall with that many predictions per image and class), ar_small, ar_medium, ar_large.
        per_category_ap: list by class.
        The same with the prefix "mask_", if `masks`: by IoU and area of masks.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: an image_id for the second time, here or in `merge`; lengths that differ, NaN, a box with a negative
            side, a label that is no class, masks that are missing or of different sizes: nothing of that image is kept.
            In `compute`: there is no image.
    """

    def __init__(self, config_name: str | None = None, *, num_labels: int, masks: bool = False, **kwargs: Any):
        if COCOeval is None:
            raise ImportError("COCO AP needs pycocotools: pip install 'pvt-hf[detection]'.")
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {num_labels}.")
        if kwargs.get("num_process", 1) != 1:
            raise ValueError("CocoAP writes no files for other processes: `merge` their `images`.")
        super().__init__(config_name, **kwargs)
        self.num_labels, self.masks = num_labels, masks
        self.images: dict[int | str, dict[str, dict[str, Any]]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        box = {"labels": datasets.List(datasets.Value("int64"))}
        return evaluate.MetricInfo(
            description="COCO average precision of boxes and masks.",
            citation="",
            inputs_description="predictions: scores, labels, boxes_xyxy; references: image_id, labels, boxes_xywh.",
            features=datasets.Features(
                {
                    "predictions": {
                        **box,
                        "scores": datasets.List(number),
                        "boxes_xyxy": datasets.List(datasets.List(number)),
                    },
                    "references": {
                        **box,
                        "image_id": datasets.Value("int64"),
                        "boxes_xywh": datasets.List(datasets.List(number)),
                    },
                }
            ),
        )

    def add(self, *, prediction: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Keeps one image."""
        image_id = reference["image_id"]
        image_id = image_id.item() if hasattr(image_id, "item") else image_id
        if not isinstance(image_id, (int, str)):
            raise ValueError(f"image_id {image_id!r}; expected an int or str.")
        try:
            corners = _rows(prediction, "boxes_xyxy", width=4)
            found: dict[str, Any] = {
                "labels": self._labels(prediction),
                "boxes_xywh": np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
                "scores": _rows(prediction, "scores"),
            }
            wanted: dict[str, Any] = {
                "labels": self._labels(reference),
                "boxes_xywh": _rows(reference, "boxes_xywh", width=4),
            }
            for record in (found, wanted):
                if (record["boxes_xywh"][:, 2:] < 0).any():
                    raise ValueError("a box has a negative side. Check xyxy (predictions) and xywh (references).")
            if self.masks:
                found["masks"], wanted["masks"] = _to_rle(prediction), _to_rle(reference)
                sizes = {tuple(rle["size"]) for rle in found["masks"] + wanted["masks"]}
                if len(sizes) > 1:
                    raise ValueError(f"masks of sizes {sorted(sizes)}; expected that of the image, for all.")
            count = len(wanted["labels"])
            wanted["iscrowd"] = _rows({"iscrowd": np.zeros(count), **reference}, "iscrowd").astype(bool)
            if "area" in reference:
                wanted["area"] = _rows(reference, "area")
            elif self.masks:
                wanted["area"] = np.array([coco_mask.area(rle) for rle in wanted["masks"]], dtype=np.float64)
            else:
                wanted["area"] = wanted["boxes_xywh"][:, 2:].prod(axis=1)
            for name, record in (("prediction", found), ("reference", wanted)):
                lengths = {key: len(value) for key, value in record.items()}
                if len(set(lengths.values())) > 1:
                    raise ValueError(f"a {name} of different lengths: {lengths}.")
        except ValueError as error:
            raise ValueError(f"image {image_id!r}: {error}") from error
        self.merge({image_id: {"prediction": found, "reference": wanted}})

    def _labels(self, record: Mapping[str, Any]) -> np.ndarray:
        labels = _rows(record, "labels").astype(np.int64)
        if labels.size and (labels.min() < 0 or labels.max() >= self.num_labels):
            raise ValueError(f"labels from {labels.min()} to {labels.max()}; expected 0 to {self.num_labels - 1}.")
        return labels

    def merge(self, images: Mapping[int | str, dict[str, dict[str, Any]]]) -> None:
        """Adds the `images` of another metric, such as another process'."""
        twice = [image_id for image_id in images if image_id in self.images]
        if twice:
            raise ValueError(f"image {twice[0]!r} is there already; an image must be counted once.")
        self.images.update(images)

    def add_batch(self, *, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> None:
        """Keeps several images."""
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references.")
        for prediction, reference in zip(predictions, references):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self,
        *,
        predictions: Sequence[Mapping[str, Any]] | None = None,
        references: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """The figures of all images added so far and of these, if there are any; the metric is empty afterwards."""
        if predictions is not None or references is not None:
            self.add_batch(
                predictions=() if predictions is None else predictions,
                references=() if references is None else references,
            )
        if not self.images:
            raise ValueError("There is no image to compute an AP of.")
        images, self.images = self.images, {}
        figures = coco_figures(images, self.num_labels, masks=False)
        if self.masks:
            of_masks = coco_figures(images, self.num_labels, masks=True)
            figures |= {f"mask_{name}": value for name, value in of_masks.items()}
        return figures


def _get(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise ValueError(f"{name} is missing; got {', '.join(record)}.")
    return record[name]


def _rows(record: Mapping[str, Any], name: str, width: int | None = None) -> np.ndarray:
    """`record[name]` as float64 (n,) or (n, width), finite."""
    values = _get(record, name)
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()  # NumPy has no bfloat16
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        array = array.reshape((0,) if width is None else (0, width))
    if array.ndim != (1 if width is None else 2) or (width is not None and array.shape[1] != width):
        raise ValueError(f"{name} of shape {array.shape}; expected (n{'' if width is None else f', {width}'}).")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} with NaN or infinite values.")
    return array


def _to_rle(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`record["masks"]`, (n, height, width) or RLE dicts, as n compressed RLE dicts with bytes."""
    encoded = []
    for mask in _get(record, "masks"):
        if isinstance(mask, Mapping):
            counts = mask["counts"]
            counts = counts.encode() if isinstance(counts, str) else counts
            encoded.append({"size": [int(side) for side in mask["size"]], "counts": counts})
            continue
        mask = np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask)
        if mask.ndim != 2 or mask.dtype.kind not in "iub":
            raise ValueError(f"a mask must be (height, width) of bool or integers, got {mask.dtype} {mask.shape}.")
        encoded.append(coco_mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8)))
    return encoded


def _known(value: float) -> float:
    """A figure of pycocotools, where -1 means that there was nothing to find."""
    return float("nan") if value < 0 else float(value)
