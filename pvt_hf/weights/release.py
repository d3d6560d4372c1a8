"""The official release by name: `from_official("pvt-small")`, and "official:pvt-small" in commands."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..models.configuration_pvt import PvtConfig
from ..models.image_processing_pvt import PvtImageProcessorPil
from ..models.modeling_pvt import PvtForImageClassification
from .convert import imagenet_labels, official_image_processor
from .official import load_official_checkpoint
from .official_files import download_checkpoint, sha256_of
from .variants import get_config, get_variant


logger = logging.get_logger(__name__)

NUM_CLASSES = 1000  # of ImageNet-1K


def from_official(
    name: str, *, cache_dir: str | Path | None = None, sha256: str | None = None, **config_overrides: Any
) -> tuple[PvtForImageClassification, PvtImageProcessorPil]:
    """
    Opens a classifier of the official release (ImageNet-1K, 224x224): downloads its file into the Hub's cache the first
    time, with a progress bar, reads it without running code in it, and converts it in memory. Prints the SHA-256 of the
    file on stderr.

    ```python
    >>> model, image_processor = pvt_hf.from_official("pvt-small")
    ```

    Args:
        name: "pvt-tiny", "pvt-small", "pvt-medium" or "pvt-large".
        cache_dir: folder for the file; by default in the assets cache of `huggingface_hub`.
        sha256: digest that the file must have, 64 hexadecimal digits, such as the one printed before. A file in the
            cache with another one is downloaded again.
        config_overrides: fields of [`PvtConfig`] that the weights do not fix, such as `drop_path_rate` or `id2label`.

    Returns:
        The model, in eval mode, on the CPU, in float32; and its image processor, the official evaluation.

    Raises:
        ConnectionError: the file is not in the cache and cannot be downloaded.
        OSError: it cannot be written to the cache, for example because the disk is full.
        ValueError: an unknown variant, or one without released weights; the file has another digest, would run code, or
            does not hold the variant.
    """
    variant = get_variant(name)
    if sha256 is not None:
        variant = replace(variant, checkpoint_sha256=sha256.lower())
    path = download_checkpoint(variant, cache_dir)
    print(f"{name}: {path}, SHA-256 {sha256_of(path)}", file=sys.stderr)
    try:
        model = load_official_checkpoint(path, **{**variant.config, **config_overrides})
        if not isinstance(model, PvtForImageClassification):
            raise ValueError("The file holds a backbone without a classifier.")
        if "id2label" not in config_overrides and model.config.num_labels == NUM_CLASSES:
            for field, names in _label_fields().items():
                setattr(model.config, field, names)
    except ValueError as error:
        raise ValueError(
            f"{path} does not hold {name}: {error} If it is damaged, delete it, and it is downloaded again."
        ) from error
    return model, official_image_processor(model.config.image_size)


def official_config(name: str, **config_overrides: Any) -> PvtConfig:
    """The configuration of the released classifier `name`, without its weights: nothing is downloaded."""
    fields = {} if "id2label" in config_overrides else _label_fields() or {"num_labels": NUM_CLASSES}
    config = get_config(name, **{**fields, **config_overrides})
    config.architectures = [PvtForImageClassification.__name__]
    return config


def _label_fields() -> dict[str, Any]:
    """The names of the 1000 classes; nothing, and a warning, where timm is not installed."""
    try:
        names = imagenet_labels()
    except ImportError as error:
        logger.warning_once(f"Classes get numbers instead of names. {error}")
        return {}
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}
