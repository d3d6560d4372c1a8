"""Task "data" of `pvt-hf benchmark`: the input pipeline against a bare loop, see `benchmark.py`."""

from __future__ import annotations

import importlib.metadata
import io
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from tqdm import tqdm

from ..data.batches import BatchStream, make_loader
from ..data.samples import ProcessorTransform
from ..data.streams import Stream
from ..metrics.timing import summarise, summarise_ratios, time_pairs
from ..models.image_processing_pvt import PvtImageProcessor
from ..tasks.classification.samples import ClassificationSample
from ..tasks.classification.streams import open_classification_stream
from ..tasks.classification.transforms import ClassificationTransform
from .benchmark_arguments import DataArguments
from .benchmark_report import DisagreementError, describe_environment, run_and_report, save


Transform = Callable[[Image.Image], torch.Tensor]

SIZES = ((500, 375), (375, 500), (500, 333))  # width, height: the commonest of ImageNet
NUM_CLASSES = 10
SIDE = 224
# Largest difference of normalised values. In training, both sides run the same operations with the same random numbers.
# In evaluation, the processor scales and normalises in one step and torchvision in two, so they round differently.
TOLERANCE = {"crop": 0.0, "recipe": 0.0, "evaluation": 1e-5}


def make_texture(side: int = 1024) -> np.ndarray:
    """
    Makes noise (side, side, 3) uint8 like a photograph: amplitudes fall with frequency, and grey varies more than
    colour.
    """
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf  # removes the mean
    spectrum = np.fft.rfft2(generator.standard_normal((4, side, side))) / frequency
    noise = np.fft.irfft2(spectrum, s=(side, side))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    colours = 120 + 40 * noise[:1] + 15 * noise[1:]
    return np.moveaxis(colours, 0, -1).clip(0, 255).astype(np.uint8)


def make_images(count: int, quality: int) -> list[bytes]:
    """Makes JPEG files, all of different content."""
    generator, texture, files = np.random.default_rng(1), make_texture(), []
    for index in range(count):
        width, height = SIZES[index % len(SIZES)]
        top, left = generator.integers(0, len(texture) - max(width, height), size=2)
        buffer = io.BytesIO()
        Image.fromarray(texture[top : top + height, left : left + width]).save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    return files


def write_source(files: list[bytes], source: str, folder: Path) -> Stream:
    """Stores the files under their numbers, and opens them as a training does."""
    names = [f"{index:06d}.jpg" for index in range(len(files))]
    labels = [index % NUM_CLASSES for index in range(len(files))]
    class_names = [f"class{label}" for label in range(NUM_CLASSES)]
    if source == "folder":
        for name, content, label in zip(names, files, labels):
            path = folder / class_names[label] / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    elif source == "parquet":
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
        images = [{"bytes": content, "path": name} for name, content in zip(names, files)]
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(folder / "train.parquet", batch_size=100)  # the row-group size of image data sets on the Hub
    else:
        with tarfile.open(folder / "train.tar", "w") as tar:
            for name, content, label in zip(names, files, labels):
                for member, data in ((name, content), (name.replace(".jpg", ".cls"), str(label).encode())):
                    information = tarfile.TarInfo(member)
                    information.size = len(data)
                    tar.addfile(information, io.BytesIO(data))
    return open_classification_stream(str(folder), class_names=None if source == "folder" else class_names)


def build_transforms(row: str) -> tuple[Transform, Transform]:
    """The transforms of our side and of the bare side."""
    processor = PvtImageProcessor()
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    if row == "evaluation":
        bare = v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize(processor.size["shortest_edge"], v2.InterpolationMode.BICUBIC, antialias=True),
                v2.CenterCrop(SIDE),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )
        return ProcessorTransform(processor), bare
    plain = {"auto_augment": None, "random_erasing": 0.0} if row == "crop" else {}
    transform = ClassificationTransform(mean, std, image_size=(SIDE, SIDE), **plain)
    return transform, transform


def iterate_ours(stream: Stream, transform: Transform, row: str, epoch: int, arguments: DataArguments) -> Iterator:
    """One pass of our side, as in training or, for the row "evaluation", as in evaluation."""
    training = row != "evaluation"
    batches = BatchStream(
        stream,
        ClassificationSample(stream, transform),
        arguments.batch_size,
        shuffle_window=arguments.shuffle_window if training else 0,
        drop_last=training,
    )
    batches.set_epoch(epoch)
    return iter(make_loader(batches, num_workers=0))


def iterate_bare(files: list[bytes], transform: Transform, batch_size: int) -> Iterator[torch.Tensor]:
    """One pass of the bare side: batches (batch_size, 3, SIDE, SIDE)."""
    images = []
    for content in files:
        images.append(transform(Image.open(io.BytesIO(content)).convert("RGB")))
        if len(images) == batch_size:
            yield torch.stack(images)
            images = []


def time_pass(ours: Iterator, bare: Iterator) -> list[float]:
    """Seconds that each side takes for all its batches. The sides take turns, batch by batch."""
    seconds, batches = [0.0, 0.0], [True, True]
    while any(batch is not None for batch in batches):
        for side, iterator in enumerate((ours, bare)):
            start = time.perf_counter()
            batches[side] = next(iterator, None)
            seconds[side] += time.perf_counter() - start
    return seconds


def get_random_states() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_states(states: tuple) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def compare(row: str, stream: Stream, files: list[bytes], arguments: DataArguments) -> float:
    """
    Runs both sides over all images once, with equal random numbers. Returns the largest difference of their tensors.

    Raises:
        DisagreementError: the difference exceeds the row's tolerance, or an image is missing, repeated or skipped.
    """
    ours, bare = build_transforms(row)
    states = []

    def record_and_transform(image: Image.Image) -> torch.Tensor:
        states.append(get_random_states())
        return ours(image)

    difference, order = 0.0, []
    for batch in iterate_ours(stream, record_and_transform, row, 0, arguments):
        if batch["skipped"]:
            raise DisagreementError(f"{row}: the pipeline skipped {batch['skipped']}. Nothing was timed.")
        indices = [int(Path(name).stem) for name in batch["sample_ids"]]
        for index, pixels in zip(indices, batch["pixel_values"]):
            set_random_states(states[len(order)])
            (expected,) = next(iterate_bare([files[index]], bare, 1))
            order.append(index)
            difference = max(difference, (pixels - expected).abs().max().item())
    if sorted(order) != list(range(len(files))):
        raise DisagreementError(
            f"{row}: the pipeline returned {len(order)} images, {len(set(order))} different ones, of {len(files)}. "
            "Nothing was timed."
        )
    if not difference <= TOLERANCE[row]:
        raise DisagreementError(
            f"{row}: ours and bare differ by up to {difference:.2g} in normalised values, more than the allowed "
            f"{TOLERANCE[row]:.2g}. Nothing was timed."
        )
    return difference


def measure_row(row: str, stream: Stream, files: list[bytes], arguments: DataArguments) -> dict[str, Any]:
    """Compares the two sides, then times pairs of passes. Raises a DisagreementError, see [`compare`]."""
    difference = compare(row, stream, files, arguments)
    ours, bare = build_transforms(row)
    epoch = 0

    def time_pair() -> list[float]:
        nonlocal epoch
        epoch += 1
        return time_pass(
            iterate_ours(stream, ours, row, epoch, arguments), iterate_bare(files, bare, arguments.batch_size)
        )

    # No warm-up, because `compare` has run both sides.
    pairs = time_pairs(time_pair, 0.0, arguments.repeats, arguments.row_seconds)
    result = {"row": row, "largest_difference": difference}
    for name, seconds in zip(("ours", "bare"), zip(*pairs)):
        rates = summarise([len(files) / each for each in seconds])
        result[name] = {"images_per_second": rates, "seconds": seconds}
    return result | summarise_ratios([second / first for first, second in pairs])


def format_row(result: dict[str, Any]) -> str:
    text = f"{result['row']:<12}"
    for name in ("ours", "bare"):
        rates = result[name]["images_per_second"]
        lower, upper = rates["quartiles"]
        text += f"{rates['median']:8.1f} [{lower:.1f}, {upper:.1f}]".ljust(29)
    lower, upper = result["ratio_quartiles"]
    return text + f"{result['ratio']:.3f} [{lower:.3f}, {upper:.3f}] {result['pairs']:>5}"


def measure_rows(arguments: DataArguments, results: dict[str, Any]) -> None:
    """
    Measures all rows: adds each one to `results`, saves them and prints it. Raises a DisagreementError, see
    [`compare`].
    """
    files = make_images(arguments.images, arguments.quality)
    results["mean_bytes"] = sum(map(len, files)) / len(files)
    print(f"{len(files)} images of {results['mean_bytes'] / 1e3:.0f} kB on average, {arguments.source}")
    with tempfile.TemporaryDirectory(prefix="benchmark_data_") as folder:
        stream = write_source(files, arguments.source, Path(folder))
        head = f"{'ours, images/s per core':<29}{'bare, images/s per core':<29}{'ours/bare':<21}pairs"
        print(f"\n{'':<12}{head}")
        with tqdm(arguments.rows, disable=None, leave=False) as progress:  # only on a terminal
            for row in progress:
                progress.set_description(row)
                result = measure_row(row, stream, files, arguments)
                # Saved before it is printed, so that Ctrl-C cannot lose a row that was shown.
                results["rows"].append(result)
                save(results, arguments.output)
                progress.write(format_row(result))


def benchmark_data(arguments: DataArguments) -> int:
    """Runs the task "data". Returns the exit code of [`run_and_report`]."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    libraries = ("torchvision", "pillow", "timm", "datasets", "torchdata", "numpy")
    environment = describe_environment("cpu", torch.get_num_threads())
    environment |= {name: importlib.metadata.version(name) for name in libraries}
    return run_and_report(arguments, environment, len(arguments.rows), lambda results: measure_rows(arguments, results))
