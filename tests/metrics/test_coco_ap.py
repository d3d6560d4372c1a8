"""
COCO AP: against a case computed by hand, against pycocotools run on files, in parts, with crowds, without objects, and
the results file that it writes.

    pytest tests/metrics/test_coco_ap.py
"""

import contextlib
import importlib.util
import io
import json
import math
import pickle
import sys
from pathlib import Path

import evaluate
import hotcoco
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pvt_hf.metrics import coco_ap
from pvt_hf.metrics.coco_ap import FIGURES, CocoAP, coco_results

from ..support.clean_process import run_python


NUM_LABELS, ABSENT = 4, 3
SIZE = (150, 200)


def box_to_mask(box_xywh, generator) -> np.ndarray:
    """An ellipse in the box, with some noise, so that masks have other IoUs than boxes."""
    x, y, width, height = box_xywh
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    inside = ((columns + 0.5 - x) / width * 2 - 1) ** 2 + ((rows + 0.5 - y) / height * 2 - 1) ** 2 <= 1
    return inside & (generator.random(SIZE) < 0.95)


@pytest.fixture(scope="module")
def scenes():
    """Twelve images of 0 to 7 objects of three sizes, every ninth a crowd, and of shifted and wrong predictions."""
    generator = np.random.default_rng(0)
    predictions, references = [], []
    for image in range(12):
        count = 0 if image in (3, 7) else int(generator.integers(1, 8))
        sides = generator.choice([12, 45, 145], (count, 1)) * generator.uniform(0.9, 1.0, (count, 2))
        corners = generator.uniform(0, 1, (count, 2)) * (np.array(SIZE[::-1]) - sides)
        boxes = np.concatenate([corners, sides], axis=1)
        labels = generator.integers(0, ABSENT, count)
        masks = [box_to_mask(box, generator) for box in boxes]
        references.append(
            {
                "image_id": 100 - 3 * image,  # not in order
                "labels": labels,
                "boxes_xywh": boxes,
                "iscrowd": generator.random(count) < 1 / 9,
                "area": [float(mask.sum()) for mask in masks],
                "masks": np.array(masks).reshape(-1, *SIZE),
            }
        )
        false = 0 if image == 5 else 3
        guessed = np.concatenate([boxes, np.tile([20.0, 20, 40, 30], (false, 1))])
        guessed = guessed + generator.uniform(-3, 3, guessed.shape)
        xyxy = np.concatenate([guessed[:, :2], guessed[:, :2] + guessed[:, 2:]], axis=1)
        right = generator.random(len(guessed)) < 0.8
        guesses = np.where(right, [*labels, *[0] * false], generator.integers(0, ABSENT, len(guessed)))
        predictions.append(
            {
                "scores": generator.choice([0.9, 0.5, 0.3, 0.2], len(guessed)),  # many are equal
                "labels": guesses.astype(np.int64),
                "boxes_xyxy": xyxy,
                "masks": np.array([box_to_mask(box, generator) for box in guessed]).reshape(-1, *SIZE),
            }
        )
    assert sum(int(reference["iscrowd"].sum()) for reference in references) >= 2
    return predictions, references


def rle(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def annotations_file(references: list[dict], path: Path, first_category: int) -> Path:
    annotations = []
    for reference in references:
        for row, (label, box) in enumerate(zip(reference["labels"].tolist(), reference["boxes_xywh"].tolist())):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": reference["image_id"],
                    "category_id": first_category + 10 * label,
                    "bbox": box,
                    "area": reference["area"][row],
                    "iscrowd": int(reference["iscrowd"][row]),
                    "segmentation": rle(reference["masks"][row]),
                }
            )
    content = {
        "images": [{"id": r["image_id"], "height": SIZE[0], "width": SIZE[1]} for r in references],
        "categories": [{"id": first_category + 10 * label, "name": str(label)} for label in range(NUM_LABELS)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


def by_hand(annotations: Path, results: Path, iou_type: str) -> np.ndarray:
    """pycocotools, as its own demo runs it on two files."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def assert_figures(result: dict, expected: dict) -> None:
    assert result.keys() == expected.keys()
    for name, value in result.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)  # NaN equals NaN here


def test_equals_pycocotools_on_files(scenes, tmp_path, capsys):
    predictions, references = scenes
    metric = CocoAP(num_labels=NUM_LABELS, masks=True)
    metric.add_batch(predictions=predictions, references=references)
    category_ids = {label: 7 + 10 * label for label in range(NUM_LABELS)}
    entries = coco_results(metric.images, category_ids)
    assert len(entries) == sum(len(prediction["scores"]) for prediction in predictions)
    annotations = annotations_file(references, tmp_path / "annotations.json", first_category=7)
    result = metric.compute()
    assert capsys.readouterr().out == ""
    for prefix, iou_type, left_out in (("", "bbox", "segmentation"), ("mask_", "segm", "bbox")):
        results = tmp_path / f"{iou_type}.json"
        results.write_text(json.dumps([{k: v for k, v in entry.items() if k != left_out} for entry in entries]))
        stats = by_hand(annotations, results, iou_type)
        assert 0 < stats[0] < 1 and stats.min() >= 0 and len(set(stats)) > 9  # there is something to compare
        assert [result[prefix + name] for name in FIGURES] == stats.tolist()
        by_class = result[f"{prefix}per_category_ap"]
        assert len(by_class) == NUM_LABELS and math.isnan(by_class[ABSENT])
        assert np.nanmean(by_class) == pytest.approx(stats[0], abs=1e-12)  # another order of adding up
    assert result["ap"] != result["mask_ap"]
    assert len(result) == 2 * 13


# One class, IoU 0.8 and 0.6 and a miss: ranks 1, 2, 3 of three predictions for three objects.
HAND_REFERENCE = {"image_id": 1, "labels": [0, 0, 0], "boxes_xywh": [[0, 0, 10, 10], [50, 0, 50, 50], [0, 60, 40, 40]]}
HAND_PREDICTION = {
    "scores": [0.7, 0.9, 0.8],
    "labels": [0, 0, 0],
    "boxes_xyxy": [[50, 0, 80, 50], [0, 0, 8, 10], [200, 200, 210, 210]],  # 0.6 of the second, 0.8 of the first, none
}


AWKWARD = (
    "ties", "areas at the limits", "no ties", "no crowds", "crowds only", "over 100 detections", "no detections",
    "no objects", "areas of zero",
)  # fmt: skip


def awkward_objects(case: str, count: int, of_class: np.ndarray, generator, near: dict | None = None) -> dict:
    """`count` objects or, `near` some, predictions: half of them close to one each."""
    boxes = np.concatenate([generator.uniform(0, 100, (count, 2)), generator.uniform(2, 110, (count, 2))], axis=1)
    labels = generator.choice(of_class, count)
    if near is not None:
        same = min(count // 2, len(near["labels"]))
        boxes[:same] = near["boxes_xywh"][:same] + generator.normal(0, 2, (same, 4))
        labels[:same] = near["labels"][:same]
    if case == "areas at the limits":  # 32 * 32 and 96 * 96 divide small, medium and large
        boxes[:, 2:] = generator.choice([(32, 32), (96, 96), (16, 64), (0.5, 0.5)], count)
    boxes[:, 2:] = boxes[:, 2:].clip(0.5)
    masks = [coco_mask.encode(np.asfortranarray(box_to_mask(box, generator).astype(np.uint8))) for box in boxes]
    found = {"labels": labels, "boxes_xywh": boxes, "masks": masks}
    if near is not None:
        scores = generator.random(count)
        return {**found, "scores": scores if case == "no ties" else scores.round(1)}
    share = {"no crowds": 0.0, "crowds only": 1.0}.get(case, 0.2)
    area = 0.0 if case == "areas of zero" else boxes[:, 2] * boxes[:, 3]
    return {**found, "iscrowd": generator.random(count) < share, "area": np.broadcast_to(area, count)}


@pytest.mark.parametrize("case", AWKWARD)
def test_hotcoco_equals_pycocotools_to_the_last_digit(case, monkeypatch):
    """It is used where it is installed, so that no figure may depend on that."""
    assert coco_ap.coco_classes() == (hotcoco.COCO, hotcoco.COCOeval)
    generator = np.random.default_rng(AWKWARD.index(case))
    images = {}
    for image in range(8):
        many = 130 if case == "over 100 detections" and image < 2 else 12
        objects = awkward_objects(
            case, 0 if case == "no objects" else int(generator.integers(0, 9)), [0, 1, 3], generator
        )
        count = 0 if case == "no detections" else int(generator.integers(many // 2, many))
        images[image] = {
            "reference": objects,
            "prediction": awkward_objects(case, count, [0, 1, 2], generator, near=objects),
        }
    for masks in (False, True):
        figures, precision = coco_ap.coco_figures(images, 4, masks)
        with monkeypatch.context() as patch:
            patch.setattr(coco_ap, "hotcoco", None)
            assert coco_ap.coco_classes() == (COCO, COCOeval)
            expected_figures, expected_precision = coco_ap.coco_figures(images, 4, masks)
        assert_figures(figures, expected_figures)
        np.testing.assert_array_equal(precision, expected_precision)


# Computes the AP, then again in a forked process, where hotcoco would wait for threads that are not there
FORK = """
import multiprocessing
from pvt_hf.metrics.coco_ap import CocoAP

def compute(results=None):
    reference = {"image_id": 1, "labels": [0], "boxes_xywh": [[0, 0, 9, 9]]}
    prediction = {"scores": [0.5], "labels": [0], "boxes_xyxy": [[0, 0, 9, 9]]}
    print(round(CocoAP(num_labels=1).compute(predictions=[prediction], references=[reference])["ap"], 9), flush=True)

compute()
process = multiprocessing.get_context("fork").Process(target=compute)
process.start()
process.join(60)
process.kill()
"""


def test_in_a_forked_process():
    assert run_python(FORK, warm=True).stdout.splitlines() == ["1.0", "1.0"]


@pytest.mark.parametrize("fault", ["version", "import"])
def test_an_unusable_hotcoco_is_not_used(fault, tmp_path, monkeypatch):
    """1.0 computes another AP of masks."""
    if fault == "version":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0.0")
    else:
        (tmp_path / "hotcoco.py").write_text("raise RuntimeError('built for another machine')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "hotcoco")
    spec = importlib.util.spec_from_file_location("coco_ap_again", coco_ap.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.coco_classes() == (COCO, COCOeval)


def test_case_by_hand():
    """
    Ranked: right (IoU 0.8), wrong, right (IoU 0.6), of three objects. At IoU thresholds up to 0.60 both count: recall
    1/3 at precision 1, then 2/3 at 2/3. Of the 101 recalls 0, 0.01 .. 1, 34 are up to 1/3 and 33 more up to 2/3. From
    0.65 to 0.80 only the first counts; above, none.
    """
    both, one = (34 * 1 + 33 * 2 / 3) / 101, 34 / 101
    result = CocoAP(num_labels=1).compute(predictions=[HAND_PREDICTION], references=[HAND_REFERENCE])
    expected = {
        "ap": (3 * both + 4 * one) / 10,
        "ap50": both,
        "ap75": one,
        "ap_small": 7 / 10,  # the object of 10x10, found first up to IoU 0.80
        "ap_medium": 3 / 10 * (51 * 1 / 1) / 101,  # of two objects the one of IoU 0.6; wrong: 10x10, not counted
        "ap_large": math.nan,
        "ar1": 7 / 10 / 3,
        "ar10": (3 * 2 + 4 * 1) / 3 / 10,
        "ar100": (3 * 2 + 4 * 1) / 3 / 10,
        "ar_small": 7 / 10,
        "ar_medium": 3 / 10 / 2,
        "ar_large": math.nan,
        "per_category_ap": [(3 * both + 4 * one) / 10],
    }
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        # pycocotools adds 2**-52 to denominators
        assert result[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_parts_kinds_and_orders_give_the_same(scenes):
    predictions, references = scenes
    whole = CocoAP(num_labels=NUM_LABELS, masks=True)
    expected = whole.compute(predictions=predictions, references=references)
    assert len(whole) == 0

    parts = [evaluate.load(str(Path(coco_ap.__file__)), num_labels=NUM_LABELS, masks=True) for _ in range(3)]
    for index, (prediction, reference) in enumerate(zip(predictions, references)):
        prediction = {name: torch.from_numpy(value) for name, value in prediction.items()}
        reference = dict(reference, image_id=torch.tensor([reference["image_id"]]), labels=list(reference["labels"]))
        if index % 2:
            reference["masks"] = [rle(mask) for mask in reference["masks"]]
            prediction["masks"] = [rle(mask) for mask in prediction["masks"].numpy()]
        parts[-1 - index % 3].add(prediction=prediction, reference=reference)
    states = [pickle.loads(pickle.dumps(part.images)) for part in parts]
    assert len(pickle.dumps(states)) < 100_000  # the masks alone are 100 times that
    for state in states[1:]:
        parts[0].merge(state)
    assert len(parts[0]) == len(references)
    assert_figures(parts[0].compute(), expected)
    boxes_only = CocoAP(num_labels=NUM_LABELS).compute(predictions=predictions, references=references)
    assert_figures(boxes_only, {name: value for name, value in expected.items() if not name.startswith("mask_")})


def test_an_image_is_counted_once(scenes):
    predictions, references = scenes
    one, other = CocoAP(num_labels=NUM_LABELS), CocoAP(num_labels=NUM_LABELS)
    one.add(prediction=predictions[0], reference=references[0])
    other.add_batch(predictions=predictions[:2], references=references[:2])
    with pytest.raises(ValueError, match="image 100 was added before"):
        one.add(prediction=predictions[1], reference=references[0])
    with pytest.raises(ValueError, match="image 100 was added before"):
        one.merge(other.images)
    assert len(one) == 1


EMPTY = {"scores": [], "labels": [], "boxes_xyxy": [], "masks": []}
NOTHING = {"image_id": "empty", "labels": [], "boxes_xywh": [], "masks": []}


def test_empty_images_and_predictions(scenes):
    predictions, references = scenes
    metric = CocoAP(num_labels=NUM_LABELS, masks=True)
    none = metric.compute(predictions=[EMPTY], references=[NOTHING])
    assert all(np.isnan(value).all() for value in none.values())
    missed = metric.compute(predictions=[EMPTY] * len(references), references=references)
    assert missed["ap"] == missed["mask_ap"] == missed["ar100"] == 0 and math.isnan(missed["per_category_ap"][ABSENT])
    with pytest.raises(ValueError, match="There are no images"):
        metric.compute()

    # False alarms on an image without objects cost precision
    perfect = {"scores": [0.5], "labels": [0], "boxes_xyxy": [[0, 0, 10, 10]]}
    alarm = dict(perfect, scores=[0.9])
    object_ = {"image_id": 1, "labels": [0], "boxes_xywh": [[0, 0, 10, 10]]}
    metric = CocoAP(num_labels=1)
    assert metric.compute(predictions=[perfect], references=[object_])["ap"] == pytest.approx(1)
    both = metric.compute(predictions=[perfect, alarm], references=[object_, dict(NOTHING, image_id=2)])
    assert both["ap"] == pytest.approx(1 / 2)


def test_crowds_are_neither_right_nor_wrong():
    inside = [[10, 10, 20, 20], [30, 30, 45, 45]]  # in the crowd; their IoU with it is small
    reference = {"image_id": 1, "labels": [0, 0], "boxes_xywh": [[0, 0, 60, 60], [80, 80, 10, 10]]}
    prediction = {"scores": [0.9, 0.8, 0.7], "labels": [0] * 3, "boxes_xyxy": [*inside, [80, 80, 90, 90]]}
    metric = CocoAP(num_labels=1)
    crowd = metric.compute(predictions=[prediction], references=[dict(reference, iscrowd=[1, 0])])
    assert crowd["ap"] == pytest.approx(1)
    plain = metric.compute(predictions=[prediction], references=[reference])
    assert plain["ap"] == pytest.approx(51 / 101 / 3)  # found third, one of two objects


def test_results_without_masks_and_map():
    metric = CocoAP(num_labels=2)
    metric.add(
        prediction={"scores": [0.25, 0.5], "labels": [1, 0], "boxes_xyxy": [[1, 2, 4, 6], [0, 0, 1.5, 1]]},
        reference=dict(NOTHING, image_id=9),
    )
    expected = [
        {"image_id": 9, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.25},
        {"image_id": 9, "category_id": 0, "bbox": [0, 0, 1.5, 1], "score": 0.5},
    ]
    assert json.loads(json.dumps(coco_results(metric.images))) == expected
    assert [entry["category_id"] for entry in coco_results(metric.images, [90, 91])] == [91, 90]


GOOD_PREDICTION = {"scores": [0.5], "labels": [1], "boxes_xyxy": [[0, 0, 5, 5]], "masks": np.ones((1, 6, 8), bool)}
GOOD_REFERENCE = {"image_id": 4, "labels": [1], "boxes_xywh": [[0, 0, 5, 5]], "masks": np.ones((1, 6, 8), bool)}


@pytest.mark.parametrize(
    "prediction, reference, message",
    [
        ({"labels": [2]}, {}, "labels from 2 to 2; expected 0 to 1"),
        ({}, {"labels": [-1]}, "labels from -1 to -1"),
        ({"scores": [math.nan]}, {}, "scores with NaN"),
        ({"boxes_xyxy": [[0, 0, math.inf, 5]]}, {}, "boxes_xyxy with NaN or infinite"),
        ({"boxes_xyxy": [[5, 0, 0, 5]]}, {}, "a box has a negative side"),
        ({}, {"boxes_xywh": [[5, 0, -1, 5]]}, "a box has a negative side"),
        ({"boxes_xyxy": [0, 0, 5, 5]}, {}, r"boxes_xyxy of shape \(4,\); expected \(n, 4\)"),
        ({"scores": [0.5, 0.5]}, {}, "a prediction of different lengths.*'scores': 2"),
        ({}, {"area": [1, 2]}, "a reference of different lengths.*'area': 2"),
        ({}, {"masks": np.ones((2, 6, 8), bool)}, "a reference of different lengths.*'masks': 2"),
        ({"masks": np.ones((1, 8, 6), bool)}, {}, r"masks of sizes \[\(6, 8\), \(8, 6\)\]"),
        ({"masks": np.ones((1, 6, 8))}, {}, "a mask must be .* got float64"),
    ],
)
def test_refuses_what_cannot_be_counted(prediction, reference, message):
    metric = CocoAP(num_labels=2, masks=True)
    with pytest.raises(ValueError, match=f"^image 4: .*{message}"):
        metric.add(prediction={**GOOD_PREDICTION, **prediction}, reference={**GOOD_REFERENCE, **reference})
    assert len(metric) == 0


def test_bad_calls():
    metric = CocoAP(num_labels=2, masks=True)
    for name in GOOD_PREDICTION:
        with pytest.raises(ValueError, match=f"image 4: {name} is missing"):
            metric.add(prediction={k: v for k, v in GOOD_PREDICTION.items() if k != name}, reference=GOOD_REFERENCE)
    with pytest.raises(ValueError, match="image_id 1.5; expected an int or str"):
        metric.add(prediction=GOOD_PREDICTION, reference=dict(GOOD_REFERENCE, image_id=1.5))
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        metric.add_batch(predictions=[GOOD_PREDICTION], references=[GOOD_REFERENCE] * 2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        CocoAP(num_labels=0)
    with pytest.raises(ValueError, match="`merge` the `images`"):
        CocoAP(num_labels=5, num_process=2)
