"""
Decoding images as the image processors do, and holding samples out by name.

    pytest tests/data/test_samples.py
"""

import io

import numpy as np
import pytest
from PIL import Image

from pvt_hf.data.samples import BadSample, decode_rgb, is_held_out
from pvt_hf.tasks.classification.streams import open_classification_stream

from ..support.classification_files import batches_of, ids_of, make_folder, picture, png


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), {"cat": 13, "dog": 9, "owl": 1})


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


def test_holding_out_is_decided_by_name_alone(folder):
    stream = open_classification_stream(str(folder))
    names = [example["image"]["path"] for example in stream.dataset]
    held = [name for name in names if is_held_out(name, 0.3)]
    assert 0 < len(held) < len(names)
    moved = [name.replace(str(folder), "/elsewhere") for name in names]
    assert [is_held_out(name, 0.3) for name in moved] == [name in held for name in names]
    kept = ids_of([batches_of(stream, keep=lambda name: not is_held_out(name, 0.3))])
    assert sorted(kept + held) == sorted(names)
