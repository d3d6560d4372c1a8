"""
What an evaluation leaves to look at: confusion matrices, precision-recall curves, the worst images, the page.

    pytest tests/engine/test_figures.py
"""

import io
import json
import pickle
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from sklearn.metrics import confusion_matrix

from pvt_hf import PvtSemanticImageProcessor
from pvt_hf.engine.figures import LastEvaluation, write_confusion, write_figures
from pvt_hf.engine.gallery import FIRST, LONGEST_SIDE, WORST, Gallery, Shown
from pvt_hf.inference.held_out_page import draw, write_page
from pvt_hf.inference.pictures import class_colors
from pvt_hf.tasks.classification.evaluation import ClassificationEvaluation
from pvt_hf.tasks.detection.evaluation import DetectionEvaluation, count_errors
from pvt_hf.tasks.segmentation.evaluation import SegmentationEvaluation


NAMES = ("cat", "<script>alert(1)</script>", "a & b")
PROCESSOR = SimpleNamespace(image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.25, 0.5))


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def normalized(image: np.ndarray) -> torch.Tensor:
    """An image (height, width, 3) uint8 as the processor gives it to the model."""
    values = (image / 255 - PROCESSOR.image_mean) / PROCESSOR.image_std
    return torch.from_numpy(values).permute(2, 0, 1).float()


def shown(name="a", label=0, predicted=1) -> Shown:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "JPEG")
    return Shown(name, buffer.getvalue(), {"classes": [(label, None)]}, {"classes": [(predicted, 0.7)]}, {"loss": 2.0})


def test_a_classifier_over_two_processes(tmp_path):
    """Against scikit-learn's matrix. The images are those that went in, to JPEG's precision."""
    rng, states, galleries, last = np.random.default_rng(0), [], [], LastEvaluation(PROCESSOR)
    labels, logits = rng.integers(0, 3, 30), rng.normal(0, 2, (30, 3)).astype(np.float32)
    image = np.tile(np.array([200, 100, 50], np.uint8), (16, 24, 1))
    evaluation = ClassificationEvaluation((16, 24))
    for part in (slice(0, 17), slice(17, 30)):
        evaluation.gallery = last.new_gallery()
        batch = {
            "pixel_values": normalized(image).repeat(len(labels[part]), 1, 1, 1),
            "labels": torch.from_numpy(labels[part]),
            "sample_ids": [f"photos/{index}.jpg" for index in range(30)][part],
        }
        evaluation.add(lambda pixel_values, part=part: SimpleNamespace(logits=torch.tensor(logits[part])), batch)
        states.append(evaluation.state())
        galleries.append(evaluation.gallery)
    evaluation.compute(states)
    last.states, last.gallery = states, last.new_gallery().merged(galleries)
    names = write_figures(tmp_path / "figures", evaluation, last, NAMES, write_page)
    assert names == [
        "confusion_matrix.json", "confusion_matrix.png", "predictions.html", "worst_images.json", "worst_images.png",
    ]  # fmt: skip
    content = read(tmp_path / "figures", "confusion_matrix")
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(3))
    assert content["matrix"] == expected.tolist() and content["classes"] == list(NAMES)
    first = content["most_confused"][0]
    off = expected / expected.sum(1, keepdims=True) * (1 - np.eye(3))
    row, column = NAMES.index(first["truth"]), NAMES.index(first["prediction"])
    assert first["share"] == off[row, column] == off.max() and first["count"] == expected[row, column]

    losses = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.from_numpy(labels), reduction="none").numpy()
    wrong = logits.argmax(1) != labels
    by_loss = [f"photos/{index}.jpg" for index in np.argsort(-np.where(wrong, losses, -1))][: min(WORST, wrong.sum())]
    worst = read(tmp_path / "figures", "worst_images")
    assert [each["sample"] for each in worst] == by_loss and worst[0]["loss"] == pytest.approx(losses[wrong].max())
    turns = [f"photos/{index}.jpg" for pair in zip(range(6), range(17, 23)) for index in pair]
    assert [each.name for each in last.gallery.first] == turns
    (drawn,) = draw(last.gallery.first[0], dict(enumerate(NAMES)))
    assert drawn.size == (24, 16) and np.abs(np.asarray(drawn).astype(int) - image).max() <= 4
    page = (tmp_path / "figures" / "predictions.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and page.count("<img ") == 12 + len(worst)


def test_a_segmenter(tmp_path):
    rng, last = np.random.default_rng(0), LastEvaluation(PROCESSOR)
    truth, predicted = rng.integers(0, 3, (2, 20, 30)), rng.integers(0, 3, (2, 20, 30))
    truth[0, :3] = 255
    predicted[1] = truth[1]
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    inference = SimpleNamespace(predict=lambda model, views, size: torch.from_numpy(predicted[int(views[1][0, 0, 0])]))
    evaluation = SegmentationEvaluation(inference, 3)
    evaluation.gallery = last.new_gallery()
    views = [[normalized(image), torch.full((3, 1, 1), float(index))] for index in range(2)]
    batch = {"views": views, "labels": list(torch.from_numpy(truth)), "sample_ids": ["bad.png", "good.png"]}
    evaluation.add(lambda **inputs: None, batch)
    last.states, last.gallery = [evaluation.state()], last.new_gallery().merged([evaluation.gallery])
    write_figures(tmp_path, evaluation, last, NAMES, write_page)
    expected = confusion_matrix(truth[truth < 255], predicted[truth < 255], labels=range(3))
    assert read(tmp_path, "confusion_matrix")["matrix"] == expected.tolist()
    (worst,) = read(tmp_path, "worst_images")  # the other one has no error
    share = (truth[0, 3:] != predicted[0, 3:]).mean()
    assert worst == {"sample": "bad.png", "wrong_pixels": pytest.approx(share)}
    kept = last.gallery.first[0]
    for side, labels in ((kept.truth, truth[0]), (kept.prediction, predicted[0])):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(side["map"]))), labels)
    assert all(picture.width >= 30 for picture in draw(kept, dict(enumerate(NAMES))))


def detect(boxes, labels, scores):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


def test_a_detector(tmp_path):
    """Two objects of a class; right at 0.9, a false alarm at 0.8, right at 0.7: precision 1, and 2/3 beyond half."""
    found = [
        detect([[10.0, 10, 30, 30], [50, 50, 60, 60]], [0, 0], [0.9, 0.8]),
        detect([[20.0, 20, 60, 60], [0, 0, 9, 9]], [0, 1], [0.7, 0.1]),
    ]
    processor = SimpleNamespace(
        **vars(PROCESSOR), post_process_object_detection=lambda outputs, threshold, target_sizes: found
    )
    evaluation, last = DetectionEvaluation(processor, "retinanet", 3, masks=False), LastEvaluation(processor)
    evaluation.gallery = last.new_gallery()
    annotation = {"category_id": 0, "iscrowd": 0, "area": 400.0}
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    mask = torch.zeros(2, 64, 64, dtype=torch.int64)
    mask[:, :40, :50] = 1
    batch = {
        "pixel_values": torch.nn.functional.pad(normalized(image), (0, 14, 0, 24)).repeat(2, 1, 1, 1),
        "pixel_mask": mask,
        "orig_size": [(80, 100)] * 2,  # twice as large as the model saw it
        "target": [
            {"image_id": 1, "annotations": [{**annotation, "bbox": [10, 10, 20, 20]}]},
            {"image_id": 2, "annotations": [{**annotation, "bbox": [20, 20, 40, 40]}]},
        ],
        "sample_ids": ["one", "two"],
    }
    evaluation.add(lambda **inputs: None, batch)
    states = [evaluation.state()]
    metrics = evaluation.compute(states)
    last.states, last.gallery = states, last.new_gallery().merged([evaluation.gallery])
    names = write_figures(tmp_path, evaluation, last, NAMES, write_page)
    assert {"precision_recall.json", "precision_recall.png", "worst_images.png"} < set(names)
    curves = read(tmp_path, "precision_recall")
    curve = curves["boxes"]["per_class"]["cat"]["0.50"]
    assert curves["recall"] == pytest.approx(np.linspace(0, 1, 101))
    assert curve == pytest.approx([1.0] * 51 + [2 / 3] * 50)
    assert np.mean(curve) == pytest.approx(metrics["ap50"]) and curves["boxes"]["mean"]["0.50"] == pytest.approx(curve)
    assert curves["boxes"]["per_class"]["a & b"]["0.50"] == [None] * 101
    (worst,) = read(tmp_path, "worst_images")
    assert worst == {"sample": "one", "found": 1, "missed": 0, "false_alarms": 1, "f1": pytest.approx(2 / 3)}
    kept = last.gallery.first[0]
    assert Image.open(io.BytesIO(kept.image)).size == (50, 40)
    assert kept.truth["objects"] == [([5.0, 5, 15, 15], 0, None)]
    assert [box for box, _, _ in kept.prediction["objects"]] == [[5.0, 5, 15, 15], [25, 25, 30, 30]]
    assert len(last.gallery.first[1].prediction["objects"]) == 1  # the one of 0.1 is not shown


def test_masks_of_objects_are_drawn(tmp_path):
    """The upper half of a box in the labels, the left half in the prediction; the model saw half of the size."""
    upper, left = np.zeros((80, 100), np.uint8), np.zeros((80, 100), np.uint8)
    upper[20:40, 20:60], left[20:60, 20:40] = 1, 1
    found = [detect([[20.0, 20, 60, 60]], [1], [0.9])]
    processor = SimpleNamespace(
        **vars(PROCESSOR),
        post_process_object_detection=lambda outputs, threshold, target_sizes: found,
        post_process_instance_segmentation=lambda *arguments, **options: [{"segmentation": torch.tensor(left)[None]}],
    )
    evaluation = DetectionEvaluation(processor, "mask_rcnn", 3, masks=True)
    evaluation.gallery = gallery = Gallery.of_processor(processor)
    rle = coco_mask.encode(np.asfortranarray(upper))
    annotation = {"category_id": 1, "iscrowd": 0, "area": 800.0, "bbox": [20, 20, 40, 40], "segmentation": rle}
    batch = {
        "pixel_values": normalized(np.full((40, 50, 3), 128, np.uint8))[None],
        "pixel_mask": torch.ones(1, 40, 50, dtype=torch.int64),
        "orig_size": [(80, 100)],
        "target": [{"image_id": 1, "annotations": [annotation]}],
        "sample_ids": ["one"],
    }
    evaluation.add(lambda **inputs: None, batch)
    write_page(pickle.loads(pickle.dumps(gallery)), NAMES, tmp_path)  # it comes from another process
    assert (tmp_path / "predictions.html").read_text().count("<img") == 2
    truth, prediction = draw(gallery.first[0], dict(enumerate(NAMES)))
    assert truth.size == prediction.size == (300, 240)  # enlarged
    color = tuple((class_colors(3)[1] // 2 + 64).tolist())  # half of the grey
    for picture, inside, outside in ((truth, (165, 100), (100, 165)), (prediction, (100, 165), (165, 100))):
        assert picture.getpixel(inside) == pytest.approx(color, abs=4), "in the mask"
        assert picture.getpixel(outside) == pytest.approx((128,) * 3, abs=4), "in the box only"


def record(boxes, labels, **more):
    return {"boxes_xywh": np.array(boxes, dtype=float).reshape(-1, 4), "labels": np.array(labels, dtype=int)} | {
        name: np.array(values) for name, values in more.items()
    }


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (([], [], []), ([], [], []), (0, 0, 0, 1.0)),
        (([], [], []), ([[0, 0, 10, 10]], [1], [False]), (0, 1, 0, 0.0)),
        # The better of two detections takes the object; the other is a false alarm.
        (([[0, 0, 10, 9], [0, 0, 10, 10]], [1, 1], [0.6, 0.9]), ([[0, 0, 10, 10]], [1], [False]), (1, 0, 1, 2 / 3)),
        (([[0, 0, 10, 10]], [2], [0.9]), ([[0, 0, 10, 10]], [1], [False]), (0, 1, 1, 0.0)),  # another class
        (([[0, 0, 10, 10]], [1], [0.4]), ([[0, 0, 10, 10]], [1], [False]), (0, 1, 0, 0.0)),  # not sure enough
        (([[2, 2, 5, 5]], [1], [0.9]), ([[0, 0, 50, 50]], [1], [True]), (0, 0, 0, 1.0)),  # in a crowd
    ],
)
def test_errors_of_an_image(found, wanted, expected):
    counted = count_errors(
        record(found[0], found[1], scores=np.array(found[2], dtype=float)),
        record(wanted[0], wanted[1], iscrowd=np.array(wanted[2], dtype=bool)),
    )
    assert tuple(counted.values()) == pytest.approx(expected)


def test_a_gallery_is_bounded_and_keeps_the_worst():
    gallery, errors = Gallery.of_processor(PROCESSOR), np.random.default_rng(0).permutation(500)
    made = []
    for error in errors.tolist():
        gallery.offer(str(error), (float(error),), lambda error=error: made.append(error) or shown(str(error)))
    assert [each.name for each in gallery.first] == [str(error) for error in errors[:FIRST]]
    merged = gallery.merged([gallery, Gallery.of_processor(PROCESSOR)])
    assert [each.name for _, _, each in merged.worst] == [str(error) for error in range(499, 499 - WORST, -1)]
    assert len(made) < 100  # others are not even drawn
    large = gallery.picture(torch.zeros(3, 1000, 2000, dtype=torch.uint8))
    assert large.size == (LONGEST_SIDE, LONGEST_SIDE // 2)
    plain = Gallery.of_processor(PvtSemanticImageProcessor(do_normalize=False))
    assert plain.picture(torch.full((3, 4, 4), 0.2)).getpixel((0, 0)) == (51, 51, 51)


@pytest.mark.slow
def test_a_thousand_classes_take_bounded_memory(tmp_path):
    """A matrix has 8 MB. Twenty of them are enough for its copies and colours."""
    rng, names = np.random.default_rng(0), [f"class {index}" for index in range(1000)]
    matrix = np.diag(rng.integers(30, 50, 1000)) + (rng.random((1000, 1000)) < 0.01) * rng.integers(1, 9, (1000, 1000))
    tracemalloc.start()
    write_confusion(matrix, names, "samples", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * matrix.nbytes
    assert read(tmp_path, "confusion_matrix")["matrix"] == matrix.tolist()
    assert (tmp_path / "confusion_matrix.json").stat().st_size < 5e6
    assert Image.open(tmp_path / "confusion_matrix.png").width < 2000


def test_a_figure_that_cannot_be_drawn_is_said_and_costs_nothing(tmp_path, capsys):
    def fail(*arguments):
        raise ZeroDivisionError("no width")

    evaluation, last = SimpleNamespace(write_figures=lambda *arguments: None), LastEvaluation(PROCESSOR, ["state"])
    last.gallery = last.new_gallery()
    assert write_figures(tmp_path, evaluation, last, NAMES, fail) == ["worst_images.json"]
    assert "warning: not all figures could be drawn: ZeroDivisionError: no width" in capsys.readouterr().out
