"""Converts an official checkpoint to a complete, verified model folder."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from ..metrics.reports import versions, write_json
from ..models.image_processing_pvt import PvtImageProcessorPil
from ..models.modeling_pvt import PvtForImageClassification
from .official import model_from_official_state_dict
from .official_files import read_checkpoint, sha256_of, unwrap_checkpoint
from .verification import verify
from .whole_folder import check_replaceable, folder_written_whole


REPORT = "conversion.json"
FILES = ("config.json", REPORT, "model.safetensors", "preprocessor_config.json")


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    overwrite: bool = False,
    source_url: str | None = None,
    **config_overrides: Any,
) -> dict[str, Any]:
    """
    Converts an official checkpoint to a folder that `from_pretrained` opens, and verifies the result.

    The folder gets the model (safetensors), `config.json`, `preprocessor_config.json` (the official evaluation at the
    model's image size) and `conversion.json` (provenance and the result of the verification). A classifier with 1000
    classes gets the names of ImageNet-1K unless `id2label` is given. Files are written to a temporary folder beside
    `output`, loaded from there, compared with the source ([`verify`]), and only then renamed to `output`.

    Args:
        checkpoint: a file that [`pvt_hf.weights.official.load_official_checkpoint`] opens.
        output: folder to create, with its parents.
        overwrite: replace `output` if it is an older conversion, which is deleted once the new one is in place.
        source_url: where the file came from, for `conversion.json`.
        config_overrides: as for [`pvt_hf.weights.official.load_official_checkpoint`].

    Returns:
        The content of `conversion.json`.

    Raises:
        FileExistsError: `output` has content, and `overwrite` is False or it is no older conversion.
        FileNotFoundError, ValueError: as [`pvt_hf.weights.official.load_official_checkpoint`]; also a ValueError if the
            model does not compute what the source does. Nothing is written.
        ImportError: the names of ImageNet-1K are needed and timm is not installed.
    """
    checkpoint, output = Path(checkpoint), Path(output).resolve()
    check_replaceable(output, overwrite, REPORT, FILES)
    source = unwrap_checkpoint(read_checkpoint(checkpoint))
    model = model_from_official_state_dict(source, **config_overrides)
    config, is_classifier = model.config, isinstance(model, PvtForImageClassification)
    labels = "as given" if "id2label" in config_overrides else None
    if is_classifier and config.num_labels == 1000 and "id2label" not in config_overrides:
        config.id2label = imagenet_labels()
        config.label2id = {name: index for index, name in config.id2label.items()}
        labels = f"ImageNet-1K, WordNet's names from timm {importlib.metadata.version('timm')}"

    with folder_written_whole(output) as folder:
        model.save_pretrained(folder)
        official_image_processor(config.image_size).save_pretrained(folder)
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
            "versions": versions(("transformers", "safetensors")),
        }
        write_json(folder / REPORT, report)
    return report


def imagenet_labels() -> dict[int, str]:
    """
    The names of the 1000 classes of ImageNet-1K, in the order of the official checkpoints (sorted WordNet ids).

    The names are WordNet's, such as "tench, Tinca tinca", from timm's `ImageNetInfo`. Two classes are called "crane"
    there; "(bird)" and "(machine)" are appended to make all names unique.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ImportError(
            "The names of the 1000 ImageNet classes come from timm, which is not installed: "
            "pip install 'pvt-hf[train]', or pass id2label."
        ) from error
    info = ImageNetInfo("imagenet-1k")
    labels = {index: info.index_to_description(index) for index in range(1000)}
    labels[134] += " (bird)"
    labels[517] += " (machine)"
    return labels


def official_image_processor(image_size: int | list[int] | tuple[int, int], **fields: Any) -> PvtImageProcessorPil:
    """The official evaluation, resize to 256 and crop to 224 pixels, scaled to the model's image size; or `fields`."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    shortest_edge = int(256 / 224 * max(height, width))
    sizes = {"size": {"shortest_edge": shortest_edge}, "crop_size": {"height": height, "width": width}}
    return PvtImageProcessorPil(**{**sizes, **fields})
