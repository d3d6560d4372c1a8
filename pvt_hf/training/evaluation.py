"""Evaluation of image classifiers on a stream, on one process or many."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from ..data.batches import BatchStream, make_loader
from ..metrics.accuracy_at_k import AccuracyAtK
from .loop import gather_objects


@torch.no_grad()
def evaluate_classifier(
    accelerator: Accelerator, model: nn.Module, batches: BatchStream, num_workers: int
) -> dict[str, float]:
    """
    Top-1, top-5 (top-k if there are fewer classes) and mean cross-entropy over a stream, every sample once, over all
    processes. Returns the same on each.
    """
    ranked, labels, loss_sum, skipped = [], [], 0.0, 0
    for batch in make_loader(batches, num_workers):
        skipped += len(batch["skipped"])
        if "sample_ids" not in batch:
            continue
        images = send_to_device(batch["pixel_values"], accelerator.device)
        with accelerator.autocast():
            logits = model(images).logits
        logits = logits.float().cpu()
        loss_sum += nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").item()
        ranked += logits.topk(min(5, logits.shape[1])).indices.tolist()
        labels += batch["labels"].tolist()
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
