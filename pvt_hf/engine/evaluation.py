"""Evaluation of any task on a stream: of a model during training, and of a saved checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.batches import BatchStream, make_loader
from ..data.label_counts import LabelCounts
from ..data.streams import StreamError
from ..metrics.reports import versions, without_nan, write_json
from ..weights.exported import exported_folder
from ..weights.opening import open_processor, open_to_run, shorten, weights_digest
from .feed import Batch, stream_error_message
from .figures import LastEvaluation, WritePage, write_figures
from .finite import NotFiniteError, check_answers, check_pixels
from .guard import LabelGuard
from .processes import any_process, check_precision, check_world_size, limit_cpu_threads, quiet_progress_bars
from .run_files import device_name
from .settings import EvaluationSettings
from .task import Evaluation, Task


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    model: Any,
    batches: BatchStream,
    num_workers: int,
    evaluation: Evaluation,
    after_batch: Callable[[Batch], None] | None = None,
    save: Callable[[list[Any]], None] | None = None,
    guard: LabelGuard | None = None,
    last: LastEvaluation | None = None,
) -> dict[str, Any]:
    """
    Computes the metrics of a model over a stream. The processes share the samples; each sample counts once.

    Args:
        model: in eval mode, on this process's device.
        batches: this process's part of the stream.
        num_workers: loader processes.
        after_batch: called with each batch of this process after its predictions are recorded.
        save: called with the states of `evaluation` of all processes.
        guard: takes the labels of the samples.
        last: filled with the states and a gallery of samples, on the main process.

    Returns:
        The metrics of `evaluation` (None where undefined), `eval_samples` and `eval_skipped` (unusable samples). Equal
        on all processes.

    Raises:
        ValueError: there are no samples, nothing to evaluate in them, or the model's answers are NaN or infinite.
        StreamError: the source cannot be read, or too many samples are unusable.
    """
    skipped, labels = 0, LabelCounts()
    evaluation.gallery = None if last is None else last.new_gallery()

    def forward(**inputs: torch.Tensor) -> Any:
        # FSDP gathers the parameters in every forward pass, so all processes have to make equally many. Before each one
        # a process tells the others; those that have run out of images then run on a dummy image (below).
        if accelerator.is_fsdp2:
            any_process(True)
        check_pixels(inputs)
        outputs = run(**inputs)
        check_answers(outputs)
        return outputs

    def run(**inputs: torch.Tensor) -> Any:
        with accelerator.autocast():
            return model(**send_to_device(inputs, accelerator.device))

    try:
        for batch in make_loader(batches, num_workers):
            skipped += len(batch["skipped"])
            labels.add(batch.get("label_counts", LabelCounts()))
            if "sample_ids" in batch:
                try:
                    evaluation.add(forward, batch)
                except NotFiniteError as error:
                    names = shorten(batch["sample_ids"], limit=4)
                    raise NotFiniteError(f"{error} Nothing can be evaluated. Samples: {names}.") from error
            if after_batch is not None:
                after_batch(batch)
    except StreamError as error:
        raise StreamError(stream_error_message(error)) from error
    while accelerator.is_fsdp2 and any_process(False):
        run(**evaluation.idle_inputs())
    parts = gather_object([(evaluation.state(), skipped, labels, evaluation.gallery)])
    states = [part[0] for part in parts]
    num_samples = evaluation.count(states)
    if not num_samples:
        raise ValueError(f"{batches.stream.name} has no sample to evaluate on.")
    if guard is not None:
        guard.finish(LabelCounts.total(part[2] for part in parts))
    if save is not None:
        save(states)
    if last is not None and accelerator.is_main_process:
        last.states, last.gallery = states, last.new_gallery().merged(part[3] for part in parts)
    metrics = without_nan(evaluation.compute(states))
    return metrics | {"eval_samples": num_samples, "eval_skipped": sum(part[1] for part in parts)}


@quiet_progress_bars()
def evaluate_checkpoint(task: Task, settings: Any, write_page: WritePage | None = None) -> dict[str, Any]:
    """
    Evaluates a saved model: prints its metrics, and writes a report to `settings.output`.

    Args:
        settings: of the class `task.evaluation_settings`.
        write_page: draws samples, with `settings.figures`; see [`pvt_hf.engine.figures.write_figures`].

    Returns:
        The report. Its `results` are the metrics of the task (None where undefined) and `images_per_second`: loading,
        inference and post-processing over all processes, without the first batch (None if there is no second). For
        image classifiers, `results` is a list with one entry per image size.

    Raises:
        OSError: there is no such model or dataset, or `settings.output` is a folder.
        ValueError: the model lacks weights or is not for this task, its classes do not match those of the data, or
            there is nothing to evaluate.
        StreamError: the source cannot be read, or more than `max_bad_share` of the samples are unusable.
    """
    accelerator, model, processor = open_checkpoint(settings, task.auto_class)
    stream = task.open_stream(settings, settings.split, processor)
    results: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    guard: LabelGuard | None = None
    for part in task.checkpoint_evaluations(settings, stream, model, processor):
        if guard is None:  # the labels are the same in all parts
            guard = LabelGuard(part.sample, accelerator.print, training=False)
            guard.look()
        for name, prefix in (("warning", "warning: "), ("note", "")):
            if part.facts.get(name) and part.facts != facts:
                accelerator.print(f"{prefix}{part.facts[name]}")
        facts = part.facts
        batches = BatchStream(
            stream,
            part.sample,
            settings.batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            max_bad_share=settings.max_bad_share,
            collate=task.collate_evaluation,
        )
        save = part.save if accelerator.is_main_process else None
        last = LastEvaluation(processor) if settings.figures else None
        with Monitor(accelerator, batches, settings.num_workers, part.title, skipped) as monitor:
            metrics = evaluate(
                accelerator, model, batches, settings.num_workers, part.evaluation, monitor, save, guard, last
            )
        metrics["images_per_second"] = monitor.images_per_second()
        accelerator.print(part.table(metrics))
        if last is not None and accelerator.is_main_process:
            folder = Path(settings.figures, part.folder)
            names = write_figures(folder, part.evaluation, last, part.sample.class_names, write_page)
            print(f"Wrote {', '.join(names)} in {folder}.")
        results.append(part.report(metrics))
    return write_report(accelerator, settings, model, skipped, results=task.summarize(results), **facts)


def open_checkpoint(settings: EvaluationSettings, auto_class: Any) -> tuple[Accelerator, PreTrainedModel, Any]:
    """
    Opens a saved model for evaluation.

    Returns:
        The Accelerator, the model in eval mode on its device, and the model's image processor.

    Raises:
        OSError: there is no such model, or `settings.output` is a folder.
        ValueError: the model lacks weights or is not for `auto_class`, fp16 is asked for on a CPU or a mixed precision
            for an export, or Accelerate does not see all processes of the launcher.
    """
    check_precision(settings)
    if exported_folder(settings.model) and settings.mixed_precision != "no":
        raise ValueError(
            f"--mixed_precision {settings.mixed_precision}: {settings.model} is an export, which runs in the precision "
            "that it was exported in. Leave the option out, or export with --bf16 or --fp16."
        )
    accelerator = Accelerator(cpu=settings.cpu, mixed_precision=settings.mixed_precision)
    check_world_size(accelerator)
    limit_cpu_threads(accelerator.device, settings.num_workers)
    prepare_output(settings.output, "output")
    model = open_to_run(auto_class, settings.model, trust_remote_code=settings.trust_remote_code)
    processor = open_processor(settings.model, trust_remote_code=settings.trust_remote_code)
    return accelerator, model.to(accelerator.device), processor


def prepare_output(path: str, flag: str) -> None:
    """
    Creates the folder of the file that `--flag` names, so that a mistake shows before anything is computed. Raises an
    IsADirectoryError if `path` is a folder.
    """
    if path:
        if Path(path).is_dir():
            raise IsADirectoryError(f"--{flag} {path} is a folder: give the name of a JSON file.")
        Path(path).parent.mkdir(parents=True, exist_ok=True)


class Monitor:
    """
    Shows a progress bar, collects skipped samples, and measures the speed. Used as a context, and called with every
    batch of this process.

    Args:
        batches: this process's part of the stream, for its length.
        num_workers: loader processes.
        title: label of the progress bar.
        skipped: updated with the names of skipped samples and the reasons.
    """

    def __init__(
        self, accelerator: Accelerator, batches: BatchStream, num_workers: int, title: str, skipped: dict[str, str]
    ):
        sizes = batches.worker_sizes(0, num_workers)
        self.skipped = skipped
        self.start: float | None = None
        self.images, self.seconds = 0, 0.0
        self.bar = tqdm(
            total=None if sizes is None else sum(sizes),
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
            unit="image",
            desc=title,
        )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def __call__(self, batch: Batch) -> None:
        for name, reason in batch["skipped"]:
            if name not in self.skipped:  # printed once, not in every pass
                tqdm.write(f"skipped {name}: {reason}")
            self.skipped[name] = reason
        images = len(batch.get("sample_ids", ()))
        if self.start is not None:
            self.images, self.seconds = self.images + images, time.perf_counter() - self.start
        elif images:  # not the first batch, which includes starting loader processes and selecting kernels
            self.start = time.perf_counter()
        self.bar.update(images + len(batch["skipped"]))

    def images_per_second(self) -> float | None:
        """Images per second over all processes, without the first batch; None if there is no second one."""
        parts = gather_object([(self.images, self.seconds)])
        images = sum(part[0] for part in parts)
        return images / max(part[1] for part in parts) if images else None


def write_report(
    accelerator: Accelerator,
    settings: EvaluationSettings,
    model: PreTrainedModel,
    skipped: dict[str, str],
    **content: Any,
) -> dict[str, Any]:
    """
    Makes the report of an evaluation, on all processes. The main process writes it to `settings.output`.

    Args:
        skipped: this process's skipped samples, name to reason.
        content: the results and other entries.
    """
    report = {
        "settings": asdict(settings),
        **content,
        "skipped": {name: reason for part in gather_object([skipped]) for name, reason in part.items()},
        "model_class": type(model).__name__,
        "parameters": model.num_parameters(),
        "weights": weights_digest(model),
        "world_size": accelerator.num_processes,
        "device": device_name(accelerator),
        "command": sys.argv,
        "versions": versions(),
    }
    if settings.output and accelerator.is_main_process:
        write_json(settings.output, report)
    accelerator.end_training()
    return report
