"""Timing of two sides in pairs of calls, so that a busy moment of the machine meets both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


MIN_PAIRS = 3  # even if the time is up


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """Seconds that `run` takes, until the device has finished."""
    import torch  # arguments are checked with this file: nothing heavy above

    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_pairs(
    time_pair: Callable[[], list[float]], warm_up: float, repeats: int, seconds: float
) -> list[tuple[float, float]]:
    """
    Calls `time_pair`, which returns the seconds of both sides, again and again.

    Args:
        warm_up: seconds at the beginning whose pairs do not count.
        repeats: largest number of pairs.
        seconds: no pair is started later than this, once there are `MIN_PAIRS`.

    Returns:
        The pairs, (seconds of the first side, seconds of the second side).
    """
    start = time.perf_counter()
    while time.perf_counter() - start < warm_up:
        time_pair()
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < MIN_PAIRS or (len(pairs) < repeats and time.perf_counter() - start < seconds):
        first, second = time_pair()
        pairs.append((first, second))
    return pairs


def summarise(values: list[float]) -> dict[str, Any]:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "quartiles": [lower, upper], "min": min(values), "max": max(values)}


def summarise_ratios(ratios: list[float]) -> dict[str, Any]:
    summary = summarise(ratios)
    return {"pairs": len(ratios), "ratio": summary["median"], "ratio_quartiles": summary["quartiles"]}
