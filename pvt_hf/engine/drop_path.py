"""The first recipe's drop-path schedule: none for the first epochs."""

from __future__ import annotations

from typing import Any

from torch import nn


class DropPathSchedule:
    """
    Holds stochastic depth at zero before epoch `zero_epochs`, then gives every layer its own rate.

    The first official code trains PVT-Medium and -Large so, with 100 epochs of 300, because they diverge otherwise
    (whai362/PVT, issue 2; its later configurations clip gradients instead).

    Args:
        model: its modules with a `drop_prob`, as Transformers' drop-path modules have it.

    Raises:
        ValueError: the model has no such module with a rate above zero.
    """

    def __init__(self, model: nn.Module, zero_epochs: int):
        self.zero_epochs = zero_epochs
        modules: list[Any] = [
            module
            for module in model.modules()
            if type(module).__name__.endswith("DropPath") and getattr(module, "drop_prob", None)
        ]
        self.rates: list[tuple[Any, float]] = [(module, module.drop_prob) for module in modules]
        if not self.rates:
            raise ValueError("--drop_path_zero_epochs: the model has no drop path; give a --drop_path_rate above 0.")

    def set_epoch(self, epoch: int) -> None:
        """Sets the rates of `epoch`, counted from 0."""
        for module, rate in self.rates:
            module.drop_prob = 0.0 if epoch < self.zero_epochs else rate
