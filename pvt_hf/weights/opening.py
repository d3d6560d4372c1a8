"""Opens configurations, image processors and complete checkpoints by the names of models that commands take."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..models.configuration_pvt import PvtConfig
from ..models.modeling_pvt import PvtForImageClassification
from .convert import official_image_processor
from .exported import ExportedForInference, exported_folder, open_exported
from .paths import check_model_path, folder_or_id, is_exported, official_variant
from .release import from_official, official_config


# Arguments of `from_pretrained` that mean nothing for weights in memory
_LOADING = ("trust_remote_code", "use_safetensors")


@contextmanager
def _without_network(model: str | Path) -> Iterator[None]:
    """Names the model that is no folder here, where Transformers says only that the Hub does not answer."""
    try:
        yield
    except OSError as error:
        if "couldn't connect" not in str(error) or Path(folder_or_id(model)).is_dir():
            raise
        raise OSError(
            f"There is no model folder {model} here, it is not complete in the cache of the Hub, and the Hub cannot be "
            "asked. Give a folder with config.json, or try again with a network."
        ) from error


def open_config(model: str | Path, **options: Any) -> PreTrainedConfig:
    """
    The configuration of a model: a folder, Hub id, "official:pvt-small" or "sample:digits-segmenter".

    Args:
        options: fields to replace, and arguments of `AutoConfig.from_pretrained`.

    Raises:
        OSError: there is no such model.
        ValueError: its configuration is damaged or unknown.
    """
    check_model_path(model)
    official = official_variant(model)
    if official:
        return official_config(official, **{k: v for k, v in options.items() if k not in _LOADING})
    with _without_network(model):
        return AutoConfig.from_pretrained(folder_or_id(model), **options)


def open_processor(model: str | Path, **options: Any) -> Any:
    """The image processor of a model, named as for [`open_config`]; `options` are fields to replace."""
    official = official_variant(model)
    if official:
        fields = {k: v for k, v in options.items() if k not in _LOADING}
        return official_image_processor(official_config(official).image_size, **fields)
    with _without_network(model):
        return AutoImageProcessor.from_pretrained(folder_or_id(model), **options)


def check_task(auto_class: Any, model: str | Path) -> None:
    """Raises a ValueError if an Auto class has no model for the configuration of `model`."""
    config = open_config(model)
    if type(config) not in auto_class._model_mapping:
        raise _unfit(model, type(config).__name__, auto_class.__name__)


def _unfit(model: str | Path, config: str, auto_class: str) -> ValueError:
    return ValueError(f"{model} has a {config}, which is no model for {auto_class}: choose the model's task.")


def open_complete(
    model_class: Any, model: str | Path, *, new_classifier: bool = False, **options: Any
) -> PreTrainedModel:
    """
    Loads a checkpoint that has every weight of the model, reading its files once.

    Args:
        model_class: a model class or an Auto class.
        model: folder, Hub id, "official:pvt-small" or "sample:digits-segmenter".
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
        opened, loaded = _load(model_class, model, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except SafetensorError as error:
        raise ValueError(f"The weights of {model} cannot be read: {error}") from error
    except ValueError as error:
        unfit = re.match(
            r"Unrecognized configuration class <class '.*?(\w+)'> for this kind of AutoModel: (\w+)", str(error)
        )
        if unfit is None:
            raise
        # Transformers would list all models that are.
        raise _unfit(model, unfit[1], unfit[2]) from None
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
        name
        for name, value in opened.state_dict().items()
        if any(part.is_floating_point() and not part.isfinite().all() for part in parts_of(value))
    ]
    if not_finite:
        raise ValueError(
            f"The weights of {model} have values that are NaN or infinite: {shorten(not_finite, limit=4)}. Give a "
            "checkpoint from before the training diverged, or copy the files again."
        )
    return opened.eval()


def _load(model_class: Any, model: str | Path, **options: Any) -> Any:
    official = official_variant(model)
    if official is None:
        with _without_network(model):
            return model_class.from_pretrained(folder_or_id(model), **options)
    known = getattr(model_class, "_model_mapping", None)
    if (PvtConfig not in known) if known is not None else model_class is not PvtForImageClassification:
        raise ValueError(f"{model} is a classifier, which is no model for {model_class.__name__}: choose its task.")
    source, _ = from_official(official)
    options = {"config": source.config, "dtype": source.dtype, **options}
    options = {key: value for key, value in options.items() if key not in _LOADING}
    return PvtForImageClassification.from_pretrained(None, state_dict=source.state_dict(), **options)


def open_to_run(model_class: Any, model: str | Path, **options: Any) -> Any:
    """
    Opens a model that will not be trained: a complete checkpoint, see [`open_complete`], or an export, see
    [`pvt_hf.weights.exported.open_exported`]. Of the `options`, an export takes `trust_remote_code` only.
    """
    if (folder := exported_folder(model)) is not None:
        return open_exported(folder, trust_remote_code=options.get("trust_remote_code"))
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
        for part in parts_of(tensor):
            digest.update(part.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors of a tensor: itself, or the integers and scales of a weight that torchao stores."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in parts_of(getattr(tensor, name))]


def shorten(names: Sequence[str], limit: int = 10) -> str:
    """The first `limit` names, quoted, and how many more there are."""
    text = ", ".join(map(repr, names[:limit])) or "none"
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
