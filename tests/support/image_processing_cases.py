"""What tests of image processors share: classes, tolerances, references, and images of every mode with their pixels."""

import io
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms as T
from transformers.models.pvt.image_processing_pil_pvt import PvtImageProcessorPil as NativePil
from transformers.models.pvt.image_processing_pvt import PvtImageProcessor as NativeTorchvision

from pvt_hf.families import FAMILIES, load


# By contract ("pvt", "semantic", "detection", "detr", "instance") and backend; of the classifier also Transformers' own
CLASSES = {
    family.processor.partition(".")[0].removeprefix("image_processing_"): {
        backend: load(path) for backend, path in family.processors.items()
    }
    for family in FAMILIES.values()
}
NATIVE = {"pil": NativePil, "torchvision": NativeTorchvision}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The pixels as read
RAW = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}

# Outputs reach 2.7, where one unit in the last place of fp32 is 2.4e-7; scaling and normalising round three times.
FP32 = 2e-6
# torchvision resizes uint8 in two passes, as Pillow does, and rounds each: one grey level per pass, in output units.
# It is more where the first pass is clipped at 0 or 255 and Pillow runs the vertical pass first: see `half_contrast`.
TWO_LEVELS = 2 / 255 / min(STD) + FP32
# The processors for segmentation resize twice.
FOUR_LEVELS = 4 / 255 / min(STD) + FP32
# Floats resized by Pillow and by torchvision: float32 sums in another order over values up to 255, in output units.
FLOAT_RESIZE = 0.05 / 255 / min(STD)


@pytest.fixture(params=["pil", "torchvision"])
def backend(request):
    return request.param


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(height, width, channels) uint8. In noise, every pixel of a resize or crop counts."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def half_contrast(array: np.ndarray) -> np.ndarray:
    """Moves uint8 values to 64..191, where bicubic interpolation overshoots without reaching 0 or 255."""
    return 64 + array // 2


def half_up(number: Fraction) -> int:
    return floor(number + Fraction(1, 2))


def scaled_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """mmcv's `rescale_size` in fractions: shorter side `short` but longer at most `long`, to the nearest pixel."""
    factor = min(Fraction(short, min(height, width)), Fraction(long, max(height, width)))
    return max(half_up(height * factor), 1), max(half_up(width * factor), 1)


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


def exif_image(orientation: int) -> Image.Image:
    """64 x 40 pixels that carry an EXIF orientation."""
    image = Image.fromarray(np.kron(noise(5, 8), np.ones((8, 8, 1), dtype=np.uint8)))
    image.getexif()[0x0112] = orientation
    return image


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

    # A palette with transparency, once as a table and once as a single index.
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

    # Premultiplied alpha: the reference is Pillow's own conversion, which has its own rounding.
    for mode, plain in (("RGBa", "RGBA"), ("La", "LA")):
        image = examples[plain][0].convert(mode)
        values = np.array(image.convert(plain).convert("RGBA"))
        examples[mode] = (image, over_white(values[..., :3], values[..., 3]))
    return examples
