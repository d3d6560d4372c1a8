"""
Files of Transformers' own PvtImageProcessor give the pixels of its class, in this package's class too.

    pytest tests/models/test_image_processing_native.py
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ..support.image_processing_cases import CLASSES, MEAN, NATIVE, STD, encode, exif_image, noise, pixels
from ..support.image_processing_files import assert_prepares_the_same, reload


pytest_plugins = ["tests.support.image_processing_cases"]

OLD_KEYS = {"feature_extractor_type": "PvtFeatureExtractor", "use_fast": True, "processor_class": None}
V4_FAST = {
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "do_center_crop": None,
    "do_convert_rgb": None,
    "image_processor_type": "PvtImageProcessorFast",
    "return_tensors": None,
    "size": {"height": 224, "width": 224},
}
NATIVE_FILES = {
    "published": {
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    },
    "int size": {"size": 224, "resample": 3},
    "no size": {},
    "null flags": {"do_rescale": None, "do_normalize": None},
    "not square": {"size": {"height": 96, "width": 160}},
    "shorter side": {"size": {"shortest_edge": 97}},
    "shorter side, bounded": {"size": {"shortest_edge": 100, "longest_edge": 103}},  # 86, torchvision: 85
    "other values": {"size": 64, "do_rescale": False, "image_mean": [0.5] * 3, "rescale_factor": 0.5},
    "no resize": {"do_resize": False},
    "old keys": {"size": 128, **OLD_KEYS},
    "version 4": V4_FAST,
    "crop, int size": {"size": 256, "do_center_crop": True, "crop_size": 224},
}


def rgb_inputs(folder: Path) -> dict:
    """RGB input of every kind that the native classes accept, with the traps: orientation, colour key, floats."""
    array = noise(75, 90)
    jpeg, keyed = folder / "image.jpg", folder / "keyed.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(jpeg, exif=exif)
    Image.fromarray(array).save(keyed, transparency=tuple(array[0, 0].tolist()))
    return {
        "pil": Image.fromarray(array),
        "pil with orientation": Image.open(jpeg),
        "pil with colour key": Image.open(keyed),
        "path": str(jpeg),
        "hwc": array,
        "chw": array.transpose(2, 0, 1),
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
        "batch": np.stack([array, array[::-1]]),
        "float64": (array / 255, {"do_rescale": False}),
        "float32 tensor": (torch.from_numpy(array / 255).float().permute(2, 0, 1), {"do_rescale": False}),
        "float32 whole numbers": array.astype(np.float32),
    }


@pytest.mark.parametrize("name", NATIVE_FILES)
def test_native_files_give_native_pixels(tmp_path, backend, name):
    ours, native = (kind[backend].from_dict(NATIVE_FILES[name]) for kind in (CLASSES["pvt"], NATIVE))
    assert bool(ours.do_center_crop) == name.startswith("crop") and ours.match_native
    for kind, image in rgb_inputs(tmp_path).items():
        image, call = image if isinstance(image, tuple) else (image, {})
        found, expected = (p(image, return_tensors="pt", **call)["pixel_values"] for p in (ours, native))
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), kind


def test_native_file_reads_every_mode(backend):
    """Images that the native class refuses or misreads, because they are not RGB, are converted as usual."""
    ours = CLASSES["pvt"][backend].from_dict(NATIVE_FILES["int size"])
    for image in (Image.new("F", (9, 9), 100.5), *(Image.new(mode, (9, 9), 100) for mode in ("L", "RGBA", "I;16"))):
        assert pixels(ours, image).shape == (3, 224, 224)


def test_arguments_win_over_files(tmp_path, backend):
    processor_class = CLASSES["pvt"][backend]
    image = Image.fromarray(noise(70, 90))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**NATIVE_FILES["int size"], "resample": 2}))
    for given, shape in (
        ({"size": {"height": 96, "width": 96}}, (96, 96)),
        ({"size": 96}, (96, 96)),  # in a native file an int is a square, also when given
        ({"size": {"shortest_edge": 35}}, (35, 45)),
        ({"do_center_crop": True, "crop_size": 200}, (200, 200)),
        ({"do_center_crop": True}, (224, 224)),
        ({"do_resize": False}, (70, 90)),
    ):
        assert pixels(processor_class.from_pretrained(tmp_path, **given), image).shape[1:] == shape
    turned = exif_image(6)
    assert pixels(processor_class.from_pretrained(tmp_path, do_resize=False), turned).shape[1:] == turned.size[::-1]
    upright = processor_class.from_pretrained(tmp_path, do_resize=False, match_native=False)
    assert pixels(upright, turned).shape[1:] == turned.size

    processor_class().save_pretrained(tmp_path)
    ours, unused = processor_class.from_pretrained(tmp_path, size=48, crop_size=32, other=1, return_unused_kwargs=True)
    assert dict(ours.size) == {"shortest_edge": 48} and unused == {"other": 1}
    np.testing.assert_array_equal(pixels(ours, image), pixels(processor_class(size=48, crop_size=32), image))


def turned_jpeg(path: Path, orientation: int) -> Path:
    image = exif_image(orientation)
    path.write_bytes(encode(image, "JPEG", exif=image.getexif()))
    return path


def test_native_processor_reloads(tmp_path):
    file = turned_jpeg(tmp_path / "turned.jpg", 6)
    processors = {name: built.from_dict(NATIVE_FILES["not square"]) for name, built in CLASSES["pvt"].items()}
    processors["pil"].save_pretrained(tmp_path / "native")
    saved = tmp_path / "native" / "preprocessor_config.json"
    assert json.loads(saved.read_text())["do_center_crop"] is False
    reloaded = reload("package", tmp_path, file, {"native": "pvt"})
    for backend, processor in processors.items():
        assert_prepares_the_same(reloaded["native", backend][0], processor, file, "pvt")
        again = CLASSES["pvt"][backend].from_json_file(saved)
        np.testing.assert_array_equal(pixels(again, Image.open(file)), pixels(processor, Image.open(file)))


def test_native_repositories_keep_their_pixels_after_the_import(tmp_path):
    file = turned_jpeg(tmp_path / "turned.jpg", 8)
    names = {}
    for model_type in ("pvt", "pvt_v2"):
        for number, settings in enumerate(
            ({"resample": 2}, {"size": 160}, {"size": 230, "do_center_crop": True, "crop_size": 119})
        ):
            folder = tmp_path / f"{model_type}{number}"
            names[folder.name] = "pvt"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
            native_file = {"image_processor_type": "PvtImageProcessor", **settings}
            (folder / "preprocessor_config.json").write_text(json.dumps(native_file))
    before = reload("plain", tmp_path, file, names)
    after = reload("package", tmp_path, file, names)
    for (name, backend), (found, loaded) in after.items():
        expected, native = before[name, backend]
        assert native.startswith("transformers.models.pvt.")
        assert loaded == f"pvt_hf.models.image_processing_pvt {CLASSES['pvt'][backend].__name__}"
        np.testing.assert_array_equal(found["pixel_values"], expected["pixel_values"])
