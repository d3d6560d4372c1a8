"""
A training run of any task, from its settings to the files in its output folder.

The path of a sample, in the folder of its task (`tasks/NAME/`) unless noted:

    streams.py                    an example of the source; its image is still encoded
    samples.py, transforms.py     a sample: the decoded, augmented image and its labels, as tensors
    data/batches.py               batches of samples, shuffled and split over processes and loader workers
    engine/feed.py                groups of batches, one per optimiser step, equally many on every process
    engine/loop.py                `_Training._step`: to the device, loss, backward pass, optimiser
    task.py                       the loss function (models compute their own in `models/modeling_NAME.py`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from ..data.batches import BatchStream
from ..data.samples import is_held_out
from ..data.sharding import describe_split
from ..data.streams import Stream
from .best import BEST_FOLDER
from .checkpoints import ensure_output_dir
from .evaluation import evaluate
from .figures import LastEvaluation, WritePage, write_figures
from .guard import LabelGuard
from .lock import lock_output_dir
from .loop import train as train_loop
from .processes import any_process, make_accelerator, quiet_progress_bars, synchronize_batch_norm
from .run_files import describe_run, save_run, start_trackers
from .settings import SplitSettings, TrainingSettings
from .task import SampleMaker, Task


@quiet_progress_bars()
def train(task: Task, settings: TrainingSettings, write_page: WritePage | None = None) -> dict[str, Any]:
    """
    Trains a model, and saves it with its image processor, `curves.png`, the figures of the last evaluation (see
    [`pvt_hf.engine.figures.write_figures`]) and `run.json` in `settings.output_dir`. A run
    that a signal stops only leaves its checkpoints. With `--keep_best`, `best/` has the model of the best evaluation.

    Args:
        settings: of the class `task.training_settings`.
        write_page: draws held-out samples.

    Returns:
        The content of `run.json`: a description of the run and the report of [`pvt_hf.engine.loop.train`].

    Raises:
        BlockingIOError: another training writes into the folder.
        FileExistsError: the folder has checkpoints, and the run does not resume.
        FloatingPointError, OSError, StreamError, ValueError: see [`pvt_hf.engine.loop.train`] and the task's methods.
    """
    accelerator = make_accelerator(settings)
    with lock_output_dir(settings.output_dir, accelerator):
        return _train(task, settings, accelerator, write_page)


def _train(
    task: Task, settings: TrainingSettings, accelerator: Accelerator, write_page: WritePage | None
) -> dict[str, Any]:
    output_dir = ensure_output_dir(settings.output_dir, settings.resume_from_checkpoint)
    opened = open_training(task, settings, accelerator)
    model, processor, num_labels = opened.model, opened.processor, len(opened.class_names)
    train_batches = training_batches(
        task,
        settings,
        opened.train_sample,
        accelerator,
        batch_size=settings.batch_size,
        seed=settings.seed,
        shuffle_window=settings.shuffle_window,
        repeats=settings.repeated_augmentation,
    )
    eval_batches = evaluation_batches(
        task, settings, opened.eval_sample, accelerator, task.eval_batch_size or settings.batch_size
    )
    num_samples = samples_to_train_on(opened.train_sample.stream, settings)
    _announce(accelerator, settings, model, train_batches, eval_batches, num_labels)
    start_trackers(accelerator, settings)
    evaluation, last = task.evaluation(settings, model, processor, num_labels), LastEvaluation(processor)

    def evaluate_model(unwrapped: Any) -> dict[str, Any]:
        return evaluate(
            accelerator, unwrapped, eval_batches, settings.num_workers, evaluation, guard=opened.eval_guard, last=last
        )

    trained, report = train_loop(
        accelerator,
        settings,
        model,
        train_batches,
        num_samples,
        task.loss(settings, num_labels),
        evaluate_model,
        task.best_metric,
        opened.train_guard,
        processor,
    )
    report = describe_run(accelerator, settings) | report
    if report["interrupted"]:
        accelerator.print(
            f"Stopped by {report['interrupted']} at step {report['steps']}. "
            + (
                "A checkpoint is saved: continue with --resume_from_checkpoint latest."
                if report["steps"]
                else "Nothing is saved yet: start again with the same command."
            )
        )
    else:
        if not any_process(bool(last.states)):  # resumed after the last evaluation
            evaluate_model(trained)
        weights = accelerator.get_state_dict(trained)  # on all processes, because each may hold a shard
        if accelerator.is_main_process:
            save_run(
                output_dir, trained, weights, processor, report,
                lambda folder: write_figures(folder, evaluation, last, opened.class_names, write_page),
            )  # fmt: skip
        accelerator.print(
            f"{report['skipped']} unusable samples skipped, {report['dropped']} left over from incomplete batches.\n"
            f"Saved the model, its image processor, run.json, curves.png and figures in {output_dir}."
        )
        if settings.keep_best:
            accelerator.print(
                f"The best {task.best_metric} was that of step {report['best_step']}: its model is in "
                f"{output_dir / BEST_FOLDER}."
            )
    accelerator.end_training()
    return report


@dataclass
class Opened:
    """
    What a training begins with.

    Attributes:
        processor: the image processor.
        train_sample, eval_sample: make the samples of the two streams.
        class_names: of the model, by label.
        train_guard, eval_guard: for the labels of the first epoch of each.
        model: not yet on its device.
    """

    processor: Any
    train_sample: SampleMaker
    eval_sample: SampleMaker
    class_names: tuple[str, ...]
    train_guard: LabelGuard
    eval_guard: LabelGuard
    model: PreTrainedModel


def open_training(task: Task, settings: Any, state: Any) -> Opened:
    """
    Opens the streams, looks at their labels, and makes the model.

    Args:
        settings: the task's training or fine-tuning settings.
        state: Accelerate's `Accelerator` or `PartialState`.

    Raises:
        OSError, ValueError: as `task`'s methods, [`look_at_labels`] and [`build_model`].
    """
    processor = task.build_processor(settings)
    train_stream, eval_stream = open_streams(task, settings, processor)
    train_sample = task.training_sample(settings, train_stream, processor)
    class_names = train_sample.class_names
    eval_sample = task.evaluation_sample(settings, eval_stream, processor, class_names)
    train_guard, eval_guard = look_at_labels(settings, train_sample, eval_sample, state.print)
    model = synchronize_batch_norm(state, build_model(task, settings, class_names))
    return Opened(processor, train_sample, eval_sample, class_names, train_guard, eval_guard, model)


def open_streams(task: Task, settings: SplitSettings, processor: Any) -> tuple[Stream, Stream]:
    """
    Opens the streams for training and for evaluation. With `settings.eval_share`, both read the training split, and
    [`training_batches`] and [`evaluation_batches`] take their share of it.

    Raises:
        ValueError: the stream for evaluation is empty.
        OSError, ValueError: see `task.open_stream`.
    """
    eval_split = settings.train_split if settings.eval_share else settings.eval_split
    train_stream = task.open_stream(settings, settings.train_split, processor, training=True)
    eval_stream = task.open_stream(settings, eval_split, processor)
    if eval_stream.num_samples == 0:
        raise ValueError(f"{eval_stream.name} is empty: there is nothing to evaluate on.")
    return train_stream, eval_stream


def build_model(task: Task, settings: Any, class_names: tuple[str, ...]) -> PreTrainedModel:
    """
    The model to train.

    Raises:
        ValueError: it takes images of other channels than RGB, which no stream gives.
        OSError, ValueError: see `task.build_model`.
    """
    model = task.build_model(settings, class_names)
    config = getattr(model.config, "backbone_config", None) or model.config
    if (channels := getattr(config, "num_channels", 3)) != 3:
        raise ValueError(
            f"The model takes images of {channels} channels (num_channels), but images are read as RGB here. Train it "
            "with Transformers' Trainer on what its image processor prepares (docs/classification.md), or "
            "set num_channels to 3."
        )
    return model


def look_at_labels(
    settings: SplitSettings, train_sample: SampleMaker, eval_sample: SampleMaker, say: Callable[[str], None]
) -> tuple[LabelGuard, LabelGuard]:
    """
    Looks at the labels to train on and those to evaluate on. Returns the guards for the first epoch of each.

    Raises:
        ValueError: there is nothing to learn from, or nothing to evaluate.
    """
    guards = []
    for sample, training in ((train_sample, True), (eval_sample, False)):
        guard = LabelGuard(sample, say, training=training, keep=held_out(settings, wanted=not training))
        guard.look()
        guards.append(guard)
    return guards[0], guards[1]


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
    This process's part of the training stream, in full batches.

    Args:
        settings: the settings of the task; has `eval_share` and `max_bad_share`.
        sample: makes the samples.
        state: an Accelerator, or another object with its `process_index` and `num_processes`.
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
        # Without shuffling, several processes together see the same batches as a single one.
        strategy=None if shuffle_window else "examples",
        keep=held_out(settings, wanted=False),
        max_bad_share=settings.max_bad_share,
        collate=task.collate_training,
        group=task.group(settings, sample.stream) if shuffle_window else None,
    )


def evaluation_batches(task: Task, settings: Any, sample: SampleMaker, state: Any, batch_size: int) -> BatchStream:
    """This process's part of the stream for evaluation during training. Arguments as in [`training_batches`]."""
    return BatchStream(
        sample.stream,
        sample,
        batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        keep=held_out(settings, wanted=True),
        max_bad_share=settings.max_bad_share,
        collate=task.collate_evaluation,
    )


def samples_to_train_on(stream: Stream, settings: SplitSettings) -> int | None:
    """Number of samples in a stream, less the share that is held out (approximately); None if it is unknown."""
    return stream.num_samples and int(stream.num_samples * (1 - settings.eval_share))


def held_out(settings: SplitSettings, wanted: bool) -> HeldOut | None:
    """Selects the held-out samples or the others; None if no share of the training split is held out."""
    return HeldOut(settings.eval_share, wanted) if settings.eval_share else None


@dataclass
class HeldOut:
    """
    Selects samples by name: the held-out share, or the others. A class and not a closure, because loader processes may
    have to pickle it.

    Attributes:
        share: of the samples, from 0 to 1.
        wanted: True selects the held-out samples, False the others.
    """

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
) -> None:
    """Prints the model, the processes, and how the streams are split over them."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    accelerator.print(
        f"Training {type(model).__name__} ({parameters:,} parameters, {num_labels} classes), "
        f"{accelerator.num_processes} x {accelerator.device.type}."
    )
    for batches in (train_batches,) if settings.eval_share else (train_batches, eval_batches):
        split = describe_split(batches.stream, accelerator.num_processes, settings.num_workers, batches.strategy)
        accelerator.print("\n".join(split))
