"""
Opening labelled images, from real files made on the spot: folders, parquet files and tars, with and without splits.

    pytest tests/tasks/classification/test_streams.py
"""

import io
import tarfile
import unicodedata

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


@pytest.mark.parametrize("name", ["test", "Valid", "train"])
def test_a_class_named_like_a_split_is_refused_and_the_advice_works(name, tmp_path):
    make_folder(tmp_path, {name: 2, "other": 2})
    with pytest.raises(ValueError, match=f"{name} is named like a split.*so that there is train/{name}"):
        open_classification_stream(str(tmp_path))
    (tmp_path / "all").mkdir()
    (tmp_path / name).rename(tmp_path / "all" / name)
    (tmp_path / "other").rename(tmp_path / "all" / "other")
    (tmp_path / "all").rename(tmp_path / "train")
    assert open_classification_stream(str(tmp_path)).class_names == tuple(sorted([name, "other"]))


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("Training", "Validation"),
        ("TRAIN", "VAL"),
        ("train_set", "dev"),
        ("train2012", "val2012"),
        ("trn", "Valid"),
        ("seg_train", "seg_val"),
    ],
)
def test_usual_names_of_splits(train, validation, tmp_path):
    make_folder(tmp_path / "unpacked" / train, {"cat": 3, "dog": 2})
    make_folder(tmp_path / "unpacked" / validation, {"Cat": 1, "DOG": 2}, start=50)
    for split, count in (("train", 5), ("validation", 3), (validation, 3)):
        stream = open_classification_stream(str(tmp_path), split)
        assert (stream.class_names, stream.num_samples) == (("cat", "dog"), count)
        assert [stream.class_names[e["label"]] for e in stream.dataset] == [
            file.parent.name.lower() for file in sorted((tmp_path / "unpacked").rglob("*.png"))
            if (file.parent.parent.name == train) == (split == "train")
        ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=f"no split 'test'.*{validation}"):
        open_classification_stream(str(tmp_path), "test")


def test_splits_and_classes_that_cannot_be_told_apart(tmp_path):
    make_folder(tmp_path / "two" / "train", {"a": 1, "b": 1})
    make_folder(tmp_path / "two" / "Train", {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="more than one 'train': Train, train"):
        open_classification_stream(str(tmp_path / "two"))
    make_folder(tmp_path / "case", {"cat": 1, "Cat": 1, "dog": 1})
    with pytest.raises(ValueError, match="Cat and cat differ only in case"):
        open_classification_stream(str(tmp_path / "case"))


def test_what_is_left_out_of_a_folder_is_counted_once(tmp_path, caplog):
    make_folder(tmp_path / "train", {"cat": 3, "dog": 2})
    for name in ("train/cat/._000.png", "train/dog/.DS_Store", "train/dog/Thumbs.db", "__MACOSX/train/cat/._0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    make_folder(tmp_path / "train", {".ipynb_checkpoints": 1, "cat/@eaDir": 1})
    (tmp_path / "train" / "cat" / "photo.HEIC").write_bytes(png(1))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("a")
    (tmp_path / "train" / "loose.png").write_bytes(png(2))
    (tmp_path / "docs").mkdir()
    for _ in range(2):
        stream = open_classification_stream(str(tmp_path))
        assert (stream.class_names, stream.num_samples) == (("cat", "dog"), 5)
    (message,) = (record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    for words in ("6 x junk", "1 x .heic images that Pillow cannot read", "cat/photo.HEIC", "1 x files that are not"):
        assert words in message, message
    assert "1 x images outside" in message and "1 x folders beside the splits" in message


def test_a_class_of_unreadable_images_only(tmp_path):
    make_folder(tmp_path, {"cat": 2, "dog": 0})
    (tmp_path / "dog" / "IMG_1.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(FileNotFoundError, match="No images in .*dog.*1 x .heic images that Pillow cannot read.*:"):
        open_classification_stream(str(tmp_path))


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


def test_accents_stored_in_two_ways_are_one_class(tmp_path):
    one, two = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    make_folder(tmp_path / "train", {two: 2, "tea": 1})
    make_folder(tmp_path / "val", {one: 1, "tea": 1}, start=50)
    for split in ("train", "validation"):
        assert open_classification_stream(str(tmp_path), split).class_names == (one, "tea")
    make_folder(tmp_path / "train", {one: 1}, start=70)
    with pytest.raises(ValueError, match="how accents are stored"):
        open_classification_stream(str(tmp_path))


def test_a_second_folder_for_a_split_is_named(tmp_path, caplog):
    make_folder(tmp_path / "train", {"cat": 1, "dog": 1})
    make_folder(tmp_path / "train (1)", {"cat": 1, "dog": 1}, start=50)
    open_classification_stream(str(tmp_path))
    assert "for the split 'train', train is read, and not train (1)." in caplog.text
