"""
Decoding images and labels: every kind of image is read, and every unusable example is skipped by name.

    pytest tests/tasks/classification/test_samples.py
"""

import datasets
import pytest

from pvt_hf.data.batches import make_loader
from pvt_hf.data.streams import Stream
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream

from ...support.classification_files import batches_of, make_folder, png, to_tensor


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


def test_labels_out_of_range_are_bad_samples():
    rows = {"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(6)], "label": [0, 1, 7, -1, None, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset().decode(False)
    columns = {"image": "image", "label": "label"}
    stream = Stream("rows", dataset, columns, ("a", "b"), 6)
    batches = list(batches_of(stream, batch_size=2, max_bad_share=0.5))
    assert [name for batch in batches for name in batch.get("sample_ids", [])] == ["0.png", "1.png", "5.png"]
    assert [name for batch in batches for name, _ in batch["skipped"]] == ["2.png", "3.png", "4.png"]
    with pytest.raises(ValueError, match="no names"):
        ClassificationSample(Stream("rows", dataset, columns, None, 6), to_tensor)
