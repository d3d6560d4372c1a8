"""
What the image processors read: every mode, depth and transparency, by formulas written out here; the EXIF orientation,
as in ImageOps.exif_transpose, from any source. Bad input is refused with its position in the batch.

    pytest tests/models/test_image_processing_input.py
"""

import base64
import functools
import http.server
import io
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ..support.image_processing_cases import (
    CLASSES,
    FLOAT_RESIZE,
    GREY,
    LEVELS,
    RAW,
    TWO_LEVELS,
    encode,
    exif_image,
    mode_examples,
    noise,
    over_white,
    pixels,
)  # fmt: skip


pytest_plugins = ["tests.support.image_processing_cases"]


@pytest.fixture
def processor(backend):
    return CLASSES["pvt"][backend]()


# --- Colour, depth, transparency ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mode_examples())
def test_every_mode(processor, name):
    image, expected = mode_examples()[name]
    assert image.mode == name.split()[0]
    np.testing.assert_array_equal(pixels(processor, image, **RAW), expected)


@pytest.mark.parametrize("contract", [contract for contract in CLASSES if contract != "pvt"])
def test_every_contract_reads_alike(contract, backend):
    processor = CLASSES[contract][backend]()
    for name, (image, expected) in mode_examples().items():
        found = pixels(processor, image, **RAW)[:, :16, :16]  # without padding
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("size", [(47, 64), (64, 47), (257, 300)])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"]
)
def test_backends_agree_on_every_mode(mode, size):
    grey_first = mode in ("I;16", "F", "I")
    image = Image.fromarray(noise(*size, channels=4 if mode in ("LA", "PA", "RGBA") else 3))
    image = (image.convert("L") if grey_first else image).convert(mode)
    found = [pixels(built(), image) for built in CLASSES["pvt"].values()]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=FLOAT_RESIZE if mode == "F" else TWO_LEVELS)


def test_files_keep_transparency_and_depth(tmp_path, processor):
    rgba = noise(16, 16, 4)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(LEVELS.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    found = pixels(processor, str(tmp_path / "rgba.png"), **RAW)
    np.testing.assert_array_equal(found, over_white(rgba[..., :3], rgba[..., 3]))
    np.testing.assert_array_equal(pixels(processor, tmp_path / "deep.png", **RAW), GREY)


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32", "int64", "uint32"])
def test_sixteen_bit_arrays_are_scaled(processor, dtype):
    deep = (LEVELS.astype(np.uint32) * 257).astype(dtype)
    for array in (deep, deep[..., None], np.dstack([deep] * 3)):
        np.testing.assert_array_equal(pixels(processor, array, **RAW), GREY)
    if dtype in ("uint16", "int32", "int64"):
        np.testing.assert_array_equal(pixels(processor, torch.from_numpy(deep), **RAW), GREY)


def test_sixteen_bits_round_to_the_nearest_level(processor):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(deep / 65535 * 255 + 0.5)
    np.testing.assert_array_equal(pixels(processor, deep, **RAW)[0], expected)
    np.testing.assert_array_equal(pixels(processor, Image.fromarray(deep), **RAW)[0], expected)
    # a dark 16-bit image, whose values all fit in 8 bits, stays dark
    np.testing.assert_array_equal(
        pixels(processor, deep[:1].repeat(9, axis=0), **RAW)[0], expected[:1].repeat(9, axis=0)
    )


def test_alpha_of_arrays_and_tensors(processor):
    rgba = noise(20, 30, 4)
    expected = over_white(rgba[..., :3], rgba[..., 3])
    first = rgba.transpose(2, 0, 1)
    for image in (rgba, first, torch.from_numpy(rgba), torch.from_numpy(first.copy()), rgba.astype(np.uint16) * 257):
        np.testing.assert_array_equal(pixels(processor, image, **RAW), expected)
    for image in (rgba / 255, torch.from_numpy(first / 255)):
        # half a level, because the expected values are rounded
        np.testing.assert_allclose(pixels(processor, image, **RAW) * 255, expected, rtol=0, atol=0.501)
    found = pixels(processor, rgba.astype(np.float32), **{**RAW, "do_rescale": True}) * 255
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.501)


# --- Orientation and sources ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_whatever_the_source(tmp_path, processor, orientation):
    image = exif_image(orientation)
    data = encode(image, "JPEG", exif=image.getexif())
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    expected = np.array(ImageOps.exif_transpose(Image.open(path))).transpose(2, 0, 1)
    text = base64.b64encode(data).decode()
    for source in (Image.open(path), str(path), path, data, text, f"data:image/jpeg;base64,{text}"):
        np.testing.assert_array_equal(pixels(processor, source, **RAW), expected)
    expected = np.array(ImageOps.exif_transpose(image)).transpose(2, 0, 1)  # set on an image in memory
    np.testing.assert_array_equal(pixels(processor, image, **RAW), expected)


def test_url(tmp_path, processor):
    image = exif_image(6)
    (tmp_path / "image.jpg").write_bytes(encode(image, "JPEG", exif=image.getexif()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        found = pixels(processor, f"{address}/image.jpg", **RAW)
        with pytest.raises(ValueError, match=r"images\[1\]: cannot open .*missing.jpg.*404"):
            processor([image, f"{address}/missing.jpg"])
    finally:
        server.shutdown()
        server.server_close()
    np.testing.assert_array_equal(found, pixels(processor, str(tmp_path / "image.jpg"), **RAW))


# --- Bad input ------------------------------------------------------------------------------------------------------

GOOD = Image.new("RGB", (20, 30))


def with_value(value: float) -> np.ndarray:
    array = noise(20, 30).astype(np.float32)
    array[3, 4, 1] = value
    return array


BAD = {
    "NaN": (with_value(np.nan), "1 NaN or infinite"),
    "infinite": (with_value(-np.inf), "1 NaN or infinite"),
    "NaN tensor": (torch.from_numpy(with_value(np.nan)), "1 NaN or infinite"),
    "NaN in mode F": (Image.fromarray(with_value(np.nan)[..., 1]), "1 NaN or infinite"),
    "NaN grey": (with_value(np.nan)[..., 1], "1 NaN or infinite"),
    "zero-size image": (Image.new("RGB", (0, 5)), "zero-size image of 0x5"),
    "zero-size array": (np.zeros((0, 5, 3), np.uint8), r"zero-size array of shape \(0, 5, 3\)"),
    "zero-size tensor": (torch.zeros(3, 5, 0), r"zero-size array of shape \(3, 5, 0\)"),
    "rank 1": (np.zeros(5, np.uint8), "rank 1"),
    "rank 5": (np.zeros((1, 1, 3, 5, 5), np.uint8), "rank 5"),
    "2 channels": (np.zeros((20, 30, 2), np.uint8), r"shape \(20, 30, 2\).*expected 1"),
    "5 channels": (torch.zeros(5, 20, 30), r"shape \(5, 20, 30\).*expected 1"),
    "complex": (np.zeros((20, 30, 3), np.complex64), "dtype complex64"),
    "negative": (np.full((20, 30, 3), -1), "from -1 to -1"),
    "too large": (Image.new("I", (20, 30), 70_000), "from 70000 to 70000"),
    "truncated JPEG": (
        encode(Image.fromarray(noise(99, 99)), "JPEG")[:2000],
        "99x99 JPEG file cannot be decoded.*trunc",
    ),
    "truncated PNG": (encode(Image.fromarray(noise(99, 99)))[:9000], "99x99 PNG file cannot be decoded.*trunc"),
    "no image": (b"text", "cannot open 4 bytes"),
    "no file": ("missing/image.jpg", "cannot open 'missing/image.jpg'.*existing file"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("native", [False, True])
def test_bad_images_are_named(backend, name, native):
    processor_class = CLASSES["pvt"][backend]
    processor = processor_class.from_dict({}) if native else processor_class()
    image, message = BAD[name]
    if native and name == "no file":
        message = "cannot read 'missing/image.jpg'"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=rf"^images: .*{message}"):
            processor(image)
        with pytest.raises(ValueError, match=rf"^images\[1\]: .*{message}"):
            processor([GOOD, image])
        with pytest.raises(ValueError, match=rf"^images\[1\]\[0\]: .*{message}"):
            processor([[GOOD, GOOD], [image]])


def test_truncated_files_and_open_images(tmp_path, backend):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encode(Image.fromarray(noise(99, 99)), "JPEG")[:2000])
    processor_class = CLASSES["pvt"][backend]
    for processor in (processor_class(), processor_class.from_dict({})):
        with pytest.raises(ValueError, match=r"^images\[1\]: cannot|^images\[1\]: the 99x99 JPEG file cannot"):
            processor([GOOD, str(path)])
        with pytest.raises(ValueError, match=r"^images\[1\]: the 99x99 JPEG file cannot be decoded"):
            processor([GOOD, Image.open(path)])
    with Image.open(io.BytesIO(encode(GOOD))) as closed:
        pass
    with pytest.raises(ValueError, match="already closed"):
        processor_class()(closed)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [899, 400])  # Pillow itself only warns of the first
def test_files_with_too_many_pixels(tmp_path, backend, monkeypatch, limit):
    path, content = tmp_path / "image.png", encode(Image.fromarray(noise(30, 30)))
    path.write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    processor_class = CLASSES["pvt"][backend]
    for processor in (processor_class(), processor_class.from_dict({})):
        for source in (content, str(path), path):
            with pytest.raises(ValueError, match=r"900|30x30.*set PIL.Image.MAX_IMAGE_PIXELS"):
                processor(source)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # no limit
        assert processor(content, return_tensors="pt").pixel_values.ndim == 4
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)


def test_bad_position_in_a_batch_array(processor):
    batch = np.stack([noise(20, 30), with_value(np.nan)])
    with pytest.raises(ValueError, match=r"^images\[1\]: .*NaN"):
        processor(batch)


@pytest.mark.parametrize("images", [[], (), [[], []], np.zeros((0, 3, 20, 30), np.uint8)])
def test_empty_batches_are_refused(processor, images):
    with pytest.raises(ValueError, match="no image was given"):
        processor(images)


def test_items_that_are_no_images(processor):
    for images, message in ((None, "images: got NoneType"), ([GOOD, 3], r"images\[1\]: got int")):
        with pytest.raises(TypeError, match=message):
            processor(images)


def test_bad_settings(processor):
    with pytest.raises(ValueError, match="size={'height': 0, 'width': 5}; expected positive"):
        processor(GOOD, size={"height": 0, "width": 5})
    with pytest.raises(ValueError, match="crop_size={'shortest_edge': 5}; expected positive"):
        processor(GOOD, crop_size={"shortest_edge": 5})
    for name in ("crop_size", "size"):
        with pytest.raises(ValueError, match=f"{name} is 1000000x1000000; expected at most 268,435,456 pixels"):
            processor(GOOD, **{name: {"height": 10**6, "width": 10**6}})
    with pytest.raises(ValueError, match=r"images: .*alpha outside 0\.\.1"):
        processor(noise(9, 9, 4).astype(np.float32), do_rescale=False)
