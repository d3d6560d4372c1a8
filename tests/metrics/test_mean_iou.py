"""
Mean IoU: against sets of pixels and against torchmetrics, by batches and by parts, absent classes, ignored pixels, and
labels that are no class.

    pytest tests/metrics/test_mean_iou.py
"""

import math
import tracemalloc
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from pvt_hf.metrics import mean_iou
from pvt_hf.metrics.mean_iou import MeanIoU, figures_of_confusion_matrix


NUM_LABELS = 7
ABSENT, ONLY_PREDICTED, ONLY_LABELLED = 2, 4, 5


@pytest.fixture(scope="module")
def maps():
    """Nine images of different sizes: (predictions, references), half of the pixels right, a fifth ignored."""
    rng = np.random.default_rng(0)
    predictions, references = [], []
    for height, width in ((1, 1), (3, 5), (64, 48), (33, 70), (20, 20), (7, 90), (50, 50), (2, 2), (41, 13)):
        reference = rng.choice([0, 1, 3, ONLY_LABELLED, 6], (height, width))
        guess = rng.choice([0, 1, 3, ONLY_PREDICTED, 6], (height, width))
        right = (rng.random((height, width)) < 0.5) & (reference != ONLY_LABELLED)
        predictions.append(np.where(right, reference, guess))
        references.append(np.where(rng.random((height, width)) < 0.2, 255, reference))
    return predictions, references


def by_sets(predictions: list[np.ndarray], references: list[np.ndarray]) -> dict[str, list[float]]:
    """IoU and accuracy by class from sets of (image, row, column)."""
    labelled, predicted = ({label: set() for label in range(NUM_LABELS)} for _ in range(2))
    for image, (prediction, reference) in enumerate(zip(predictions, references)):
        for (row, column), label in np.ndenumerate(reference):
            if label != 255:
                labelled[int(label)].add((image, row, column))
                predicted[int(prediction[row, column])].add((image, row, column))
    both = {label: len(labelled[label] & predicted[label]) for label in labelled}
    union = {label: len(labelled[label] | predicted[label]) for label in labelled}
    return {
        "iou": [both[label] / union[label] if union[label] else math.nan for label in labelled],
        "accuracy": [both[label] / len(labelled[label]) if labelled[label] else math.nan for label in labelled],
        "pixels": [len(labelled[label]) for label in labelled],
        "overall": sum(both.values()) / sum(map(len, labelled.values())),
    }


def assert_equal(result: dict, expected: dict) -> None:
    assert result.keys() == expected.keys()
    for name, value in result.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_equals_sets_of_pixels(maps):
    result, expected = MeanIoU(num_labels=NUM_LABELS).compute(predictions=maps[0], references=maps[1]), by_sets(*maps)
    np.testing.assert_array_equal(result["per_category_iou"], expected["iou"])  # the same integers divided
    np.testing.assert_array_equal(result["per_category_accuracy"], expected["accuracy"])
    assert result["per_category_pixels"] == expected["pixels"]
    assert result["overall_accuracy"] == expected["overall"]
    iou, accuracy = result["per_category_iou"], result["per_category_accuracy"]
    assert math.isnan(iou[ABSENT]) and math.isnan(accuracy[ABSENT])
    assert iou[ONLY_PREDICTED] == 0 and math.isnan(accuracy[ONLY_PREDICTED])
    assert iou[ONLY_LABELLED] == 0 and accuracy[ONLY_LABELLED] == 0
    present = [value for label, value in enumerate(iou) if label != ABSENT]
    assert result["mean_iou"] == pytest.approx(sum(present) / len(present), abs=1e-12)  # another order of adding up
    present = [value for label, value in enumerate(accuracy) if label not in (ABSENT, ONLY_PREDICTED)]
    assert result["mean_accuracy"] == pytest.approx(sum(present) / len(present), abs=1e-12)


def test_equals_torchmetrics(maps):
    settings = {"num_classes": NUM_LABELS, "ignore_index": 255}
    by_class = MulticlassJaccardIndex(average="none", **settings)
    mean = MulticlassJaccardIndex(average="macro", **settings)  # leaves classes out that are absent altogether
    overall = MulticlassAccuracy(average="micro", **settings)
    for prediction, reference in zip(*maps):
        for metric in (by_class, mean, overall):
            metric.update(torch.from_numpy(prediction)[None], torch.from_numpy(reference)[None])
    result = MeanIoU(num_labels=NUM_LABELS).compute(predictions=maps[0], references=maps[1])
    # torchmetrics divides in fp32, and has 0 for an absent class
    np.testing.assert_allclose(np.nan_to_num(result["per_category_iou"]), by_class.compute(), atol=1e-6)
    assert result["mean_iou"] == pytest.approx(mean.compute().item(), abs=1e-6)
    assert result["overall_accuracy"] == pytest.approx(overall.compute().item(), abs=1e-6)


def test_batches_kinds_and_parts_give_the_same(maps, monkeypatch):
    expected = MeanIoU(num_labels=NUM_LABELS).compute(predictions=maps[0], references=maps[1])
    metric = evaluate.load(str(Path(mean_iou.__file__)), num_labels=NUM_LABELS)
    monkeypatch.setattr(mean_iou, "PIXELS_AT_ONCE", 100)  # an image of 64x48 pixels in 31 parts
    one, other = MeanIoU(num_labels=NUM_LABELS), MeanIoU(num_labels=NUM_LABELS)
    for index, (prediction, reference) in enumerate(zip(*maps)):
        metric.add(prediction=prediction.tolist(), reference=reference.astype(np.uint8))
        part = one if index % 3 else other
        part.add_batch(predictions=[torch.from_numpy(prediction)], references=torch.from_numpy(reference)[None])
    assert (len(metric), len(one), len(other)) == (9, 6, 3)
    assert_equal(metric.compute(), expected)
    assert_equal(figures_of_confusion_matrix(one.confusion_matrix + other.confusion_matrix), expected)
    assert one.confusion_matrix.dtype == np.int64
    assert len(metric) == 0
    with pytest.raises(ValueError, match="no label maps"):
        metric.compute()


def test_memory_does_not_grow_with_the_images():
    metric = MeanIoU(num_labels=150)
    maps = np.random.default_rng(0).integers(0, 150, (2, 500, 500))
    metric.add(prediction=maps[0], reference=maps[1])  # imports and caches
    tracemalloc.start()
    metric.add(prediction=maps[0], reference=maps[1])
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        metric.add(prediction=maps[0], reference=maps[1])
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000  # 20 maps are 40 MB
    assert metric.confusion_matrix.sum() == 22 * 500 * 500


def test_nothing_but_ignored_pixels():
    """An empty mask and one of another `ignore_index`: figures are NaN, without a warning."""
    metric = MeanIoU(num_labels=3, ignore_index=-1)
    metric.add(prediction=np.full((4, 4), 9), reference=np.full((4, 4), -1))  # what is predicted there is no matter
    result = metric.compute()
    assert all(math.isnan(result[name]) for name in ("mean_iou", "mean_accuracy", "overall_accuracy"))
    assert all(map(math.isnan, result["per_category_iou"])) and result["per_category_pixels"] == [0, 0, 0]


def test_refuses_what_cannot_be_counted():
    metric, zeros = MeanIoU(num_labels=5), np.zeros((2, 2), dtype=np.int64)
    for values, words in (
        ([[0, 5], [254, 1]], "holds 5, 254: with num_labels 5 it must be 0 to 4"),
        ([[0, -1], [0, 0]], "holds -1: "),
    ):
        with pytest.raises(ValueError, match=f"a reference {words}.*255"):
            metric.add(prediction=zeros, reference=np.array(values))
        with pytest.raises(ValueError, match=f"a prediction {words}"):
            metric.add(prediction=np.array(values), reference=zeros)
    with pytest.raises(ValueError, match="holds 255: "):
        metric.add(prediction=zeros + 255, reference=zeros)
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for a reference of shape \(2, 3\)"):
        metric.add(prediction=zeros, reference=np.zeros((2, 3), dtype=np.uint8))
    for bad in (zeros.astype(float), zeros[None], 3):
        with pytest.raises(ValueError, match=r"\(height, width\) map of integers"):
            metric.add(prediction=bad, reference=bad)
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        metric.add_batch(predictions=[zeros], references=[zeros, zeros])
    assert metric.confusion_matrix.sum() == 0 and len(metric) == 0  # nothing of a bad image is counted
    with pytest.raises(ValueError, match="255 is one of the 300 classes"):
        MeanIoU(num_labels=300)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MeanIoU(num_labels=0)
    with pytest.raises(ValueError, match="add up the `confusion_matrix`"):
        MeanIoU(num_labels=5, num_process=2)
