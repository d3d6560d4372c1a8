"""
Recipes: YAML files of `argument: value` lines. A line `base: FILE` starts from the arguments of another recipe. The
recipes of this package are in `pvt_hf/recipes`, and are named without a path: `coco_retinanet_pvt_small_1x`.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml


RECIPES = Path(__file__).parents[1] / "recipes"
ENDINGS = (".yaml", ".yml")


def find_recipe(name: str) -> Path:
    """
    The file of a recipe: a path that ends in `.yaml` or `.yml`, or the name of one in `pvt_hf/recipes`.

    Raises:
        FileNotFoundError: there is no recipe of that name. (Whether the file of a path exists is not checked.)
    """
    if name.endswith(ENDINGS):
        return Path(name)
    names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    if name not in names:
        if Path(name).is_dir():
            raise FileNotFoundError(f"{name} is a folder and not a recipe: give it as --dataset {name}.")
        similar = get_close_matches(name, names, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(names)}."
        raise FileNotFoundError(f"there is no recipe {name} in this package; {hint} A file's name ends in .yaml.")
    return RECIPES / f"{name}.yaml"


def read_recipe(path: str | Path) -> dict[str, Any]:
    """
    Reads a recipe: argument names and values. Its own values override those of its base.

    `base` is relative to the recipe's folder, and may have a base itself. A value that is a mapping replaces the one of
    the base; the two are not merged.

    Raises:
        FileNotFoundError: the recipe, or a base, does not exist.
        ValueError: a file is not valid YAML or not a mapping, or the bases go in a circle.
    """
    file, files, values = Path(path), list[Path](), dict[str, Any]()
    while True:
        if not file.is_file():
            raise FileNotFoundError(f"there is no recipe {file}{f', the base of {files[-1]}' if files else ''}.")
        files.append(file.resolve())
        if len(set(files)) < len(files):
            raise ValueError(f"the bases go in a circle: {' -> '.join(file.name for file in files)}.")
        own = _read_mapping(file)
        base = own.pop("base", None)
        values = own | values
        if base is None:
            return values
        if not isinstance(base, str):
            raise ValueError(f"{file} has `base: {base!r}`; expected a recipe's path, relative to this file.")
        file = file.parent / base


def _read_mapping(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must have `argument: value` lines, got a {type(values).__name__}.")
    names = [name.value for name, _ in yaml.compose(text).value]  # of two lines with one name, the last would win
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{file} sets {', '.join(repeated)} more than once: keep one of the lines.")
    return values
