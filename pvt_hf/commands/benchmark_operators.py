"""Where the time of a call goes: `pvt-hf benchmark models --profile`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


PROFILED_CALLS = 5
SHOWN_OPERATORS = 8


def profile_call(call: Callable[[], Any], device: str) -> list[dict[str, Any]]:
    """
    Profiles calls, which have to be warmed up.

    Returns:
        `operator`, `seconds` (without the operators that it calls) and `count` of a call, the longest first. On CUDA,
        times are those of the device.
    """
    on_cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as profiler:
        for _ in range(PROFILED_CALLS):
            call()
    field = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    # The kernels of a GPU are events of their own; their time is in the operators already
    operators = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    events = sorted(operators, key=lambda event: -getattr(event, field))
    return [
        {
            "operator": event.key,
            "seconds": getattr(event, field) / 1e6 / PROFILED_CALLS,
            "count": event.count / PROFILED_CALLS,
        }
        for event in events
    ]


def format_operators(name: str, operators: list[dict[str, Any]]) -> str:
    """Formats the longest operators as lines, with times in ms."""
    total = sum(each["seconds"] for each in operators)
    lines = [f"    {name}: {1e3 * total:.1f} ms in operators"]
    for each in operators[:SHOWN_OPERATORS]:
        share = f"{1e3 * each['seconds']:8.1f} ms {each['seconds'] / total:4.0%}"
        lines.append(f"    {share}  {each['operator']} ({each['count']:.0f} calls)")
    return "\n".join(lines)
