"""
Optimiser steps whose loss or gradients are not finite: skipped on the device, and noticed without waiting for it.

A loss that is not finite makes all gradients NaN. The average over the processes carries that to every process, so
each of them sees it in its own gradient norm and skips the same update. The flag is copied to the CPU in the background
and read when it has arrived: one or two steps late on a GPU, when the weights are still as they were.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


# Steps that may wait for their flag, one bit each of the integer that is exchanged
MAX_PENDING = 62


def poison(loss: torch.Tensor) -> torch.Tensor:
    """`loss`, times NaN if it is not finite: an infinite loss can have finite gradients. A finite one is unchanged."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """The global L2 norm of the gradients, a scalar tensor on their device."""
    return whole(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def whole(norm: torch.Tensor) -> torch.Tensor:
    """A norm that may be sharded (FSDP), as a plain tensor."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@dataclass
class Flags:
    """What is known of a step on this process, or will be when the device gets there."""

    finite: torch.Tensor  # (batches + 1,) bool on the CPU, filled in the background
    arrived: Any  # torch.Event, or None on a CPU
    sample_ids: list[list[str]]  # of each batch


class FiniteSteps:
    """
    The flags of the last steps on this process.

    Args:
        checked: steps that every process knows to be finite or not; flags begin there.
    """

    def __init__(self, checked: int):
        self.checked = checked
        self.resolved: list[bool] = []  # of the steps from `checked` on
        self.pending: deque[Flags] = deque()
        self.sample_ids: dict[int, list[str]] = {}  # this process' batches with a loss that is not finite, by step

    def add(self, losses: list[torch.Tensor], norm: torch.Tensor | None, sample_ids: list[list[str]]) -> None:
        """
        Notes the next step.

        Args:
            losses: of the step's batches, scalars on the device.
            norm: of the gradients; None if only the losses count (fp16, where the scaler skips overflowing gradients).
            sample_ids: names of the samples of each batch.
        """
        finite = torch.stack([value.detach().isfinite() for value in (*losses, *([] if norm is None else [norm]))])
        arrived = None
        if finite.device.type != "cpu":
            finite = torch.empty_like(finite, device="cpu", pin_memory=True).copy_(finite, non_blocking=True)
            arrived = torch.Event(losses[0].device)
            arrived.record()
        self.pending.append(Flags(finite, arrived, sample_ids))
        self.resolve(wait=len(self.pending) + len(self.resolved) >= MAX_PENDING)

    def resolve(self, wait: bool = False) -> None:
        """Reads the flags that have arrived, or all of them with `wait`."""
        while self.pending and (wait or self.pending[0].arrived is None or self.pending[0].arrived.query()):
            flags = self.pending.popleft()
            if flags.arrived is not None:
                flags.arrived.synchronize()
            finite = flags.finite.tolist()
            if not all(finite):
                bad = [name for names, good in zip(flags.sample_ids, finite) if not good for name in names]
                self.sample_ids[self.checked + len(self.resolved)] = bad
            self.resolved.append(all(finite))

    def encode(self) -> tuple[int, int]:
        """For the other processes: how many steps from `checked` on are resolved; a bit for each that is not finite."""
        return len(self.resolved), sum(1 << index for index, finite in enumerate(self.resolved) if not finite)

    def merge(self, parts: list[list[int]]) -> list[tuple[int, bool]]:
        """
        Moves `checked` on to the first step that some process has not resolved.

        Args:
            parts: [`encode`], as lists, of every process.

        Returns:
            (step, whether it was finite on all processes), in order. The same on every process.
        """
        known = min(resolved for resolved, _ in parts)
        first = self.checked
        self.checked += known
        del self.resolved[:known]
        return [(first + index, not any(bits >> index & 1 for _, bits in parts)) for index in range(known)]
