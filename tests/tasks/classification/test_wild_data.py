"""
Training on what real data sets contain, from real files of all three kinds: strange and broken images, wrong labels,
empty and short streams, columns that are missing.

    pytest tests/tasks/classification/test_wild_data.py
"""

import io
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.checkpoints import list_checkpoints
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream

from ...support.training_runs import train_here


NAMES = ("first", "second")


def encoded(seed: int, mode: str = "RGB", format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


# Names as in a folder; those of BROKEN cannot be used
STRANGE = {
    "grey.png": encoded(1, "L"), "cmyk.jpg": encoded(2, "CMYK", "JPEG"), "sixteen.png": encoded(3, "I;16"),
    "palette.png": encoded(4, "P"), "alpha.png": encoded(5, "LA"), "mislabelled.jpg": encoded(6, format="PNG"),
}  # fmt: skip
BROKEN = {"zero.png": b"", "truncated.png": encoded(7)[:900], "text.jpg": b"this is not an image"}
ORDINARY = {f"{index:02d}.png": encoded(100 + index) for index in range(39)}
ALL = STRANGE | BROKEN | ORDINARY  # 48
WRONG_LABELS = {"05.png": 7, "06.png": -1}  # in parquet files and tars


def rows() -> list[dict]:
    return [
        {"image": {"bytes": content, "path": name}, "label": WRONG_LABELS.get(name, index % 2)}
        for index, (name, content) in enumerate(ALL.items())
    ]


def write_parquet(root, all_rows, files=4, label=True):
    root.mkdir(parents=True, exist_ok=True)
    features = {"image": datasets.Image()} | ({"label": datasets.Value("int64")} if label else {})
    for number in range(files):
        part = all_rows[number::files]
        columns = {name: [row[name] for row in part] for name in features}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(root / f"train-{number}.parquet")
    return root


def write_tars(root, all_rows, files=4):
    """All images as .jpg, whatever they are: a tar of one kind of sample."""
    root.mkdir(parents=True)
    for number in range(files):
        with tarfile.open(root / f"{number:03d}.tar", "w") as tar:
            for row in all_rows[number::files]:
                stem = row["image"]["path"].partition(".")[0]
                for name, content in (
                    (f"{stem}.jpg", row["image"]["bytes"]),
                    (f"{stem}.cls", str(row["label"]).encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


def write_folder(root, contents):
    for index, (name, content) in enumerate(contents.items()):
        (root / NAMES[index % 2]).mkdir(parents=True, exist_ok=True)
        (root / NAMES[index % 2] / name).write_bytes(content)
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_training_on_a_wild_data_set(kind, num_workers, tmp_path, capsys):
    options = {"batch_size": 5, "num_workers": num_workers, "shuffle_window": 8, "max_bad_share": 0.1}
    wrong = set(BROKEN)
    if kind == "folder":
        source, stream_options = write_folder(tmp_path / "data", ALL), {}
    else:
        write = write_parquet if kind == "parquet" else write_tars
        source, stream_options = write(tmp_path / "data", rows()), {"class_names": NAMES}
        wrong |= set(WRONG_LABELS)
    if kind == "webdataset":
        options["samples_per_epoch"] = 1000  # does not tell its length: the stream ends first
    _, report = train_here(source, tmp_path / "run", stream_options=stream_options, **options)
    skipped = {name.rpartition("/")[2].partition(".")[0] for name, _ in report["skipped_samples"]}
    assert skipped == {name.partition(".")[0] for name in wrong}
    assert report["skipped"] == 2 * len(wrong)  # in both epochs
    usable = len(ALL) - len(wrong)
    assert report["trained"] % 10 == 0 and report["trained"] + report["dropped"] == 2 * usable
    assert report["dropped"] <= 2 * max(num_workers, 1) * 4  # less than a batch of each worker
    output = capsys.readouterr().out
    assert output.count("skipped ") >= 2 * len(wrong) and "is not one of the 2 classes" in output or kind == "folder"
    assert f"{report['skipped']} skipped, {report['dropped']} left over so far" in output


def test_too_many_broken_images_stop_with_a_checkpoint(tmp_path):
    contents = ORDINARY | {f"broken{index}.png": b"" for index in range(4)}
    source = write_folder(tmp_path / "data", contents)
    with pytest.raises(StreamError, match=r"(?s)2 of \d+ samples .* more than the allowed share.*broken\d.png"):
        train_here(source, tmp_path / "run", batch_size=4, max_bad_share=0.01)
    assert list_checkpoints(tmp_path / "run")


def test_streams_without_samples(tmp_path):
    with pytest.raises(ValueError, match=r"\(train-0.parquet ...\) cannot be opened: they have no rows \(1 file"):
        train_here(
            write_parquet(tmp_path / "none", [], files=1), tmp_path / "run", stream_options={"class_names": NAMES}
        )
    (tmp_path / "folders" / "a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="No images found"):
        open_classification_stream(str(tmp_path / "folders"))
    tarfile.open(tmp_path / "empty.tar", "w").close()
    (tmp_path / "tars").mkdir()
    (tmp_path / "empty.tar").rename(tmp_path / "tars" / "0.tar")
    with pytest.raises(ValueError, match=r"tars: the webdataset files \(0.tar ...\) cannot be opened"):
        open_classification_stream(str(tmp_path / "tars"))


def test_streams_shorter_than_a_batch(tmp_path):
    parquet = write_parquet(tmp_path / "parquet", rows()[:6], files=1)
    with pytest.raises(ValueError, match="6 samples do not fill one step of 8"):
        train_here(parquet, tmp_path / "run", batch_size=8, stream_options={"class_names": NAMES})
    good = [row for row in rows() if row["image"]["path"] in STRANGE]
    tars = write_tars(tmp_path / "tars", good, files=1)
    with pytest.raises(ValueError, match=r"did not fill a single step of 8 .*0 skipped, 6 left over.*--batch_size"):
        train_here(tars, tmp_path / "run", batch_size=8, samples_per_epoch=100, stream_options={"class_names": NAMES})
    with pytest.raises(ValueError, match="give --samples_per_epoch"):
        train_here(tars, tmp_path / "run", batch_size=4, stream_options={"class_names": NAMES})


def test_a_column_that_is_missing(tmp_path):
    source = write_parquet(tmp_path / "unlabelled", rows(), label=False)
    with pytest.raises(ValueError, match="no label column: name it with label_column"):
        ClassificationSample(open_classification_stream(str(source)), np.asarray)
    # In one of several files `datasets` fills in None: bad samples, and too many of them
    mixed = write_parquet(tmp_path / "mixed", rows()[9:], files=3)
    other = write_parquet(tmp_path / "other", rows()[9:], files=1, label=False)
    (other / "train-0.parquet").rename(mixed / "train-3.parquet")
    with pytest.raises(StreamError, match="label None is not one of the 2 classes"):
        train_here(mixed, tmp_path / "run", batch_size=4, max_bad_share=0.1, stream_options={"class_names": NAMES})
    assert list_checkpoints(tmp_path / "run")
