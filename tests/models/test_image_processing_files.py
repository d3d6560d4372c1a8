"""
Files of image processors: ours reload in a clean process, with and without the package; Transformers' own give the
pixels of its class.

    pytest tests/models/test_image_processing_files.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pvt_hf
from pvt_hf.models.image_processing_pvt import PvtImageProcessor

from ..support.clean_process import run_python
from ..support.image_processing_cases import BACKENDS, MEAN, STD, encode, exif_image, noise, pixels


pytest_plugins = ["tests.support.image_processing_cases"]

RELOAD = """
import json, sys, numpy, PIL.Image, pvt_hf
from transformers import AutoImageProcessor
folder, image, *rest = sys.argv[1:]
for name, backend in json.loads(rest[0]):
    processor = AutoImageProcessor.from_pretrained(f"{folder}/{name}", backend=backend)
    pixels = processor(PIL.Image.open(image), return_tensors="np")["pixel_values"][0]
    numpy.save(f"{folder}/{name}-{backend}.npy", pixels)
    print(type(processor).__module__, type(processor).__name__)
"""


def reload_pixels(folder: Path, image_file: Path, names: list[str], code: str = RELOAD, **options) -> dict:
    """Loads the folders `folder/name` in one clean process: {(name, backend): (pixels, "module class")}."""
    jobs = [(name, backend) for name in names for backend in BACKENDS]
    options = options or {"warm": True}
    printed = run_python(code, folder, image_file, json.dumps(jobs), **options).stdout.splitlines()
    assert len(printed) == len(jobs)
    return {job: (np.load(folder / f"{job[0]}-{job[1]}.npy"), line) for job, line in zip(jobs, printed)}


OURS = {
    "pil": "pvt_hf.models.image_processing_pvt PvtImageProcessorPil",
    "torchvision": "pvt_hf.models.image_processing_pvt PvtImageProcessor",
}


def test_saved_files_are_complete_and_reload(tmp_path):
    image_file = tmp_path / "image.png"
    Image.fromarray(noise(130, 171)).save(image_file)
    expected = {}
    for number, settings in enumerate(
        [{}, {"size": 100, "crop_size": 96, "image_mean": [0.5] * 3, "resample": 2}, {"do_center_crop": False}]
    ):
        for backend, (processor_class, _) in BACKENDS.items():
            name = f"{number}{backend}"
            processor = processor_class(**settings)
            processor.save_pretrained(tmp_path / name)
            saved = json.loads((tmp_path / name / "preprocessor_config.json").read_text())
            assert saved["image_processor_type"] == "PvtImageProcessor"
            assert saved["do_center_crop"] is settings.get("do_center_crop", True)
            assert {"size", "crop_size", "resample", "do_convert_rgb", "do_resize", "do_rescale"} <= saved.keys()
            assert {"rescale_factor", "do_normalize", "image_mean", "image_std"} <= saved.keys()
            # a file saved by one backend opens in both
            for reader, (reader_class, _) in BACKENDS.items():
                expected[name, reader] = pixels(reader_class(**settings), Image.open(image_file))
    names = sorted({name for name, _ in expected})
    for (name, backend), (found, loaded) in reload_pixels(tmp_path, image_file, names).items():
        assert loaded == OURS[backend]
        np.testing.assert_array_equal(found, expected[name, backend])


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
    ours, native = (cls.from_dict(NATIVE_FILES[name]) for cls in BACKENDS[backend])
    assert bool(ours.do_center_crop) == name.startswith("crop") and ours.match_native
    for kind, image in rgb_inputs(tmp_path).items():
        image, call = image if isinstance(image, tuple) else (image, {})
        found, expected = (p(image, return_tensors="pt", **call)["pixel_values"] for p in (ours, native))
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), kind


def test_native_file_reads_every_mode(backend):
    """Where the native class refuses or misreads an image that is not RGB, it is converted as everywhere else."""
    ours = BACKENDS[backend][0].from_dict(NATIVE_FILES["int size"])
    for image in (Image.new("F", (9, 9), 100.5), *(Image.new(mode, (9, 9), 100) for mode in ("L", "RGBA", "I;16"))):
        assert pixels(ours, image).shape == (3, 224, 224)


def test_arguments_win_over_files(tmp_path, backend):
    processor_class = BACKENDS[backend][0]
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
    image_file = turned_jpeg(tmp_path / "turned.jpg", 6)
    processors = {name: pair[0].from_dict(NATIVE_FILES["not square"]) for name, pair in BACKENDS.items()}
    processors["pil"].save_pretrained(tmp_path / "native")
    file = tmp_path / "native" / "preprocessor_config.json"
    assert json.loads(file.read_text())["do_center_crop"] is False
    reloaded = reload_pixels(tmp_path, image_file, ["native"])
    for backend, processor in processors.items():
        expected = pixels(processor, Image.open(image_file))
        np.testing.assert_array_equal(reloaded["native", backend][0], expected)
        again = BACKENDS[backend][0].from_json_file(file)
        np.testing.assert_array_equal(pixels(again, Image.open(image_file)), expected)


def test_native_repositories_keep_their_pixels_after_the_import(tmp_path):
    image_file = turned_jpeg(tmp_path / "turned.jpg", 8)
    names = []
    for model_type in ("pvt", "pvt_v2"):
        for number, settings in enumerate(
            ({"resample": 2}, {"size": 160}, {"size": 230, "do_center_crop": True, "crop_size": 119})
        ):
            names.append(f"{model_type}{number}")
            folder = tmp_path / names[-1]
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
            native_file = {"image_processor_type": "PvtImageProcessor", **settings}
            (folder / "preprocessor_config.json").write_text(json.dumps(native_file))
    before = reload_pixels(tmp_path, image_file, names, RELOAD.replace(", pvt_hf", ""))
    after = reload_pixels(tmp_path, image_file, names)
    for (name, backend), (found, loaded) in after.items():
        assert loaded == OURS[backend] and before[name, backend][1].startswith("transformers.models.pvt.")
        np.testing.assert_array_equal(found, before[name, backend][0])


def test_code_travels_with_the_files(tmp_path):
    PvtImageProcessor(size=100, crop_size=96).save_pretrained(tmp_path / "model")
    for name in ("pvt", "backends", "input", "sizes"):
        shutil.copy(Path(pvt_hf.__file__).parent / "models" / f"image_processing_{name}.py", tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    references = {
        "pil": "image_processing_pvt.PvtImageProcessorPil",
        "torchvision": "image_processing_pvt.PvtImageProcessor",
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoImageProcessor": references}}))
    image_file = tmp_path / "image.png"
    Image.fromarray(noise(130, 171)).save(image_file)
    code = RELOAD.replace(", pvt_hf", "").replace("backend=backend", "backend=backend, trust_remote_code=True")
    cache = str(tmp_path / "modules")
    for (_, backend), (found, loaded) in reload_pixels(
        tmp_path, image_file, ["model"], code, environment={"HF_MODULES_CACHE": cache}
    ).items():
        assert loaded.startswith("transformers_modules.")
        expected = pixels(BACKENDS[backend][0](size=100, crop_size=96), Image.open(image_file))
        np.testing.assert_array_equal(found, expected)


WITHOUT_TORCHVISION = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "torchvision" else find_spec(name, *rest)
sys.modules["torchvision"] = None
import pvt_hf
from pvt_hf.models.image_processing_pvt import PvtImageProcessor
from transformers import AutoImageProcessor
try:
    PvtImageProcessor()
except ImportError as error:
    assert "Torchvision" in str(error)
    print("refused")
import numpy
image = numpy.zeros((40, 50, 3), dtype=numpy.uint8)
for backend in (None, "pil", "torchvision"):
    processor = AutoImageProcessor.from_pretrained(sys.argv[1], backend=backend)
    print(type(processor).__module__, processor(image, return_tensors="pt")["pixel_values"].shape[2])
"""


def test_without_torchvision_the_pillow_class_is_taken(tmp_path):
    PvtImageProcessor().save_pretrained(tmp_path)
    printed = run_python(WITHOUT_TORCHVISION, tmp_path).stdout.split()
    assert printed == ["refused", *["pvt_hf.models.image_processing_pvt", "224"] * 3]
