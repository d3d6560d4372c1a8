"""Top-k accuracy and loss of an image classifier on a stream, on one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from ...data.batches import BatchStream, make_loader
from ...engine.feed import Batch
from ...engine.processes import agree, gather_objects
from ...metrics.accuracy_at_k import AccuracyAtK


Forward = Callable[[torch.Tensor], Any]


@torch.no_grad()
def evaluate_classifier(
    accelerator: Accelerator,
    model: Forward,
    batches: BatchStream,
    num_workers: int,
    after_batch: Callable[[Batch], None] | None = None,
) -> dict[str, float]:
    """
    Top-1, top-5 (top-k if there are fewer classes) and mean cross-entropy over a stream, every sample once, over all
    processes.

    Args:
        model: pixel values (batch, channels, height, width) to an output with `logits` (batch, classes).
        batches: this process' part of the stream.
        after_batch: called with each batch of this process once its logits are on the CPU.

    Returns:
        The same on each process: `accuracy@1`, `accuracy@5`, `eval_loss`, `eval_samples`, `eval_skipped`.

    Raises:
        ValueError: there is no sample.
    """
    ranked, labels, loss_sum, skipped = [], [], 0.0, 0
    loader = iter(make_loader(batches, num_workers))
    for batch in _in_step(accelerator, model, loader) if accelerator.is_fsdp2 else loader:
        skipped += len(batch["skipped"])
        if "sample_ids" in batch:
            images = send_to_device(batch["pixel_values"], accelerator.device)
            with accelerator.autocast():
                logits = model(images).logits
            logits = logits.float().cpu()
            loss_sum += nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").item()
            ranked += logits.topk(min(5, logits.shape[1])).indices.tolist()
            labels += batch["labels"].tolist()
        if after_batch is not None:
            after_batch(batch)
    parts = gather_objects(accelerator, (ranked, labels, loss_sum, skipped))
    ranked, labels = [r for part in parts for r in part[0]], [label for part in parts for label in part[1]]
    if not labels:
        raise ValueError(f"{batches.stream.name} has no sample to evaluate on.")
    ranks = (1, min(5, len(ranked[0])))
    metrics = AccuracyAtK(keep_in_memory=True).compute(predictions=ranked, references=labels, k=ranks)
    metrics["eval_loss"] = sum(part[2] for part in parts) / len(labels)
    metrics["eval_samples"] = len(labels)
    metrics["eval_skipped"] = sum(part[3] for part in parts)
    return metrics


def _in_step(accelerator: Accelerator, model: Forward, loader: Iterator[Batch]) -> Iterator[Batch]:
    """
    The batches of `loader`. FSDP gathers the parameters in every forward pass, so all processes have to run equally
    often: one without a batch runs on an image of zeros, whose answer is thrown away, while another still has one.
    """
    shape: Any = None
    while True:
        batch = next(loader, None)
        while batch is not None and "sample_ids" not in batch:  # only skipped samples: nothing to run
            yield batch
            batch = next(loader, None)
        if shape is None:  # a process that never has a batch learns here what an image looks like
            shapes = gather_objects(accelerator, None if batch is None else batch["pixel_values"].shape[1:])
            shape = next(filter(None, shapes), None)
        if not agree(accelerator, batch is not None, "any"):
            return
        if batch is not None:
            yield batch
        else:
            with accelerator.autocast():
                model(torch.zeros(1, *shape, device=accelerator.device))
