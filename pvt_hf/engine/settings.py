"""Arguments of the training scripts: flags, or a YAML recipe that flags override."""

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


@dataclass
class TrainingSettings:
    """What every task's training has; read by `pvt_hf.engine.loop`."""

    output_dir: str = field(metadata={"help": "Folder for checkpoints, the final model, processor and run.json."})
    dataset: str = field(metadata={"help": "Built-in data, a folder, or a Hub data set id."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    eval_share: float = field(default=0.0, metadata={"help": "Hold out this share of the training split instead."})
    image_column: str = field(default="", metadata={"help": "If it cannot be found by its type."})
    epochs: int = field(default=300, metadata={"help": "Passes over the training samples."})
    max_steps: int = field(default=0, metadata={"help": "Optimiser steps in all, instead of --epochs; 0: by epochs."})
    batch_size: int = field(default=128, metadata={"help": "Samples per step and process."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches per optimiser step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate, not scaled by the batch size."})
    schedule: str = field(
        default="cosine",
        metadata={"help": "Of the learning rate: cosine, poly, or step.", "choices": ["cosine", "poly", "step"]},
    )
    decay_epochs: list[float] = field(
        default_factory=list, metadata={"help": "Of --schedule step: when the rate falls to a tenth."}
    )
    backbone_learning_rate: float = field(
        default=0.0, metadata={"help": "Peak learning rate of the backbone; 0: that of the rest."}
    )
    poly_power: float = field(default=0.9, metadata={"help": "Of --schedule poly: (1 - step / steps) to this power."})
    min_learning_rate: float = field(default=1e-5, metadata={"help": "Where the schedule ends."})
    warmup_epochs: float = field(default=5.0, metadata={"help": "Linear warm-up."})
    warmup_steps: int = field(default=0, metadata={"help": "Linear warm-up in optimiser steps, instead of by epochs."})
    warmup_learning_rate: float = field(default=1e-6, metadata={"help": "Where the warm-up begins."})
    weight_decay: float = field(default=0.05, metadata={"help": "Not on norms, biases and the cls token."})
    decay_all: bool = field(default=False, metadata={"help": "Weight decay on norms, biases and the cls token, too."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the global gradient norm; 0 does not."})
    mixed_precision: str = field(
        default="no", metadata={"help": "no, fp16 or bf16.", "choices": ["no", "fp16", "bf16"]}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Average the weights with this decay, and evaluate and save the average; 0: no."}
    )
    drop_path_zero_epochs: int = field(default=0, metadata={"help": "Epochs without drop path at the beginning."})
    compile_backend: str = field(
        default="", metadata={"help": "torch.compile the model: inductor, aot_eager, eager; '' does not."}
    )
    channels_last: bool = field(default=False, metadata={"help": "Memory format of images and convolutions."})
    fsdp: bool = field(default=False, metadata={"help": "Shard model and optimiser over the devices (FSDP2)."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute blocks to save memory."})
    cpu: bool = field(default=False, metadata={"help": "Train on the CPU even if there is a GPU."})
    num_workers: int = field(default=2, metadata={"help": "Loader workers per process."})
    shuffle_window: int = field(default=2000, metadata={"help": "Samples read ahead for shuffling, per worker."})
    samples_per_epoch: int = field(default=0, metadata={"help": "For sources that do not know their length."})
    repeated_augmentation: int = field(
        default=1, metadata={"help": "Times that each sample comes, differently augmented, on different processes."}
    )
    max_bad_share: float = field(default=0.01, metadata={"help": "Largest share of unusable samples, of 100 or more."})
    seed: int = field(default=0, metadata={"help": "Of weights, order, augmentation."})
    eval_every_epochs: int = field(default=1, metadata={"help": "Evaluate every so many epochs, and at the end."})
    save_every_steps: int = field(default=0, metadata={"help": "Checkpoint every so many steps; 0: after each epoch."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints kept; 0: all."})
    resume_from_checkpoint: str = field(default="", metadata={"help": "A checkpoint folder, or 'latest'."})
    skip_nonfinite: bool = field(default=False, metadata={"help": "Drop a step whose loss is not finite."})
    log_every_steps: int = field(default=20, metadata={"help": "Steps between entries of the training curve."})
    report_to: str = field(
        default="none", metadata={"help": "Trackers, comma-separated: tensorboard, trackio, wandb; or none."}
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "eval_every_epochs", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        for name in (
            "max_steps", "warmup_steps", "num_workers", "shuffle_window", "samples_per_epoch", "save_every_steps",
            "save_total_limit",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"--eval_share is a share of at least 0 and below 1, got {self.eval_share}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema_decay is at least 0 and below 1, got {self.ema_decay}.")
        if self.fsdp and (self.ema_decay or self.channels_last or self.compile_backend):
            raise ValueError(
                "--fsdp does not go with --ema_decay, whose average is of whole weights, with --channels_last, because "
                "torch shards contiguous weights only, or with --compile_backend, because Accelerate shards the "
                "compiled model, and evaluation runs the other."
            )
        if self.repeated_augmentation < 1 or (self.repeated_augmentation > 1 and self.shuffle_window == 0):
            raise ValueError(
                "--repeated_augmentation must be at least 1, and above 1 it needs a --shuffle_window, because an epoch "
                f"takes only the first samples. Got {self.repeated_augmentation} and {self.shuffle_window}."
            )
        backends = [backend.value.lower() for backend in DynamoBackend]
        if self.compile_backend and self.compile_backend.lower() not in backends:
            raise ValueError(f"--compile_backend {self.compile_backend}: choose one of {', '.join(backends)}.")
        if self.learning_rate <= 0:
            raise ValueError(f"--learning_rate must be positive, got {self.learning_rate}.")
        if self.backbone_learning_rate < 0:
            raise ValueError(f"--backbone_learning_rate must not be negative, got {self.backbone_learning_rate}.")
        if (self.schedule == "step") != bool(self.decay_epochs):
            raise ValueError(
                f"--decay_epochs {self.decay_epochs} with --schedule {self.schedule}: --schedule step falls at "
                "--decay_epochs, and the others do not."
            )


def parse_overrides(flag: str, text: str, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """
    The fields of a configuration that `--flag` sets: a JSON object.

    Raises:
        ValueError: not a JSON object, or a name that the configuration does not have, which it would keep silently.
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

    Exits with the usage for unknown flags; with a message for a recipe that `read_recipe` refuses or that sets unknown
    arguments.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    dataclass_type: Any = argument_class
    parser = HfArgumentParser(dataclass_type)
    parser.usage = "%(prog)s [RECIPE.yaml] [--argument value ...]"
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        recipe = arguments.pop(0)
        try:
            values = read_recipe(recipe)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        known = {f.name: f for f in fields(dataclass_type)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            parser.error(f"{recipe} sets {', '.join(unknown)}, which this script does not have.")
        flags = []
        for name, value in values.items():
            text = "" if value is None else value  # `name:` with nothing behind it
            if isinstance(text, list):
                flags += [f"--{name}", *map(str, text)]
            else:
                flags += [f"--{name}", json.dumps(text) if isinstance(text, dict) else str(text)]
        arguments = flags + arguments
    try:
        (parsed,) = parser.parse_args_into_dataclasses(arguments)
    except ValueError as error:
        parser.error(str(error))
    return parsed
