"""The folder of a Hub repository: weights, configuration, image processor, card, and the code that opens them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoImageProcessor
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from .. import models
from ..families import FAMILIES, MODELS, class_name, load
from ..metrics.reports import write_json
from ..weights.opening import open_complete


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
        model: of a class in [`pvt_hf.families.MODELS`].
        processor: of this package, in either backend, or of Transformers.
        folder: absent or empty. It and its parents are created.
        with_code: also copies the files of this package that define model and processor, and names them in the
            `auto_map` of both configurations. `trust_remote_code=True` then opens the repository without this package.
        card: written as `README.md`.
        max_shard_size: larger weights are split into several files, as in `save_pretrained`.

    Raises:
        FileExistsError: `folder` is a file or has content.
        ValueError: the model or the processor is not of this package, whose code would not open the repository.
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


def auto_classes(model_class: str) -> dict[str, str]:
    """
    The Auto classes that open a saved model, and the class ("file.Class") that each of them builds: the model's own
    class, or that of a smaller model whose weights it holds.
    """
    family, model = MODELS[model_class]
    parts = family.models[family.models.index(model) :]
    return {auto_class: part.path for part in parts for auto_class in part.auto_classes}


def auto_maps(model: PreTrainedModel, processor: BaseImageProcessor) -> tuple[dict[str, str], dict[str, Any]]:
    """
    The `auto_map` of `config.json` and of `preprocessor_config.json`. That of an image processor has both backends; it
    is empty for a processor of Transformers.
    """
    name = type(model).__name__
    backends = _backends(processor)
    return (
        {"AutoConfig": MODELS[name][0].config, **auto_classes(name)},
        {"AutoImageProcessor": backends} if backends else {},
    )


def code_files(model: PreTrainedModel, processor: BaseImageProcessor) -> list[Path]:
    """The files of this package that model and processor need: theirs, and what those import from each other."""
    folder = Path(models.__file__).resolve().parent
    _, row = MODELS[type(model).__name__]
    roots = [folder / f"{path.partition('.')[0]}.py" for path in (row.path, *_backends(processor).values())]
    imported = [Path(file) for root in roots for file in get_relative_import_files(root)]
    return sorted({*roots, *imported})


def open_folder(folder: str | Path) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Opens the model and the image processor in a folder that training, conversion or `save_pretrained` wrote. Code in
    the folder is not run: the classes are those of the installed package.

    Raises:
        OSError: there is no such folder, or it lacks a file.
        ValueError: a JSON file cannot be read or does not describe a model or processor, `config.json` names a class
            that is not in [`pvt_hf.families.MODELS`], or the weights are incomplete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}, expected that of a saved model.")
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"There is no {CONFIG_NAME} in {folder}, expected the folder of a saved model.")
    if not (folder / IMAGE_PROCESSOR_NAME).is_file():
        raise FileNotFoundError(
            f"There is no {IMAGE_PROCESSOR_NAME} in {folder}: save the image processor there, for a classifier with "
            f'`PvtImageProcessor().save_pretrained("{folder}")`.'
        )
    read_object(folder / IMAGE_PROCESSOR_NAME)  # for its checks
    names = read_object(folder / CONFIG_NAME).get("architectures")
    if not isinstance(names, list) or not names or names[0] not in list(MODELS):  # a list: the name may be of any type
        raise ValueError(
            f"{folder / CONFIG_NAME} has the architectures {names!r}, expected a list with one of {', '.join(MODELS)}."
        )
    model_class = load(MODELS[names[0]][1].path)
    try:
        config = model_class.config_class.from_pretrained(folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # values of wrong types
        raise ValueError(f"{folder / CONFIG_NAME} does not describe a {names[0]}: {error}") from error
    model = open_complete(model_class, folder, config=config)
    try:
        return model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Transformers' message may be a list of all model types
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise ValueError(
            f"{folder / IMAGE_PROCESSOR_NAME} does not describe an image processor: {reason}. Save it again with "
            "`processor.save_pretrained(FOLDER)`."
        ) from error


def read_object(file: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object. FileNotFoundError if there is no file, otherwise ValueError."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no JSON file {file}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{file} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object with values by name.")
    return content


def _check_classes(model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    for value, origins in ((model, ("pvt_hf",)), (processor, ("pvt_hf", "transformers"))):
        module, name = type(value).__module__, type(value).__name__
        origin = module.partition(".")[0]
        if origin == "transformers_modules":
            raise ValueError(
                f"{name} comes from code in a repository ({module}). `import pvt_hf` first and open it again: "
                "from_pretrained then builds the installed package's class, whose code can be saved."
            )
        if origin not in origins or (value is model and name not in MODELS):
            expected = ", ".join(MODELS) if value is model else "an image processor of pvt_hf or of Transformers"
            raise ValueError(
                f"{module}.{name} cannot be saved as a repository of this package, expected {expected}. Other classes "
                "have their own push_to_hub."
            )


def _backends(processor: BaseImageProcessor) -> dict[str, str]:
    """Both classes ("file.Class") of an image processor of this package; none for one of Transformers."""
    name = type(processor).__name__.removesuffix("Pil")
    if not type(processor).__module__.startswith("pvt_hf."):
        return {}
    return next(family.processors for family in FAMILIES.values() if class_name(family.processor) == name)


def _write_auto_map(file: Path, auto_map: dict[str, Any]) -> None:
    """Replaces `auto_map`, also that of a backbone's configuration that came from another repository."""
    settings = read_object(file)
    for part in (settings, settings.get("backbone_config")):
        if isinstance(part, dict):
            part.pop("auto_map", None)
    if auto_map:
        settings["auto_map"] = auto_map
    write_json(file, settings)
