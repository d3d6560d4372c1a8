"""What the tasks of dense prediction need for the models that they train: class names, weights, BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ..weights.backbone import load_pretrained_backbone
from ..weights.opening import check_model_path
from .ade20k import ADE20K_CLASS_NAMES


def label_fields(class_names: Sequence[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of a configuration."""
    return {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: label for label, name in enumerate(class_names)},
    }


def open_trained_model(
    model: str, auto_class: Any, class_names: Sequence[str], drop_path_rate: float
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
    Puts a classifier's weights into the model's backbone, and prints what was used. Raises what
    [`pvt_hf.load_pretrained_backbone`] does.
    """
    accelerator.print(f"Backbone from {checkpoint}: {load_pretrained_backbone(model, checkpoint)}")


def read_class_names(text: str) -> tuple[str, ...] | None:
    """
    The names that `--class_names` stands for; None for an empty text.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: a single name, or one that comes twice.
    """
    if not text or text == "ade20k":
        return ADE20K_CLASS_NAMES if text else None
    if text.endswith(".txt"):
        lines = [line for line in Path(text).read_text().splitlines() if line.strip()]
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


def synchronize_batch_norm(accelerator: Accelerator, model: PreTrainedModel) -> PreTrainedModel:
    """
    On several GPUs the statistics of a BatchNorm are taken over all processes, as in the official training. Where torch
    has no such BatchNorm (it is for CUDA), the model stays as it is, with a message.
    """
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if accelerator.num_processes == 1 or not has_batch_norm:
        return model
    if accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    accelerator.print(
        f"BatchNorm is not synchronised: torch does it on CUDA only, and this is {accelerator.device.type}. Each "
        "process normalises with the statistics of its own batch."
    )
    return model


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """
    Gives every process the buffers of the main one, whose model is saved: what is evaluated is then what is saved. Each
    process adds the statistics of its own last batch to a BatchNorm that is not synchronised.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
