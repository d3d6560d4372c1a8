"""
Opening images with masks, from real files made on the spot: every layout is found and paired, and what does not fit is
an error that says what was expected.

    pytest tests/tasks/segmentation/test_streams.py
"""

import io
import tarfile

import datasets
import numpy as np
import pytest

from pvt_hf.data import digits
from pvt_hf.data.fingerprint import stream_fingerprint
from pvt_hf.tasks.ade20k import ADE20K_CLASS_NAMES
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.tasks.segmentation.samples import SegmentationSample
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream

from ...support.segmentation_files import encoded, mask, picture_of, read, whole, write_pair, write_parquet


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("parquet"))


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/training", "annotations/training"),
        ("images/train", "masks/train"),
        ("train/images", "train/masks"),
        ("training/image", "training/labels"),
        ("images", "masks"),
    ],
)
def test_folders_of_images_and_masks(images, masks, tmp_path):
    for seed, name in enumerate(("b", "a", "sub/a", "c.d")):
        write_pair(tmp_path / images, tmp_path / masks, name, seed)
    stream = open_segmentation_stream(str(tmp_path))
    assert stream.num_samples == stream.dataset.num_shards == 4 and stream.class_names is None
    found = {name.removeprefix(f"{tmp_path / images}/"): labels for name, labels in read(stream).items()}
    assert found.keys() == {"a.jpg", "b.jpg", "c.d.jpg", "sub/a.jpg"}
    for seed, name in enumerate(("b", "a", "sub/a", "c.d")):
        assert np.array_equal(found[f"{name}.jpg"], mask(seed)), name
    with pytest.raises(FileNotFoundError, match="validation"):
        open_segmentation_stream(str(tmp_path), "validation")


def test_ade20k_folders_have_two_splits(tmp_path):
    for split, count in (("training", 3), ("validation", 2)):
        for seed in range(count):
            write_pair(tmp_path / "images" / split, tmp_path / "annotations" / split, f"ADE_{seed}", seed)
    (tmp_path / "objectInfo150.txt").write_text("Idx Ratio Train Val Name")
    assert open_segmentation_stream(str(tmp_path), "train").num_samples == 3
    assert open_segmentation_stream(str(tmp_path), "validation").num_samples == 2
    with pytest.raises(FileNotFoundError, match="split 'test'.*It contains: annotations, images, objectInfo150.txt"):
        open_segmentation_stream(str(tmp_path), "test")


def test_ade20k_names():
    assert len(set(ADE20K_CLASS_NAMES)) == 150
    some = {0: "wall", 2: "sky", 12: "person", 20: "car", 44: "chest of drawers", 126: "animal", 149: "flag"}
    assert {index: ADE20K_CLASS_NAMES[index] for index in some} == some


def test_parquet(parquet):
    stream = open_segmentation_stream(str(parquet))
    assert (stream.num_samples, stream.dataset.num_shards) == (6, 3)
    assert stream.columns == {"image": "image", "mask": "annotation"}
    found = read(stream)
    assert all(np.array_equal(found[f"train_{i}.jpg"], mask(i)) for i in range(6)) and len(found) == 6
    assert open_segmentation_stream(str(parquet), "validation").num_samples == 2
    swapped = open_segmentation_stream(str(parquet), image_column="annotation", mask_column="image")
    assert swapped.columns == {"image": "annotation", "mask": "image"}
    with pytest.raises(ValueError, match="no column 'mask'; it has image, annotation, scene_category"):
        open_segmentation_stream(str(parquet), mask_column="mask")


def test_hub_id(parquet, monkeypatch):
    """What the Hub gives for an id is a streamed data set like that of the same files."""
    calls, load = [], datasets.load_dataset

    def from_files(source, split, streaming, **settings):
        calls.append((source, split, streaming, settings))
        return load("parquet", data_files={split: str(parquet / f"{split}-*")}, split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", from_files)
    stream = open_segmentation_stream("someone/ade20k", "validation")
    assert calls == [("someone/ade20k", "validation", True, {})]
    assert sorted(read(stream)) == ["validation_0.jpg", "validation_1.jpg"]


def test_webdataset(tmp_path):
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for seed in range(3):
            for ending, content in (("jpg", encoded(picture_of(mask(seed)), "JPEG")), ("png", encoded(mask(seed)))):
                info = tarfile.TarInfo(f"{seed}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    found = read(open_segmentation_stream(str(tmp_path)))
    assert all(np.array_equal(found[str(seed)], mask(seed)) for seed in range(3)) and len(found) == 3


def test_digit_scenes():
    stream = open_segmentation_stream("digit-scenes", "validation", image_size=48)
    assert stream.class_names == ("background", *"0123456789") and stream.num_samples == 400
    sample = SegmentationSample(stream, whole)
    expected = iter(digits.digit_scenes("test", 48, 48, num_shards=16, length=400))
    for example, scene in zip(stream.dataset.take(3), expected):
        made = sample(example)
        assert np.array_equal(made["labels"], np.array(scene["semantic_map"]))
        assert np.array_equal(made["pixel_values"].permute(1, 2, 0), np.array(scene["image"]))
    assert SegmentationSample(stream, whole, reduce_labels=True).class_names == tuple("0123456789")


def test_sources_that_do_not_fit(tmp_path, parquet):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        open_segmentation_stream(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="Expected in it: images/SPLIT and annotations/.*It contains: nothing"):
        open_segmentation_stream(str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(encoded(picture_of(mask(0)), "JPEG"))
    (tmp_path / "masks" / "b.png").write_bytes(encoded(mask(0)))
    with pytest.raises(FileNotFoundError, match=r"None of the 1 image\(s\) .* has a mask among the 1 file"):
        open_segmentation_stream(str(tmp_path))
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"picture": [{"bytes": encoded(mask(0)), "path": "0.png"}], "label": [0]}
    (tmp_path / "one").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "one" / "train.parquet")
    with pytest.raises(ValueError, match=r"one of masks.*the image columns \['picture'\]: name them"):
        open_segmentation_stream(str(tmp_path / "one"))
    stream = open_segmentation_stream(str(parquet))
    with pytest.raises(ValueError, match="have no names: give class_names, in the order of the labels from 1 on"):
        SegmentationSample(stream, whole, reduce_labels=True)
    with pytest.raises(ValueError, match="256 classes: at most 255"):
        SegmentationSample(stream, whole, tuple(map(str, range(256))))
    with pytest.raises(ValueError, match="no mask column"):
        SegmentationSample(open_classification_stream("digits"), whole)


def test_fingerprint_sees_the_masks(parquet, tmp_path):
    assert stream_fingerprint(open_segmentation_stream(str(parquet))) == stream_fingerprint(
        open_segmentation_stream(str(parquet))
    )
    for seed in range(2):
        write_pair(tmp_path / "images", tmp_path / "masks", str(seed), seed)
    before = stream_fingerprint(open_segmentation_stream(str(tmp_path)))
    (tmp_path / "masks" / "1.png").unlink()
    assert stream_fingerprint(open_segmentation_stream(str(tmp_path))) != before
