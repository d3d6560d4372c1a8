"""Class names: reading them, writing them to configurations, and matching the labels of data and model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.label_counts import LabelCounts
from ..data.streams import Stream
from ..engine.task import SampleMaker
from ..weights.opening import shorten
from .ade20k import ADE20K_CLASS_NAMES


def read_class_names(text: str) -> tuple[str, ...] | None:
    """
    Parses the value of `--class_names`: names separated by commas, a .txt file with one name per line (UTF-8), or
    "ade20k". An empty string gives None.

    Raises:
        FileNotFoundError: there is no such .txt file.
        ValueError: there are fewer than two names, or a name occurs twice.
    """
    if not text or text == "ade20k":
        return ADE20K_CLASS_NAMES if text else None
    if text.endswith(".txt"):
        if not Path(text).is_file():
            raise FileNotFoundError(f"--class_names {text}: there is no such file.")
        lines = [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        lines = text.split(",")
    names = tuple(name.strip() for name in lines)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or repeated:
        raise ValueError(
            f"--class_names gives {len(names)} name(s){f', {repeated} more than once' if repeated else ''}: expected "
            "two or more different ones, separated by commas or in a .txt file with one per line."
        )
    return names


def label_fields(class_names: Sequence[str]) -> dict[str, Any]:
    """The fields `id2label` and `label2id` of a model configuration."""
    return {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: label for label, name in enumerate(class_names)},
    }


def class_names_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The class names of a model, in the order of its labels."""
    config: Any = model.config
    return tuple(config.id2label[label] for label in range(config.num_labels))


def match_labels(stream: Stream, model_names: tuple[str, ...]) -> tuple[list[int], str | None]:
    """
    Finds the model's label for each label of `stream`: by name if both have the same names, otherwise by number. A
    stream without names has the model's numbers (and where its labels are text, the model's names).

    Returns:
        The model's labels, in the order of the stream's labels; and a warning, None if the names agree.

    Raises:
        ValueError: the numbers of classes differ, or the names differ and a name that both have is at another number,
            or the names are the same in another order but not unique. The message lists the differences.
    """
    names, numbers = stream.class_names, list(range(len(model_names)))
    if names is None or names == model_names:  # even if a name occurs twice, as "crane" and "maillot" in ImageNet
        return numbers, None
    if set(names) == set(model_names) and len(set(names)) == len(names) == len(model_names):
        return [model_names.index(name) for name in names], None
    only_data, only_model = sorted(set(names) - set(model_names)), sorted(set(model_names) - set(names))
    moved = [name for i, name in enumerate(names) if name in model_names and name not in model_names[i : i + 1]]
    differences = (
        f"{stream.name} has {len(names)} classes and the model {len(model_names)}; only in the data: "
        f"{shorten(only_data)}; only in the model: {shorten(only_model)}; in both with another number: "
        f"{shorten(moved)}."
    )
    if len(names) != len(model_names) or moved:
        raise ValueError(
            f"{differences} If the classes are the same, give them the same names: --class_names of pvt-hf evaluate, "
            "or id2label in the model's config.json."
        )
    return numbers, f"{differences} Label i of the data is taken as label i of the model."


def numbers_without_names(stream: Stream, model_names: tuple[str, ...]) -> str | None:
    """Says what the labels of a stream without names are; None for one with names."""
    if stream.class_names is not None:
        return None
    return (
        f"The labels of {stream.name} have no names: numbers are the model's labels, 0 ({model_names[0]}) to "
        f"{len(model_names) - 1} ({model_names[-1]}), and text is the model's class names. --class_names of "
        "pvt-hf evaluate gives them names."
    )


class RenumberedSample:
    """
    Makes samples and replaces the labels of the data by those of the model. A class and not a closure, because loader
    processes may have to pickle it.

    Args:
        sample: makes samples with `labels`, an integer tensor of any shape.
        table: (n,) int64, the model's label for each label of the data.
        class_names: the model's.
    """

    def __init__(self, sample: SampleMaker, table: torch.Tensor, class_names: tuple[str, ...]):
        self.sample, self.table, self.class_names = sample, table, class_names
        self.stream, self.counted = sample.stream, sample.counted

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        sample = self.sample(example)
        counts = sample["label_counts"].renumbered(self.table.tolist())
        return {**sample, "labels": self.table[sample["labels"]], "label_counts": counts}

    def count(self, example: dict[str, Any]) -> LabelCounts:
        return self.sample.count(example).renumbered(self.table.tolist())
