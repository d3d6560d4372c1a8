"""Writing a converted checkpoint: a complete and verified model folder, or nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..models.image_processing_pvt import PvtImageProcessorPil
from ..models.modeling_pvt import PvtBackbone, PvtForImageClassification
from .official import model_from_official_state_dict
from .official_files import read_checkpoint, sha256_of, unwrap_checkpoint
from .official_forward import official_feature_maps, official_logits


# Largest accepted difference in fp64, relative to the largest value (at least 1). Rounding stays far below (1e-14 in
# PVT-Large, 1e-9 with weights so large that they amplify it a million times), a wrong epsilon (1e-6) far above.
TOLERANCE = 1e-8


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    overwrite: bool = False,
    source_url: str | None = None,
    **config_overrides: Any,
) -> dict[str, Any]:
    """
    Converts an official checkpoint to a folder that `from_pretrained` opens, and verifies it.

    The folder gets the model (safetensors), `config.json`, `preprocessor_config.json` (official evaluation at the size
    the model was built for) and `conversion.json` (provenance and the verification's result). A head of 1000 classes
    gets the names of ImageNet-1K unless `id2label` is given. Everything is written beside `output`, loaded back from
    there, compared with the source by [`verify`], and only then renamed to `output`.

    Args:
        checkpoint: a file as [`pvt_hf.weights.official.load_official_checkpoint`] takes it.
        output: the folder to make; its parents are made too.
        overwrite: replaces what is in `output`. It is moved aside first and deleted after the new folder is in place.
        source_url: where the file came from, for the record.
        config_overrides: as for [`pvt_hf.weights.official.load_official_checkpoint`].

    Returns:
        the content of `conversion.json`.

    Raises:
        FileExistsError: `output` has content and `overwrite` is not set.
        FileNotFoundError, ValueError: as [`pvt_hf.weights.official.load_official_checkpoint`]; ValueError too if the result
            does not compute what the source does. Nothing is written then.
        ImportError: the names of ImageNet-1K are needed and timm is not installed.
    """
    checkpoint, output = Path(checkpoint), Path(output).resolve()
    _check_output(output, checkpoint, overwrite)
    source = unwrap_checkpoint(read_checkpoint(checkpoint))
    model = model_from_official_state_dict(source, **config_overrides)
    config, is_classifier = model.config, isinstance(model, PvtForImageClassification)
    labels = "as given" if "id2label" in config_overrides else None
    if is_classifier and config.num_labels == 1000 and "id2label" not in config_overrides:
        config.id2label = imagenet_labels()
        config.label2id = {name: index for index, name in config.id2label.items()}
        labels = f"ImageNet-1K, WordNet's names from timm {_version('timm')}"

    with _folder_written_whole(output) as folder:
        model.save_pretrained(folder)
        _image_processor(config.image_size).save_pretrained(folder)
        report = {
            "source": {
                "file": checkpoint.name,
                "url": source_url,
                "sha256": sha256_of(checkpoint),
                "keys": len(source),
            },
            "model": {
                "class": type(model).__name__,
                "keys": len(model.state_dict()),
                "parameters": model.num_parameters(),
                "dtype": str(model.dtype).removeprefix("torch."),
                "labels": labels,
            },
            "verification": verify(source, folder, is_classifier),
            "versions": {
                "python": platform.python_version(),
                **{name: _version(name) for name in ("pvt-hf", "torch", "transformers", "safetensors")},
            },
        }
        (folder / "conversion.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


@torch.no_grad()
def verify(source: Mapping[str, torch.Tensor], folder: str | Path, is_classifier: bool) -> dict[str, Any]:
    """
    Compares the saved model with what the official architecture computes from the official tensors, in fp64, where
    rounding does not hide small faults.

    The two share no code: see `official_forward`. What tensors do not tell (heads, size of the tables) comes from the
    saved configuration, so a wrong number of heads does not show here.

    Args:
        source: the flat official state dict.
        folder: a saved [`PvtForImageClassification`], or [`PvtBackbone`] unless `is_classifier`.

    Returns:
        `image_sizes`: the (height, width) compared, in pixels: the model's own, and one that takes resized tables;
        `max_abs_difference` of logits or feature maps, in fp64; `max_abs_value` of the source; `tolerance`.

    Raises:
        ValueError: the difference is above the tolerance, or not a number.
    """
    model = (PvtForImageClassification if is_classifier else PvtBackbone).from_pretrained(
        folder,
        dtype=torch.float64,
        attn_implementation="sdpa",  # the eager softmax is in fp32
    )
    config, source = model.config, {key: tensor.double() for key, tensor in source.items()}
    side = config.image_size
    size = (side, side) if isinstance(side, int) else (side[0], side[1])
    image_sizes = [size, (size[0] + 33, size[1] + 65)]
    generator = torch.Generator().manual_seed(0)
    differences, values = [], []
    computed: Any
    for height, width in image_sizes:
        pixel_values = torch.randn(1, config.num_channels, height, width, generator=generator, dtype=torch.float64)
        if isinstance(model, PvtForImageClassification):
            expected = [official_logits(source, pixel_values, config.num_attention_heads, size)]
            computed = [model(pixel_values).logits]
        else:
            stages = [config.stage_names.index(name) for name in model.out_features]
            maps = official_feature_maps(source, pixel_values, config.num_attention_heads, size)
            expected, computed = [maps[stage] for stage in stages], model(pixel_values).feature_maps
        for one, other in zip(expected, computed, strict=True):
            differences.append((one - other).abs().max())
            values.append(one.abs().max())
    difference, largest = float(torch.stack(differences).max()), float(torch.stack(values).max())  # NaN comes through
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise ValueError(
            f"Verification failed: source and result differ by up to {difference:.3g} in values of up to {largest:.3g} "
            f"(tolerance {TOLERANCE:g} of the largest value). If these are not numbers, the weights are damaged; "
            "otherwise this is a fault of the conversion: please report it."
        )
    return {
        "image_sizes": image_sizes,
        "max_abs_difference": difference,
        "max_abs_value": largest,
        "tolerance": TOLERANCE * max(largest, 1.0),
    }


def imagenet_labels() -> dict[int, str]:
    """
    The names of the 1000 classes of ImageNet-1K in the order of the official checkpoints (sorted WordNet ids).

    They are WordNet's, such as "tench, Tinca tinca", and come from timm's `ImageNetInfo`. WordNet calls two classes
    "crane"; these get what they are in brackets, so that names and indices are one to one.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ImportError(
            "The names of the 1000 ImageNet classes are taken from timm, which is not installed: "
            "pip install 'pvt-hf[train]', or pass id2label."
        ) from error
    info = ImageNetInfo("imagenet-1k")
    labels = {index: info.index_to_description(index) for index in range(1000)}
    labels[134] += " (bird)"
    labels[517] += " (machine)"
    return labels


def _image_processor(image_size: int | list[int] | tuple[int, int]) -> PvtImageProcessorPil:
    """The official evaluation, 256 and 224 pixels scaled to the size that the model was built for."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    shortest_edge = int(256 / 224 * max(height, width))
    return PvtImageProcessorPil(size={"shortest_edge": shortest_edge}, crop_size={"height": height, "width": width})


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # used from a source folder, not installed
        return None


def _check_output(output: Path, checkpoint: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file, expected a folder to make: choose another output.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{output} is not empty: choose another output, or pass --overwrite to replace it.")
    needed = {"the checkpoint": checkpoint, "the working directory": Path.cwd(), "the home folder": Path.home()}
    for what, kept in needed.items():
        if kept.resolve().is_relative_to(output):
            raise FileExistsError(f"{output} holds {what} and is not replaced: choose another output.")


@contextmanager
def _folder_written_whole(output: Path) -> Iterator[Path]:
    """
    Yields an empty folder on the same file system; renames it to `output` at the end, or removes it on any error.

    Between the renames of an old and of a new `output` there is a moment without one; killed just there, the old one
    lies beside it as `.NAME.old.*`.
    """
    existing = next(parent for parent in output.parents if parent.exists())
    suffix = uuid.uuid4().hex
    new, old = existing / f".{output.name}.new.{suffix}", output.with_name(f".{output.name}.old.{suffix}")
    new.mkdir()
    try:
        yield new
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            os.rename(output, old)
        try:
            os.rename(new, output)
        except OSError:
            if old.exists():
                os.rename(old, output)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)  # gone already if all went well
    shutil.rmtree(old, ignore_errors=True)
