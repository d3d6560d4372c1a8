"""What the evaluation of any saved checkpoint begins and ends with: devices, model, progress, and the report."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, PreTrainedModel

from .. import __version__
from ..data.streams import Stream
from ..weights.opening import check_model_path, open_complete, weights_digest
from .feed import Batch
from .processes import check_world_size, gather_objects, limit_cpu_threads


@dataclass
class CheckpointSettings:
    """Arguments that the evaluation of any checkpoint has."""

    model: str = field(metadata={"help": "Any model of the task that AutoModel opens: a folder or Hub id."})
    dataset: str = field(metadata={"help": "A built-in data set ('digits', 'digit-scenes'), a folder, or a Hub id."})
    split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    image_column: str = field(default="", metadata={"help": "If it cannot be found by its type and name."})
    num_workers: int = field(default=2, metadata={"help": "Loader workers per process."})
    mixed_precision: str = field(
        default="no", metadata={"help": "no, fp16 or bf16.", "choices": ["no", "fp16", "bf16"]}
    )
    cpu: bool = field(default=False, metadata={"help": "Run on the CPU even if there is a GPU."})
    max_bad_share: float = field(default=0.01, metadata={"help": "Largest share of unusable samples, of 100 or more."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the model."})
    output: str = field(default="", metadata={"help": "JSON file for the results."})

    if TYPE_CHECKING:
        batch_size: int = 1  # each task has its own default

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, got {self.batch_size}.")
        if self.num_workers < 0:
            raise ValueError(f"--num_workers must not be negative, got {self.num_workers}.")


class RenumberedSample:
    """
    A sample with the model's labels; a class, because loader workers may have to pickle it.

    Args:
        sample: example to a dict with `labels`, integers of any shape.
        table: (n,) int64, the model's label for each of these integers.
    """

    def __init__(self, sample: Callable[[dict[str, Any]], dict[str, Any]], table: torch.Tensor):
        self.sample, self.table = sample, table

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        tensors = self.sample(example)
        return {**tensors, "labels": self.table[tensors["labels"]]}


def open_checkpoint(settings: CheckpointSettings, auto_class: Any) -> tuple[Accelerator, PreTrainedModel, Any]:
    """
    The devices, the model in eval mode on this process' one, and its processor.

    Args:
        auto_class: Transformers' class that opens the model.

    Raises:
        OSError: no such model, or `output` is a folder.
        ValueError: the checkpoint lacks weights that the class has, fp16 on a CPU, or processes that do not work
            together.
    """
    if settings.mixed_precision == "fp16" and (settings.cpu or not torch.accelerator.is_available()):
        raise ValueError("--mixed_precision fp16 needs a GPU: on a CPU use bf16 or no.")
    check_model_path(settings.model)
    accelerator = Accelerator(cpu=settings.cpu, mixed_precision=settings.mixed_precision)
    check_world_size(accelerator)
    limit_cpu_threads(accelerator, settings.num_workers)
    if settings.output:
        output = Path(settings.output)
        if output.is_dir():
            raise IsADirectoryError(f"--output {output} is a folder: name a JSON file.")
        output.parent.mkdir(parents=True, exist_ok=True)
    model = open_complete(auto_class, settings.model, trust_remote_code=settings.trust_remote_code)
    processor = AutoImageProcessor.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
    return accelerator, model.to(accelerator.device), processor


def class_names_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of a model's classes, by label."""
    config: Any = model.config  # of which Transformers says that there may be no names, or numbers written as text
    return tuple(config.id2label[label] for label in range(config.num_labels))


class Monitor:
    """
    Progress bar (use as a context), names of skipped samples, and the time from the end of the first batch to that of
    the last. Called with every batch of this process.

    Args:
        skipped: where names and reasons are added.
    """

    def __init__(self, accelerator: Accelerator, stream: Stream, title: str, skipped: dict[str, str]):
        self.accelerator, self.skipped = accelerator, skipped
        self.start: float | None = None
        self.images, self.seconds = 0, 0.0
        self.bar = tqdm(
            total=stream.num_samples and math.ceil(stream.num_samples / accelerator.num_processes),
            disable=not accelerator.is_main_process,
            unit="image",
            desc=title,
        )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def __call__(self, batch: Batch) -> None:
        for name, reason in batch["skipped"]:
            if name not in self.skipped:  # once for all sizes
                tqdm.write(f"skipped {name}: {reason}")
            self.skipped[name] = reason
        images = len(batch.get("sample_ids", ()))
        if self.start is not None:
            self.images, self.seconds = self.images + images, time.perf_counter() - self.start
        elif images:  # the first batch: its time is that of starting workers, allocating and choosing kernels
            self.start = time.perf_counter()
        self.bar.update(images)

    def images_per_second(self) -> float | None:
        """Of all processes: images after each one's first batch, by the longest time. None: no second batch."""
        parts = gather_objects(self.accelerator, (self.images, self.seconds))
        images = sum(part[0] for part in parts)
        return images / max(part[1] for part in parts) if images else None


def write_report(
    accelerator: Accelerator,
    settings: CheckpointSettings,
    model: PreTrainedModel,
    skipped: dict[str, str],
    **content: Any,
) -> dict[str, Any]:
    """The report of an evaluation, which all processes get and the first writes to `settings.output`, whole or not."""
    cuda = accelerator.device.type == "cuda"
    report = {
        "settings": asdict(settings),
        **content,
        "skipped": {name: reason for part in gather_objects(accelerator, skipped) for name, reason in part.items()},
        "model_class": type(model).__name__,
        "parameters": model.num_parameters(),
        "weights": weights_digest(model),
        "world_size": accelerator.num_processes,
        "device": torch.cuda.get_device_name(accelerator.device) if cuda else str(accelerator.device),
        "command": sys.argv,
        "versions": {"pvt_hf": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    if settings.output and accelerator.is_main_process:
        output = Path(settings.output)
        unfinished = output.with_name(f".{output.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(report, indent=2))
        unfinished.replace(output)
    accelerator.end_training()
    return report
