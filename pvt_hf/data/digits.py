"""
Streams of real handwritten digits that need no download: single digits, and scenes of digits with boxes and masks.

The source is the test part of the UCI "Optical Recognition of Handwritten Digits" set, which scikit-learn ships as
`sklearn.datasets.load_digits`: 1,797 images of 8x8 pixels with grey levels 0 to 16. Source indices below are positions
in that set. Train and test never share a source image: one fifth of each class is held out.

A stream is a list of indices that is mapped to samples. A sample depends only on the arguments of its stream and its
own index, so it is the same whichever shard, worker or process renders it, and a stream that resumes with
`load_state_dict` skips earlier samples without rendering them.
"""

from __future__ import annotations

import functools
import io
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .digit_drawing import SOURCE_SIZE, draw_digit, draw_scene, source_digits


DIGIT_NAMES = tuple(str(digit) for digit in range(10))
SCENE_CLASS_NAMES = ("background", *DIGIT_NAMES)
SPLITS = ("train", "test")
MIN_SCENE_SIZE = 32
OBJECTS_PER_SCENE = (3, 8)
KEPT_BYTES = 256 * 2**20  # of the encoded images that each process keeps for later epochs

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
    split: str, *, image_size: int = 64, num_shards: int = 1, length: int | None = None
) -> datasets.IterableDataset:
    """
    Single digits for classification: each fills most of a square of light, smooth colours, slightly off centre.

    Args:
        split: `"train"` (1,442 digits) or `"test"` (355 digits).
        image_size: side of the square image in pixels, at least 8.
        num_shards: number of shards. All of them together have the same samples, whatever their number.
        length: number of samples. By default one pass over the digits, in a fixed shuffled order; further passes render
            them anew.

    Returns:
        `datasets.IterableDataset` with

        - `image`: BMP, RGB, `image_size` x `image_size`;
        - `label`: `ClassLabel`, 0 to 9;
        - `sample_id`: `"digits/train/000123"`, where 123 is the source index. Further passes repeat it.

    Raises:
        ValueError: an unknown split, or a size that is too small.
        ImportError: scikit-learn is missing.
    """
    _check_split(split)
    _check_integer("image_size", image_size, minimum=SOURCE_SIZE)
    if length is None:
        length = len(_split_indices(split))
    render_kwargs = {"split": split, "image_size": int(image_size)}
    return _stream(split, num_shards, length, _render_digit, render_kwargs, DIGIT_FEATURES)


def digit_scenes(
    split: str,
    height: int,
    width: int,
    *,
    digit_sizes: Sequence[int] | None = None,
    num_shards: int = 1,
    length: int = 1000,
) -> datasets.IterableDataset:
    """
    Scenes of three to eight digits on a textured canvas, for detection, instance and semantic segmentation.

    A digit's mask is its visible ink. Digits are painted from large to small, each over the earlier ones, but never
    where one would hide more than 20 % of another's ink; a digit that finds no such place in 30 tries is left out.
    Boxes, areas, masks and semantic map are read from one map of object numbers, so they agree to the pixel.

    Args:
        split: `"train"` or `"test"`: the digits that scenes are made of.
        height, width: size of the scene in pixels, each at least 32.
        digit_sizes: smallest and largest size of a digit in pixels, at least 8 and at most the shorter side. Sizes are
            drawn log-uniformly; a digit is about nine tenths as tall as its size, and narrower. Default: one sixth of
            the shorter side (at least 8) to one half of it.
        num_shards: number of shards. All of them together have the same scenes, whatever their number.
        length: number of scenes.

    Returns:
        `datasets.IterableDataset` with

        - `image`: BMP, RGB, `height` x `width`;
        - `image_id`: index of the scene in the stream;
        - `width`, `height`: in pixels;
        - `objects`: a dict of lists with one entry per object: `bbox` (COCO format `[x, y, width, height]` in pixels,
          tight around the mask), `category` (`ClassLabel`, 0 to 9), `area` (pixels of the mask), `iscrowd` (0) and
          `source_index`;
        - `masks`: one PNG per object in the same order, mode L, 0 or 255, `height` x `width`;
        - `semantic_map`: PNG, mode L, `height` x `width`, indices into `SCENE_CLASS_NAMES` (0 is the background, 1 to
          10 are the digits 0 to 9).

    Raises:
        ValueError: an unknown split, a scene below 32 pixels, or digit sizes that do not fit.
        ImportError: scikit-learn is missing.
    """
    _check_split(split)
    _check_integer("height", height, minimum=MIN_SCENE_SIZE)
    _check_integer("width", width, minimum=MIN_SCENE_SIZE)
    shorter_side = int(min(height, width))
    if digit_sizes is None:
        digit_sizes = (max(SOURCE_SIZE, shorter_side // 6), shorter_side // 2)
    _check_sizes(digit_sizes, shorter_side)
    render_kwargs = {
        "split": split,
        "height": int(height),
        "width": int(width),
        "digit_sizes": tuple(int(size) for size in digit_sizes),
    }
    return _stream(split, num_shards, length, _render_scene, render_kwargs, SCENE_FEATURES)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}.")


def _check_integer(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")


def _check_sizes(digit_sizes: Sequence[int], shorter_side: int) -> None:
    if (
        len(digit_sizes) != 2
        or not all(isinstance(size, numbers.Integral) for size in digit_sizes)
        or not SOURCE_SIZE <= digit_sizes[0] <= digit_sizes[1] <= shorter_side
    ):
        raise ValueError(
            f"digit_sizes must be two integers (smallest, largest) from {SOURCE_SIZE} to the shorter side, "
            f"{shorter_side}, got {digit_sizes!r}."
        )


@functools.cache
def _split_indices(split: str) -> np.ndarray:
    """
    Source indices of a split, (n,) int64, in the order of the streams.

    The source is ordered by writer and class, so it is shuffled first; then every fifth digit of each class is held
    out. NumPy guarantees that the numbers of `RandomState` never change, so the split never changes either.
    """
    _, classes = source_digits()
    order = np.random.RandomState(0).permutation(len(classes))
    held_out = np.concatenate([order[classes[order] == digit][4::5] for digit in range(10)])
    return order[np.isin(order, held_out) == (split == "test")]


def _stream(
    split: str,
    num_shards: int,
    length: int,
    render: Callable[..., dict],
    render_kwargs: dict,
    features: datasets.Features,
) -> datasets.IterableDataset:
    indices = datasets.IterableDataset.from_generator(
        _sample_indices,
        features=datasets.Features({"index": datasets.Value("int64")}),
        gen_kwargs={
            "shards": list(range(num_shards)),
            "num_shards": num_shards,
            "length": length,
            "pass_length": len(_split_indices(split)),
        },
        split=datasets.NamedSplit(split),
    )
    # With features given to `map`, images would stay encoded; `cast` decodes them, until a caller casts again.
    return indices.map(render, input_columns="index", remove_columns="index", fn_kwargs=render_kwargs).cast(features)


def shard_sizes(split: str, num_shards: int, length: int) -> tuple[int, ...]:
    """Samples in each shard of [`digit_images`] and [`digit_scenes`]."""
    indices = np.arange(length)
    shards = (indices + indices // len(_split_indices(split))) % num_shards
    return tuple(np.bincount(shards, minlength=num_shards).tolist())


def _sample_indices(shards: list[int], num_shards: int, length: int, pass_length: int) -> Iterator[dict]:
    """
    Deals the indices below `length` out to the shards, one at a time.

    The deal moves on by one shard in each pass over the digits. Otherwise, if the length of a pass is a multiple of the
    number of shards, a shard would get the same digits in every pass.
    """
    for shard in shards:
        for index in range(length):
            if (index + index // pass_length) % num_shards == shard:
                yield {"index": index}


_kept: dict[tuple, dict] = {}
_kept_bytes = 0


def _keep(render: Callable[..., dict]) -> Callable[..., dict]:
    """`render`, but each sample is rendered once, as long as the images of all fit into `KEPT_BYTES`."""

    @functools.wraps(render)
    def render_once(index: int, **settings: Any) -> dict:
        global _kept_bytes
        key = (render.__name__, index, *settings.values())
        sample = _kept.get(key)
        if sample is None:
            sample = render(index, **settings)
            size = len(sample["image"]["bytes"])
            if _kept_bytes + size <= KEPT_BYTES:
                _kept[key] = sample
                _kept_bytes += size
        return sample

    return render_once


@_keep
def _render_digit(index: int, split: str, image_size: int) -> dict:
    rng = np.random.default_rng([0, 0, SPLITS.index(split), index])
    _, classes = source_digits()
    indices = _split_indices(split)
    source_index = indices[index % len(indices)]
    sample_id = f"digits/{split}/{source_index:06d}"
    return {
        "image": _encoded(draw_digit(rng, source_index, image_size), sample_id, "BMP"),
        "label": int(classes[source_index]),
        "sample_id": sample_id,
    }


@_keep
def _render_scene(index: int, split: str, height: int, width: int, digit_sizes: tuple[int, int]) -> dict:
    rng = np.random.default_rng([0, 1, SPLITS.index(split), index])
    count = rng.integers(*OBJECTS_PER_SCENE, endpoint=True)
    sources = rng.choice(_split_indices(split), size=count)
    smallest, largest = np.log(digit_sizes)
    sizes = np.exp(rng.uniform(smallest, largest, size=count)).round().astype(int)
    image, object_map, placed = draw_scene(rng, height, width, sources, np.sort(sizes)[::-1])

    _, classes = source_digits()
    categories = classes[placed]
    semantic_map = np.append(0, categories + 1).astype(np.uint8)[object_map]
    masks = [np.where(object_map == number, np.uint8(255), np.uint8(0)) for number in range(1, len(placed) + 1)]
    boxes_xyxy: list[Any] = [Image.fromarray(mask).getbbox() for mask in masks]  # none of them is empty
    name = f"scenes/{split}/{index:06d}"
    return {
        "image": _encoded(image, name, "BMP"),
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
        "masks": [_encoded(mask, f"{name}-mask-{number:02d}", "PNG") for number, mask in enumerate(masks)],
        "semantic_map": _encoded(semantic_map, f"{name}-semantic-map", "PNG"),
    }


def _encoded(pixels: np.ndarray, name: str, file_format: str) -> dict:
    """Images as BMP, because PNG takes as long as drawing them; masks as PNG, which is as fast for them, and small."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, compress_level=1)
    return {"bytes": buffer.getvalue(), "path": f"{name}.{file_format.lower()}"}
