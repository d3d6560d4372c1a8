"""
The built-in digit streams: real digits, split without overlap, with annotations that agree, dealt out to shards, nodes
and workers without loss or repetition.

Annotations are checked against the pixels by brute force, digits against scikit-learn's own arrays.

    python -m pytest tests/data/test_digits.py
"""

import io
import itertools
import pickle
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import ClassLabel, IterableDataset
from datasets.distributed import split_dataset_by_node
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from pvt_hf.data import digit_drawing, digits
from pvt_hf.data.digits import DIGIT_NAMES, SCENE_CLASS_NAMES, digit_images, digit_scenes


SOURCE = load_digits()
SPLITS = ("train", "test")
COUNTS = {"train": 1442, "test": 355}


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Otherwise a second rendering, which these tests compare with the first, would be the first."""
    monkeypatch.setattr(digits, "_kept", {})
    monkeypatch.setattr(digits, "KEPT_BYTES", 0)


def source_index(sample):
    return int(sample["sample_id"].rsplit("/", 1)[1])


def undecoded(dataset):
    """Samples with the encoded bytes of their images, which can be compared and counted."""
    return list(dataset.decode(False))


def by_id(scenes):
    return {scene["image_id"]: scene for scene in scenes}


def luma(image):
    return np.asarray(image.convert("L")) / 255


# --------------------------------------------------------------------------------------------------- single digits


@pytest.mark.parametrize("split", SPLITS)
def test_one_pass_has_each_digit_of_the_split_once(split):
    samples = undecoded(digit_images(split, image_size=16))
    indices = [source_index(sample) for sample in samples]
    assert len(indices) == len(set(indices)) == COUNTS[split]
    assert [sample["label"] for sample in samples] == SOURCE.target[indices].tolist()
    assert all(sample["sample_id"] == f"digits/{split}/{index:06d}" for sample, index in zip(samples, indices))


def test_splits_are_disjoint_complete_and_stratified():
    samples = {split: undecoded(digit_images(split, image_size=8)) for split in SPLITS}
    indices = {split: {source_index(sample) for sample in samples[split]} for split in SPLITS}
    assert not indices["train"] & indices["test"]
    assert indices["train"] | indices["test"] == set(range(len(SOURCE.target)))

    labels = Counter(sample["label"] for split in SPLITS for sample in samples[split])
    assert labels == Counter(SOURCE.target.tolist())
    held_out = Counter(sample["label"] for sample in samples["test"])
    assert all(held_out[digit] == labels[digit] // 5 for digit in range(10))


def test_images_are_legible():
    """A support vector machine, trained on our renderings, reads the held-out ones (measured: 98.3 %)."""

    def pixels_and_labels(split):
        samples = list(digit_images(split))
        assert {(sample["image"].mode, sample["image"].size) for sample in samples} == {("RGB", (64, 64))}
        small = [luma(sample["image"].resize((16, 16), Image.Resampling.BOX)).ravel() for sample in samples]
        return np.stack(small), [sample["label"] for sample in samples]

    classifier = SVC(C=10).fit(*pixels_and_labels("train"))
    assert classifier.score(*pixels_and_labels("test")) > 0.97


def shape_vector(image, threshold):
    """The part of an image around its ink, stretched to 16x16, as a vector of unit length and zero mean."""
    box = Image.fromarray(image > threshold).getbbox()
    crop = Image.fromarray(image.astype(np.float32)).crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    vector = np.asarray(crop).ravel() - np.mean(crop)
    return vector / np.linalg.norm(vector)


def share_recognised(shapes, indices):
    """How often the most similar of all 1,797 source images is the named one (by chance: 0.06 %)."""
    sources = np.stack([shape_vector(source, threshold=5) for source in SOURCE.images])
    return np.mean((np.stack(shapes) @ sources.T).argmax(axis=1) == indices)


def test_images_show_the_digit_that_they_name():
    samples = list(digit_images("test"))
    opacities = [((0.7 - luma(sample["image"])) / 0.3).clip(0, 1) for sample in samples]  # ink is darker than 0.4
    shapes = [shape_vector(opacity, threshold=0.5) for opacity in opacities]
    assert share_recognised(shapes, [source_index(sample) for sample in samples]) > 0.6  # 74 % measured


def test_further_passes_repeat_the_digits_with_new_renderings():
    length = 2 * COUNTS["test"] + 5
    samples = undecoded(digit_images("test", image_size=16, length=length))
    first, second = samples[: COUNTS["test"]], samples[COUNTS["test"] : 2 * COUNTS["test"]]
    assert len(samples) == length
    assert first == undecoded(digit_images("test", image_size=16))
    assert [sample["sample_id"] for sample in first] == [sample["sample_id"] for sample in second]
    assert all(one["image"]["bytes"] != other["image"]["bytes"] for one, other in zip(first, second))


@pytest.mark.parametrize("num_shards", [1, 5])  # 5 divides the 355 digits
def test_one_shard_of_many_passes_sees_every_digit(num_shards):
    passes = num_shards + 1
    stream = digit_images("test", image_size=8, length=passes * COUNTS["test"], num_shards=num_shards).decode(False)
    samples = list(stream.shard(num_shards=num_shards, index=0))
    assert len(samples) == pytest.approx(passes * COUNTS["test"] / num_shards, abs=2)
    assert len({source_index(sample) for sample in samples}) == COUNTS["test"]
    assert len({sample["image"]["bytes"] for sample in samples}) == len(samples)


# ---------------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize("height, width", [(96, 96), (64, 200), (250, 70), (32, 32)])
def test_boxes_masks_areas_and_semantic_map_agree_with_the_pixels(height, width):
    scenes = list(digit_scenes("train", height, width, length=12))
    assert sum(len(scene["masks"]) for scene in scenes) > 24
    for scene in scenes:
        objects = scene["objects"]
        assert (scene["height"], scene["width"]) == (height, width)
        assert scene["image"].size == scene["semantic_map"].size == (width, height)
        assert (scene["image"].mode, scene["semantic_map"].mode) == ("RGB", "L")
        assert {len(values) for values in objects.values()} == {len(scene["masks"])}

        expected_map = np.zeros((height, width), dtype=int)
        for number, mask_image in enumerate(scene["masks"]):
            assert (mask_image.mode, mask_image.size) == ("L", (width, height))
            mask = np.asarray(mask_image)
            assert set(np.unique(mask)) == {0, 255}
            pixels = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
            top, left = min(y for y, _ in pixels), min(x for _, x in pixels)
            bottom, right = max(y for y, _ in pixels), max(x for _, x in pixels)
            assert objects["bbox"][number] == [left, top, right - left + 1, bottom - top + 1]
            assert objects["area"][number] == len(pixels)
            assert objects["iscrowd"][number] == 0
            assert objects["category"][number] == SOURCE.target[objects["source_index"][number]]
            assert not expected_map[mask > 0].any(), "two masks claim a pixel"
            expected_map[mask > 0] = objects["category"][number] + 1
        np.testing.assert_array_equal(np.asarray(scene["semantic_map"]), expected_map)


def test_masks_are_the_ink_of_the_image():
    for scene in digit_scenes("train", 128, 128, length=20):
        ink = np.asarray(scene["semantic_map"]) > 0
        brightness = luma(scene["image"])
        # Ink has luma 0.4 at most, the canvas 0.76 to 0.96, and a pixel of a mask is at least half ink.
        assert brightness[ink].max() < 0.69
        # Outside of masks only a stroke's soft edge is dark, where two of them meet.
        assert (brightness[~ink] < 0.45).mean() < 0.005


def test_masks_show_the_digit_that_they_name():
    """The last digit of a scene, which nothing hides."""
    scenes = list(digit_scenes("test", 200, 200, digit_sizes=(60, 100), length=100))
    shapes = [shape_vector(np.asarray(scene["masks"][-1]) / 255, threshold=0.5) for scene in scenes]
    assert share_recognised(shapes, [scene["objects"]["source_index"][-1] for scene in scenes]) > 0.6  # 80 % measured


def test_later_digits_hide_at_most_a_fifth_of_earlier_ones(monkeypatch):
    painted = []
    paint = digit_drawing.paint
    monkeypatch.setattr(
        digit_drawing, "paint", lambda window, opacity, ink: (painted.append(opacity), paint(window, opacity, ink))
    )
    shares = []
    for scene in digit_scenes("train", 96, 96, digit_sizes=(30, 36), length=40).decode(False):
        ink = [np.count_nonzero(opacity >= 0.5) for opacity in painted]
        assert len(ink) == len(scene["masks"])
        shares += [area / full for area, full in zip(scene["objects"]["area"], ink)]
        painted.clear()
    assert 0.8 <= min(shares) < 0.9, "crowded scenes must have digits that are partly hidden, but not more than a fifth"
    assert max(shares) == 1


def test_scenes_take_their_digits_from_their_split():
    of_split = {split: {source_index(sample) for sample in undecoded(digit_images(split))} for split in SPLITS}
    for split in SPLITS:
        scenes = undecoded(digit_scenes(split, 64, 64, length=200))
        used = {index for scene in scenes for index in scene["objects"]["source_index"]}
        assert len(used) > 200
        assert used <= of_split[split]


def test_number_and_size_of_digits():
    scenes = undecoded(digit_scenes("train", 120, 160, length=100))
    counts = {len(scene["masks"]) for scene in scenes}
    assert counts == set(range(3, 9))
    heights = [bbox[3] for scene in scenes for bbox in scene["objects"]["bbox"]]
    assert 10 <= min(heights) and max(heights) <= 60  # sizes 20 to 60, of which a partly hidden digit shows less
    assert max(heights) - min(heights) > 30

    scenes = undecoded(digit_scenes("train", 120, 160, digit_sizes=(100, 120), length=20))
    heights = [scene["objects"]["bbox"][-1][3] for scene in scenes]  # of the last digit, which nothing hides
    assert 80 <= min(heights) and max(heights) <= 120


def test_features_and_names():
    images, scenes = digit_images("train").features, digit_scenes("train", 64, 64).features
    assert DIGIT_NAMES == tuple("0123456789")
    assert SCENE_CLASS_NAMES == ("background", *"0123456789")
    assert images["label"] == scenes["objects"]["category"].feature == ClassLabel(names=list("0123456789"))


# ------------------------------------------------------------------------------- determinism, shards, nodes, workers


def test_a_stream_is_the_same_every_time():
    assert undecoded(digit_images("test", length=20)) == undecoded(digit_images("test", length=20))
    assert undecoded(digit_scenes("test", 64, 64, length=5)) == undecoded(digit_scenes("test", 64, 64, length=5))


@pytest.mark.parametrize("num_shards", [2, 3, 7])
def test_shards_together_are_the_one_shard_stream(num_shards):
    whole = undecoded(digit_images("test", image_size=16, length=500))
    sharded = digit_images("test", image_size=16, length=500, num_shards=num_shards)
    assert sharded.num_shards == num_shards
    parts = [undecoded(sharded.shard(num_shards=num_shards, index=index)) for index in range(num_shards)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 2  # evenly dealt, up to one per pass

    def key(sample):
        return sample["sample_id"], sample["image"]["bytes"]

    assert sorted(itertools.chain(*parts), key=key) == sorted(whole, key=key)

    whole = undecoded(digit_scenes("test", 48, 48, length=20))
    sharded = undecoded(digit_scenes("test", 48, 48, length=20, num_shards=num_shards))
    assert by_id(sharded) == by_id(whole) and len(sharded) == 20


@pytest.mark.parametrize("num_shards", [1, 4])  # every other sample of one shard, or two shards each
def test_two_nodes_share_the_stream(num_shards):
    stream = digit_images("test", image_size=8, num_shards=num_shards)
    parts = [undecoded(split_dataset_by_node(stream, rank=rank, world_size=2)) for rank in range(2)]
    indices = [source_index(sample) for part in parts for sample in part]
    assert abs(len(parts[0]) - len(parts[1])) <= 2
    assert len(indices) == len(set(indices)) == COUNTS["test"]


def test_two_workers_cover_the_stream_once():
    stream = digit_images("test", image_size=16, num_shards=4).decode(False)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2)
    loaded = sorted(loader, key=source_index)
    assert loaded == sorted(stream, key=source_index)
    assert len(loaded) == COUNTS["test"]

    scenes = digit_scenes("test", 48, 48, length=11, num_shards=2).decode(False)
    loaded = list(torch.utils.data.DataLoader(scenes, batch_size=None, num_workers=2))
    assert len(loaded) == 11 and by_id(loaded) == by_id(scenes)


@pytest.mark.parametrize(
    "make_stream, position",
    [
        (lambda: digit_images("test", image_size=16, length=40, num_shards=3), 0),
        (lambda: digit_images("test", image_size=16, length=40, num_shards=3), 5),
        (lambda: digit_images("test", image_size=16, length=40, num_shards=3), 19),  # in the second shard
        (lambda: digit_images("test", image_size=16, length=1800, num_shards=3), 500),  # in the second pass
        (lambda: digit_scenes("test", 48, 48, length=40, num_shards=3), 19),
        (lambda: digit_scenes("test", 48, 48, length=40), 7),
    ],
)
def test_a_stream_resumes_where_it_stopped(make_stream, position, monkeypatch):
    stream = make_stream().decode(False)
    iterator = iter(stream)
    for _ in range(position):
        next(iterator)
    state = pickle.loads(pickle.dumps(stream.state_dict()))
    expected = list(itertools.islice(iterator, 15))

    rendered = []
    encoded = digits._encoded
    monkeypatch.setattr(
        digits, "_encoded", lambda pixels, name, *rest: (rendered.append(name), encoded(pixels, name, *rest))[1]
    )
    resumed = make_stream().decode(False)
    resumed.load_state_dict(state)
    assert list(itertools.islice(resumed, 15)) == expected
    samples_rendered = [name for name in rendered if "mask" not in name and "semantic" not in name]
    assert len(samples_rendered) == 15, "samples before the point of resumption must not be rendered again"


def test_samples_are_kept_within_a_budget(monkeypatch):
    """Later passes render what did not fit: BMP of 16x16 pixels has 822 bytes, so 10,000 bytes are 12 of 20."""
    stream = digit_images("test", image_size=16, length=20).decode(False)
    expected, drawn, draw = list(stream), [], digits.draw_digit
    monkeypatch.setattr(digits, "KEPT_BYTES", 10_000)
    monkeypatch.setattr(digits, "_kept_bytes", 0)
    monkeypatch.setattr(digits, "draw_digit", lambda *arguments: (drawn.append(arguments[1]), draw(*arguments))[1])
    for count in (20, 28, 36):
        assert list(stream) == expected
        assert len(drawn) == count
    assert list(digit_images("train", image_size=16, length=3).decode(False)) != expected[:3]


def test_shuffle_take_and_pickle():
    stream = digit_images("test", image_size=8, num_shards=2).decode(False)
    shuffled = list(stream.shuffle(seed=0, buffer_size=50))
    assert shuffled != list(stream)
    assert sorted(shuffled, key=source_index) == sorted(stream, key=source_index)
    assert list(stream.take(3)) == list(itertools.islice(stream, 3))
    assert list(pickle.loads(pickle.dumps(stream)).take(5)) == list(stream.take(5))
    scenes = digit_scenes("test", 48, 48, length=3)
    assert isinstance(scenes, IterableDataset)
    assert undecoded(pickle.loads(pickle.dumps(scenes))) == undecoded(scenes)


def test_undecoded_images_are_named_files():
    (sample,) = undecoded(digit_images("test", length=1))
    assert sample["image"]["path"] == sample["sample_id"] + ".bmp"
    (scene,) = undecoded(digit_scenes("test", 48, 48, length=1))
    images = [sample["image"], scene["image"], scene["semantic_map"], *scene["masks"]]
    assert all(Image.open(io.BytesIO(image["bytes"])).format == image["path"][-3:].upper() for image in images)
    assert len({image["path"] for image in images}) == len(images)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "validation"}, r"\['train', 'test'\], got 'validation'"),
        ({"image_size": 0}, "image_size must be an integer of at least 8, got 0"),
        ({"image_size": 32.5}, "image_size .* got 32.5"),
        ({"image_size": True}, "image_size .* got True"),
    ],
)
def test_digit_images_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        digit_images(**{"split": "train", **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": None}, "got None"),
        ({"height": 31}, "height must be an integer of at least 32, got 31"),
        ({"width": -64}, "width .* got -64"),
        ({"digit_sizes": (0, 20)}, r"two integers .* from 8 to the shorter side, 64, got \(0, 20\)"),
        ({"digit_sizes": (10, 65)}, r"got \(10, 65\)"),
        ({"digit_sizes": (30, 20)}, r"got \(30, 20\)"),
        ({"digit_sizes": [20]}, r"got \[20\]"),
        ({"digit_sizes": (20, 30.5)}, r"got \(20, 30.5\)"),
    ],
)
def test_digit_scenes_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        digit_scenes(**{"split": "train", "height": 64, "width": 80, **arguments})


def test_missing_scikit_learn_is_named(monkeypatch):
    digit_drawing.source_digits.cache_clear()
    digits._split_indices.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digit_images("train")
