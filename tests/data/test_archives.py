"""
Parquet files as other programs than `datasets` write them, and tars that are cut off: read as they are meant, or an
error that names file, row and column.

    pytest tests/data/test_archives.py
"""

import io
import json
import tarfile

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pvt_hf.data.batches import BatchStream
from pvt_hf.data.samples import BadSample
from pvt_hf.data.streams import StreamError
from pvt_hf.data.webdataset import check_complete
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.tasks.detection.samples import DetectionSample
from pvt_hf.tasks.detection.streams import open_detection_stream
from pvt_hf.tasks.segmentation.samples import SegmentationSample
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream

from ..support.detection_files import encoded, noise, to_pixels, whole


COUNT = 6
IMAGES = [encoded(noise(index, 33, 40)) for index in range(COUNT)]
LABELS = [index % 2 for index in range(COUNT)]
NAMES = ("cat", "dog")


def write(folder, columns, **options):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=4, **options)
    return str(folder)


def read_labels(source, class_names=NAMES, **columns):
    """Labels of all examples, after comparing their images with those written."""
    stream = open_classification_stream(source, **columns)
    sample = ClassificationSample(stream, to_pixels, stream.class_names or class_names)
    labels = []
    for index, example in enumerate(stream.dataset):
        made = sample(example)
        assert np.array_equal(made["pixel_values"].permute(1, 2, 0), noise(index, 33, 40))
        labels.append(made["labels"].item())
    assert len(labels) == stream.num_samples
    return labels


def structs(layout):
    return pa.array([dict(zip(layout, (image, f"{i}.png"))) for i, image in enumerate(IMAGES)])


@pytest.mark.parametrize(
    "images",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array(IMAGES, pa.binary_view()),
        structs(("bytes", "path")),
        pa.StructArray.from_arrays([pa.array(IMAGES)], ["bytes"]),
        pa.StructArray.from_arrays([pa.array(["a"] * COUNT), pa.array(IMAGES, pa.large_binary())], ["path", "bytes"]),
    ],
    ids=lambda images: str(images.type),
)
@pytest.mark.parametrize("name", ["image", "photo"])
def test_images_as_bytes(images, name, tmp_path):
    assert read_labels(write(tmp_path, {name: images, "label": LABELS})) == LABELS


@pytest.mark.parametrize("style", ["relative", "windows", "absolute", "of the data set"])
@pytest.mark.parametrize("type", [pa.string(), pa.large_string()])
def test_images_as_paths(style, type, tmp_path):
    folder = tmp_path / "data" if style == "of the data set" else tmp_path
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(IMAGES):
        (tmp_path / "pictures" / f"{index}.PNG").write_bytes(image)
    start = {"windows": "pictures\\", "absolute": f"{tmp_path}/pictures/"}.get(style, "pictures/")
    paths = pa.array([f"{start}{index}.PNG" for index in range(COUNT)], type)
    write(folder, {"file": paths, "text": ["a word"] * COUNT, "label": LABELS})
    assert read_labels(str(tmp_path)) == LABELS


def test_structs_with_paths_and_more(tmp_path):
    (tmp_path / "0.png").write_bytes(IMAGES[0])
    images = [
        {"bytes": image if index else None, "path": f"{index}.png", "w": 40} for index, image in enumerate(IMAGES)
    ]
    assert read_labels(write(tmp_path, {"image": images, "label": LABELS})) == LABELS


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([float(label) for label in LABELS]),
        pa.array([str(label) for label in LABELS]),
        pa.array([NAMES[label] for label in LABELS]).dictionary_encode(),
        pa.array([NAMES[label] for label in LABELS], pa.string_view()),
        pa.array([NAMES[label].encode() for label in LABELS]),
        pa.array(LABELS, pa.uint8()),
    ],
    ids=lambda labels: str(labels.type)[:20],
)
def test_labels(labels, tmp_path):
    assert read_labels(write(tmp_path, {"image": pa.array(IMAGES), "label": labels})) == LABELS


def test_boolean_labels_are_two_classes(tmp_path):
    source = write(tmp_path, {"image": pa.array(IMAGES), "label": [bool(label) for label in LABELS]})
    assert open_classification_stream(source).class_names == ("false", "true")
    assert read_labels(source) == LABELS


def test_pandas(tmp_path):
    frame = pandas.DataFrame({"image": IMAGES, "label": LABELS, "note": pandas.Categorical(["x"] * COUNT)})
    frame.index = [f"row{index}" for index in range(COUNT)]
    frame.to_parquet(tmp_path / "train.parquet")
    assert read_labels(str(tmp_path)) == LABELS


def test_no_rows(tmp_path):
    write(tmp_path, {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    with pytest.raises(ValueError, match=r"\(train.parquet ...\) cannot be opened: they have no rows \(1 file"):
        open_classification_stream(str(tmp_path))
    pq.write_table(pa.table({"image": pa.array(IMAGES), "label": LABELS}), tmp_path / "train-1.parquet")
    assert read_labels(str(tmp_path)) == LABELS


def test_columns_that_differ_between_files(tmp_path):
    """A column that one file lacks or has no value of is that of the other."""
    write(tmp_path, {"image": pa.array(IMAGES[:3]), "label": LABELS[:3], "note": pa.nulls(3)})
    more = {
        "image": pa.array(IMAGES[3:]),
        "label": pa.array(LABELS[3:], pa.int8()),
        "note": ["x"] * 3,
        "other": [1] * 3,
    }
    pq.write_table(pa.table(more), tmp_path / "train_2.parquet")
    assert read_labels(str(tmp_path)) == LABELS
    assert [row["note"] for row in open_classification_stream(str(tmp_path)).dataset] == [None] * 3 + ["x"] * 3


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": pa.nulls(COUNT)}, r"the column 'label' \(label\) is null in every row, from row 0 on"),
        ({"label": pa.nulls(COUNT, pa.int64())}, r"the column 'label' \(label\) is null in every row"),
        ({"image": pa.nulls(COUNT)}, r"no image column among .*\['image'\] are null in every row, from row 0 on"),
        ({"image": pa.nulls(COUNT, pa.binary())}, r"\['image'\] are null in every row"),
        ({"image": pa.nulls(COUNT, structs(("bytes", "path")).type)}, r"\['image'\] are null in every row"),
    ],
)
def test_columns_of_nulls(columns, words, tmp_path):
    source = write(tmp_path, {"image": pa.array(IMAGES), "label": LABELS, **columns})
    with pytest.raises(ValueError, match=words):
        open_classification_stream(source)


def stream_error(sample):
    """The error of a stream, of which a single bad sample is allowed in a hundred."""
    with pytest.raises(StreamError) as error:
        list(BatchStream(sample.stream, sample, 1, collate=lambda samples: {}))
    return str(error.value)


def to_pair(image, labels):
    return to_pixels(image), torch.from_numpy(labels)


def with_nulls(values, rows=(1, 5)):
    return [None if index in rows else value for index, value in enumerate(values)]


def test_single_nulls_are_named_by_row_and_column(tmp_path):
    source = write(tmp_path / "labels", {"image": pa.array(IMAGES), "y": with_nulls(LABELS)})
    sample = ClassificationSample(open_classification_stream(source, label_column="y"), to_pixels, NAMES)
    assert "label (column 'y') None is not one of the 2 classes (train.parquet, row 5)" in stream_error(sample)

    source = write(tmp_path / "images", {"img": with_nulls(IMAGES), "label": LABELS})
    sample = ClassificationSample(open_classification_stream(source), to_pixels, NAMES)
    assert "the image (column 'img') is missing or empty (train.parquet, row 5)" in stream_error(sample)

    masks = [encoded(np.zeros((33, 40), dtype=np.uint8))] * COUNT
    source = write(tmp_path / "masks", {"image": pa.array(IMAGES), "gt": with_nulls(masks)})
    stream = open_segmentation_stream(source, image_column="image", mask_column="gt")
    text = stream_error(SegmentationSample(stream, to_pair, NAMES))
    assert "the mask (column 'gt') is missing or empty (train.parquet, row 5)" in text

    boxes = [{"bbox": [[1, 2, 3, 4] if index % 4 else None], "category": [0]} for index in range(COUNT)]
    source = write(tmp_path / "boxes", {"image": pa.array(IMAGES), "things": boxes})
    text = stream_error(DetectionSample(open_detection_stream(source), whole, NAMES))
    assert "objects (column 'things'): object 0: bbox None" in text and "(train.parquet, row 4)" in text


@pytest.mark.parametrize(
    "objects",
    [
        {"bbox": [["1", "2", "3", "4"]], "category": ["1"], "iscrowd": ["0"], "area": ["12"]},
        {"bbox": [[1, 2, 3, 4]], "category": [1.0], "iscrowd": [False]},
        {"segmentation": [json.dumps([[1, 2, 4, 2, 4, 6, 1, 6]])], "category_id": ["dog"]},
        [{"segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]], "label": 1}],
        {"bbox": [None], "segmentation": [[[1, 2, 4, 2, 4, 6, 1, 6]]], "label": [1]},
    ],
)
def test_objects(objects, tmp_path):
    facts = {"width": [-1] * COUNT, "height": [0] * COUNT, "image_id": [float(index) for index in range(COUNT)]}
    source = write(tmp_path, {"image": pa.array(IMAGES), "objects": [objects] * COUNT, **facts})
    stream = open_detection_stream(source)
    sample = DetectionSample(stream, whole, NAMES)
    for index, example in enumerate(stream.dataset):
        labels = sample(example)["labels"]
        assert labels["class_labels"].tolist() == [1] and labels["image_id"].tolist() == [index]
        np.testing.assert_allclose(labels["boxes"], [[2.5 / 40, 4 / 33, 3 / 40, 4 / 33]], rtol=1e-6)  # float32


def test_ids_beyond_64_bits(tmp_path):
    ids = pa.array([2**64 - 1] * COUNT, pa.uint64())
    objects = [{"bbox": [[1, 2, 3, 4]], "category": [0]}] * COUNT
    source = write(tmp_path, {"image": pa.array(IMAGES), "objects": objects, "image_id": ids})
    text = stream_error(DetectionSample(open_detection_stream(source), whole, NAMES))
    assert "image_id: the id 18446744073709551615 needs more than 64 bits" in text and "row 1" in text


@pytest.mark.parametrize("first", [2**70, 5])
def test_ids_beyond_64_bits_in_tars(first, tmp_path):
    facts = [{"image_id": 2**70 if index else first, "objects": {"bbox": [], "category": []}} for index in range(8)]
    members = {}
    for index, fact in enumerate(facts):
        members[f"{index}.png"] = IMAGES[0]
        members[f"{index}.json"] = json.dumps(fact).encode()
    write_tar(tmp_path / "train.tar", members)
    with pytest.raises((ValueError, StreamError), match="int too large|64 bits"):
        sample = DetectionSample(open_detection_stream(str(tmp_path)), whole, NAMES)
        list(BatchStream(sample.stream, sample, 1))


# Tars


def write_tar(file, members, mode="w", **options):
    with tarfile.open(file, mode, **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def tar(tmp_path):
    members = {}
    for index, image in enumerate(IMAGES):
        members |= {f"{index}.png": image, f"{index}.cls": str(LABELS[index]).encode()}
    write_tar(tmp_path / "train-0.tar", members)
    write_tar(tmp_path / "train-1.tar", members)
    return tmp_path / "train-1.tar"


def test_a_tar_that_ends_anywhere_is_an_error_if_a_member_is_cut(tar):
    """Cut at every multiple of 97 bytes, and where whole members are left."""
    content = tar.read_bytes()
    with tarfile.open(tar) as opened:
        ends = {member.offset_data + -(-member.size // 512) * 512 for member in opened}
    refused = 0
    for size in [*range(97, len(content), 97), *ends]:
        tar.write_bytes(content[:size])
        # The zeros between the last member and the end of the file may be cut without harm
        if size in ends or size > max(ends):
            check_complete(tar)
        else:
            with (
                tarfile.open(tar) if size > 512 else io.BytesIO() as _,
                pytest.raises(ValueError, match="not a complete tar"),
            ):
                check_complete(tar)
            refused += 1
    assert refused > 100
    tar.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"train-1.tar is not a complete tar: .* the last member .* is \d.(png|cls)"):
        open_classification_stream(str(tar.parent))


def test_members_of_zeros_do_not_hide_the_cut(tmp_path):
    file = tmp_path / "a.tar"
    write_tar(file, {"a.npy": bytes(40_000)})
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(ValueError, match="the last member that was found is a.npy"):
        check_complete(file)


@pytest.mark.parametrize("kind", ["usual", "unfilled", "gzip", "pax", "empty members"])
def test_complete_tars(kind, tar):
    if kind == "unfilled":  # as webdataset writers in other languages do: two blocks of zeros
        content = tar.read_bytes().rstrip(b"\0")
        tar.write_bytes(content + bytes(-len(content) % 512 + 1024))
    elif kind != "usual":
        members = {"0.png": IMAGES[0], "0.cls": b""} if kind == "empty members" else {"ä" * 200 + ".png": IMAGES[0]}
        write_tar(tar, members, "w:gz" if kind == "gzip" else "w", format=tarfile.PAX_FORMAT)
    check_complete(tar)


def test_a_cut_gzip(tar):
    write_tar(tar, {"0.png": IMAGES[0], "1.png": IMAGES[1]}, "w:gz")
    tar.write_bytes(tar.read_bytes()[:-3000])
    with pytest.raises(ValueError, match="not a complete tar"):
        check_complete(tar)


def test_not_an_image(tmp_path):
    """Bytes that are no image stay bytes."""
    source = write(tmp_path, {"image": pa.array(IMAGES), "feature": [b"\0" * 64] * COUNT, "label": LABELS})
    assert read_labels(source) == LABELS
    with pytest.raises(BadSample, match="image"):
        ClassificationSample(open_classification_stream(source), Image.Image.copy, NAMES)(
            {"image": {"bytes": b"none", "path": None}, "label": 0}
        )


def test_a_tar_without_a_mark_at_its_end_is_warned_about(tar, caplog):
    check_complete(tar)
    assert not caplog.text
    with tarfile.open(tar) as opened:
        cut = opened.getmembers()[2].offset  # after the first sample
    tar.write_bytes(tar.read_bytes()[:cut])
    check_complete(tar)
    assert (
        "train-1.tar has no end-of-archive marker: it may have been cut off after its last member, 0.cls" in caplog.text
    )


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tars_that_were_joined_are_read_to_the_end(mode, tar, caplog):
    parts = []
    for part in range(3):
        write_tar(tar, {f"{part}.png": IMAGES[part], f"{part}.cls": str(LABELS[part]).encode()}, mode)
        parts.append(tar.read_bytes())
    tar.write_bytes(b"".join(parts))
    (tar.parent / "train-0.tar").unlink()
    stream = open_classification_stream(str(tar.parent))
    for _ in range(2):  # it can be read again
        assert [example["__key__"] for example in stream.dataset] == ["0", "1", "2"]
        assert [example["png"]["bytes"] for example in stream.dataset] == IMAGES[:3]
    assert not caplog.text


@pytest.mark.parametrize("damage", ["cut", "garbage", "header"])
def test_damage_in_joined_tars_is_an_error(damage, tar):
    content = tar.read_bytes()
    joined = bytearray(content + content)
    if damage == "cut":
        joined = joined[: len(content) + 700]
    elif damage == "garbage":
        joined = bytearray(content + b"no tar" * 100)
    else:  # in the middle of the second, and the file ends as it should
        with tarfile.open(tar) as opened:
            third = len(content) + opened.getmembers()[2].offset
        joined[third : third + 512] = b"\xff" * 512
    tar.write_bytes(joined)
    with pytest.raises((ValueError, tarfile.ReadError), match="not a complete tar|or no tar, at byte"):
        list(open_classification_stream(str(tar.parent)).dataset)


@pytest.mark.parametrize("first", [b"", b"damaged"])
def test_the_first_bytes_may_be_no_image(first, tmp_path):
    images = [first, *IMAGES[1:]]
    stream = open_classification_stream(write(tmp_path, {"image": images, "label": LABELS}))
    assert [example["image"]["bytes"] for example in stream.dataset] == images


def test_bytes_beside_nulls_are_no_images(tmp_path):
    features = [None, *[b"\0" * 64] * (COUNT - 1)]
    source = write(tmp_path, {"photo": pa.array(IMAGES), "feature": features, "label": LABELS})
    assert read_labels(source) == LABELS


def test_case_of_label_columns_does_not_matter(tmp_path):
    assert read_labels(write(tmp_path, {"Image": IMAGES, "Label": LABELS})) == LABELS
