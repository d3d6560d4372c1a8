"""COCO AP as an `evaluate` metric around pycocotools. Use the class, or `evaluate.load` with this file's path."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import datasets
import evaluate
import numpy as np
from packaging.version import Version


try:
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ImportError:
    COCOeval = None

# Of hotcoco, this version and later give what pycocotools gives, to the last digit; 1.0 gives another AP of masks.
MIN_HOTCOCO = "1.3"
try:
    if Version(version("hotcoco")) < Version(MIN_HOTCOCO):
        raise ImportError("hotcoco is too old")
    import hotcoco
except Exception:  # also if it was built for another machine or version of NumPy
    hotcoco = None  # type: ignore[assignment]
IMPORTED_IN = os.getpid()

# In the order of COCOeval's `stats`
FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def coco_classes() -> tuple[type, type]:
    """
    `COCO` and `COCOeval` of hotcoco where it is installed, otherwise of pycocotools. hotcoco keeps threads, which a
    forked process does not have, and would wait for them there for ever.
    """
    if hotcoco is not None and os.getpid() == IMPORTED_IN:
        return hotcoco.COCO, hotcoco.COCOeval
    return COCO, COCOeval


def coco_figures(
    images: Mapping[int | str, dict[str, dict[str, Any]]], num_labels: int, masks: bool
) -> tuple[dict[str, Any], np.ndarray]:
    """
    The figures of [`CocoAP`] for its `images`, without prefix, by the IoU of boxes or of `masks`, and the precision
    (10 IoU thresholds, 101 recalls, classes) from which they come; -1 where it is undefined. [`coco_classes`] compute
    them, with their default parameters. Their output is suppressed.
    """
    coco_class, evaluation_class = coco_classes()
    # By id, as pycocotools does it: of equal scores the first counts first, whichever process had the image.
    records = [images[name] for name in sorted(images, key=lambda name: (isinstance(name, str), name))]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for name in ("reference", "prediction"):
            side = coco_class()
            side.dataset = {
                "images": [{"id": index, "height": 0, "width": 0} for index in range(len(records))],  # RLE has sizes
                "categories": [{"id": label, "name": str(label)} for label in range(num_labels)],
                "annotations": _annotations([record[name] for record in records], masks),
            }
            side.createIndex()
            sides.append(side)
        evaluation = evaluation_class(*sides, iouType="segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures: dict[str, Any] = {name: _known(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}
    # (IoU thresholds, recalls, categories, areas, detections): all areas, the 100 best detections
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    figures["per_category_ap"] = [_known(precision[:, :, label].mean()) for label in range(num_labels)]
    return figures, precision.copy()  # not a view of the whole, which is 12 times as large


def _annotations(records: list[dict[str, Any]], masks: bool) -> list[dict[str, Any]]:
    """The objects of all images, predicted or annotated, as COCO annotations. An image's id is its index."""
    annotations: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        for row, (label, box) in enumerate(zip(record["labels"].tolist(), record["boxes_xywh"].tolist())):
            # Ids start at 1, because COCOeval takes a match with number 0 for none.
            entry = {"id": len(annotations) + 1, "image_id": index, "category_id": label, "bbox": box, "iscrowd": 0}
            if masks:
                entry["segmentation"] = record["masks"][row]
            if "scores" in record:
                area = coco_mask.area(entry["segmentation"]) if masks else box[2] * box[3]
                entry |= {"area": float(area), "score": float(record["scores"][row])}
            else:
                entry |= {"area": float(record["area"][row]), "iscrowd": int(record["iscrowd"][row])}
            annotations.append(entry)
    return annotations


def coco_results(
    images: Mapping[int | str, dict[str, dict[str, Any]]],
    category_ids: Sequence[int | str] | Mapping[int, int | str] | None = None,
) -> list[dict[str, Any]]:
    """
    The predictions of a [`CocoAP`]'s `images` as entries of a COCO results file, ready for `json.dump`:
    `{"image_id", "category_id", "bbox": [x, y, width, height], "score", "segmentation"}`, where `segmentation`
    (compressed RLE) is there only with masks.

    For the AP of masks by size, leave `bbox` out: if there are both, pycocotools' `loadRes` computes areas from boxes.

    Args:
        category_ids: the category id, int or str, of each label; None if they are the same. Predictions of labels that
            a mapping lacks are left out: the data set has no such category.
    """
    entries = []
    for name, image in images.items():
        record = image["prediction"]
        for row, (label, box, score) in enumerate(
            zip(*(record[key].tolist() for key in ("labels", "boxes_xywh", "scores")))
        ):
            if isinstance(category_ids, Mapping) and label not in category_ids:
                continue
            category = label if category_ids is None else category_ids[label]
            category = category if isinstance(category, str) else int(category)
            entries.append({"image_id": name, "category_id": category, "bbox": box, "score": score})
            if "masks" in record:
                rle = record["masks"][row]
                entries[-1]["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    return entries


class CocoAP(evaluate.Metric):
    """
    COCO's average precision and recall of boxes and, with `masks`, of masks, as pycocotools computes them.

        metric = CocoAP(num_labels=80)  # or evaluate.load("pvt_hf/metrics/coco_ap.py", num_labels=80)
        metric.add_batch(predictions=predictions, references=references)
        metric.compute()

    `predictions` has a dict for each image:
        scores (n,); labels (n,), 0 to num_labels - 1; boxes_xyxy (n, 4), in pixels of the original image; with `masks`,
        masks: (n, height, width) bool or integer of that image's size, or n compressed RLE dicts.
    `references` has a dict for each image:
        image_id: int or str, different for every image; labels (n,); boxes_xywh (n, 4), as in COCO's files; with
        `masks`, masks as above. Optional: iscrowd (n,), by default 0; area (n,), by default that of the mask or,
        without masks, of the box.
    All are arrays, tensors or lists. Add images without objects (n = 0) as well, because false alarms there count. A
    prediction that lies in a crowd is neither right nor wrong.

    Only boxes, scores and RLE are kept, in `images`, by image_id. They can be pickled: with several processes, add the
    images of the others with [`CocoAP.merge`] before `compute`. `evaluate`'s own way (`num_process`), which writes
    everything to files, is not supported.

    Args:
        num_labels: number of classes.
        masks: whether to evaluate masks as well.

    `compute` resets the metric, as always in `evaluate`, and returns numbers from 0 to 1, or NaN if there was no object
    to find:
        ap (IoU 0.50 to 0.95), ap50, ap75; ap_small (area below 32x32 pixels), ap_medium, ap_large (above 96x96); ar1,
        ar10, ar100 (recall with that many predictions per image and class), ar_small, ar_medium, ar_large.
        per_category_ap: list by class.
        With `masks`, the same by IoU and area of masks, with the prefix "mask_".

    Afterwards `precisions` has the precision-recall curves of "boxes" and, with `masks`, of "masks": precision (10 IoU
    thresholds, 101 recalls, classes) of all areas and the 100 best detections; -1 where it is undefined.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: an image_id that was added before, also in `merge`; different lengths, NaN, a box with a negative
            side, a label that is not a class, masks that are missing or of different sizes. Nothing of such an image is
            kept. In `compute`: no images.
    """

    def __init__(self, config_name: str | None = None, *, num_labels: int, masks: bool = False, **kwargs: Any):
        if COCOeval is None:
            raise ImportError("COCO AP needs pycocotools: pip install 'pvt-hf[detection]'.")
        if num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {num_labels}.")
        if kwargs.get("num_process", 1) != 1:
            raise ValueError("CocoAP does not support num_process: `merge` the `images` of the processes.")
        super().__init__(config_name, **kwargs)
        self.num_labels, self.masks = num_labels, masks
        self.images: dict[int | str, dict[str, dict[str, Any]]] = {}
        self.precisions: dict[str, np.ndarray] = {}

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
        """Adds one image."""
        image_id = reference["image_id"]
        image_id = image_id.item() if hasattr(image_id, "item") else image_id
        if not isinstance(image_id, (int, str)):
            raise ValueError(f"image_id {image_id!r}; expected an int or str.")
        try:
            found, wanted = self._read_prediction(prediction), self._read_reference(reference)
            for name, record in (("prediction", found), ("reference", wanted)):
                if (record["boxes_xywh"][:, 2:] < 0).any():
                    raise ValueError("a box has a negative side. Check xyxy (predictions) and xywh (references).")
                lengths = {key: len(value) for key, value in record.items()}
                if len(set(lengths.values())) > 1:
                    raise ValueError(f"a {name} of different lengths: {lengths}.")
            sizes = {tuple(rle["size"]) for record in (found, wanted) for rle in record.get("masks", [])}
            if len(sizes) > 1:
                raise ValueError(f"masks of sizes {sorted(sizes)}; expected the size of the image for all of them.")
        except ValueError as error:
            raise ValueError(f"image {image_id!r}: {error}") from error
        self.merge({image_id: {"prediction": found, "reference": wanted}})

    def _read_prediction(self, prediction: Mapping[str, Any]) -> dict[str, Any]:
        corners = _rows(prediction, "boxes_xyxy", width=4)
        found: dict[str, Any] = {
            "labels": self._labels(prediction),
            "boxes_xywh": np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
            "scores": _rows(prediction, "scores"),
        }
        if self.masks:
            found["masks"] = _to_rle(prediction)
        return found

    def _read_reference(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "labels": self._labels(reference),
            "boxes_xywh": _rows(reference, "boxes_xywh", width=4),
        }
        no_crowds = np.zeros(len(wanted["labels"]))
        wanted["iscrowd"] = _rows({"iscrowd": no_crowds, **reference}, "iscrowd").astype(bool)
        if self.masks:
            wanted["masks"] = _to_rle(reference)
        if "area" in reference:
            wanted["area"] = _rows(reference, "area")
        elif self.masks:
            wanted["area"] = np.array([coco_mask.area(rle) for rle in wanted["masks"]], dtype=np.float64)
        else:
            wanted["area"] = wanted["boxes_xywh"][:, 2:].prod(axis=1)
        return wanted

    def _labels(self, record: Mapping[str, Any]) -> np.ndarray:
        labels = _rows(record, "labels").astype(np.int64)
        if labels.size and (labels.min() < 0 or labels.max() >= self.num_labels):
            raise ValueError(f"labels from {labels.min()} to {labels.max()}; expected 0 to {self.num_labels - 1}.")
        return labels

    def merge(self, images: Mapping[int | str, dict[str, dict[str, Any]]]) -> None:
        """Adds the `images` of another metric, such as that of another process."""
        twice = [image_id for image_id in images if image_id in self.images]
        if twice:
            raise ValueError(f"image {twice[0]!r} was added before; every image counts once.")
        self.images.update(images)

    def add_batch(self, *, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> None:
        """Adds several images."""
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
        """The figures of all images added so far, and of these. Resets the metric."""
        if predictions is not None or references is not None:
            self.add_batch(
                predictions=() if predictions is None else predictions,
                references=() if references is None else references,
            )
        if not self.images:
            raise ValueError("There are no images to compute an AP of.")
        images, self.images = self.images, {}
        figures, self.precisions["boxes"] = coco_figures(images, self.num_labels, masks=False)
        if self.masks:
            mask_figures, self.precisions["masks"] = coco_figures(images, self.num_labels, masks=True)
            figures |= {f"mask_{name}": value for name, value in mask_figures.items()}
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
    """The masks of an image, (n, height, width) or RLE dicts, as n compressed RLE dicts with bytes."""
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
