"""
Nothing to learn does not go unnoticed: labels are counted at the beginning and in the first epoch, against counts by
hand; what is of no use is named; a stream without anything to learn from or to evaluate is refused.

    python -m pytest tests/engine/test_guard.py
"""

import dataclasses
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from pvt_hf.data.batches import BatchStream
from pvt_hf.data.label_counts import LabelCounts
from pvt_hf.engine import guard as guard_module
from pvt_hf.engine.feed import SampleCounts, TrainingStream
from pvt_hf.engine.guard import LabelGuard
from pvt_hf.engine.run import HeldOut
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.tasks.detection.samples import DetectionEvaluationSample, DetectionSample
from pvt_hf.tasks.detection.streams import open_detection_stream
from pvt_hf.tasks.segmentation.samples import SegmentationSample
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream

from ..support import detection_files, segmentation_files
from ..support.classification_files import make_folder, png, to_tensor


SIZE = (40, 60)  # height, width


def look(sample, training=True, **options) -> list[str]:
    """What a guard says before training."""
    said: list[str] = []
    LabelGuard(sample, said.append, training=training, **options).look()
    return said


@pytest.fixture
def detection(tmp_path):
    """A sample maker for images with these boxes or annotations, one per image; of the class "car" if none is given."""

    def make(*objects, training=True):
        names = [f"{index}.png" for index in range(len(objects))]
        made = {
            name: [{"bbox": [1, 1, 9, 9], "category_id": 3, **(one if isinstance(one, dict) else {"bbox": one})}]
            for name, one in zip(names, objects)
            if one is not None
        }
        root = tmp_path / "coco"
        detection_files.write_coco(root / "annotations.json", root / "images", dict.fromkeys(names, SIZE), objects=made)
        stream = open_detection_stream(str(root), "train")
        if training:
            return DetectionSample(stream, detection_files.whole)
        return DetectionEvaluationSample(stream, detection_files.to_pixels)

    return make


@pytest.fixture
def segmentation(tmp_path):
    """A sample maker for these masks."""

    def make(*masks, class_names=("ground", "cell"), **options):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for index, mask in enumerate(masks):
            array = np.asarray(mask, dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / "masks" / f"{index:03d}.png")
            Image.new("RGB", array.shape[::-1]).save(tmp_path / "images" / f"{index:03d}.png")
        stream = open_segmentation_stream(str(tmp_path), "train")
        return SegmentationSample(stream, segmentation_files.whole, class_names, **options)

    return make


def classification(folder, labels, class_names=("ant", "bee", "cow")):
    """A sample maker for a parquet file with these labels."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = [{"image": {"bytes": png(i), "path": f"{i}.png"}, "label": label} for i, label in enumerate(labels)]
    folder.mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    stream = open_classification_stream(str(folder), class_names=class_names)
    return ClassificationSample(stream, to_tensor)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([{"iscrowd": 1}, {"iscrowd": 1}], "all its 2 objects are of no use: 2 crowds (iscrowd is 1)."),
        (
            [[0.1, 0.2, 0.5, 0.8], [0.0, 0.0, 0.9, 0.5], [0.5, 0.5, 0, 0]],
            "2 boxes with all numbers between 0 and 1, which have to be pixels: [x, y, width, height], 1 boxes without",
        ),
        ([[70, 5, 9, 9], [5, -20, 9, 20]], "2 boxes outside their image."),
        ([[5, 5, 0, 9]], "1 boxes without area."),
        ([[5, 5, 0.5, 9]], "1 boxes with a side below a pixel."),
        ([[59.5, 5, 9, 9]], "1 boxes with less than a pixel inside their image."),
        ([None, None, None], "its 3 samples have no objects."),
    ],
    ids=["crowds", "normalised", "outside", "no area", "below a pixel", "at the border", "no objects"],
)
def test_objects_that_are_of_no_use(detection, objects, words, training):
    with pytest.raises(ValueError, match="has nothing to (learn from|evaluate): ") as error:
        look(detection(*objects, training=training), training)
    assert words in str(error.value) and ("learn from" in str(error.value)) == training


def test_the_reasons_of_some_objects_and_the_classes_without_any(detection):
    objects = [[1, 1, 9, 9], {"iscrowd": 1}, [70, 5, 9, 9], {"iscrowd": 1}, {"category_id": 1}, None]
    said = look(detection(*objects))
    assert said[0].endswith(
        "(train): 3 of 5 objects are of no use: 2 crowds (iscrowd is 1), 1 boxes outside their image."
    )
    assert said[1].startswith("warning: ") and said[1].endswith(": 1 of 3 classes never occur: 'toothbrush'.")
    assert len(said) == 2


def test_objects_without_trouble_are_not_mentioned(detection):
    assert look(detection(*({"category_id": id_} for id_ in detection_files.CATEGORIES))) == []


def test_masks_that_are_empty_show_in_the_first_epoch(detection, tmp_path):
    """The look does not decode masks."""
    sample = detection({"segmentation": [[5, 5, 5, 5, 5, 5]]}, {"segmentation": [[6, 6, 6, 6, 6, 6]]})
    sample = DetectionSample(sample.stream, detection_files.whole, with_masks=True)
    guard = LabelGuard(sample, [].append, training=True)
    guard.look()
    with pytest.raises(ValueError, match="all its 2 objects are of no use: 2 empty masks"):
        guard.finish(LabelCounts.total(sample(example)["label_counts"] for example in sample.stream.dataset))


def test_masks_of_0_and_255(segmentation):
    mask = np.zeros(SIZE)
    mask[:10] = 255
    with pytest.raises(ValueError, match=r"'ground'. If 255 marks a class, give .*: --mask_values 0 255\.$"):
        look(segmentation(mask, mask))
    assert look(segmentation(mask, mask, mask_values=(0, 255))) == []
    said = look(segmentation(mask, mask), training=False)
    assert said[0].endswith(
        f"{20 * SIZE[1]:,} of {80 * SIZE[1]:,} pixels are of no use: 1,200 of value 255, which is no class."
    )
    assert "1 of 2 classes never occur: 'cell'. If 255 marks a class" in said[1] and len(said) == 2
    with pytest.raises(ValueError, match=r"nothing to evaluate: all its 4,800 pixels .* --mask_values 0 255\.$"):
        look(segmentation(np.full(SIZE, 255), np.full(SIZE, 255)), training=False)


def test_masks_of_one_class(segmentation):
    with pytest.raises(ValueError, match=r"has nothing to learn from: all pixels .* are of one class, 'cell'\.$"):
        look(segmentation(np.ones(SIZE)))
    mask = np.zeros(SIZE)
    mask[:, :7] = 2
    with pytest.raises(ValueError, match="all pixels that can be used are of one class, 'cell'"):
        look(segmentation(mask, reduce_labels=True))  # 0 is no class, and 2 is class 1


def test_labels_of_one_class_and_classes_without_samples(tmp_path):
    with pytest.raises(ValueError, match=r"has nothing to learn from: all samples .* are of one class, 'bee'\.$"):
        look(classification(tmp_path / "one", [1, 1, 1]))
    (said,) = look(classification(tmp_path / "two", [1, 0, 1]))
    assert said.endswith("(train): 1 of 3 classes never occur: 'cow'.")
    assert look(classification(tmp_path / "three", [1, 0, 2])) == []


def test_a_share_that_holds_nothing(tmp_path):
    stream = open_classification_stream(str(make_folder(tmp_path / "photos", {"a": 3, "b": 3})))
    sample = ClassificationSample(stream, to_tensor)
    with pytest.raises(ValueError, match="held-out share has nothing to evaluate: it has no samples"):
        look(sample, training=False, keep=HeldOut(1e-9, wanted=True))
    assert look(sample, keep=HeldOut(1e-9, wanted=False)) == []


def test_a_long_stream_is_looked_at_until_something_is_found(segmentation, monkeypatch):
    monkeypatch.setattr(guard_module, "LOOK", 3)
    nothing, ground, cell = np.full(SIZE, 255), np.zeros(SIZE), np.ones(SIZE)
    said = look(segmentation(nothing, ground, ground, cell))
    assert "(train), first 3 samples: 2,400 of 7,200 pixels are of no use" in said[0]
    assert "(train), first 3 samples: all pixels" in said[1] and said[1].startswith("warning: ") and len(said) == 2
    said = look(segmentation(ground, ground, ground, cell))  # of data that are sorted by class
    assert said == []
    guard = LabelGuard(segmentation(nothing, nothing, nothing, nothing, ground, cell), said.append, training=True)
    guard.look()
    assert "The first 3 samples of" in said[0] and "are of no use: looking at the others." in said[0]
    assert said[1].startswith("warning: ")
    assert "first 5 samples: 9,600 of 12,000 pixels are of no use: 9,600 of value 255" in said[1]
    assert "all pixels that can be used are of one class, 'ground'" in said[2] and not guard.finished
    guard.finish(LabelCounts(6, {0: 2400, 1: 2400}, {"of value 255": 9600}))
    assert "(train): 9,600 of 14,400 pixels are of no use" in said[3] and len(said) == 4
    guard.finish(LabelCounts(6, {0: 1}, {}))  # a later epoch
    assert len(said) == 4
    with pytest.raises(ValueError, match="all its 14,400 pixels are of no use"):
        look(segmentation(*[nothing] * 6))


def test_a_source_that_fails_is_left_to_the_loader(tmp_path):
    def fail(example):
        raise ConnectionError("no network")

    sample = classification(tmp_path / "two", [1, 0])
    sample.stream = dataclasses.replace(sample.stream, dataset=sample.stream.dataset.map(fail))
    assert look(sample) == []


def counts_of(batches) -> LabelCounts:
    return LabelCounts.total(batch.get("label_counts", LabelCounts()) for batch in batches)


def test_batches_count_what_they_hold(segmentation, tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.choice([0, 1, 2, 255], SIZE) for _ in range(5)]
    sample = segmentation(*masks, class_names=("a", "b", "c", "d"))
    counts = counts_of(BatchStream(sample.stream, sample, 2))
    expected = {label: sum(int((mask == label).sum()) for mask in masks) for label in range(3)}
    assert counts.per_class == expected and counts.samples == 5
    assert list(counts.unused.values()) == [sum(int((mask == 255).sum()) for mask in masks)]
    assert counts_of(BatchStream(sample.stream, sample, 2, drop_last=True)).samples == 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_first_epoch_is_counted_across_a_resume(tmp_path, num_workers):
    sample = classification(tmp_path / "data", [0, 1, 2, 1, 1, 0, 2, 2, 1, 0, 0, 1])

    def training_stream():
        return TrainingStream(
            BatchStream(sample.stream, sample, 2, shuffle_window=4, drop_last=True), 1, num_workers, pin_memory=False
        )

    straight = training_stream()
    assert all("label_counts" not in batch for batch in straight)
    assert straight.counts.labels == LabelCounts(12, {0: 4, 1: 5, 2: 3}, {})
    list(straight)
    assert straight.counts.trained == 24 and straight.counts.labels.samples == 12  # the second epoch is not counted

    stopped, resumed = training_stream(), training_stream()
    batches = iter(stopped)
    for _ in range(3):
        next(batches)
    state = stopped.state_dict()
    state["counts"] = json.loads(json.dumps(state["counts"]))  # as the loop's checkpoints are written
    resumed.load_state_dict(state)
    assert resumed.counts.labels.samples == 6
    list(resumed)
    assert resumed.counts.labels == straight.counts.labels


def test_the_guard_gets_the_first_epoch_only(tmp_path):
    sample = classification(tmp_path / "data", [0, 1, 1, 0])
    said = []
    guard = LabelGuard(sample, said.append, training=True)
    stream = TrainingStream(BatchStream(sample.stream, sample, 2, drop_last=True), 1, 0, False, guard)
    list(stream)
    assert len(said) == 1 and said[0].endswith("(train): 1 of 3 classes never occur: 'cow'.")
    list(stream)
    assert len(said) == 1


def test_counts_survive_json():
    counts = SampleCounts(3, 1, labels=LabelCounts(3, {0: 5, 12: 1}, {"crowds": 2}))
    assert SampleCounts.from_dict(json.loads(json.dumps(dataclasses.asdict(counts)))) == counts


def test_renumbered_counts():
    counts = LabelCounts(2, {0: 5, 1: 2, 2: 1}, {"crowds": 4})
    assert counts.renumbered([2, 0, 0]) == LabelCounts(2, {2: 5, 0: 3}, {"crowds": 4})
