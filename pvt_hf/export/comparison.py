"""Compares an exported program with the model it came from, at several sizes and numbers of images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .tracing import example_inputs


SMALLEST_SIDE = 64
LARGEST_OWN_SIDE = 512  # larger models are compared at this size, too
# fp32 sums in another order, through some dozen layers, relative to the largest value: measured 1e-6 to 2e-5. A wrong
# position table or a rounded size changes the first digits.
TOLERANCE = 1e-3
# The candidates of a detector are those with the highest scores. Where two scores are equal but for rounding, model
# and program may choose differently.
SHARE_EQUAL = 0.97
# In half precision, of outputs that are not a choice of candidates. Coarse: accuracy is what counts.
HALF_TOLERANCE = {"fp16": 0.05, "bf16": 0.25}


@dataclass(frozen=True)
class Comparison:
    """
    The comparison for one shape.

    Attributes:
        batch, height, width: of the images.
        difference: largest absolute difference of outputs, relative to the largest value of each output or 1.
        objects: number of candidates or detections that were compared one by one; None for other outputs.
        share: of them, those that both have. If all outputs agree in their order, it is 1.
    """

    batch: int
    height: int
    width: int
    difference: float
    objects: int | None = None
    share: float = 1.0

    def agrees(self, precision: str = "fp32") -> bool:
        """
        Whether program and model agree, as far as rounding allows. Of "int8", and of candidates in half precision, only
        whether the values are finite.
        """
        if precision == "fp32":
            return self.difference <= TOLERANCE and self.share >= SHARE_EQUAL
        if self.objects is not None or precision == "int8":
            return self.share < 1 or self.difference < float("inf")
        return self.difference <= HALF_TOLERANCE[precision]

    @property
    def height_width(self) -> tuple[int, int]:
        """The size of the images."""
        return self.height, self.width

    def __str__(self) -> str:
        text = f"{self.batch} x {self.height}x{self.width}: largest difference {self.difference:.2g}"
        if self.objects is not None and self.share < 1:
            text += f" among the {self.share:.1%} of {self.objects} candidates that both have"
        return text


def shapes_to_compare(
    model: PreTrainedModel, fixed_size: tuple[int, int] | None, usual_size: tuple[int, int] | None
) -> list[tuple[int, int, int]]:
    """
    (batch, height, width) below, at and above the size that the model was built for, square and not, also such that no
    stage divides.

    Args:
        fixed_size: of a program for one size.
        usual_size: (height, width) that the image processor makes of a photograph.
    """
    if fixed_size:
        return [(1, *fixed_size)]
    built_for = getattr(getattr(model.config, "backbone_config", None) or model.config, "image_size", 224)
    own = (built_for, built_for) if isinstance(built_for, int) else tuple(built_for)
    height, width = (min(max(side, SMALLEST_SIDE), LARGEST_OWN_SIDE) for side in own)
    shapes = [
        (1, SMALLEST_SIDE, SMALLEST_SIDE),
        (3, SMALLEST_SIDE + 32, SMALLEST_SIDE),
        (1, height, width),
        (2, height, width + 37),
        (1, height + height // 2, width + width // 4),
    ]
    return list(dict.fromkeys([*shapes, (1, *usual_size)] if usual_size else shapes))


def pictures(model: PreTrainedModel, batch: int, height: int, width: int, seed: int) -> dict[str, torch.Tensor]:
    """
    Inputs that look like normalised photographs: smooth colours with rectangles in other colours. If there is a mask,
    the last image is smaller than the others.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = example_inputs(model, batch, height, width)
    channels = inputs["pixel_values"].shape[1]
    smooth = torch.randn(batch, channels, 5, 5, generator=generator)
    pixels = nn.functional.interpolate(smooth, size=(height, width), mode="bilinear", align_corners=False)
    for image in pixels:
        for _ in range(6):
            top, left = (int(torch.rand((), generator=generator) * side * 0.8) for side in (height, width))
            rows, columns = (int((0.1 + 0.4 * torch.rand((), generator=generator)) * side) for side in (height, width))
            image[:, top : top + rows, left : left + columns] = 1.5 * torch.randn(channels, 1, 1, generator=generator)
    inputs["pixel_values"] = pixels + 0.1 * torch.randn(pixels.shape, generator=generator)
    if "pixel_mask" in inputs and batch > 1:
        inputs["pixel_mask"][-1, height - height // 4 :] = 0
        inputs["pixel_mask"][-1, :, width - width // 8 :] = 0
        inputs["pixel_values"][-1] *= inputs["pixel_mask"][-1]
    return inputs


@torch.no_grad()
def compare(
    model: PreTrainedModel, program: Callable[..., Any], shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Comparison]:
    """
    Runs both on the same pictures.

    Raises:
        ValueError: the program fails, or its output has other parts or shapes.
    """
    for seed, (batch, height, width) in enumerate(shapes):
        inputs = pictures(model, batch, height, width, seed)
        expected = model(**inputs)
        try:
            found = program(**inputs)
        except Exception as error:  # of any runtime
            lines = str(error).strip().splitlines() or [repr(error)]
            raise ValueError(f"The export fails at {batch} x {height}x{width}: {lines[0]}") from error
        yield Comparison(batch, height, width, *difference_of(expected, found))


def difference_of(expected: Any, found: Any) -> tuple[float, int | None, float]:
    """
    The largest difference, the number of candidates or None, and the share of them that both have.

    Raises:
        ValueError: the outputs have other parts or shapes.
    """
    parts, other = named_tensors(expected), named_tensors(found)
    if [(name, value.shape) for name, value in parts.items()] != [(name, one.shape) for name, one in other.items()]:
        shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (parts, other)]
        raise ValueError(f"The export returns {shapes[1]}, and the model {shapes[0]}.")
    differences = [relative_difference(parts[name].float(), other[name].float()) for name in parts]
    count = None
    if "pred_boxes" in parts:
        count = int(parts["num_detections"].sum()) if "num_detections" in parts else parts["pred_boxes"][..., 0].numel()
        if max(differences) > TOLERANCE:
            difference, share = matched(rows_of(parts), rows_of(other))
            return difference, count, share
    return max(differences), count, 1.0


def named_tensors(output: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model's output by name; those of a tuple have the name and a number."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in output.items():
        for number, part in enumerate(value if isinstance(value, (tuple, list)) else [value]):
            if isinstance(part, torch.Tensor):
                tensors[name if part is value else f"{name}_{number}"] = part
    return tensors


def relative_difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest absolute difference, relative to the largest value or 1. Infinite if one of them is not finite."""
    lowest = torch.finfo(expected.dtype).min / 2  # logits of anchors in padding: the lowest number of the dtype
    there = ~((expected < lowest) & (found < lowest))
    expected, found = expected[there], found[there]
    if not expected.numel():
        return 0.0
    difference = (expected - found).abs().max().item() / max(1.0, expected.abs().max().item())
    return difference if difference < float("inf") else float("inf")


def rows_of(parts: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """For each image, a row for each candidate or detection: its box and its scores, from 0 to 1."""
    boxes = parts["pred_boxes"].float()
    if "pred_scores" in parts:
        labels = nn.functional.one_hot(parts["pred_labels"].long()).float()
        labels = nn.functional.pad(labels, (0, 1000 - labels.shape[-1])) if labels.shape[-1] < 1000 else labels
        rows = torch.cat([boxes, parts["pred_scores"][..., None].float(), labels], dim=-1)
        return [image[:count] for image, count in zip(rows, parts["num_detections"].tolist())]
    return list(torch.cat([boxes, parts["logits"].float().sigmoid()], dim=-1))


def matched(expected: list[torch.Tensor], found: list[torch.Tensor]) -> tuple[float, float]:
    """
    The largest difference among the rows that both have, and the share of those in all rows: for each row, the nearest
    one of the other side counts.
    """
    nearest = [torch.zeros(0)]
    for one, other in zip(expected, found):
        if len(one) and len(other):
            distances = torch.cdist(one, other, p=float("inf"))
            nearest += [distances.amin(dim=0), distances.amin(dim=1)]
        else:
            nearest.append(torch.full((len(one) + len(other),), float("inf")))
    all_rows = torch.cat(nearest)
    both = all_rows[all_rows <= TOLERANCE]
    return (both.max().item() if len(both) else float("inf")), len(both) / max(len(all_rows), 1)


@torch.no_grad()
def speed_ratio(
    model: PreTrainedModel, program: Callable[..., Any], height: int, width: int, repeats: int = 5
) -> tuple[float, float]:
    """
    Median seconds for one image: of the model, without compilation, and of the program. Both take turns, so that a
    busy moment of the machine meets both.
    """
    inputs = pictures(model, 1, height, width, seed=0)
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):  # the first one warms up
        functions: tuple[Callable[..., Any], ...] = (model, program)
        for function, times in zip(functions, seconds):
            start = time.perf_counter()
            function(**inputs)
            if repeat:
                times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])
