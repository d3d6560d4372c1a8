"""The folder of a Hub repository: weights, configuration, image processor, card, and the code that opens them."""

from __future__ import annotations

import inspect
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import AutoImageProcessor
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME


# By the class of a saved model: the Auto classes that open its repository, and what each of them builds. A classifier
# and a model without a head also hold the weights of what is further down; a backbone has no cls token, hence no model.
AUTO_CLASSES: dict[str, dict[str, str]] = {
    "PvtForImageClassification": {
        "AutoModelForImageClassification": "PvtForImageClassification",
        "AutoModel": "PvtModel",
        "AutoBackbone": "PvtBackbone",
    },
    "PvtModel": {"AutoModel": "PvtModel", "AutoBackbone": "PvtBackbone"},
    "PvtBackbone": {"AutoBackbone": "PvtBackbone"},
    **{
        name: dict.fromkeys(auto_classes, name)
        for name, *auto_classes in (
            ("SemanticFpnForSemanticSegmentation", "AutoModelForSemanticSegmentation"),
            ("Trans2SegForSemanticSegmentation", "AutoModelForSemanticSegmentation"),
            ("RetinaNetForObjectDetection", "AutoModelForObjectDetection"),
            ("PvtDetrForObjectDetection", "AutoModelForObjectDetection"),
            (
                "MaskRcnnForInstanceSegmentation",
                "AutoModelForObjectDetection",
                "AutoModelForInstanceSegmentation",
                "AutoModelForImageSegmentation",
            ),
        )
    },
}


def save_repository(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    folder: str | Path,
    *,
    with_code: bool = True,
    card: ModelCard | None = None,
    max_shard_size: int | str = "50GB",
) -> None:
    """
    Writes all files of a Hub repository into `folder`.

    Args:
        model: of a class of this package with its own weights; see `AUTO_CLASSES`.
        processor: of this package, in either backend, or of Transformers.
        folder: absent or empty; it and its parents are made.
        with_code: also copies the files of this package that define model and processor, and names them in the
            `auto_map` of both configurations, so that `trust_remote_code=True` opens the repository where this package
            is not installed. Without, there is no `auto_map`.
        card: written as `README.md`.
        max_shard_size: weights beyond it are split into several files, as in `save_pretrained`.

    Raises:
        FileExistsError: `folder` is a file or has content.
        ValueError: the model or the processor is not of this package: its code would not open the repository.
    """
    folder = Path(folder)
    _check_classes(model, processor)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is a file or has content, expected an empty folder or none: choose another.")
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    for file in folder.glob("*.py"):  # of classes that were registered with register_for_auto_class
        file.unlink()

    model_map, processor_map = auto_maps(model, processor) if with_code else ({}, {})
    _write_auto_map(folder / CONFIG_NAME, model_map)
    _write_auto_map(folder / IMAGE_PROCESSOR_NAME, processor_map)
    for file in code_files(model, processor) if with_code else ():
        shutil.copyfile(file, folder / file.name)
    if card is not None:
        card.save(folder / "README.md")


def auto_maps(model: PreTrainedModel, processor: BaseImageProcessor) -> tuple[dict[str, str], dict[str, Any]]:
    """
    What `auto_map` of `config.json` and of `preprocessor_config.json` hold: by Auto class, "file.Class". Of an image
    processor both backends are named; there is nothing for one that Transformers brings.
    """
    module = import_module(type(model).__module__)
    classes = {"AutoConfig": type(model.config)}
    for auto_class, name in AUTO_CLASSES[type(model).__name__].items():
        classes[auto_class] = getattr(module, name)
    backends = {name: _reference(value) for name, value in _backends(processor).items()}
    return (
        {auto_class: _reference(value) for auto_class, value in classes.items()},
        {"AutoImageProcessor": backends} if backends else {},
    )


def code_files(model: PreTrainedModel, processor: BaseImageProcessor) -> list[Path]:
    """The files of this package that model and processor need, by following their relative imports."""
    roots = [inspect.getfile(value) for value in (type(model), *_backends(processor).values())]
    files = {Path(file).resolve() for root in roots for file in (root, *get_relative_import_files(root))}
    return sorted(files)


def open_folder(folder: str | Path) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    The model and the image processor of a folder that training, conversion or `save_pretrained` wrote. Code that lies
    in the folder is not run: the classes are those of the installed package.

    Raises:
        OSError: there is no such folder, or it lacks a file.
        ValueError: a JSON file cannot be read or describes no model or processor, `config.json` names another class
            than those in `AUTO_CLASSES`, or the weights are not complete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}, expected that of a saved model.")
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"There is no {CONFIG_NAME} in {folder}, expected the folder of a saved model.")
    if not (folder / IMAGE_PROCESSOR_NAME).is_file():
        raise FileNotFoundError(
            f"There is no {IMAGE_PROCESSOR_NAME} in {folder}: save the image processor there, "
            "PvtImageProcessor().save_pretrained(FOLDER) for a classifier."
        )
    read_object(folder / IMAGE_PROCESSOR_NAME)  # for its checks
    architecture = read_object(folder / CONFIG_NAME).get("architectures") or ["nothing"]
    if not isinstance(architecture, list) or architecture[0] not in list(AUTO_CLASSES):  # a list: of anything
        raise ValueError(
            f"{folder / CONFIG_NAME} names {architecture!r} as its architecture, expected a list with one of "
            f"{', '.join(AUTO_CLASSES)}."
        )
    model_class = getattr(import_module("pvt_hf"), architecture[0])
    try:
        model, loaded = model_class.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    except SafetensorError as error:
        raise ValueError(f"The weights in {folder} cannot be read, such as model.safetensors: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what values of other types come to
        raise ValueError(f"{folder / CONFIG_NAME} describes no {architecture[0]}: {error}") from error
    keys = sorted({*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])})
    if keys:
        raise ValueError(
            f"{folder} is no trained {architecture[0]}: {len(keys)} tensors are missing or of another shape, "
            f"{', '.join(keys[:4])}{' ...' * (len(keys) > 4)}."
        )
    try:
        return model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Transformers' message may be a list of all model types
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise ValueError(
            f"{folder / IMAGE_PROCESSOR_NAME} describes no image processor: {reason}. Save it again with "
            "`processor.save_pretrained(FOLDER)`."
        ) from error


def read_object(file: Path) -> dict[str, Any]:
    """The content of a JSON file that has to hold an object. FileNotFoundError, or a ValueError if it does not."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no JSON file {file}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{file} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object with values by name.")
    return content


def _check_classes(model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    for value, origins in ((model, ("pvt_hf",)), (processor, ("pvt_hf", "transformers"))):
        module, name = type(value).__module__, type(value).__name__
        origin = module.partition(".")[0]
        if origin == "transformers_modules":
            raise ValueError(
                f"{name} is code that a repository brought ({module}). `import pvt_hf` first and open it again: "
                "from_pretrained then builds the installed package's class, and its code is what is saved."
            )
        if origin not in origins or (value is model and name not in AUTO_CLASSES):
            expected = ", ".join(AUTO_CLASSES) if value is model else "an image processor of pvt_hf or of Transformers"
            raise ValueError(
                f"{module}.{name} is not saved as a repository of this package, expected {expected}. Other classes "
                "have their own push_to_hub."
            )


def _backends(processor: BaseImageProcessor) -> dict[str, type]:
    """Both classes of an image processor of this package, which share a file; none for other image processors."""
    module, name = type(processor).__module__, type(processor).__name__.removesuffix("Pil")
    if not module.startswith("pvt_hf."):
        return {}
    file = import_module(module)
    return {"pil": getattr(file, f"{name}Pil"), "torchvision": getattr(file, name)}


def _reference(value: type) -> str:
    return f"{value.__module__.rpartition('.')[2]}.{value.__name__}"


def _write_auto_map(file: Path, auto_map: dict[str, Any]) -> None:
    """Replaces `auto_map`, also that of a backbone's configuration that came from another repository."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    for part in (settings, settings.get("backbone_config")):
        if isinstance(part, dict):
            part.pop("auto_map", None)
    if auto_map:
        settings["auto_map"] = auto_map
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
