"""A training run from its settings to the files in its folder, for any task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from ..data.batches import BatchStream
from ..data.samples import is_held_out
from ..data.sharding import describe_split
from ..data.streams import Stream
from .checkpoints import ensure_output_dir
from .evaluation import evaluate
from .loop import train as train_loop
from .processes import make_accelerator, quiet_progress_bars, synchronize_batch_norm
from .run_files import describe_run, save_run, start_trackers
from .settings import SplitSettings, TrainingSettings
from .task import SampleMaker, Task


@quiet_progress_bars()
def train(task: Task, settings: TrainingSettings) -> dict[str, Any]:
    """
    Trains a model. The final model and its processor are saved in `settings.output_dir`, with `curves.png` and
    `run.json`.

    Returns:
        What is in `run.json`: the run's description and [`pvt_hf.engine.loop.train`]'s report.

    Raises:
        FileExistsError: the folder has checkpoints of an earlier run that is not resumed.
        FloatingPointError, OSError, StreamError, ValueError: as [`pvt_hf.engine.loop.train`] and `task`'s methods.
    """
    accelerator = make_accelerator(settings)
    output_dir = ensure_output_dir(settings.output_dir, settings.resume_from_checkpoint)
    processor = task.build_processor(settings)
    train_stream, eval_stream = open_streams(task, settings, processor)
    train_sample = task.training_sample(settings, train_stream, processor)
    class_names = train_sample.class_names
    eval_sample = task.evaluation_sample(settings, eval_stream, processor, class_names)
    model = synchronize_batch_norm(accelerator, task.build_model(settings, class_names))
    train_batches = training_batches(
        task,
        settings,
        train_sample,
        accelerator,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle_window=settings.shuffle_window,
        repeats=settings.repeated_augmentation,
    )
    eval_batches = evaluation_batches(
        task, settings, eval_sample, accelerator, task.eval_batch_size or settings.batch_size
    )
    num_samples = samples_to_train_on(train_stream, settings)
    _announce(accelerator, settings, model, train_batches, eval_batches, len(class_names), num_samples)
    start_trackers(accelerator, settings)
    evaluation = task.evaluation(settings, model, processor, len(class_names))
    trained, report = train_loop(
        accelerator,
        settings,
        model,
        train_batches,
        num_samples,
        task.loss(settings, len(class_names)),
        lambda unwrapped: evaluate(accelerator, unwrapped, eval_batches, settings.num_workers, evaluation),
        task.best_metric,
    )
    report = describe_run(accelerator, settings) | report
    if report["interrupted"]:
        accelerator.print(
            f"Stopped by {report['interrupted']}; the checkpoint is saved. Go on with --resume_from_checkpoint latest."
        )
    else:
        weights = accelerator.get_state_dict(trained)  # called by all processes, each of which may hold a shard
        if accelerator.is_main_process:
            save_run(output_dir, trained, weights, processor, report)
        accelerator.print(
            f"{report['skipped']} unusable samples skipped, {report['dropped']} left over from incomplete batches.\n"
            f"Saved the model, its processor, run.json and curves.png in {output_dir}."
        )
    accelerator.end_training()
    return report


def open_streams(task: Task, settings: SplitSettings, processor: Any) -> tuple[Stream, Stream]:
    """
    The streams to train and to evaluate on: of one split where a share of it is held out.

    Raises:
        ValueError: the second is empty; and what the task's `open_stream` raises.
    """
    eval_split = settings.train_split if settings.eval_share else settings.eval_split
    train_stream = task.open_stream(settings, settings.train_split, processor, training=True)
    eval_stream = task.open_stream(settings, eval_split, processor)
    if eval_stream.num_samples == 0:
        raise ValueError(f"{eval_stream.name} is empty: there is nothing to evaluate on.")
    return train_stream, eval_stream


def training_batches(
    task: Task,
    settings: Any,
    sample: SampleMaker,
    state: Any,
    *,
    batch_size: int,
    seed: int,
    shuffle_window: int,
    repeats: int = 1,
) -> BatchStream:
    """
    This process' part of the training stream, in full batches.

    Args:
        settings: the task's, of splits and data.
        sample: makes the samples.
        state: has Accelerate's `process_index` and `num_processes`.
        batch_size, seed, shuffle_window, repeats: see [`BatchStream`].
    """
    return BatchStream(
        sample.stream,
        sample,
        batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        seed=seed,
        shuffle_window=shuffle_window,
        repeats=repeats,
        drop_last=True,
        # Unshuffled, many processes train on the batches of one.
        strategy=None if shuffle_window else "examples",
        keep=HeldOut(settings.eval_share, wanted=False) if settings.eval_share else None,
        max_bad_share=settings.max_bad_share,
        collate=task.collate_training,
        group=task.group(settings, sample.stream) if shuffle_window else None,
    )


def evaluation_batches(task: Task, settings: Any, sample: SampleMaker, state: Any, batch_size: int) -> BatchStream:
    """This process' part of the stream that a training is evaluated on. Arguments as in [`training_batches`]."""
    return BatchStream(
        sample.stream,
        sample,
        batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        keep=HeldOut(settings.eval_share, wanted=True) if settings.eval_share else None,
        max_bad_share=settings.max_bad_share,
        collate=task.collate_evaluation,
    )


def samples_to_train_on(stream: Stream, settings: SplitSettings) -> int | None:
    """The length of a stream without the share that is held out; None if it is not known."""
    return stream.num_samples and int(stream.num_samples * (1 - settings.eval_share))


@dataclass
class HeldOut:
    """Chooses the held-out samples, or the others, by name. A class, because loader processes may have to pickle it."""

    share: float
    wanted: bool

    def __call__(self, name: str) -> bool:
        return is_held_out(name, self.share) == self.wanted


def _announce(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: PreTrainedModel | nn.Module,
    train_batches: BatchStream,
    eval_batches: BatchStream,
    num_labels: int,
    num_samples: int | None,
) -> None:
    """Prints what is about to be trained, on what, and how the streams are divided."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    accelerator.print(
        f"Training {type(model).__name__} ({parameters:,} parameters, {num_labels} classes) on "
        f"{settings.samples_per_epoch or num_samples or 'an unknown number of'} samples, "
        f"{accelerator.num_processes} x {accelerator.device.type}."
    )
    for batches in (train_batches,) if settings.eval_share else (train_batches, eval_batches):
        split = describe_split(batches.stream, accelerator.num_processes, settings.num_workers, batches.strategy)
        accelerator.print("\n".join(split))
