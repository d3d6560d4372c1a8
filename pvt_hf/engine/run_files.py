"""What a finished run leaves in its folder: model, processor, `run.json`, `curves.png`; and what it tells trackers."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from .. import __version__
from .curves import plot_curves
from .settings import TrainingSettings


PACKAGES = ("torchvision", "transformers", "accelerate", "datasets", "timm", "torchdata", "safetensors")


def start_trackers(accelerator: Accelerator, settings: TrainingSettings) -> None:
    """Hands the settings to the trackers of `--report_to`."""
    values = {name: value for name, value in asdict(settings).items() if isinstance(value, int | float | str | bool)}
    accelerator.init_trackers("pvt-hf", config=values)


def describe_run(accelerator: Accelerator, settings: TrainingSettings) -> dict[str, Any]:
    """What `run.json` begins with: settings, recipe, command, seed, world size, device and versions."""
    cuda = accelerator.device.type == "cuda"
    return {
        "command": sys.argv,
        "recipe": next((word for word in sys.argv[1:] if word.endswith((".yaml", ".yml"))), None),
        "settings": asdict(settings),
        "seed": settings.seed,
        "world_size": accelerator.num_processes,
        "device": torch.cuda.get_device_name() if cuda else str(accelerator.device),
        "versions": {
            "pvt_hf": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,  # with the build, which the package's metadata leave out
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def save_run(
    output_dir: Path,
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    processor: Any,
    report: dict[str, Any],
) -> None:
    """
    Writes everything into a hidden folder first, so that a full disk or a kill leaves no half of a model.

    Args:
        weights: of the whole model, which may be sharded over processes.

    Raises:
        OSError: nothing was written; the checkpoints are untouched.
    """
    partial = output_dir / ".final.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, state_dict=weights)
        processor.save_pretrained(partial)
        plot_curves(report["history"], partial / "curves.png")
        (partial / "run.json").write_text(json.dumps(_finite(report), indent=2, allow_nan=False))
    except Exception as error:  # a full disk is an OSError, a RuntimeError (torch) or a SafetensorError
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"Could not save the model in {output_dir}: {type(error).__name__}: {error}. Make room and go on with "
            "--resume_from_checkpoint latest: nothing is trained again."
        ) from error
    for file in partial.iterdir():
        os.replace(file, output_dir / file.name)
    partial.rmdir()


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: null, as in JavaScript."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
