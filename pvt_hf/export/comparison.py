"""Compares an exported program with the model it came from, at several sizes and numbers of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..metrics.timing import seconds_of, summarise, summarise_ratios, time_pairs
from .tracing import example_inputs


SMALLEST_SIDE = 64
LARGEST_OWN_SIDE = 512  # larger models are compared at this size, too
# Relative to the largest value. fp32 sums in another order, through some dozen layers: measured 1e-6 to 2e-5; a wrong
# position table or a rounded size changes the first digits. Half precision is coarse: accuracy is what counts.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.25}
# The candidates of a detector are those with the highest scores. Where two scores are equal but for rounding, model
# and program may choose differently.
SHARE_EQUAL = 0.97
# Parts of an output with a row for each candidate or detection
ROWS = ("logits", "pred_boxes", "pred_scores", "pred_labels", "pred_masks", "num_detections")


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

    def tolerance(self, precision: str) -> float | None:
        """
        How large the difference may be. None for "int8", and for candidates in half precision, which may be others:
        only finite values are asked for.
        """
        if precision == "int8" or (precision != "fp32" and self.objects is not None):
            return None
        return TOLERANCES[precision]

    def agrees(self, precision: str = "fp32") -> bool:
        """Whether program and model agree, as far as rounding allows."""
        tolerance = self.tolerance(precision)
        if tolerance is None:
            return self.difference < float("inf")
        return self.difference <= tolerance and self.share >= SHARE_EQUAL

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


def smallest_side(model: PreTrainedModel, program: Callable[..., Any], precision: str, compared: int) -> int:
    """
    The smallest height and width in pixels that the program takes: the model's own, if they agree there in fp32, else
    the smallest that was `compared`. OpenVINO computes something else where one row of keys is left, and in other
    precisions the tolerance would not show it.
    """
    backbone = getattr(model.config, "backbone_config", None) or model.config
    own = int(getattr(backbone, "minimum_image_size", compared))
    if own >= compared or precision != "fp32":
        return compared
    try:
        found = list(compare(model, program, [(1, own, own), (2, own, compared)]))
    except ValueError:  # the program fails
        return compared
    return own if all(one.agrees() for one in found) else compared


def difference_of(expected: Any, found: Any) -> tuple[float, int | None, float]:
    """
    The largest difference (infinite if a value is not finite), the number of candidates or None, and the share of them
    that both have.

    Raises:
        ValueError: the outputs have other parts or shapes.
    """
    parts, other = named_tensors(expected), named_tensors(found)
    if [(name, value.shape) for name, value in parts.items()] != [(name, one.shape) for name, one in other.items()]:
        shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (parts, other)]
        raise ValueError(f"The export returns {shapes[1]}, and the model {shapes[0]}.")
    differences = {name: relative_difference(parts[name], other[name]) for name in parts}
    largest, count, share = max(differences.values()), None, 1.0
    if "pred_boxes" in parts:
        count = int(parts["num_detections"].sum()) if "num_detections" in parts else parts["pred_boxes"][..., 0].numel()
        if TOLERANCES["fp32"] < largest < float("inf"):
            of_rows, share = matched(rows_of(parts), rows_of(other))
            largest = max([of_rows, *(value for name, value in differences.items() if name not in ROWS)])
    return largest, count, share


def named_tensors(output: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model's output by name; those of a tuple have the name and a number."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in output.items():
        for number, part in enumerate(value if isinstance(value, (tuple, list)) else [value]):
            if isinstance(part, torch.Tensor):
                tensors[name if part is value else f"{name}_{number}"] = part
    return tensors


def relative_difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """
    The largest absolute difference, for floats relative to the largest value or 1. Infinite if a value is not finite.
    """
    if not expected.is_floating_point():
        return float((expected.long() - found.long()).abs().max()) if expected.numel() else 0.0
    expected, found = expected.float(), found.float()
    lowest = torch.finfo(expected.dtype).min / 2  # logits of anchors in padding: the lowest number of the dtype
    there = ~((expected < lowest) & (found < lowest))
    expected, found = expected[there], found[there]
    if not expected.numel():
        return 0.0
    difference = (expected - found).abs().max().item() / max(1.0, expected.abs().max().item())
    return difference if difference < float("inf") else float("inf")


def rows_of(parts: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """For each image, a row for each candidate or detection: its box, scores and mask, from 0 to 1, and its label."""
    columns = [parts["pred_boxes"].float()]
    if "pred_scores" not in parts:
        return list(torch.cat([*columns, parts["logits"].float().sigmoid()], dim=-1))
    columns += [parts["pred_scores"][..., None].float(), parts["pred_labels"][..., None].float()]
    if "pred_masks" in parts:
        columns.append(parts["pred_masks"].float().sigmoid().flatten(2))
    return [image[:count] for image, count in zip(torch.cat(columns, dim=-1), parts["num_detections"].tolist())]


def matched(expected: list[torch.Tensor], found: list[torch.Tensor]) -> tuple[float, float]:
    """
    The largest difference among the rows that both have (0 if they have none in common), and the share of those in all
    rows: for each row, the nearest one of the other side counts.
    """
    nearest = [torch.zeros(0)]
    for one, other in zip(expected, found):
        if len(one) and len(other):
            distances = torch.cdist(one, other, p=float("inf"))
            nearest += [distances.amin(dim=0), distances.amin(dim=1)]
        else:
            nearest.append(torch.full((len(one) + len(other),), float("inf")))
    all_rows = torch.cat(nearest)
    both = all_rows[all_rows <= TOLERANCES["fp32"]]
    return (both.max().item() if len(both) else 0.0), len(both) / max(len(all_rows), 1)


@torch.no_grad()
def measure_speed(model: PreTrainedModel, program: Callable[..., Any], height: int, width: int) -> dict[str, Any]:
    """
    Times one image, on the model without compilation and on the program, in pairs of calls: half a second to warm up,
    and two seconds or 20 pairs.

    Returns:
        `seconds_model` and `seconds_export` (medians); `pairs`, `ratio` and `ratio_quartiles` of the seconds of the
        model to those of the program.
    """
    inputs = pictures(model, 1, height, width, seed=0)

    def time_pair() -> list[float]:
        return [seconds_of(lambda: model(**inputs), "cpu"), seconds_of(lambda: program(**inputs), "cpu")]

    pairs = time_pairs(time_pair, warm_up=0.5, repeats=20, seconds=2.0)
    medians = [summarise(list(seconds))["median"] for seconds in zip(*pairs)]
    ratios = summarise_ratios([first / second for first, second in pairs])
    return {"seconds_model": medians[0], "seconds_export": medians[1], **ratios}
