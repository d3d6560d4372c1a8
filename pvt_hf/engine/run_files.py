"""The final files of a training run (model, image processor, `run.json`, `curves.png`), and its trackers."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..metrics.reports import versions, write_json
from .curves import plot_curves
from .disk import describe_write_error, tensor_bytes
from .settings import TrainingSettings


PACKAGES = ("torchvision", "transformers", "accelerate", "datasets", "timm", "torchdata", "safetensors")


def start_trackers(accelerator: Accelerator, settings: TrainingSettings) -> None:
    """Starts the trackers of `--report_to`, with the settings as the run's configuration."""
    values = {name: value for name, value in asdict(settings).items() if isinstance(value, int | float | str | bool)}
    accelerator.init_trackers("pvt-hf", config=values)


def device_name(accelerator: Accelerator) -> str:
    """The product name of a GPU, or the type of another device, such as "cpu"."""
    device = accelerator.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def describe_run(accelerator: Accelerator, settings: TrainingSettings) -> dict[str, Any]:
    """The part of `run.json` that describes the run: command, recipe, settings, seed, processes, device, versions."""
    return {
        "command": sys.argv,
        "recipe": next((word for word in sys.argv[1:] if word.endswith((".yaml", ".yml"))), None),
        "settings": asdict(settings),
        "seed": settings.seed,
        "world_size": accelerator.num_processes,
        "device": device_name(accelerator),
        "versions": versions(PACKAGES),
    }


def save_run(
    output_dir: Path,
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    processor: Any,
    report: dict[str, Any],
    write_more: Callable[[Path], Any],
) -> None:
    """
    Saves the final model, its image processor, `run.json`, `curves.png` and more: either all of them or none.

    Args:
        weights: state dict of the whole model, gathered if the model is sharded.
        report: content of `run.json`; its `history` is drawn in `curves.png`.
        write_more: writes more files into the folder that it gets.

    Raises:
        OSError: saving failed, for example because the disk is full. Nothing was written.
    """
    partial = output_dir / ".final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, state_dict=weights)
        processor.save_pretrained(partial)
        plot_curves(report["history"], partial / "curves.png")
        write_more(partial)
        write_json(partial / "run.json", report)
    except Exception as error:  # a full disk is an OSError, a RuntimeError (torch) or a SafetensorError
        reason = describe_write_error(partial if partial.is_dir() else output_dir, error, tensor_bytes(weights))
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"Could not save the model in {output_dir}: {reason}. Free some space and repeat the command with "
            "--resume_from_checkpoint latest: nothing is trained again."
        ) from error
    for file in partial.iterdir():
        os.replace(file, output_dir / file.name)
    partial.rmdir()
