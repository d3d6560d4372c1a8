"""
Both PVT image processors give the pixels of independent references: torchvision's transforms on a Pillow image (the
official evaluation), Transformers' own PvtImageProcessor for the files that it wrote, formulas written out here for
transparency and 16-bit images, and ImageOps.exif_transpose. Both backends agree. Bad input is refused by position.

    pytest tests/test_image_processing.py
"""

import base64
import functools
import http.server
import io
import json
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms as T
from transformers.models.pvt.image_processing_pil_pvt import PvtImageProcessorPil as NativePil
from transformers.models.pvt.image_processing_pvt import PvtImageProcessor as NativeTorchvision

import pvt_hf
from pvt_hf.image_processing_pil_pvt import PvtImageProcessorPil
from pvt_hf.image_processing_pvt import PvtImageProcessor

from .clean_process import run_python


BACKENDS = {"pil": (PvtImageProcessorPil, NativePil), "torchvision": (PvtImageProcessor, NativeTorchvision)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Outputs reach 2.7, where one unit in the last place of fp32 is 2.4e-7; scaling and normalising round three times.
FP32 = 2e-6
# torchvision resizes uint8 in two passes, as Pillow does, and rounds each: one grey level per pass, in output units.
# More where the first pass is clipped at 0 or 255 and Pillow runs the vertical one first, hence `half_contrast` below.
TWO_LEVELS = 2 / 255 / min(STD) + FP32
# Float resizing by Pillow and by torchvision: float32 sums in another order over values up to 255, in output units.
FLOAT_RESIZE = 0.05 / 255 / min(STD)

RAW = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False, "return_tensors": "np"}


@pytest.fixture(params=["pil", "torchvision"])
def backend(request):
    return request.param


@pytest.fixture
def processor(backend):
    return BACKENDS[backend][0]()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(height, width, channels) uint8; noise makes every pixel of a resize or crop distinguishable."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def half_contrast(array: np.ndarray) -> np.ndarray:
    """Squeezes uint8 values to 64..191, from where bicubic interpolation overshoots without reaching 0 or 255."""
    return 64 + array // 2


def official_eval(image: Image.Image, resize: int = 256, crop: int = 224, max_size: int | None = None) -> np.ndarray:
    steps = [
        T.Resize(resize, interpolation=T.InterpolationMode.BICUBIC, max_size=max_size),
        T.CenterCrop(crop),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ]
    return T.Compose(steps)(image).numpy()


def pixels(processor, image, **kwargs) -> np.ndarray:
    return processor(image, return_tensors="np", **kwargs)["pixel_values"][0]


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# --- The official evaluation ----------------------------------------------------------------------------------------

# 256x259 and 258x256 leave margins of 35 and 34: 17.5 rounds to 18 in torchvision and to 17 in Transformers' helpers.
SIZES = [(256, 256), (256, 259), (258, 256), (333, 500), (501, 334), (31, 45), (224, 224), (2, 3), (1, 1), (600, 257)]


@pytest.mark.parametrize("height, width", SIZES)
def test_defaults_are_the_official_evaluation(height, width):
    array = noise(height, width)
    image, soft = Image.fromarray(array), Image.fromarray(half_contrast(array))
    np.testing.assert_allclose(pixels(PvtImageProcessorPil(), image), official_eval(image), rtol=0, atol=FP32)
    np.testing.assert_allclose(pixels(PvtImageProcessor(), soft), official_eval(soft), rtol=0, atol=TWO_LEVELS)
    # Two roundings of up to half a level each average less than half a level, rare clipped pixels included.
    assert np.abs(pixels(PvtImageProcessor(), image) - official_eval(image)).mean() < 0.5 / 255 / min(STD)


@pytest.mark.parametrize("height, width", [(97, 203), (203, 97), (40, 41)])
@pytest.mark.parametrize("shortest, longest", [(48, 64), (48, 101), (33, 69)])
def test_longest_edge_is_torchvisions_max_size(processor, height, width, shortest, longest):
    image = Image.fromarray(noise(height, width))
    size = {"shortest_edge": shortest, "longest_edge": longest}
    expected = T.Resize(shortest, max_size=longest)(image).size[::-1]
    assert pixels(processor, image, size=size, do_center_crop=False).shape[1:] == expected


def test_crop_pads_like_torchvision(processor, backend):
    image = Image.fromarray(half_contrast(noise(40, 61)))
    with pytest.warns(UserWarning, match="padded with black"):
        found = pixels(processor, image, size=40, crop_size=55)
    tolerance = FP32 if backend == "pil" else TWO_LEVELS
    np.testing.assert_allclose(found, official_eval(image, 40, 55), rtol=0, atol=tolerance)


def test_forms_of_size(backend):
    processor_class = BACKENDS[backend][0]
    image = Image.fromarray(noise(60, 90))
    built = processor_class(size=48, crop_size=32)
    assert dict(built.size) == {"shortest_edge": 48} and dict(built.crop_size) == {"height": 32, "width": 32}
    expected = pixels(built, image)
    assert expected.shape == (3, 32, 32)
    for size, crop_size in (
        (48, 32),
        ({"shortest_edge": 48}, {"height": 32, "width": 32}),
        ({"height": 48, "width": 72}, 32),
    ):
        np.testing.assert_array_equal(pixels(processor_class(), image, size=size, crop_size=crop_size), expected)
    for size, shape in (
        (48, (48, 72)),
        ({"height": 20, "width": 30}, (20, 30)),
        ((20, 30), (20, 30)),
        ({"longest_edge": 45}, (30, 45)),
        ({"max_height": 30, "max_width": 30}, (20, 30)),
    ):
        assert pixels(processor_class(do_center_crop=False), image, size=size).shape[1:] == shape


@pytest.mark.parametrize("height, width", [(1, 1), (2000, 1), (1, 2000)])
def test_extreme_shapes(processor, backend, height, width):
    image = Image.fromarray(half_contrast(noise(height, width)))
    tolerance = FP32 if backend == "pil" else TWO_LEVELS
    np.testing.assert_allclose(
        pixels(processor, image, size=64, crop_size=56), official_eval(image, 64, 56), rtol=0, atol=tolerance
    )
    shape = pixels(processor, image, size={"shortest_edge": 32, "longest_edge": 64}, do_center_crop=False).shape
    assert min(shape) > 0 and max(shape) <= 64


def test_elongated_image_at_the_default_size(processor):
    found = pixels(processor, Image.fromarray(noise(1, 2000)))
    assert found.shape == (3, 224, 224) and np.isfinite(found).all()
    with pytest.raises(ValueError, match=r"image of 1x100000 is so elongated .*256x25600000"):
        processor(Image.new("RGB", (100_000, 1)))


# --- Files ----------------------------------------------------------------------------------------------------------

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
    "pil": "pvt_hf.image_processing_pil_pvt PvtImageProcessorPil",
    "torchvision": "pvt_hf.image_processing_pvt PvtImageProcessor",
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
    for name in ("image_processing_pvt", "image_processing_pil_pvt"):
        shutil.copy(Path(pvt_hf.__file__).parent / f"{name}.py", tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    references = {
        "pil": "image_processing_pil_pvt.PvtImageProcessorPil",
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
from pvt_hf.image_processing_pvt import PvtImageProcessor
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
    assert printed == ["refused", *["pvt_hf.image_processing_pil_pvt", "224"] * 3]


# --- Colour, depth, transparency ------------------------------------------------------------------------------------

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY = np.repeat(LEVELS[None], 3, axis=0)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, 3) and (H, W) uint8 to (3, H, W), in float64 from the definition of compositing."""
    share = alpha[..., None].astype(np.float64) / 255
    return np.floor(colour * share + 255 * (1 - share) + 0.5).astype(np.uint8).transpose(2, 0, 1)


def mode_examples() -> dict:
    """Name → (image of that mode, expected (3, H, W) values)."""
    rgb, alpha = noise(16, 16, seed=1), noise(16, 16, 1, seed=2)[..., 0]
    opaque, grey = Image.fromarray(rgb), Image.fromarray(LEVELS)
    transparent = Image.fromarray(np.dstack([rgb, alpha]))
    examples = {
        "RGB": (opaque, rgb.transpose(2, 0, 1)),
        "L": (grey, GREY),
        "1": (Image.fromarray(LEVELS > 99), np.where(GREY > 99, 255, 0)),
        "F": (Image.fromarray(LEVELS.astype(np.float32) + 0.25), GREY + np.float32(0.25)),
        "I 8-bit": (Image.fromarray(LEVELS.astype(np.int32)), GREY),
        "I 16-bit": (Image.fromarray(LEVELS.astype(np.int32) * 257), GREY),
        "RGBA": (transparent, over_white(rgb, alpha)),
        "LA": (Image.merge("LA", [grey, Image.fromarray(alpha)]), over_white(np.dstack([LEVELS] * 3), alpha)),
    }
    wide = LEVELS.astype(np.uint16) * 257
    for mode, dtype in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2")):
        examples[mode] = (Image.frombytes(mode, (16, 16), wide.astype(dtype).tobytes()), GREY)
    for mode in ("RGBX", "CMYK", "YCbCr", "LAB", "HSV", "P"):
        image = opaque.convert(mode)
        examples[mode] = (image, np.array(image.convert("RGB")).transpose(2, 0, 1))

    # One half of a palette transparent, once as a table and once as a single index.
    palette = Image.frombytes("P", (16, 16), (LEVELS % 4).tobytes())
    colours = noise(4, 1, seed=3).reshape(4, 3)
    palette.putpalette(colours.tobytes())
    table, index = palette.copy(), palette.copy()
    table.info["transparency"], index.info["transparency"] = bytes([0, 60, 255, 255]), 2
    of_pixel = colours[LEVELS % 4]
    examples["P table"] = (table, over_white(of_pixel, np.array([0, 60, 255, 255], np.uint8)[LEVELS % 4]))
    examples["P index"] = (index, over_white(of_pixel, np.where(LEVELS % 4 == 2, 0, 255)))
    examples["PA"] = (table.convert("PA"), examples["P table"][1])

    # Colour keys of PNG files: pixels of exactly that value are transparent.
    for name, image, key, values in (("L key", grey, 7, GREY), ("I;16 key", examples["I;16"][0], 7 * 257, GREY)):
        keyed = Image.open(io.BytesIO(encode(image, transparency=key)))
        examples[name] = (keyed, np.where(values == 7, 255, values))
    keyed = Image.open(io.BytesIO(encode(opaque, transparency=tuple(rgb[3, 4].tolist()))))
    examples["RGB key"] = (keyed, np.where((rgb == rgb[3, 4]).all(-1), 255, rgb.transpose(2, 0, 1)))

    # Premultiplied alpha: Pillow undoes it with its own rounding, so that its conversion is the reference.
    for mode, plain in (("RGBa", "RGBA"), ("La", "LA")):
        image = examples[plain][0].convert(mode)
        values = np.array(image.convert(plain).convert("RGBA"))
        examples[mode] = (image, over_white(values[..., :3], values[..., 3]))
    return examples


@pytest.mark.parametrize("name", mode_examples())
def test_every_mode(processor, name):
    image, expected = mode_examples()[name]
    assert image.mode == name.split()[0]
    np.testing.assert_array_equal(
        pixels(processor, image, **{k: v for k, v in RAW.items() if k != "return_tensors"}), expected
    )


@pytest.mark.parametrize("size", [(47, 64), (64, 47), (257, 300)])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"]
)
def test_backends_agree_on_every_mode(mode, size):
    grey_first = mode in ("I;16", "F", "I")
    image = Image.fromarray(noise(*size, channels=4 if mode in ("LA", "PA", "RGBA") else 3))
    image = (image.convert("L") if grey_first else image).convert(mode)
    found = [pixels(BACKENDS[name][0](), image) for name in BACKENDS]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=FLOAT_RESIZE if mode == "F" else TWO_LEVELS)


def test_files_keep_transparency_and_depth(tmp_path, processor):
    rgba = noise(16, 16, 4)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(LEVELS.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    found = processor([str(tmp_path / "rgba.png"), tmp_path / "deep.png"], **RAW)["pixel_values"]
    np.testing.assert_array_equal(found[0], over_white(rgba[..., :3], rgba[..., 3]))
    np.testing.assert_array_equal(found[1], GREY)


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32", "int64", "uint32"])
def test_sixteen_bit_arrays_are_scaled(processor, dtype):
    deep = (LEVELS.astype(np.uint32) * 257).astype(dtype)
    for array in (deep, deep[..., None], np.dstack([deep] * 3)):
        np.testing.assert_array_equal(processor(array, **RAW)["pixel_values"][0], GREY)
    if dtype in ("uint16", "int32", "int64"):
        np.testing.assert_array_equal(processor(torch.from_numpy(deep), **RAW)["pixel_values"][0], GREY)


def test_sixteen_bits_round_to_the_nearest_level(processor):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(deep / 65535 * 255 + 0.5)
    np.testing.assert_array_equal(processor(deep, **RAW)["pixel_values"][0, 0], expected)
    np.testing.assert_array_equal(processor(Image.fromarray(deep), **RAW)["pixel_values"][0, 0], expected)
    # a dark 16-bit image, whose values all fit in 8 bits, stays dark
    np.testing.assert_array_equal(
        processor(deep[:1].repeat(9, axis=0), **RAW)["pixel_values"][0, 0], expected[:1].repeat(9, axis=0)
    )


def test_alpha_of_arrays_and_tensors(processor):
    rgba = noise(20, 30, 4)
    expected = over_white(rgba[..., :3], rgba[..., 3])
    first = rgba.transpose(2, 0, 1)
    for image in (rgba, first, torch.from_numpy(rgba), torch.from_numpy(first.copy()), rgba.astype(np.uint16) * 257):
        np.testing.assert_array_equal(processor(image, **RAW)["pixel_values"][0], expected)
    for image in (rgba / 255, torch.from_numpy(first / 255)):
        # half a level, because the expected values are rounded
        np.testing.assert_allclose(processor(image, **RAW)["pixel_values"][0] * 255, expected, rtol=0, atol=0.501)
    found = processor(rgba.astype(np.float32), **{**RAW, "do_rescale": True})["pixel_values"][0] * 255
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.501)


# --- Arrays, tensors, batches ---------------------------------------------------------------------------------------


def test_array_layouts_give_the_same_pixels(processor):
    array = noise(70, 90)
    expected = pixels(processor, Image.fromarray(array))
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    frozen = array.copy()
    frozen.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of read-only arrays
        for image in (
            array,
            first,
            frozen,
            array[::-1].copy()[::-1],  # negative stride
            array.astype(np.int64),
            torch.from_numpy(array),
            torch.from_numpy(first),
            torch.from_numpy(array).permute(2, 0, 1),  # not contiguous
        ):
            np.testing.assert_array_equal(pixels(processor, image), expected)
    np.testing.assert_array_equal(pixels(processor, array, input_data_format="channels_last"), expected)
    np.testing.assert_array_equal(pixels(processor, first, input_data_format="channels_first"), expected)


def test_ambiguous_layout_follows_the_argument(processor):
    array = noise(3, 50)  # (3, 50, 3)
    expected = pixels(processor, Image.fromarray(array))
    np.testing.assert_array_equal(pixels(processor, array, input_data_format="channels_last"), expected)
    transposed = Image.fromarray(array.transpose(1, 2, 0))
    np.testing.assert_array_equal(pixels(processor, array), pixels(processor, transposed))


def test_grey_and_bool_arrays(processor):
    grey = noise(60, 80, 1)
    expected = pixels(processor, Image.fromarray(grey[..., 0]))
    for image in (grey, grey[..., 0], grey.transpose(2, 0, 1), torch.from_numpy(grey[..., 0])):
        np.testing.assert_array_equal(pixels(processor, image), expected)
    mask = grey[..., 0] > 127
    expected = pixels(processor, Image.fromarray(mask))
    for image in (mask, torch.from_numpy(mask), np.dstack([mask] * 3)):
        np.testing.assert_array_equal(pixels(processor, image), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("height, width", [(333, 500), (90, 61)])
def test_floats_are_resized_as_torchvision_resizes_floats(processor, dtype, height, width):
    array = np.round(noise(height, width) / 255 * 16) / 16  # exact in every dtype
    image = array.astype(dtype) if isinstance(dtype, type) else torch.from_numpy(array).permute(2, 0, 1).to(dtype)
    steps = [T.Resize(256, interpolation=T.InterpolationMode.BICUBIC, antialias=True), T.CenterCrop(224)]
    expected = T.Compose([*steps, T.Normalize(MEAN, STD)])(torch.from_numpy(array).permute(2, 0, 1).float()).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels(processor, image, do_rescale=False)
        scaled = pixels(processor, image * 255)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT_RESIZE)
    if "16" not in str(dtype):  # products with 255 are not exact in 16 bits
        np.testing.assert_allclose(scaled, expected, rtol=0, atol=FLOAT_RESIZE)


def test_float_of_a_smooth_picture_is_its_uint8_twin(processor):
    """A smooth ramp does not overshoot, so that only the two roundings of 8-bit resizing remain."""
    rows, columns = np.mgrid[0:200, 0:300]
    array = np.stack([rows, columns * 0.8, (rows + columns) / 2], axis=-1).astype(np.uint8)
    expected = pixels(processor, array)
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    np.testing.assert_allclose(pixels(processor, tensor, do_rescale=False), expected, rtol=0, atol=TWO_LEVELS)


def test_float_range_that_does_not_fit_the_scaling_warns(processor):
    image = noise(40, 40).astype(np.float32)
    with pytest.warns(UserWarning, match=r"only in \[0, 1\] while do_rescale=True"):
        processor(image / 255)
    with pytest.warns(UserWarning, match=r"only in \[0, 1\] while do_rescale=True"):
        processor(torch.from_numpy(image / 255))
    for strange in (image * 257, image - 100, Image.fromarray(image[..., 0] * 257)):
        with pytest.warns(UserWarning, match=r"outside of 0..255 while do_rescale=True"):
            processor(strange)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor([image, image * 0, (image / 255 > 2).astype(np.uint8)])


def test_batches(processor):
    images = [Image.fromarray(noise(*size, seed=i)) for i, size in enumerate([(60, 90), (90, 60), (60, 90), (33, 33)])]
    expected = np.stack([pixels(processor, image) for image in images])
    for disable_grouping in (None, False, True):
        found = processor(images, return_tensors="np", disable_grouping=disable_grouping)["pixel_values"]
        np.testing.assert_array_equal(found, expected)
    nested = [images[:1], images[1:3], [], images[3:]]
    np.testing.assert_array_equal(processor(nested, return_tensors="np")["pixel_values"], expected)
    mixed = [images[0], np.array(images[1]), torch.from_numpy(np.array(images[2])), encode(images[3])]
    np.testing.assert_array_equal(processor(tuple(mixed), return_tensors="np")["pixel_values"], expected)
    stack = np.stack([np.array(images[0]), np.array(images[2])])
    for batch in (stack, torch.from_numpy(stack), stack.transpose(0, 3, 1, 2), [stack], [stack[:1], stack[1]]):
        np.testing.assert_array_equal(processor(batch, return_tensors="np")["pixel_values"], expected[[0, 2]])


def test_return_types(processor, backend):
    image = Image.fromarray(noise(40, 50))
    assert isinstance(processor(image, return_tensors="pt")["pixel_values"], torch.Tensor)
    assert processor(image, return_tensors="pt", device="cpu")["pixel_values"].dtype == torch.float32
    assert processor(image, return_tensors="np")["pixel_values"].dtype == np.float32
    plain = processor([image, image])["pixel_values"]
    assert isinstance(plain, list) and len(plain) == 2
    assert isinstance(plain[0], np.ndarray if backend == "pil" else torch.Tensor) and plain[0].shape == (3, 224, 224)


@pytest.mark.gpu
def test_device():
    image = noise(300, 400)
    expected = pixels(PvtImageProcessor(), image)
    for given in (image, noise(300, 400, 4)[..., :3], torch.from_numpy(image).cuda()):
        found = PvtImageProcessor()(given, return_tensors="pt", device="cuda")["pixel_values"]
        assert found.device.type == "cuda" and found.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(found[0].cpu().numpy(), expected, rtol=0, atol=TWO_LEVELS)


# --- Orientation and sources ----------------------------------------------------------------------------------------


def exif_image(orientation: int) -> Image.Image:
    """60 x 40 pixels that carry an EXIF orientation."""
    image = Image.fromarray(np.kron(noise(5, 8), np.ones((8, 8, 1), dtype=np.uint8)))
    image.getexif()[0x0112] = orientation
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_whatever_the_source(tmp_path, processor, orientation):
    image = exif_image(orientation)
    data = encode(image, "JPEG", exif=image.getexif())
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    expected = np.array(ImageOps.exif_transpose(Image.open(path))).transpose(2, 0, 1)
    text = base64.b64encode(data).decode()
    for source in (Image.open(path), str(path), path, data, text, f"data:image/jpeg;base64,{text}"):
        np.testing.assert_array_equal(processor(source, **RAW)["pixel_values"][0], expected)
    expected = np.array(ImageOps.exif_transpose(image)).transpose(2, 0, 1)  # set on an image in memory
    np.testing.assert_array_equal(processor(image, **RAW)["pixel_values"][0], expected)


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
        found = processor(f"{address}/image.jpg", **RAW)["pixel_values"][0]
        with pytest.raises(ValueError, match=r"images\[1\]: cannot open .*missing.jpg.*404"):
            processor([image, f"{address}/missing.jpg"])
    finally:
        server.shutdown()
        server.server_close()
    np.testing.assert_array_equal(found, processor(str(tmp_path / "image.jpg"), **RAW)["pixel_values"][0])


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
    processor_class = BACKENDS[backend][0]
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
    processor_class = BACKENDS[backend][0]
    for processor in (processor_class(), processor_class.from_dict({})):
        with pytest.raises(ValueError, match=r"^images\[1\]: cannot|^images\[1\]: the 99x99 JPEG file cannot"):
            processor([GOOD, str(path)])
        with pytest.raises(ValueError, match=r"^images\[1\]: the 99x99 JPEG file cannot be decoded"):
            processor([GOOD, Image.open(path)])
    with Image.open(io.BytesIO(encode(GOOD))) as closed:
        pass
    with pytest.raises(ValueError, match="already closed"):
        processor_class()(closed)


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
    with pytest.raises(ValueError, match=r"images: .*alpha outside of 0\.\.1"):
        processor(noise(9, 9, 4).astype(np.float32), do_rescale=False)


# --- In use ---------------------------------------------------------------------------------------------------------


def test_pipeline_gives_the_models_own_answer(processor):
    from transformers import pipeline

    config = pvt_hf.PvtConfig(hidden_sizes=[16, 32, 80, 128], depths=[1, 1, 1, 1], num_labels=3)
    model = pvt_hf.PvtForImageClassification(config).eval()
    images = [Image.fromarray(noise(80, 60)), Image.fromarray(noise(90, 120))]
    answers = pipeline("image-classification", model=model, image_processor=processor)(images, top_k=3)
    with torch.no_grad():
        expected = model(**processor(images, return_tensors="pt")).logits.softmax(-1)
    for answer, probabilities in zip(answers, expected):
        found = {entry["label"]: entry["score"] for entry in answer}
        # one forward pass per image against one for both: float32 sums in another order
        np.testing.assert_allclose([found[f"LABEL_{i}"] for i in range(3)], probabilities.numpy(), rtol=0, atol=1e-5)
