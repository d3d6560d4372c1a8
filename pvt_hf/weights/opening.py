"""Opens complete checkpoints: for evaluation, prediction, the page, pushing and fine-tuning."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.modeling_utils import PreTrainedModel

from .exported import ExportedForInference, open_exported
from .paths import check_model_path, is_exported


def open_complete(
    model_class: Any, model: str | Path, *, new_classifier: bool = False, **options: Any
) -> PreTrainedModel:
    """
    Loads a checkpoint that has every weight of the model, reading its files once.

    Args:
        model_class: a model class or an Auto class.
        model: folder or Hub id.
        new_classifier: accept weights of another shape and initialise them anew: a classifier for other classes.
        options: for `from_pretrained`, such as `config`, `dtype`, `trust_remote_code`.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        OSError: there is no such folder or Hub id, or it lacks a file.
        ValueError: it is an exported program; weights are missing, NaN or infinite, or a file of weights is damaged; or
            the Auto class has no such model.
    """
    check_model_path(model)
    if is_exported(model):
        raise ValueError(
            f"{model} is an exported program, which has no weights to train, convert or push: give the model that it "
            "was exported from. (predict, evaluate and app take exports.)"
        )
    try:
        opened, loaded = model_class.from_pretrained(
            model, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except SafetensorError as error:
        raise ValueError(f"The weights of {model} cannot be read: {error}") from error
    except ValueError as error:
        unfit = re.match(
            r"Unrecognized configuration class <class '.*?(\w+)'> for this kind of AutoModel: (\w+)", str(error)
        )
        if unfit is None:
            raise
        # Transformers would list all models that are.
        raise ValueError(
            f"{model} has a {unfit[1]}, which is no model for {unfit[2]}: choose the model's task."
        ) from None
    if loaded["missing_keys"]:
        raise ValueError(
            f"{model} is not a complete {type(opened).__name__}: it has no weights for "
            f"{shorten(sorted(loaded['missing_keys']), limit=4)}. Give a checkpoint of the whole model. (Training "
            "starts a new head on a trained backbone with --backbone.)"
        )
    if loaded["mismatched_keys"] and not new_classifier:
        names = sorted(name for name, *_ in loaded["mismatched_keys"])
        raise ValueError(
            f"{model} has weights of other shapes than its config.json describes: {shorten(names, limit=4)}. Give a "
            "folder whose files belong together."
        )
    not_finite = [
        name for name, value in opened.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if not_finite:
        raise ValueError(
            f"The weights of {model} have values that are NaN or infinite: {shorten(not_finite, limit=4)}. Give a "
            "checkpoint from before the training diverged, or copy the files again."
        )
    return opened.eval()


def open_to_run(model_class: Any, model: str | Path, **options: Any) -> Any:
    """
    Opens a model that will not be trained: a complete checkpoint, see [`open_complete`], or an export, see
    [`pvt_hf.weights.exported.open_exported`]. Of the `options`, an export takes `trust_remote_code` only.
    """
    if is_exported(model):
        return open_exported(model, trust_remote_code=options.get("trust_remote_code"))
    return open_complete(model_class, model, **options)


def weights_digest(model: PreTrainedModel | ExportedForInference) -> str:
    """
    SHA-256 over names and bytes of all tensors of the state dict; of an export, over its files. Ties an evaluation to
    the weights it used.
    """
    if isinstance(model, ExportedForInference):
        return model.digest
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def shorten(names: Sequence[str], limit: int = 10) -> str:
    """The first `limit` names, quoted, and how many more there are."""
    text = ", ".join(map(repr, names[:limit])) or "none"
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
