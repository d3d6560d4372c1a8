"""
Ids and numbers in any form.

    pytest tests/data/test_values.py
"""

import numpy as np
import pytest

from pvt_hf.data.values import read_id, read_number, read_side


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (7, 7), (7.0, 7), ("7", 7), (np.int32(7), 7), (-1, -1), ("-1", -1), ("0", 0), (2**63 - 1, 2**63 - 1),
        (str(2**63 - 1), 2**63 - 1), (str(2**63), str(2**63)), ("9" * 99, "9" * 99), ("007", "007"), ("-0", "-0"),
        ("7.0", "7.0"), ("", ""), (" 7", " 7"), ("٧", "٧"), ("img_7", "img_7"),
    ],
)  # fmt: skip
def test_ids(value, read):
    assert read_id(value) == read and type(read_id(value)) is type(read)


@pytest.mark.parametrize("value", [None, True, 7.5, float("nan"), float("inf"), 2**63, -(2**63), 1e30, [7], {}, b"7"])
def test_what_is_no_id(value):
    with pytest.raises((TypeError, ValueError)):
        read_id(value)


def test_numbers_and_sides():
    assert [read_number(value) for value in (None, "", "nan", "256", " 1e2 ", 3)] == [None, None, None, 256, 100, 3]
    with pytest.raises(ValueError):
        read_number("large")
    unknown = [None, "", 0, -1, "-1", -1.0, float("nan"), float("inf"), "unknown", [3]]
    assert [read_side(value) for value in unknown] == [None] * len(unknown)
    assert [read_side(value) for value in (3, "3", 3.0, "3.0")] == [3] * 4
