"""Reads ids and numbers as annotation tools write them: an id may be 7, 7.0 or "7", an area 256 or "256"."""

from __future__ import annotations

import math
import operator
import re
from typing import Any


# Ids are stored as 64-bit integers.
LARGEST_ID = 2**63 - 1
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]*")


def read_id(value: Any) -> int | str:
    """
    An id in the form in which ids are compared: 7, 7.0 and "7" give 7. Other text, such as "007" or "img_7", stays
    text, and so does a number in text that has more than 64 bits.

    Raises:
        ValueError: None, a fraction, NaN, or a number of more than 64 bits.
        TypeError: neither a number nor text.
    """
    if isinstance(value, str):
        number = int(value) if len(value) < 20 and WHOLE_NUMBER.fullmatch(value) else None
        return value if number is None or abs(number) > LARGEST_ID else number
    if value is None or isinstance(value, bool):
        raise ValueError(f"the id is {value}; expected a whole number or text")
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"the id {value} is not a whole number")
        value = int(value)
    number = operator.index(value)
    if abs(number) > LARGEST_ID:
        raise ValueError(f"the id {number} needs more than 64 bits; give ids of that length as text")
    return number


def read_number(value: Any) -> float | None:
    """
    A number that may be text. None, empty text and NaN give None.

    Raises:
        ValueError, TypeError: not a number.
    """
    number = math.nan if value is None or value == "" else float(value)
    return None if math.isnan(number) else number


def read_side(value: Any) -> int | None:
    """A width or height in pixels. None if it is not known: missing, zero or negative (often -1), or not a number."""
    try:
        side = read_number(value)
    except (TypeError, ValueError):
        return None
    return int(side) if side is not None and math.isfinite(side) and side >= 1 else None
