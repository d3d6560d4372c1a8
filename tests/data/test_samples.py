"""
Decoding images as the image processors do, with a limit on their pixels, and holding samples out by name.

    pytest tests/data/test_samples.py
"""

import io
import os

import numpy as np
import pytest
from PIL import Image

from pvt_hf.data.samples import BadSample, decode_rgb, is_held_out
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.tasks.detection.objects import mask_to_array
from pvt_hf.tasks.detection.samples import decode_as_annotated
from pvt_hf.tasks.segmentation.samples import decode_labels

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


def tiff(values) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(np.array([values], dtype=np.float32)).save(buffer, "TIFF")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.filterwarnings("error")
def test_floats_are_scaled_where_their_range_says_how():
    for values, expected in (([0, 0.5, 1], [0, 128, 255]), ([0, 0], [0, 0]), ([0, 1.4, 255], [0, 1, 255])):
        assert np.asarray(decode_rgb(tiff(values)))[0].tolist() == [[value] * 3 for value in expected]
    for values, words in (([-0.1, 1], "from -0.1 to 1;"), ([0, 300], "to 300; expected 0 to 1"), ([np.nan, 1], "nan")):
        with pytest.raises(BadSample, match=f"image: float values .*{words}"):
            decode_rgb(tiff(values))
        with pytest.raises(BadSample, match=words):
            decode_as_annotated(tiff(values))
    dark = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 0, 1)).save(dark, "PNG")  # of 8 bits: a dark picture, not one from 0 to 1
    assert decode_rgb({"bytes": dark.getvalue(), "path": None}).getpixel((0, 0)) == (1, 0, 1)


def test_holding_out_is_decided_by_name_alone(folder):
    stream = open_classification_stream(str(folder))
    names = [example["image"]["path"] for example in stream.dataset]
    held = [name for name in names if is_held_out(name, 0.3)]
    assert 0 < len(held) < len(names)
    moved = [name.replace(str(folder), "/elsewhere") for name in names]
    assert [is_held_out(name, 0.3) for name in moved] == [name in held for name in names]
    kept = ids_of([batches_of(stream, keep=lambda name: not is_held_out(name, 0.3))])
    assert sorted(kept + held) == sorted(names)


def flat(side: int) -> bytes:
    """A file of a few kilobytes, with side x side pixels of one colour."""
    buffer = io.BytesIO()
    Image.new("P", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def low_limit(monkeypatch):
    """A hundredth of Pillow's limit, so that the test needs no memory."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900_000)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [949, 1300, 1400])  # Pillow itself only warns of the first two
def test_small_files_of_huge_images(side, tmp_path, low_limit, monkeypatch):
    content, file = flat(side), tmp_path / "huge.png"
    file.write_bytes(content)
    assert len(content) < 4000
    sources = {"bytes": content, "path": None}, {"bytes": None, "path": str(file)}
    for source in sources:
        for decode in (decode_rgb, lambda value: decode_labels(value, 2, False), decode_as_annotated):
            with pytest.raises(BadSample, match="MAX_IMAGE_PIXELS") as error:
                decode(source)
            assert f"{side}x{side}" in str(error.value) or f"{side * side} pixels" in str(error.value)
        with pytest.raises(ValueError, match="MAX_IMAGE_PIXELS"):
            mask_to_array(source, side, side)
        monkeypatch.setenv("PVT_HF_MAX_IMAGE_PIXELS", str(side * side))  # the advice of the message
        assert decode_rgb(source).size == (side, side)
        monkeypatch.delenv("PVT_HF_MAX_IMAGE_PIXELS")
        Image.MAX_IMAGE_PIXELS = 900_000
    assert decode_rgb({"bytes": flat(948), "path": None}).getbbox() is None


def test_a_limit_that_is_no_number(monkeypatch):
    monkeypatch.setenv("PVT_HF_MAX_IMAGE_PIXELS", "2e8")
    with pytest.raises(BadSample, match="PVT_HF_MAX_IMAGE_PIXELS is '2e8'; expected a number of pixels"):
        decode_rgb({"bytes": flat(8), "path": None})


def test_a_program_is_no_image(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "image.eps")
    with pytest.raises(BadSample, match="image: An EPS file is a program, which is not run"):
        decode_rgb({"bytes": None, "path": str(tmp_path / "image.eps")})


def test_a_pipe_is_no_image(tmp_path):
    """Reading it would wait for a writer, for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(BadSample, match="is not a regular file"):
            decode_rgb({"bytes": None, "path": str(path)})
