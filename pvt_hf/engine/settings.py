"""
Arguments of the training and evaluation commands: dataclasses of flags, or a YAML recipe that flags override.

A command's arguments are one flat dataclass, put together from small ones. A function takes the small one that it
reads, so its signature says which flags reach it.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from accelerate.utils import DynamoBackend
from transformers import HfArgumentParser, PreTrainedConfig

from .recipes import read_recipe


Arguments = TypeVar("Arguments")


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A field of a dataclass of arguments. Lists are defaults by copy."""
    metadata: dict[str, Any] = {"help": help} | ({"choices": list(choices)} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_at_least(settings: Any, least: int, *names: str) -> None:
    """Raises a ValueError that names the first of these arguments that is below `least`."""
    for name in names:
        if getattr(settings, name) < least:
            bound = "must not be negative" if least == 0 else f"must be at least {least}"
            raise ValueError(f"--{name} {bound}, got {getattr(settings, name)}.")


def check_share(settings: Any, *names: str) -> None:
    """Raises a ValueError that names the first of these arguments that is outside of 0 to 1."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"--{name} is from 0 to 1, got {getattr(settings, name)}.")


class Settings:
    """Base of all dataclasses of arguments."""

    def __post_init__(self) -> None:
        """Checks the values. Each class checks its own and calls the next, so that they can be combined."""


@dataclass(kw_only=True)
class DeviceSettings(Settings):
    """Where and how a command computes."""

    cpu: bool = option(False, "Use the CPU even if there is a GPU.")
    mixed_precision: str = option("no", "Precision of the forward pass.", choices=["no", "fp16", "bf16"])
    num_workers: int = option(2, "Loader processes for each training or evaluation process; 0 loads in the process.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "num_workers")


@dataclass(kw_only=True)
class DataSettings(Settings):
    """What is read, whichever the task."""

    dataset: str = field(metadata={"help": "Name of built-in data, a folder, or a Hub dataset id such as org/name."})
    image_column: str = option("", "Column of the images; found by its type and name if not given.")
    class_names: str = option(
        "", "Names of the classes, in the order of the labels: 'cat,dog', a .txt file with one per line, or 'ade20k'."
    )
    max_bad_share: float = option(
        0.01, "Stop when a larger share of the samples is unusable (counted from 100 samples on), e.g. 0.05."
    )


@dataclass(kw_only=True)
class SplitSettings(Settings):
    """Which samples are trained on, and which are held out."""

    train_split: str = option("train", "Split to train on.")
    eval_split: str = option("validation", "Split to evaluate on.")
    eval_share: float = option(
        0.0, "Hold out this share of the training split instead of reading --eval_split, e.g. 0.1."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"--eval_share is a share of at least 0 and below 1, got {self.eval_share}.")


@dataclass(kw_only=True)
class OptimizerSettings(Settings):
    """AdamW and the schedule of its learning rate."""

    learning_rate: float = option(1e-3, "Peak learning rate. It is not scaled by the batch size.")
    backbone_learning_rate: float = option(0.0, "Peak learning rate of the backbone, e.g. 1e-5; 0: --learning_rate.")
    schedule: str = option(
        "cosine", "Curve of the learning rate after the warm-up.", choices=["cosine", "poly", "step"]
    )
    poly_power: float = option(0.9, "Exponent of --schedule poly: (1 - step / steps) ** power.")
    decay_epochs: list[float] = option([], "Epochs at which --schedule step divides the rate by 10, e.g. 8 11.")
    min_learning_rate: float = option(1e-5, "Learning rate at the end of --schedule cosine or poly.")
    warmup_epochs: float = option(5.0, "Linear warm-up, in epochs, e.g. 0.5.")
    warmup_steps: int = option(0, "Linear warm-up in optimiser steps, instead of --warmup_epochs, e.g. 500.")
    warmup_learning_rate: float = option(1e-6, "Learning rate at the start of the warm-up.")
    weight_decay: float = option(0.05, "Weight decay of all weights but norms, biases and the cls token.")
    decay_all: bool = option(False, "Decay norms, biases and the cls token as well.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "warmup_steps", "backbone_learning_rate")
        if self.learning_rate <= 0:
            raise ValueError(f"--learning_rate must be positive, got {self.learning_rate}.")
        if (self.schedule == "step") != bool(self.decay_epochs):
            raise ValueError(
                f"--decay_epochs {self.decay_epochs} with --schedule {self.schedule}: --schedule step needs "
                "--decay_epochs, and the others take none."
            )


@dataclass(kw_only=True)
class TrainingSettings(DeviceSettings, SplitSettings, OptimizerSettings):
    """Arguments of the training loop; each task adds its own."""

    output_dir: str = field(metadata={"help": "Folder for checkpoints, the final model, its processor and run.json."})
    epochs: int = option(300, "Passes over the training samples.")
    max_steps: int = option(0, "Optimiser steps of the whole training, instead of --epochs, e.g. 40000.")
    batch_size: int = option(128, "Samples per batch and process.")
    gradient_accumulation_steps: int = option(1, "Batches per optimiser step.")
    max_grad_norm: float = option(0.0, "Clip the global gradient norm to this value, e.g. 1.0; 0: no clipping.")
    ema_decay: float = option(
        0.0, "Keep an exponential moving average of the weights, and evaluate and save it, e.g. 0.9999; 0: none."
    )
    drop_path_zero_epochs: int = option(0, "Epochs at the start without drop path, e.g. 100 of 300.")
    compile_backend: str = option("", "Compile the model with torch.compile: inductor, aot_eager or eager; '': no.")
    channels_last: bool = option(False, "Keep images and convolution weights in the channels-last memory format.")
    fsdp: bool = option(False, "Shard model and optimiser over the GPUs (FSDP2).")
    gradient_checkpointing: bool = option(False, "Recompute blocks in the backward pass to save memory.")
    shuffle_window: int = option(2000, "Samples that each loader process reads ahead to shuffle; 0: source order.")
    samples_per_epoch: int = option(0, "Length of an epoch, for sources that do not tell theirs, e.g. 1281167.")
    repeated_augmentation: int = option(
        1, "How often each sample is seen, augmented differently, on different processes, e.g. 3."
    )
    seed: int = option(0, "Seed of initial weights, sample order and augmentation.")
    eval_every_epochs: int = option(1, "Epochs between evaluations. There is always one at the end.")
    save_every_steps: int = option(0, "Optimiser steps between checkpoints, e.g. 1000; 0: one after each epoch.")
    save_total_limit: int = option(2, "Checkpoints to keep; 0: all.")
    resume_from_checkpoint: str = option("", "Checkpoint folder to resume from, or 'latest'.")
    skip_nonfinite: bool = option(False, "Skip optimiser steps with a NaN or infinite loss instead of stopping.")
    log_every_steps: int = option(20, "Optimiser steps between points of the training curve.")
    report_to: str = option("none", "Trackers, separated by commas: tensorboard, trackio, wandb; or none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(
            self, 1, "epochs", "batch_size", "gradient_accumulation_steps", "eval_every_epochs", "log_every_steps"
        )
        check_at_least(
            self, 0, "max_steps", "shuffle_window", "samples_per_epoch", "save_every_steps", "save_total_limit"
        )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay is at least 0 and below 1, got {self.ema_decay}.")
        if self.fsdp and (self.ema_decay or self.channels_last or self.compile_backend):
            raise ValueError(
                "--fsdp does not go with --ema_decay (the average needs whole weights), --channels_last (torch shards "
                "contiguous weights only) or --compile_backend (Accelerate shards the compiled model, but the "
                "uncompiled one is evaluated)."
            )
        if self.repeated_augmentation < 1 or (self.repeated_augmentation > 1 and self.shuffle_window == 0):
            raise ValueError(
                "--repeated_augmentation must be at least 1, and above 1 it needs a --shuffle_window, because an epoch "
                f"takes only the first samples. Got {self.repeated_augmentation} and {self.shuffle_window}."
            )
        backends = [backend.value.lower() for backend in DynamoBackend]
        if self.compile_backend and self.compile_backend.lower() not in backends:
            raise ValueError(f"--compile_backend {self.compile_backend}: choose one of {', '.join(backends)}.")


@dataclass(kw_only=True)
class EvaluationSettings(DeviceSettings):
    """Arguments of the evaluation of a checkpoint; each task adds its own."""

    model: str = field(metadata={"help": "Trained model of the task, of any architecture: a folder or Hub id."})
    split: str = option("validation", "Split to evaluate on.")
    batch_size: int = option(1, "Images per batch and process.")
    trust_remote_code: bool = option(False, "Run the Python code that comes with the model. Read it first.")
    output: str = option("", "JSON file for the results, e.g. results.json.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "batch_size")


def parse_overrides(flag: str, text: str, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """
    Reads the JSON object that `--flag` gives: fields of a configuration.

    Raises:
        ValueError: not a JSON object, or a field that `config_class` does not have.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{flag} is not valid JSON ({error}): {text}") from None
    if not isinstance(values, dict):
        raise ValueError(f'--{flag} is a JSON object such as {{"depths": [2, 2, 2, 2]}}, got {text}.')
    known = {field.name for field in fields(config_class)} - {"model_type"}
    for name in sorted(set(values) - known):
        similar = difflib.get_close_matches(name, known)
        raise ValueError(
            f"--{flag} sets {name}, which {config_class.__name__} does not have"
            f"{f'; did you mean {similar[0]}?' if similar else '.'}"
        )
    return values


def parse_arguments(argument_class: type[Arguments], arguments: Sequence[str] | None = None) -> Arguments:
    """
    Parses `[RECIPE.yaml] [--flag value ...]` into `argument_class`, a dataclass. Flags win over the recipe.

    Exits with the usage for unknown flags, and with a message for a recipe that cannot be read or has keys that are no
    arguments.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    dataclass_type: Any = argument_class
    parser = HfArgumentParser(dataclass_type)
    parser.usage = "%(prog)s [RECIPE.yaml] [--argument value ...]"
    try:
        if arguments and arguments[0].endswith((".yaml", ".yml")):
            recipe = arguments.pop(0)
            values = read_recipe(recipe)
            unknown = sorted(set(values) - {f.name for f in fields(dataclass_type)})
            if unknown:
                raise ValueError(f"{recipe} sets {', '.join(unknown)}, which this script does not have.")
            arguments = [part for name, value in values.items() for part in _flag(name, value)] + arguments
        (parsed,) = parser.parse_args_into_dataclasses(arguments)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return parsed


def _flag(name: str, value: Any) -> list[str]:
    """A line of a recipe as words of a command line. `name:` without a value is an empty text."""
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str("" if value is None else value)]
