"""
`scripts/benchmark.py data` runs end to end, its ratios follow from the seconds it recorded, and it stops where the two
sides disagree. Decoding gives what the image processors' conversion gives, whatever the mode.

    pytest tests/scripts/test_benchmark_data.py
"""

import importlib
import io
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_hf.data.samples import decode_rgb
from pvt_hf.models.image_processing_input import to_channels_first


TINY = ["--images", "8", "--batch_size", "4", "--repeats", "3", "--row_seconds", "0"]


@pytest.fixture
def data_module(monkeypatch):
    return importlib.import_module("pvt_hf.commands.benchmark_data")


@pytest.fixture
def run_here(data_module, monkeypatch, tmp_path):
    """Runs the script's main function in this process; returns its exit code and report."""
    main = importlib.import_module("pvt_hf.commands.benchmark").main

    def run(*arguments):
        output = tmp_path / "new" / "report.json"
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "data", *TINY, "--output", str(output), *arguments])
        threads = torch.get_num_threads()
        try:
            return main(), json.loads(output.read_text())
        finally:
            torch.set_num_threads(threads)

    return run


@pytest.mark.parametrize("source", ["parquet", "folder", "webdataset"])
def test_every_row_is_there_and_follows_from_the_seconds(run_here, capsys, source):
    code, report = run_here("--source", source)
    assert code == 0 and report["complete"] and report["environment"]["threads"] == 1
    assert [row["row"] for row in report["rows"]] == ["crop", "recipe", "evaluation"]
    for row in report["rows"]:
        pairs = list(zip(row["ours"]["seconds"], row["bare"]["seconds"]))
        assert row["pairs"] == len(pairs) == 3
        assert row["ratio"] == pytest.approx(statistics.median(bare / ours for ours, bare in pairs))
        for side in ("ours", "bare"):
            rate = row[side]["images_per_second"]["median"]
            assert rate == pytest.approx(8 / statistics.median(row[side]["seconds"]))
        assert row["largest_difference"] == 0 or row["row"] == "evaluation"
    assert "ours/bare" in capsys.readouterr().out


@pytest.mark.parametrize("row", ["crop", "recipe", "evaluation"])
def test_sides_that_disagree_are_not_timed(data_module, run_here, monkeypatch, capsys, row):
    build = data_module.build_transforms

    def build_unequal(name):
        ours, bare = build(name)
        return ours, (lambda image: bare(image) + 0.01) if name == row else bare

    monkeypatch.setattr(data_module, "build_transforms", build_unequal)
    code, report = run_here("--rows", row)
    assert code == 1 and not report["complete"] and report["rows"] == []
    assert f"{row}: ours and bare differ by up to 0.01" in capsys.readouterr().err


def test_an_image_that_is_lost_is_a_disagreement(data_module, run_here, monkeypatch, capsys):
    write = data_module.write_source
    monkeypatch.setattr(data_module, "write_source", lambda files, *rest: write(files[:-4], *rest))
    code, report = run_here()
    assert code == 1 and report["rows"] == []
    assert "returned 4 images, 4 different ones, of 8" in capsys.readouterr().err


def test_ctrl_c_keeps_the_rows_so_far(data_module, run_here, monkeypatch):
    measure = data_module.measure_row

    def interrupt_at_the_second(row, *rest):
        if row == "recipe":
            raise KeyboardInterrupt
        return measure(row, *rest)

    monkeypatch.setattr(data_module, "measure_row", interrupt_at_the_second)
    code, report = run_here()
    assert code == 130 and not report["complete"] and [row["row"] for row in report["rows"]] == ["crop"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--images", "9"],
        ["--images", "0"],
        ["--batch_size", "0"],
        ["--repeats", "2"],
        ["--quality", "0"],
        ["--shuffle_window", "-1"],
        ["--source", "zip"],
        ["--rows", "speed"],
        ["--output", str(Path(__file__).parent)],
    ],
)
def test_arguments_that_cannot_be_are_named(run_here, capsys, arguments):
    with pytest.raises(SystemExit) as exit_information:
        run_here(*arguments)
    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_information.value.code == 2 and arguments[0] in error and arguments[1] in error


def encode(image: Image.Image, format: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def picture(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 34, 4), dtype=np.uint8)
    if mode in ("I;16", "I"):
        return Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    image = Image.fromarray(pixels)
    return image if mode == "RGBA" else image.convert("RGB" if mode == "CMYK" else mode).convert(mode)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


FILES = {
    **{f"{mode}.png": encode(picture(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    **{f"{mode}.jpg": encode(picture(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    **{f"{mode}.tif": encode(picture(mode), "TIFF") for mode in ("LAB", "I", "F", "I;16", "CMYK", "LA")},
    "key L.png": encode(picture("L"), "PNG", transparency=7),
    "key RGB.png": encode(picture("RGB"), "PNG", transparency=tuple(np.asarray(picture("RGB"))[0, 0].tolist())),
    "key I;16.png": encode(picture("I;16"), "PNG", transparency=257),
    "key P.png": encode(picture("P"), "PNG", transparency=bytes(range(256))),
    "palette.gif": encode(picture("P"), "GIF", transparency=3),
    **{f"turned {n}.jpg": encode(picture("RGB"), "JPEG", exif=exif(n)) for n in range(1, 9)},
    "turned L.png": encode(picture("L"), "PNG", exif=exif(6)),
}


@pytest.mark.parametrize("name", FILES)
def test_decoding_gives_what_the_processors_conversion_gives(name):
    """The conversion goes through arrays for every mode; EXIF orientation is applied here by its definition."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    image = Image.open(io.BytesIO(FILES[name]))
    image.load()
    turn = turns.get(image.getexif().get(0x0112))
    array = to_channels_first(image if turn is None else image.transpose(turn), None, True, 255.0)
    decoded = decode_rgb({"bytes": FILES[name], "path": None})
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.moveaxis(array, 0, -1).round().astype(np.uint8))
