"""
The tasks: image classification, semantic segmentation and object detection.

To add one: a folder here, with the same file names as the others, whose `task.py` has a subclass of
[`pvt_hf.engine.task.Task`]; a row in `TASKS`; its training command in `pvt_hf/commands/__init__.py`, with the text of
its `--help` in `train.py` and `evaluate.py`; and scripts that start both commands, such as
`scripts/train_image_classification.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..engine.task import Task


# Name to the prefix of its classes. The folder has the same name, in lower case.
TASKS = {
    "image-classification": "Classification",
    "semantic-segmentation": "Segmentation",
    "object-detection": "Detection",
}


def get_task(name: str) -> Task:
    """
    Makes the task of that name, a key of `TASKS`, and imports its file.

    Raises:
        KeyError: there is no such task.
    """
    return _find(name, "task", "Task")()


def training_settings(name: str) -> type:
    """The arguments of the task's training command. Imports nothing heavy."""
    return _find(name, "settings", "Settings")


def evaluation_settings(name: str) -> type:
    """The arguments of the task's evaluation command. Imports nothing heavy."""
    return _find(name, "settings", "EvaluationSettings")


def finetuning_settings(name: str) -> type:
    """The arguments of the task in the fine-tuning command. Imports nothing heavy."""
    return _find(name, "settings", "Finetuning")


def _find(name: str, file: str, suffix: str) -> Any:
    prefix = TASKS[name]
    return getattr(import_module(f".{prefix.lower()}.{file}", __name__), prefix + suffix)
