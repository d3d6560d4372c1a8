"""The frame of a training run that every task shares: batches, the loop, and what is left in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from ..data.batches import BatchStream, Sample
from ..data.samples import is_held_out, stack
from ..data.sharding import describe_split
from ..data.streams import Stream
from .feed import Batch
from .loop import train
from .run_files import describe_run, save_run, start_trackers
from .settings import TrainingSettings


class SampleMaker(Protocol):
    """Makes a sample of an example of `stream`, or raises [`pvt_hf.data.samples.BadSample`]."""

    stream: Stream
    class_names: tuple[str, ...]

    def __call__(self, example: dict[str, Any]) -> Sample: ...


def run_task(
    accelerator: Accelerator,
    settings: TrainingSettings,
    output_dir: Path,
    model: PreTrainedModel,
    processor: Any,
    train_sample: SampleMaker,
    eval_sample: SampleMaker,
    compute_loss: Callable[[nn.Module, Batch], torch.Tensor],
    evaluate: Callable[[nn.Module, BatchStream], dict[str, Any]],
    best_metric: str,
    eval_batch_size: int | None = None,
    collate_training: Callable[[list[Sample]], dict[str, Any]] = stack,
    collate_evaluation: Callable[[list[Sample]], dict[str, Any]] = stack,
    group: Callable[[dict[str, Any]], Hashable] | None = None,
) -> dict[str, Any]:
    """
    The whole training of a model on a stream: returns what is written to `run.json`. The final model and processor are
    saved into `output_dir` as safetensors and JSON, with `curves.png`.

    Args:
        compute_loss, best_metric: as for [`pvt_hf.engine.loop.train`].
        evaluate: (unwrapped model, this process' part of the evaluation stream) to metrics, the same on each process.
        eval_batch_size: samples per batch of the evaluation; that of training by default.
        collate_training, collate_evaluation: list of samples to a batch.
        group: of which group a training example is, as for [`pvt_hf.data.batches.BatchStream`].

    Raises:
        ValueError: the evaluation stream is empty; and what the loop raises.
    """
    train_stream, eval_stream = train_sample.stream, eval_sample.stream
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    share = settings.eval_share
    train_batches = BatchStream(
        train_stream,
        train_sample,
        settings.batch_size,
        seed=settings.seed,
        shuffle_window=settings.shuffle_window,
        repeats=settings.repeated_augmentation,
        drop_last=True,
        # Unshuffled, many processes train on the batches of one.
        strategy=None if settings.shuffle_window else "examples",
        keep=_Part(share, held_out=False) if share else None,
        max_bad_share=settings.max_bad_share,
        collate=collate_training,
        group=group,
        **place,
    )
    eval_batches = BatchStream(
        eval_stream,
        eval_sample,
        eval_batch_size or settings.batch_size,
        keep=_Part(share, held_out=True) if share else None,
        max_bad_share=settings.max_bad_share,
        collate=collate_evaluation,
        **place,
    )
    if eval_stream.num_samples == 0:
        raise ValueError(f"{eval_stream.name} is empty: there is nothing to evaluate on.")
    num_samples = train_stream.num_samples
    if num_samples and share:
        num_samples = int(num_samples * (1 - share))
    accelerator.print(
        f"Training {type(model).__name__} ({model.num_parameters():,} parameters, {len(train_sample.class_names)} "
        f"classes) on {settings.samples_per_epoch or num_samples or 'an unknown number of'} samples, "
        f"{accelerator.num_processes} x {accelerator.device.type}."
    )
    for batches in (train_batches,) if share else (train_batches, eval_batches):  # otherwise the same stream twice
        split = describe_split(batches.stream, accelerator.num_processes, settings.num_workers, batches.strategy)
        accelerator.print("\n".join(split))
    start_trackers(accelerator, settings)
    trained, report = train(
        accelerator,
        settings,
        model,
        train_batches,
        num_samples,
        compute_loss,
        lambda unwrapped: evaluate(unwrapped, eval_batches),
        best_metric,
    )
    report = describe_run(accelerator, settings) | report
    if report["interrupted"]:
        accelerator.print(
            f"Stopped by {report['interrupted']}; the checkpoint is saved. Go on with --resume_from_checkpoint latest."
        )
    else:
        weights = accelerator.get_state_dict(trained)  # by all processes, each of which may hold a shard
        if accelerator.is_main_process:
            save_run(output_dir, trained, weights, processor, report)
        accelerator.print(
            f"{report['skipped']} unusable samples skipped, {report['dropped']} left over from incomplete batches.\n"
            f"Saved the model, its processor, run.json and curves.png in {output_dir}."
        )
    accelerator.end_training()
    return report


@dataclass
class _Part:
    """Chooses the held-out samples, or the others; a class, because loader workers may have to pickle it."""

    share: float
    held_out: bool

    def __call__(self, name: str) -> bool:
        return is_held_out(name, self.share) == self.held_out
