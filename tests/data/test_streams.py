"""
Streams from real files made on the spot: what is opened, what is skipped, and that nothing is lost or repeated.

    pytest tests/data/test_streams.py
"""

import io
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pvt_hf.data.batches import BatchStream, make_loader
from pvt_hf.data.samples import BadSample, decode_rgb, is_held_out
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream


def picture(seed: int, mode: str = "RGB", size=(40, 36)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels).convert(mode)


def png(seed: int, mode: str = "RGB", format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(seed, mode).save(buffer, format)
    return buffer.getvalue()


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32)).permute(2, 0, 1)


def random_shift(image: Image.Image) -> torch.Tensor:
    """A transform that draws from torch and NumPy, as augmentations do."""
    return to_tensor(image) + torch.rand(1) + float(np.random.rand())


def make_folder(root, counts, start=0):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{start + index:03d}.png").write_bytes(png(start + index))
    return root


def batches_of(stream, transform=to_tensor, batch_size=4, **kwargs):
    return BatchStream(stream, ClassificationSample(stream, transform), batch_size, **kwargs)


def ids_of(loaders) -> list[str]:
    return [name for loader in loaders for batch in loader for name in batch.get("sample_ids", [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), {"cat": 13, "dog": 9, "owl": 1})


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    root = tmp_path_factory.mktemp("parquet")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for split, sizes in (("train", (7, 3, 11)), ("validation", (5,))):
        for number, size in enumerate(sizes):
            rows = {
                "img": [{"bytes": png(i), "path": f"{split}-{number}-{i}.png"} for i in range(size)],
                "label": [i % 3 for i in range(size)],
            }
            table = datasets.Dataset.from_dict(rows, features=features)
            table.to_parquet(root / f"{split}-{number:05d}-of-{len(sizes):05d}.parquet", batch_size=4)
    return root


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
    assert stream.label_column == "cls" and stream.num_samples is None
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


def test_every_kind_of_image_is_read_and_the_broken_ones_are_skipped_by_name(tmp_path):
    root = make_folder(tmp_path, {"cat": 100})
    good = {
        "grey.png": png(1, "L"),
        "cmyk.jpg": png(2, "CMYK", "JPEG"),
        "sixteen.png": png(3, "I;16"),
        "palette.png": png(4, "P"),
        "alpha.png": png(5, "RGBA"),
        "mislabelled.jpg": png(6),
    }
    bad = {"zero.png": b"", "truncated.png": png(7)[:900], "text.jpg": b"this is not an image"}
    for name, content in {**good, **bad}.items():
        (root / "cat" / name).write_bytes(content)
    stream = open_classification_stream(str(root))
    batches = list(make_loader(batches_of(stream, max_bad_share=0.05), num_workers=2))
    read = {name.rpartition("/")[2] for batch in batches for name in batch.get("sample_ids", [])}
    skipped = {name.rpartition("/")[2]: reason for batch in batches for name, reason in batch["skipped"]}
    assert skipped.keys() == bad.keys() and all(skipped.values())
    assert read >= good.keys() and len(read) == 106
    with pytest.raises(RuntimeError, match=r"text.jpg|truncated.png"):
        list(batches_of(stream, max_bad_share=0.01))


def test_sixteen_bits_are_scaled_and_orientation_is_applied():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    picture(1, size=(40, 20)).save(buffer, "JPEG", exif=exif)
    assert decode_rgb({"bytes": buffer.getvalue(), "path": None}).size == (20, 40)
    sixteen = np.asarray(decode_rgb({"bytes": png(3, "I;16"), "path": None}))[..., 0]
    assert np.array_equal(sixteen, np.asarray(picture(3))[..., 0])
    with pytest.raises(BadSample, match="missing"):
        decode_rgb(None)


def test_labels_out_of_range_are_bad_samples():
    rows = {"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(6)], "label": [0, 1, 7, -1, None, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset().decode(False)
    from pvt_hf.data.streams import Stream

    stream = Stream("rows", dataset, "image", "label", ("a", "b"), 6)
    batches = list(batches_of(stream, batch_size=2, max_bad_share=0.5))
    assert [name for batch in batches for name in batch.get("sample_ids", [])] == ["0.png", "1.png", "5.png"]
    assert [name for batch in batches for name, _ in batch["skipped"]] == ["2.png", "3.png", "4.png"]
    with pytest.raises(ValueError, match="no names"):
        ClassificationSample(Stream("rows", dataset, "image", "label", None, 6), to_tensor)


@pytest.mark.parametrize("source", ["folder", "parquet"])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 2), (3, 0)])
def test_processes_and_workers_share_every_sample_once(source, world_size, num_workers, request):
    stream = open_classification_stream(str(request.getfixturevalue(source)))
    loaders = [
        make_loader(batches_of(stream, rank=rank, world_size=world_size, shuffle_window=5), num_workers)
        for rank in range(world_size)
    ]
    ids = ids_of(loaders)
    assert len(ids) == len(set(ids)) == stream.num_samples


def test_incomplete_batches_are_given_in_evaluation_and_counted_in_training(folder):
    stream = open_classification_stream(str(folder))
    given = list(batches_of(stream))
    assert [len(batch["sample_ids"]) for batch in given] == [4] * 5 + [3]
    kept = list(batches_of(stream, drop_last=True))
    assert len(kept) == 6 and kept[-1] == {"skipped": [], "dropped": 3}


def test_epochs_differ_and_repeat(folder):
    batches = batches_of(open_classification_stream(str(folder)), random_shift, shuffle_window=10, seed=3)
    orders, pixels = [], []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        out = list(batches)
        orders.append([name for batch in out for name in batch["sample_ids"]])
        pixels.append(torch.cat([batch["pixel_values"] for batch in out]))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert orders[0] == orders[2] and torch.equal(pixels[0], pixels[2])
    by_name = [dict(zip(order, pixel)) for order, pixel in zip(orders, pixels)]
    assert not any(torch.equal(by_name[0][name], by_name[1][name]) for name in orders[0]), "augmentation is redrawn"


def test_augmentation_leaves_the_callers_random_state_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(make_loader(batches_of(open_classification_stream(str(folder)), random_shift), 0))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_resuming_after_any_batch_continues_exactly(source, num_workers, request):
    stream = open_classification_stream(str(request.getfixturevalue(source)))

    def loader():
        batches = batches_of(stream, random_shift, batch_size=3, shuffle_window=4, seed=1, drop_last=True)
        batches.set_epoch(2)
        return make_loader(batches, num_workers)

    whole, states, running = [], [], loader()
    for batch in running:
        whole.append(batch)
        states.append(running.state_dict())
    for taken in range(0, len(whole), 2 if num_workers == 0 else 3):
        resumed = loader()
        resumed.load_state_dict(states[taken])
        rest = list(resumed)
        assert len(rest) == len(whole) - taken - 1
        for one, other in zip(rest, whole[taken + 1 :]):
            assert one.get("sample_ids") == other.get("sample_ids") and one.get("dropped") == other.get("dropped")
            if "pixel_values" in one:
                assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_resuming_with_other_settings_is_refused(folder):
    stream = open_classification_stream(str(folder))
    batches = batches_of(stream)
    next(iter(batches))
    with pytest.raises(ValueError, match="batch_size=4 and cannot go on with batch_size=5"):
        batches_of(stream, batch_size=5).load_state_dict(batches.state_dict())


def test_holding_out_is_decided_by_name_alone(folder):
    stream = open_classification_stream(str(folder))
    names = [example["image"]["path"] for example in stream.dataset]
    held = [name for name in names if is_held_out(name, 0.3)]
    assert 0 < len(held) < len(names)
    moved = [name.replace(str(folder), "/elsewhere") for name in names]
    assert [is_held_out(name, 0.3) for name in moved] == [name in held for name in names]
    kept = ids_of([batches_of(stream, keep=lambda name: not is_held_out(name, 0.3))])
    assert sorted(kept + held) == sorted(names)


def test_parquet_of_another_program_has_images_without_the_metadata(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (40, 36), (9, 8, 7)).save(picture, "PNG")
    rows = {"image": [{"bytes": picture.getvalue(), "path": "x.png"}] * 3, "label": [0, 1, 1]}
    pq.write_table(pa.table(rows), tmp_path / "train-0.parquet")
    stream = open_classification_stream(str(tmp_path), "train", class_names=["a", "b"])
    assert (stream.image_column, stream.num_samples) == ("image", 3)
    images = [decode_rgb(example["image"]) for example in stream.dataset]
    assert [image.size for image in images] == [(40, 36)] * 3 and images[0].getpixel((5, 5)) == (9, 8, 7)
