"""
Detects what is NaN or infinite: steps of a training, without waiting for the GPU, and answers of a model.

A step with a loss or gradients that are not finite is skipped on the device: [`poison`] turns an infinite or NaN loss
into NaN gradients, the average over the processes spreads them to all processes, each finds a NaN in its own gradient
norm, and the optimiser leaves weights and moments unchanged. A flag per step is copied to the CPU in the background and
read when it has arrived ([`FiniteSteps`]), on a GPU one or two steps later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


# Most steps that can be unresolved or not yet merged: each takes one bit of a 64-bit integer.
MAX_PENDING = 62

# The parts of a model's output that its answers are made of, in this package and in Transformers
ANSWERS = ("logits", "pred_boxes", "pred_scores", "pred_masks", "class_queries_logits", "masks_queries_logits")


class NotFiniteError(ValueError):
    """Pixels that go into a model or answers that come out of it are NaN or infinite."""


def check_pixels(inputs: Mapping[str, Any]) -> None:
    """Raises a [`NotFiniteError`] if `pixel_values` has a value that is not finite."""
    if not inputs["pixel_values"].isfinite().all():
        raise NotFiniteError(
            "The image processor gives pixels that are NaN or infinite: check its image_mean, image_std and "
            "rescale_factor."
        )


def check_answers(outputs: Mapping[str, Any]) -> None:
    """Raises a [`NotFiniteError`] if one of `ANSWERS` in a model's output has a value that is not finite."""
    for name in ANSWERS:
        values = outputs.get(name)
        if values is not None and not values.isfinite().all():
            raise NotFiniteError(
                f"The model's {name} are NaN or infinite: its weights are damaged, or its numbers exceed the range of "
                f"{str(values.dtype).removeprefix('torch.')}."
            )


def poison(loss: torch.Tensor) -> torch.Tensor:
    """
    Multiplies a loss that is infinite or NaN by NaN, because its gradients may be finite (a constant added to the loss,
    for example). A finite loss is unchanged.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """The global L2 norm of all gradients, a scalar on their device."""
    return whole(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))


def whole(norm: torch.Tensor) -> torch.Tensor:
    """Converts a norm that is sharded (FSDP) into a plain tensor."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@dataclass
class Flags:
    """Which losses and gradients of one step are finite on this process."""

    finite: torch.Tensor  # (batches,) or, with the gradient norm, (batches + 1,) bool on the CPU; valid once copied
    copied: Any  # torch.Event that marks the end of the copy; None on a CPU
    sample_ids: list[list[str]]  # of each batch


class FiniteSteps:
    """
    The flags of this process's recent steps, until all processes have compared them. Steps are counted from 1.

    Args:
        checked: steps that are already compared, as in a resumed run. The next step that is added is `checked` + 1.

    Attributes:
        resolved: whether each step after `checked` was finite, as far as the flags have been read.
        pending: flags of the steps after those, which may still be on their way to the CPU.
        sample_ids: by step, the names of this process's samples in batches whose loss is not finite.
    """

    def __init__(self, checked: int):
        self.checked = checked
        self.resolved: list[bool] = []
        self.pending: deque[Flags] = deque()
        self.sample_ids: dict[int, list[str]] = {}

    def add(self, losses: list[torch.Tensor], norm: torch.Tensor | None, sample_ids: list[list[str]]) -> None:
        """
        Adds the next step. Waits for the device only if `MAX_PENDING` steps are unread.

        Args:
            losses: loss of each batch of the step, scalars on the device.
            norm: gradient norm, a scalar on the device; None to check the losses only (fp16, where the gradient scaler
                handles overflows).
            sample_ids: for each batch, the names of its samples.
        """
        finite = torch.stack([value.detach().isfinite() for value in (*losses, *([] if norm is None else [norm]))])
        copied = None
        if finite.device.type != "cpu":
            finite = torch.empty_like(finite, device="cpu", pin_memory=True).copy_(finite, non_blocking=True)
            copied = torch.Event(losses[0].device)
            copied.record()
        self.pending.append(Flags(finite, copied, sample_ids))
        self.resolve(wait=len(self.pending) + len(self.resolved) >= MAX_PENDING)

    def resolve(self, wait: bool = False) -> None:
        """Reads the flags whose copy is complete; with `wait`, all of them."""
        while self.pending and (wait or self.pending[0].copied is None or self.pending[0].copied.query()):
            flags = self.pending.popleft()
            if flags.copied is not None:
                flags.copied.synchronize()
            finite = flags.finite.tolist()
            if not all(finite):
                bad = [name for names, good in zip(flags.sample_ids, finite) if not good for name in names]
                self.sample_ids[self.checked + len(self.resolved) + 1] = bad
            self.resolved.append(all(finite))

    def encode(self) -> tuple[int, int]:
        """What the other processes need: (number of resolved steps, bit i is 1 if the i-th of them was not finite)."""
        return len(self.resolved), sum(1 << index for index, finite in enumerate(self.resolved) if not finite)

    def merge(self, parts: list[list[int]]) -> list[tuple[int, bool]]:
        """
        Removes the steps that all processes have resolved, and advances `checked`.

        Args:
            parts: the result of [`encode`] on each process, as a list.

        Returns:
            (step, whether it was finite on all processes) for each of these steps, in order. Equal on all processes.
        """
        known, first = min(resolved for resolved, _ in parts), self.checked + 1
        self.checked += known
        del self.resolved[:known]
        return [(first + index, not any(bits >> index & 1 for _, bits in parts)) for index in range(known)]
