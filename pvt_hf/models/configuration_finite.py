"""Refuses configurations and image processors with a number that is NaN, infinite, or no number at all."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
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


def is_number(value: Any) -> bool:
    """Whether it is a number, and not True or False, which Python counts as 1 and 0."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """As [`is_number`], for integers, also those of NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_number_fields(config: Any) -> None:
    """
    Checks the fields of a configuration that are declared as numbers or lists of numbers: `@strict` does not check
    annotations that are postponed (`from __future__ import annotations`).

    Raises:
        ValueError: a field has a boolean, text or something else instead; or a fraction where integers are expected.
    """
    for field in dataclasses.fields(config):
        declared, value = str(getattr(field.type, "__name__", field.type)), getattr(config, field.name, None)
        if not re.search(r"\b(int|float)\b", declared) or re.search(r"\b(bool|dict)\b", declared):
            continue
        if value is None and "None" in declared:
            continue
        is_valid, what = (is_number, "number") if "float" in declared else (is_integer, "integer")
        has_list, only_list = "list[" in declared, declared.startswith("list[")
        entries = value if has_list and isinstance(value, (list, tuple)) else [None if only_list else value]
        if not all(map(is_valid, entries)):
            wanted = f"a list of {what}s" if only_list else f"one {what}" + f" or a list of {what}s" * has_list
            raise ValueError(f"{field.name} must be {wanted}, got {value!r}.")


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


__all__ = ["check_finite_fields", "check_number_fields", "is_integer", "is_number"]
