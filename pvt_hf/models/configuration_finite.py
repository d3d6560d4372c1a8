"""Refuses configurations and image processors with a field that is NaN or infinite, whatever it is used for."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any


def check_finite_fields(fields: Mapping[str, Any]) -> None:
    """Checks the numbers in `fields`, also in lists, dicts, arrays, dataclasses and configurations inside it.

    Raises:
        ValueError: a number is NaN or infinite; the message names its field, such as `backbone_config.layer_norm_eps`
            or `image_mean[0]`.
    """
    for name, value in fields.items():
        for place, number in _numbers(value, str(name)):
            if not math.isfinite(number):
                raise ValueError(f"{place} must be a finite number, got {number}.")


def _numbers(value: Any, place: str) -> Iterator[tuple[str, Real]]:
    if isinstance(value, (bool, int, str, type)) or value is None:
        return  # most fields; an int beyond the range of floats is finite
    if isinstance(value, Real):
        yield place, value
    elif hasattr(value, "tolist"):
        yield from _numbers(value.tolist(), place)
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from _numbers(entry, f"{place}[{index}]")
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _numbers(entry, f"{place}.{name}")
    elif dataclasses.is_dataclass(value) or hasattr(value, "to_dict"):
        yield from _numbers(vars(value), place)


__all__ = ["check_finite_fields"]
