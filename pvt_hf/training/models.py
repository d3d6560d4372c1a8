"""Models to train, as the tasks of dense prediction open them: one that was trained before, or a backbone's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import AutoConfig, PreTrainedModel

from ..backbone_loading import load_pretrained_backbone
from .evaluation_frame import check_model_path


def label_fields(class_names: Sequence[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of a configuration."""
    return {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: label for label, name in enumerate(class_names)},
    }


def open_trained_model(
    model: str, auto_class: type, class_names: Sequence[str], drop_path_rate: float
) -> PreTrainedModel:
    """
    A model to fine-tune, with a classifier of these classes: a new one if it had another number.

    Raises:
        OSError: there is no such folder or Hub id.
    """
    check_model_path(model)
    config = AutoConfig.from_pretrained(model, **label_fields(class_names))
    with_drop_path = getattr(config, "backbone_config", None) or config
    if hasattr(with_drop_path, "drop_path_rate"):
        with_drop_path.drop_path_rate = drop_path_rate
    return auto_class.from_pretrained(model, config=config, ignore_mismatched_sizes=True)


def start_backbone(accelerator: Accelerator, model: PreTrainedModel, checkpoint: str) -> None:
    """
    Puts a classifier's weights into the model's backbone, and prints what was used.

    Raises:
        FileNotFoundError: a path that is not there; and what [`pvt_hf.load_pretrained_backbone`] raises.
    """
    if checkpoint.startswith((".", "/", "~")) and not Path(checkpoint).exists():
        raise FileNotFoundError(f"There is no {checkpoint} to start from: give a file, folder or Hub id.")
    accelerator.print(f"Backbone from {checkpoint}: {load_pretrained_backbone(model, checkpoint)}")
