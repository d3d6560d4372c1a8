"""
The arguments of the training and evaluation commands: a YAML recipe, and command-line arguments that override it.

The arguments of a command form one flat dataclass, which inherits from small ones. A function takes the small class
that it needs, so its signature says which arguments reach it. This file and the tasks' settings import nothing heavy,
so that `--help` and wrong arguments are answered at once.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from transformers.hf_argparser import HfArgumentParser

from ..data.paths import check_dataset_path
from ..families import class_name
from ..weights.paths import check_model_path
from .arguments import ArgumentParser, HelpFormatter, describe_unknown, read_fields, similar_names
from .output_paths import check_output_file, check_output_folder
from .recipes import ENDINGS, find_recipe, read_recipe


Arguments = TypeVar("Arguments")
# Of an image, in pixels. A larger one is a mistake: even this takes 3 GB as a tensor.
LARGEST_SIDE = 16_384
# Of NumPy's random generator; each process adds its number.
LARGEST_SEED = 2**31
# Those of Accelerate
TRACKERS = (
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb",
)  # fmt: skip


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """Makes a field of a settings class, with its default, `--help` text and choices. A list default is copied."""
    metadata: dict[str, Any] = {"help": help} | ({"choices": list(choices)} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_at_least(settings: Any, least: int, *names: str) -> None:
    """Raises a ValueError for the first of the arguments `names` that is below `least`."""
    for name in names:
        if getattr(settings, name) < least:
            bound = "must not be negative" if least == 0 else f"must be at least {least}"
            raise ValueError(f"--{name} {bound}, got {getattr(settings, name)}.")


def check_side(settings: Any, least: int, *names: str) -> None:
    """Raises a ValueError for the first of the arguments `names`, in pixels, below `least` or absurdly large."""
    for name in names:
        value = getattr(settings, name)
        sides = value if isinstance(value, list) else [value]
        if any(side < least for side in sides):
            raise ValueError(f"--{name} must be at least {least}, got {value}.")
        if any(side > LARGEST_SIDE for side in sides):
            raise ValueError(f"--{name} must be at most {LARGEST_SIDE:,} pixels, got {value}.")


def check_share(settings: Any, *names: str) -> None:
    """Raises a ValueError for the first of the arguments `names` that is not between 0 and 1."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"--{name} must be between 0 and 1, got {getattr(settings, name)}.")


def check_output_dir(output_dir: str, resume_from_checkpoint: str) -> None:
    """Raises an OSError if the folder cannot be written, or if there is no such checkpoint."""
    check_output_folder("output_dir", output_dir)
    checkpoint = resume_from_checkpoint
    if checkpoint in ("", "latest") or Path(checkpoint).is_dir() or Path(output_dir, checkpoint).is_dir():
        return
    known = ", ".join(sorted(path.name for path in Path(output_dir).glob("checkpoint-*"))) or "none"
    raise FileNotFoundError(
        f"--resume_from_checkpoint {checkpoint}: there is no such folder. Checkpoints in {output_dir}: {known}."
    )


class Settings:
    """Base class of all settings."""

    def __post_init__(self) -> None:
        """Checks the values. Each class calls `super().__post_init__()`, and then checks its own."""
        for name, value in vars(self).items():
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ValueError(f"--{name} must be finite, got {value}.")


@dataclass(kw_only=True)
class DeviceSettings(Settings):
    """Device, precision and loader processes."""

    cpu: bool = option(False, "Use the CPU even if there is a GPU.")
    mixed_precision: str = option(
        "no", "Autocast the forward pass to this type; no: float32.", choices=["no", "fp16", "bf16"]
    )
    num_workers: int = option(2, "Loader processes per process; 0: load in the process itself.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "num_workers")


@dataclass(kw_only=True)
class DataSettings(Settings):
    """
    The data set, for any task.

    Attributes:
        dataset_files: endings of files that stand for a data set.
    """

    dataset_files: ClassVar[tuple[str, ...]] = ()

    dataset: str = field(metadata={"help": "Built-in data set, folder, or Hub data set such as org/name."})
    image_column: str = option("", "Column with the images, e.g. image; default: found by type and name.")
    class_names: str = option(
        "",
        "Class names, in the order of the labels: such as cat,dog; a .txt file with one name per line; or ade20k.",
    )
    max_bad_share: float = option(
        0.01, "Stop if a larger fraction of the samples read so far (of at least 100) is unusable, e.g. 0.05."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dataset_path(self.dataset, self.dataset_files)
        check_share(self, "max_bad_share")
        if self.class_names.endswith(".txt") and not Path(self.class_names).is_file():
            raise FileNotFoundError(f"--class_names {self.class_names}: there is no such file.")


@dataclass(kw_only=True)
class SplitSettings(Settings):
    """The splits for training and evaluation."""

    train_split: str = option("train", "Split to train on.")
    eval_split: str = option("validation", "Split to evaluate on.")
    eval_share: float = option(
        0.0, "Hold out this fraction of the training split for evaluation, instead of --eval_split, e.g. 0.1."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"--eval_share must be at least 0 and below 1, got {self.eval_share}.")


@dataclass(kw_only=True)
class OptimizerSettings(Settings):
    """AdamW and the schedule of its learning rate."""

    learning_rate: float = option(1e-3, "Peak learning rate, e.g. 5e-4. Not scaled by the batch size.")
    backbone_learning_rate: float = option(0.0, "Peak learning rate of the backbone, e.g. 1e-5; 0: --learning_rate.")
    schedule: str = option(
        "cosine", "Shape of the learning rate after the warm-up.", choices=["cosine", "poly", "step"]
    )
    poly_power: float = option(0.9, "For --schedule poly: exponent of (1 - step / steps) ** power.")
    decay_epochs: list[float] = option([], "For --schedule step: epochs after which to divide by 10, e.g. 8 11.")
    min_learning_rate: float = option(1e-5, "Learning rate at the end of --schedule cosine or poly.")
    warmup_epochs: float = option(5.0, "Length of the linear warm-up in epochs, e.g. 0.5; 0: none.")
    warmup_steps: int = option(0, "Length of the warm-up in optimiser steps, e.g. 500; 0: use --warmup_epochs.")
    warmup_learning_rate: float = option(1e-6, "Learning rate at the start of the warm-up.")
    weight_decay: float = option(0.05, "Weight decay of all parameters except norms, biases and the cls token.")
    decay_all: bool = option(False, "Apply weight decay to norms, biases and the cls token too.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(
            self, 0, "backbone_learning_rate", "min_learning_rate", "warmup_epochs", "warmup_steps", "weight_decay"
        )
        if self.learning_rate <= 0:
            raise ValueError(f"--learning_rate must be positive, got {self.learning_rate}.")
        if (self.schedule == "step") != bool(self.decay_epochs):
            raise ValueError(
                f"--schedule {self.schedule} with --decay_epochs {self.decay_epochs}: --schedule step needs "
                "--decay_epochs, the other schedules do not take it."
            )


@dataclass(kw_only=True)
class TrainingSettings(DeviceSettings, SplitSettings, OptimizerSettings):
    """Arguments of the training commands of all tasks. Each task adds its own."""

    output_dir: str = field(
        metadata={
            "help": "Folder for checkpoints, the final model, its image processor and run.json, e.g. outputs/fruit."
        }
    )
    epochs: int = option(300, "Number of epochs.")
    max_steps: int = option(0, "Number of optimiser steps, e.g. 40000; 0: use --epochs.")
    batch_size: int = option(128, "Images per batch and process.")
    gradient_accumulation_steps: int = option(1, "Batches per optimiser step.")
    max_grad_norm: float = option(0.0, "Clip the gradients to this global L2 norm, e.g. 1.0; 0: no clipping.")
    ema_decay: float = option(
        0.0, "Evaluate and save an exponential moving average of the weights with this decay, e.g. 0.9999; 0: off."
    )
    drop_path_zero_epochs: int = option(0, "Keep drop path at 0 in the first epochs, e.g. 100 of 300.")
    compile_backend: str = option("", "Compile the model with this backend of torch.compile, e.g. inductor; '': off.")
    channels_last: bool = option(False, "Store images and convolution weights in the channels-last memory format.")
    fsdp: bool = option(False, "Shard the model and the optimiser over the GPUs (FSDP2).")
    gradient_checkpointing: bool = option(False, "Save memory by recomputing activations in the backward pass.")
    shuffle_window: int = option(2000, "Samples that each loader process reads ahead to shuffle; 0: no shuffling.")
    samples_per_epoch: int = option(
        0, "Samples per epoch over all processes, e.g. 1281167; 0: the length of the stream, if that is known."
    )
    repeated_augmentation: int = option(
        1, "Copies of each sample, augmented differently, on different processes if there are enough, e.g. 3."
    )
    seed: int = option(0, "Random seed of initial weights, sample order and augmentation.")
    eval_every_epochs: int = option(1, "Epochs between evaluations. The last epoch is always evaluated.")
    eval_every_steps: int = option(
        0,
        "Optimiser steps between evaluations, e.g. 1000; 0: use --eval_every_epochs. The last one is evaluated too.",
    )
    keep_best: bool = option(
        False,
        "Also keep the model of the best evaluation, in --output_dir/best: by accuracy@1 of classifiers, mean_iou of "
        "segmenters, ap of detectors.",
    )
    patience: int = option(
        0, "Stop after this number of evaluations in a row without a better one (see --keep_best), e.g. 5; 0: never."
    )
    save_every_steps: int = option(0, "Optimiser steps between checkpoints, e.g. 1000; 0: only one per epoch.")
    save_total_limit: int = option(2, "Number of checkpoints to keep; 0: all.")
    resume_from_checkpoint: str = option(
        "", "Checkpoint folder to resume from, e.g. latest, the newest in --output_dir; '': start anew."
    )
    resume_with_changed_data: bool = option(
        False,
        "Resume although the training data changed, for example because unusable samples were removed. The epoch "
        "begins anew, with the data as they are now.",
    )
    skip_nonfinite: bool = option(False, "Skip optimiser steps with a NaN or infinite loss, instead of stopping.")
    log_every_steps: int = option(
        0,
        "Optimiser steps between log entries (loss, learning rate, speed), e.g. 20; 0: 20, or fewer in a short run.",
    )
    report_to: str = option("none", "Experiment trackers, separated by commas, e.g. tensorboard,trackio,wandb.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "epochs", "batch_size", "gradient_accumulation_steps", "eval_every_epochs")
        check_at_least(
            self, 0, "max_steps", "max_grad_norm", "drop_path_zero_epochs", "shuffle_window", "samples_per_epoch",
            "eval_every_steps", "patience", "save_every_steps", "save_total_limit", "log_every_steps", "seed",
        )  # fmt: skip
        if self.seed > LARGEST_SEED:
            raise ValueError(f"--seed must be at most {LARGEST_SEED}, got {self.seed}.")
        for name in self.report_to.split(","):
            if name.strip() not in ("", "none", *TRACKERS):
                raise ValueError(f"--report_to {name.strip()} is unknown: choose of {', '.join(TRACKERS)}.")
        check_output_dir(self.output_dir, self.resume_from_checkpoint)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay must be at least 0 and below 1, got {self.ema_decay}.")
        if self.fsdp and (self.ema_decay or self.channels_last or self.compile_backend):
            raise ValueError(
                "--fsdp cannot be combined with --ema_decay (the average needs unsharded weights), --channels_last "
                "(PyTorch shards contiguous weights only) or --compile_backend (Accelerate shards the compiled model, "
                "but the uncompiled one is evaluated)."
            )
        if self.repeated_augmentation < 1 or (self.repeated_augmentation > 1 and self.shuffle_window == 0):
            raise ValueError(
                "--repeated_augmentation must be at least 1. Above 1 it needs a --shuffle_window, because each epoch "
                "then reads a part of the stream, which would always be the same one. Got "
                f"{self.repeated_augmentation} and {self.shuffle_window}."
            )
        if self.compile_backend:
            from accelerate.utils import DynamoBackend  # imports PyTorch

            backends = [backend.value.lower() for backend in DynamoBackend]
            if self.compile_backend.lower() not in backends:
                raise ValueError(
                    f"--compile_backend {self.compile_backend} is unknown: choose one of {', '.join(backends)}."
                )


@dataclass
class FinetuneSettings(Settings):
    """Arguments of fine-tuning with Transformers' `Trainer`, besides the task's and Trainer's own."""

    shuffle_window: int = option(1000, "Samples that each loader process reads ahead to shuffle; 0: source order.")
    lora_rank: int = option(0, "Train LoRA adapters of this rank instead of all weights, e.g. 8; 0: all weights.")
    lora_targets: str = option("query,value", "Layers that get an adapter, by the endings of their names.")
    patience: int = option(
        0, "Stop after this number of evaluations in a row without a better one, e.g. 5; 0: never. See --eval_steps."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "shuffle_window", "lora_rank", "patience")


@dataclass
class TrainerSettings(Settings):
    """Those of Trainer's arguments that are checked before `TrainingArguments` is imported, which takes seconds."""

    output_dir: str = option("trainer_output", "As in `TrainingArguments`.")
    resume_from_checkpoint: str = option("", "As in `TrainingArguments`.")
    learning_rate: float = option(5e-5, "As in `TrainingArguments`.")
    max_steps: int = option(-1, "As in `TrainingArguments`.")
    num_train_epochs: float = option(3.0, "As in `TrainingArguments`.")
    per_device_train_batch_size: int = option(8, "As in `TrainingArguments`.")
    per_device_eval_batch_size: int = option(8, "As in `TrainingArguments`.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "per_device_train_batch_size", "per_device_eval_batch_size")
        check_at_least(self, 0, "learning_rate", "num_train_epochs")
        check_output_dir(self.output_dir, self.resume_from_checkpoint)


@dataclass(kw_only=True)
class EvaluationSettings(DeviceSettings):
    """Arguments of the evaluation commands of all tasks. Each task adds its own."""

    model: str = field(
        metadata={
            "help": "Trained model for this task, of any architecture: a folder, Hub id, or official:pvt-small, "
            "which downloads the official release, e.g. outputs/fruit."
        }
    )
    split: str = option("validation", "Split to evaluate on, e.g. test.")
    batch_size: int = option(1, "Images per batch and process.")
    trust_remote_code: bool = option(
        False, "Run the code that comes with the model, also an export that holds code. Read it first."
    )
    output: str = option("", "JSON file for the results, e.g. results.json; '': none.")
    figures: str = option(
        "",
        "Folder for a confusion matrix or precision-recall curves, the worst images and a page of predictions, "
        "e.g. outputs/figures; '': none.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model_path(self.model)
        check_at_least(self, 1, "batch_size")
        if self.output:
            check_output_file("output", self.output)
        if self.figures:
            check_output_folder("figures", self.figures)


class DataclassParser(ArgumentParser, HfArgumentParser):
    """Transformers' `HfArgumentParser`, whose arguments are the fields of dataclasses, with suggestions."""

    def __init__(self, dataclass_types: Any, **kwargs: Any):
        super().__init__(dataclass_types, formatter_class=HelpFormatter, **kwargs)


def parse_overrides(flag: str, text: str, config: str, other: tuple[str, str] | None = None) -> dict[str, Any]:
    """
    Parses the value of `--flag`: a JSON object with fields of a configuration.

    Args:
        config: the configuration's class, "file.Class". It is not imported.
        other: another flag and its configuration, which may have the fields that this one lacks.

    Raises:
        ValueError: `text` is not a JSON object, or has a field that the configuration lacks.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{flag} is not valid JSON ({error}): {text}") from None
    if not isinstance(values, dict):
        raise ValueError(f'--{flag} must be a JSON object such as {{"depths": [2, 2, 2, 2]}}, got {text}.')
    if not values:
        return {}
    known = config_fields(config)
    for name in sorted(set(values) - set(known)):
        similar = similar_names(name, known)
        advice = f"; did you mean {similar[0]}?" if similar else "."
        if other is not None and name in config_fields(other[1]):
            advice = f". {class_name(other[1])} has it: give it to --{other[0]}."
        raise ValueError(f"--{flag} sets {name}, which {class_name(config)} does not have{advice}")
    return values


def config_fields(config: str) -> list[str]:
    """The fields of a configuration, "file.Class", without importing it."""
    file, _, name = config.partition(".")
    return [field for field in read_fields(f"pvt_hf.models.{file}", name) if field != "model_type"]


def parse_arguments(
    argument_class: type[Arguments], arguments: Sequence[str] | None = None, description: str | None = None
) -> Arguments:
    """
    Parses `[RECIPE] [--argument value ...]`. Arguments override the recipe.

    Exits with the usage and a message if an argument is unknown or its value is wrong, or if the recipe cannot be read.

    Args:
        argument_class: dataclass with the arguments.
        arguments: the words of the command line; default: those of this process.
        description: shown at the top of `--help`.

    Returns:
        An instance of `argument_class`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    dataclass_type: Any = argument_class
    parser = DataclassParser(dataclass_type, description=description)
    parser.usage = "%(prog)s [RECIPE] [--argument value ...]"
    late = [word for word in words[1:] if word.endswith(ENDINGS)]
    parser.missing_advice = (
        f"If {late[0]} is a recipe, it has to come first." if late else "A recipe can set them, too. See --help."
    )
    names = [f.name for f in fields(dataclass_type)]
    try:
        if words and not words[0].startswith("-"):
            recipe = words.pop(0)
            values = read_recipe(find_recipe(recipe))
            unknown = sorted(set(values) - set(names))
            if unknown:
                similar = similar_names(unknown[0], names)
                advice = f"; did you mean {similar[0]}?" if similar else "."
                raise ValueError(f"{recipe} sets {', '.join(unknown)}, which this command does not have{advice}")
            words = [part for name, value in values.items() for part in _flag(name, value)] + words
        parsed, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
        if rest and rest[0].endswith(ENDINGS):
            raise ValueError(f"the recipe has to come first, before all arguments: {rest[0]} --argument value ...")
        if rest:
            raise ValueError(describe_unknown(rest[0], names))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return parsed


def split_task(description: str, tasks: Sequence[str]) -> str:
    """
    Takes the task, the first word, off this process' command line. Exits with the usage if it is missing or unknown.
    """
    parser = ArgumentParser(
        usage="%(prog)s TASK [--argument value ...]", description=description, formatter_class=HelpFormatter,
        epilog=f"Tasks: {', '.join(tasks)}. Their arguments: %(prog)s TASK --help",
    )  # fmt: skip
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        parser.print_help()
        raise SystemExit(0)
    if name not in tasks:
        parser.error(f"the first argument is the task, one of {', '.join(tasks)}; got {name}.")
    sys.argv = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
    return name


def _flag(name: str, value: Any) -> list[str]:
    """Converts a line of a recipe to words of a command line. `name:` without a value is an empty string."""
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str("" if value is None else value)]
