"""
Opening labelled images, from real files made on the spot: folders, parquet files and tars, with and without splits.

    pytest tests/tasks/classification/test_streams.py
"""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pvt_hf.data.samples import decode_rgb
from pvt_hf.tasks.classification.streams import open_classification_stream

from ...support.classification_files import batches_of, ids_of, make_folder, png, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), {"cat": 13, "dog": 9, "owl": 1})


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("parquet"))


@pytest.fixture(scope="module")
def webdataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("tars")
    (root / "train").mkdir()
    for number, size in enumerate((6, 2)):
        with tarfile.open(root / "train" / f"{number:03d}.tar", "w") as tar:
            for index in range(size):
                for name, content in (
                    (f"{number}_{index}.jpg", png(index, format="JPEG")),
                    (f"{number}_{index}.cls", b"1"),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def test_folder_without_splits(folder):
    stream = open_classification_stream(str(folder))
    assert stream.class_names == ("cat", "dog", "owl") and stream.num_samples == 23
    examples = list(stream.dataset)
    assert [e["label"] for e in examples] == [0] * 13 + [1] * 9 + [2]
    assert all(e["image"]["bytes"] is None and e["image"]["path"].endswith(".png") for e in examples)
    with pytest.raises(FileNotFoundError, match="not divided into splits"):
        open_classification_stream(str(folder), "validation")


def test_folder_with_splits(tmp_path):
    make_folder(tmp_path / "train", {"test": 3, "b": 2})
    make_folder(tmp_path / "val", {"test": 1, "b": 2}, start=50)
    train, validation = (
        open_classification_stream(str(tmp_path)),
        open_classification_stream(str(tmp_path), "validation"),
    )
    assert (train.num_samples, validation.num_samples) == (5, 3)
    assert train.class_names == validation.class_names == ("b", "test")
    with pytest.raises(FileNotFoundError, match="no split 'test'; its folders are train, val"):
        open_classification_stream(str(tmp_path), "test")


def test_a_class_may_be_called_test(tmp_path):
    make_folder(tmp_path, {"test": 2, "other": 2})
    assert open_classification_stream(str(tmp_path)).class_names == ("other", "test")


def test_parquet(parquet):
    train, validation = open_classification_stream(str(parquet)), open_classification_stream(str(parquet), "validation")
    assert (train.num_samples, validation.num_samples) == (21, 5)
    assert train.image_column == "img" and train.class_names == ("a", "b", "c")
    assert train.dataset.num_shards > 3, "row groups are shards"
    assert len(set(ids_of([batches_of(train)]))) == 21
    with pytest.raises(FileNotFoundError, match="split 'test'"):
        open_classification_stream(str(parquet), "test")


def test_webdataset(webdataset):
    stream = open_classification_stream(str(webdataset), class_names=["zero", "one"])
    assert stream.columns["label"] == "cls" and stream.num_samples is None
    batches = list(batches_of(stream, batch_size=8))
    assert sorted(batches[0]["sample_ids"]) == sorted([f"0_{i}" for i in range(6)] + ["1_0", "1_1"])
    assert batches[0]["labels"].tolist() == [1] * 8


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        open_classification_stream(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="No images found"):
        open_classification_stream(str(tmp_path))
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.png").write_bytes(png(1))
    with pytest.raises(FileNotFoundError, match="cat"):
        open_classification_stream(str(tmp_path))


def test_columns_that_are_not_there(folder, parquet):
    with pytest.raises(ValueError, match="no column 'kind'; it has image, label"):
        open_classification_stream(str(folder), label_column="kind")
    with pytest.raises(ValueError, match="no column 'photo'"):
        open_classification_stream(str(parquet), image_column="photo")


def test_parquet_of_another_program_has_images_without_the_metadata(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (40, 36), (9, 8, 7)).save(picture, "PNG")
    rows = {"image": [{"bytes": picture.getvalue(), "path": "x.png"}] * 3, "label": [0, 1, 1]}
    pq.write_table(pa.table(rows), tmp_path / "train-0.parquet")
    stream = open_classification_stream(str(tmp_path), "train", class_names=["a", "b"])
    assert (stream.image_column, stream.num_samples) == ("image", 3)
    images = [decode_rgb(example["image"]) for example in stream.dataset]
    assert [image.size for image in images] == [(40, 36)] * 3 and images[0].getpixel((5, 5)) == (9, 8, 7)
