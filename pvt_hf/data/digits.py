"""Streams of real handwritten digits that need no download: single digits, and scenes of digits with boxes and masks.

The source is the test part of the UCI "Optical Recognition of Handwritten Digits" set, which scikit-learn ships as
`sklearn.datasets.load_digits`: 1,797 images of 8x8 pixels with grey levels 0 to 16. Source indices below are positions
in that set. Train and test never share a source image: one fifth of each class is held out, whatever the seed.

A stream is a list of indices that is mapped to samples. A sample depends on the arguments of its stream and its own
index alone, so it is the same whichever shard, worker or process renders it, and a stream that resumes with
`load_state_dict` passes over earlier samples without rendering them.
"""

import colorsys
import functools
import io
import itertools
import math
import numbers
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image


DIGIT_NAMES = tuple(str(digit) for digit in range(10))
SCENE_CLASS_NAMES = ("background", *DIGIT_NAMES)
SPLITS = ("train", "test")

SOURCE_SIZE = 8
MIN_SCENE_SIZE = 32
# Each digit keeps at least this share of its ink in sight; a digit that would hide more of another is not placed there.
MIN_VISIBLE_SHARE = 0.8
PLACEMENT_TRIES = 30

INK_LEVEL = 0.45  # grey level at which ink begins: high enough to keep narrow holes, low enough to keep thin strokes
INK_CONTRAST = 3.0  # of the edges of strokes, which are soft after upsampling
GOLDEN_RATIO = 0.618  # steps of this share of the colour circle keep the hues of a scene apart
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

DIGIT_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(DIGIT_NAMES)),
        "sample_id": datasets.Value("string"),
    }
)
SCENE_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("int64"),
        "width": datasets.Value("int64"),
        "height": datasets.Value("int64"),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "category": datasets.List(datasets.ClassLabel(names=list(DIGIT_NAMES))),
            "area": datasets.List(datasets.Value("int64")),
            "iscrowd": datasets.List(datasets.Value("int64")),
            "source_index": datasets.List(datasets.Value("int64")),
        },
        "masks": datasets.List(datasets.Image()),
        "semantic_map": datasets.Image(),
    }
)


def digit_images(
    split: str, *, image_size: int = 64, seed: int = 0, num_shards: int = 1, length: int | float | None = None
) -> datasets.IterableDataset:
    """Single digits for classification: each fills most of a square of light, smooth colours, slightly off centre.

    Args:
        split: `"train"` (1,442 digits) or `"test"` (355 digits).
        image_size: side of the square image in pixels, at least 8.
        seed: chooses the renderings (placement, size, colours), never the split or the order of the digits.
        num_shards: number of shards. Together they give the same samples whatever their number.
        length: `None` for one pass, in which each digit of the split comes exactly once, in a fixed shuffled order;
            an integer for that many samples, rendered anew in each further pass; `math.inf` for a stream without end.

    Returns:
        `datasets.IterableDataset` with

        - `image`: PNG, RGB, `image_size` x `image_size`;
        - `label`: `ClassLabel`, 0 to 9;
        - `sample_id`: `"digits/train/000123"`, where 123 is the source index. Further passes repeat it.

    Raises:
        ValueError: on an unknown split, or a number that is not an integer in its range.
        ImportError: when scikit-learn is missing.
    """
    _check_split(split)
    _check_integer("image_size", image_size, minimum=SOURCE_SIZE)
    _check_integer("seed", seed, minimum=0)
    if length is None:
        length = len(_split_indices(split))
    render_kwargs = {"split": str(split), "image_size": int(image_size), "seed": int(seed)}
    return _stream(split, num_shards, length, _render_digit, render_kwargs, DIGIT_FEATURES)


def digit_scenes(
    split: str,
    height: int,
    width: int,
    *,
    objects: tuple[int, int] = (3, 8),
    digit_sizes: Sequence[int] | None = None,
    seed: int = 0,
    num_shards: int = 1,
    length: int | float = 1000,
) -> datasets.IterableDataset:
    """Scenes of several digits on a textured canvas, for detection, instance and semantic segmentation.

    A digit's mask is its ink as far as it is in sight. Digits are painted from large to small, each over the earlier
    ones; a place where one would hide more than 20 % of the ink of another is not taken. Boxes, areas, masks and
    semantic map are read from one map of object numbers, so they agree to the pixel.

    Args:
        split: `"train"` or `"test"`: the digits that scenes are made of.
        height, width: size of the scene in pixels, each at least 32.
        objects: smallest and largest number of digits per scene. A digit that finds no place in 30 tries is left out.
        digit_sizes: smallest and largest size of a digit in pixels, at least 8 and at most the shorter side. Sizes
            are drawn log-uniformly; a digit is about nine tenths as tall as its size, and narrower. Default: one sixth
            of the shorter side (at least 8) to one half of it.
        seed: chooses the scenes, never the split.
        num_shards: number of shards. Together they give the same scenes whatever their number.
        length: number of scenes, or `math.inf` for a stream without end.

    Returns:
        `datasets.IterableDataset` with

        - `image`: PNG, RGB, `height` x `width`;
        - `image_id`: index of the scene in the stream;
        - `width`, `height`: in pixels;
        - `objects`: a dict of lists with one entry per object: `bbox` (COCO format `[x, y, width, height]` in pixels,
          tight around the mask), `category` (`ClassLabel`, 0 to 9), `area` (pixels of the mask), `iscrowd` (0) and
          `source_index`;
        - `masks`: one PNG per object in the same order, mode L, 0 or 255, `height` x `width`;
        - `semantic_map`: PNG, mode L, `height` x `width`, indices into `SCENE_CLASS_NAMES` (0 is the background, 1 to
          10 are the digits 0 to 9).

    Raises:
        ValueError: on an unknown split, a scene below 32 pixels, a range that is empty or does not fit, or a number
            that is not an integer in its range.
        ImportError: when scikit-learn is missing.
    """
    _check_split(split)
    _check_integer("height", height, minimum=MIN_SCENE_SIZE)
    _check_integer("width", width, minimum=MIN_SCENE_SIZE)
    _check_integer("seed", seed, minimum=0)
    shorter_side = int(min(height, width))
    if digit_sizes is None:
        digit_sizes = (max(SOURCE_SIZE, shorter_side // 6), shorter_side // 2)
    render_kwargs = {
        "split": str(split),
        "height": int(height),
        "width": int(width),
        "objects": _check_range("objects", objects, minimum=0),
        "digit_sizes": _check_range("digit_sizes", digit_sizes, minimum=SOURCE_SIZE, maximum=shorter_side),
        "seed": int(seed),
    }
    return _stream(split, num_shards, length, _render_scene, render_kwargs, SCENE_FEATURES)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}.")


def _check_integer(name: str, value: Any, minimum: int, maximum: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not minimum <= int(value) <= maximum:
        expected = f"of at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} must be an integer {expected}, got {value!r}.")


def _check_range(name: str, value: Sequence[int], minimum: int, maximum: float = math.inf) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be a pair (smallest, largest), got {value!r}.")
    smallest, largest = value
    _check_integer(f"the smallest of {name}", smallest, minimum, maximum)
    _check_integer(f"the largest of {name}", largest, minimum, maximum)
    if smallest > largest:
        raise ValueError(f"{name} must be a pair (smallest, largest), got {value!r}: {smallest} is above {largest}.")
    return int(smallest), int(largest)


@functools.cache
def _source() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels scaled to 0..1, (1797, 8, 8) float32, and classes, (1797,) int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The built-in digits come with scikit-learn: `pip install scikit-learn`.") from error
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target


@functools.cache
def _split_indices(split: str) -> np.ndarray:
    """Source indices of a split, (n,) int64, in the order in which the streams go through them.

    The source is ordered by writer and class, so it is shuffled first; then every fifth digit of each class is held
    out. NumPy guarantees that the numbers of `RandomState` never change, hence neither does the split.
    """
    _, classes = _source()
    order = np.random.RandomState(0).permutation(len(classes))
    held_out = np.concatenate([order[classes[order] == digit][4::5] for digit in range(10)])
    return order[np.isin(order, held_out) == (split == "test")]


def _stream(
    split: str,
    num_shards: int,
    length: int | float,
    render: Callable[..., dict],
    render_kwargs: dict,
    features: datasets.Features,
) -> datasets.IterableDataset:
    _check_integer("num_shards", num_shards, minimum=1)
    if length != math.inf:
        _check_integer("length, unless it is math.inf,", length, minimum=0)
    indices = datasets.IterableDataset.from_generator(
        _sample_indices,
        features=datasets.Features({"index": datasets.Value("int64")}),
        gen_kwargs={
            "shards": list(range(num_shards)),
            "num_shards": num_shards,
            "length": length,
            "pass_length": len(_split_indices(split)),
        },
        split=datasets.NamedSplit(str(split)),
    )
    # Features given to `map` would hand out the images undecoded; `cast` decodes them, until a caller casts again.
    return indices.map(render, input_columns="index", remove_columns="index", fn_kwargs=render_kwargs).cast(features)


def _sample_indices(shards: list[int], num_shards: int, length: int | float, pass_length: int) -> Iterator[dict]:
    """Deals the indices below `length` out to the shards, one at a time.

    The deal moves on by one shard in each pass over the digits. Otherwise a reader of one endless shard would never
    see the digits of the others where the length of a pass is a multiple of their number.
    """
    for shard in shards:
        for index in itertools.count() if length == math.inf else range(int(length)):
            if (index + index // pass_length) % num_shards == shard:
                yield {"index": index}


def _render_digit(index: int, split: str, image_size: int, seed: int) -> dict:
    rng = np.random.default_rng([seed, 0, SPLITS.index(split), index])
    grey_levels, classes = _source()
    indices = _split_indices(split)
    source_index = indices[index % len(indices)]

    image = _draw_canvas(rng, image_size, image_size)
    opacity = _upsample(grey_levels[source_index], round(image_size * rng.uniform(0.9, 1.0)))
    window = _draw_window(rng, (image_size, image_size), opacity.shape)
    _paint(image[window], opacity, _draw_ink(rng, hue=rng.random()))

    sample_id = f"digits/{split}/{source_index:06d}"
    return {"image": _png(image, sample_id), "label": int(classes[source_index]), "sample_id": sample_id}


def _render_scene(
    index: int,
    split: str,
    height: int,
    width: int,
    objects: tuple[int, int],
    digit_sizes: tuple[int, int],
    seed: int,
) -> dict:
    rng = np.random.default_rng([seed, 1, SPLITS.index(split), index])
    count = rng.integers(*objects, endpoint=True)
    sources = rng.choice(_split_indices(split), size=count)
    smallest, largest = np.log(digit_sizes)
    sizes = np.exp(rng.uniform(smallest, largest, size=count)).round().astype(int)
    image, object_map, placed = _compose(rng, height, width, sources, np.sort(sizes)[::-1])

    _, classes = _source()
    categories = classes[placed]
    semantic_map = np.append(0, categories + 1).astype(np.uint8)[object_map]
    masks = [np.where(object_map == number, np.uint8(255), np.uint8(0)) for number in range(1, len(placed) + 1)]
    boxes_xyxy: list[Any] = [Image.fromarray(mask).getbbox() for mask in masks]  # none of them is empty
    name = f"scenes/{split}/{index:06d}"
    return {
        "image": _png(image, name),
        "image_id": index,
        "width": width,
        "height": height,
        "objects": {
            "bbox": [[float(x0), float(y0), float(x1 - x0), float(y1 - y0)] for x0, y0, x1, y1 in boxes_xyxy],
            "category": categories.tolist(),
            "area": [int(np.count_nonzero(mask)) for mask in masks],
            "iscrowd": [0] * len(placed),
            "source_index": placed.tolist(),
        },
        "masks": [_png(mask, f"{name}-mask-{number:02d}") for number, mask in enumerate(masks)],
        "semantic_map": _png(semantic_map, f"{name}-semantic-map"),
    }


def _compose(
    rng: np.random.Generator, height: int, width: int, sources: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints digits of these source indices and sizes over each other, in their order.

    Returns the image, (height, width, 3) uint8; the object in sight at each pixel, (height, width) int32, 0 for the
    canvas and k for the k-th digit that found a place; and the source indices of those digits, (n,) int64.
    """
    grey_levels, _ = _source()
    first_hue = rng.random()
    image = _draw_canvas(rng, height, width)
    object_map = np.zeros((height, width), dtype=np.int32)
    ink_pixels = np.zeros(len(sources) + 1, dtype=np.int64)  # by object, the canvas being number 0
    visible_pixels = np.zeros(len(sources) + 1, dtype=np.int64)
    placed = []
    for source_index, size in zip(sources, sizes, strict=True):
        opacity = _upsample(grey_levels[source_index], size)
        box: Any = Image.fromarray(opacity > 0).getbbox()  # there is ink in every digit
        left, top, right, bottom = box
        opacity = opacity[top:bottom, left:right]
        ink = opacity >= 0.5
        for _ in range(PLACEMENT_TRIES):
            window = _draw_window(rng, (height, width), ink.shape)
            still_visible = visible_pixels - np.bincount(object_map[window][ink], minlength=len(visible_pixels))
            if (still_visible[1:] >= MIN_VISIBLE_SHARE * ink_pixels[1:]).all():
                break
        else:
            continue
        placed.append(source_index)
        number = len(placed)
        _paint(image[window], opacity, _draw_ink(rng, hue=first_hue + number * GOLDEN_RATIO))
        object_map[window][ink] = number
        visible_pixels = still_visible
        visible_pixels[number] = ink_pixels[number] = np.count_nonzero(ink)
    return image, object_map, np.array(placed, dtype=np.int64)


def _upsample(grey_levels: np.ndarray, size: int) -> np.ndarray:
    """(8, 8) grey levels in 0..1 to the opacity of the ink, (size, size) float32 in 0..1, with smooth outlines."""
    # Strokes touch the border of the source: an empty cell around it, of which half is kept, lets their outline close.
    padded = Image.fromarray(np.pad(grey_levels, 1))
    box = (0.5, 0.5, SOURCE_SIZE + 1.5, SOURCE_SIZE + 1.5)
    levels = np.asarray(padded.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return np.clip((levels - INK_LEVEL) * INK_CONTRAST + 0.5, 0, 1)


def _draw_window(rng: np.random.Generator, canvas_shape: tuple, shape: tuple) -> tuple[slice, slice]:
    top, left = rng.integers(np.subtract(canvas_shape, shape), endpoint=True)
    return slice(top, top + shape[0]), slice(left, left + shape[1])


def _draw_canvas(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth, light mixture of two related colours, (height, width, 3) uint8."""
    hue = rng.random()
    first = _colour(hue, rng.uniform(0.15, 0.5), luma=0.76)
    second = _colour(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.15, 0.5), luma=0.96)
    cells = np.maximum(2, np.round(np.array([height, width]) * 4 / min(height, width)).astype(int))
    coarse = Image.fromarray(rng.random(cells, dtype=np.float32))
    fine_cells = 3 * cells
    share = np.asarray(coarse.resize(fine_cells[::-1], Image.Resampling.BICUBIC)) + rng.uniform(-0.2, 0.2, fine_cells)
    share = share.clip(0, 1)[..., None]
    grid = (first * share + second * (1 - share)).round().astype(np.uint8)
    canvas = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(canvas)


def _draw_ink(rng: np.random.Generator, hue: float) -> np.ndarray:
    """A colour darker than any canvas, (3,) in 0..255."""
    return _colour(hue, rng.uniform(0.65, 1.0), luma=rng.uniform(0.2, 0.4))


def _colour(hue: float, saturation: float, luma: float) -> np.ndarray:
    """The colour of that hue, darkened or mixed with white until it has that luma; (3,) in 0..255."""
    full = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, 1.0))
    full_luma = full @ LUMA
    if full_luma >= luma:
        return full * (luma / full_luma) * 255
    return (full + (1 - full) * (luma - full_luma) / (1 - full_luma)) * 255


def _paint(window: np.ndarray, opacity: np.ndarray, colour: np.ndarray) -> None:
    window[:] = np.round(window + opacity[..., None] * (colour - window))


def _png(pixels: np.ndarray, name: str) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return {"bytes": buffer.getvalue(), "path": f"{name}.png"}
