"""
A Hub repository holds the files that its classes need, and both backends of its image processor. test_imports.py checks
that those files can be copied flat, test_core_only.py that they need the core's dependencies only.

    python -m pytest tests/package/test_travel.py
"""

import ast
import json
import re
from pathlib import Path

import pytest

import pvt_hf
from pvt_hf.hub.repository import save_repository

from ..support.hub_kinds import KINDS
from ..support.imports import parse_imports


PACKAGE = Path(pvt_hf.__file__).parent / "models"


def relative_imports(file: Path) -> set[Path]:
    """The files that `file` imports, by Python's own parser. (Transformers reads lines.)"""
    imported = parse_imports(ast.parse(file.read_text()), package="models")
    return {file.with_name(f"{one.module.rpartition('.')[2]}.py") for one in imported if one.level}


@pytest.mark.parametrize("name", KINDS)
def test_a_repository_holds_the_files_that_its_classes_need(name, tmp_path):
    save_repository(KINDS[name].model(), KINDS[name].make_processor(), tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    backends = json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"]
    assert backends.keys() == {"pil", "torchvision"}
    references = {*auto_map.values(), *backends.values()}
    needed = new = {PACKAGE / f"{reference.partition('.')[0]}.py" for reference in references}
    while new:
        new = set().union(*map(relative_imports, new)) - needed
        needed = needed | new
    assert {path.name: path.read_text() for path in tmp_path.glob("*.py")} == {
        path.name: path.read_text() for path in needed
    }
    for reference in references:
        file, _, class_name = reference.partition(".")
        assert re.search(rf"^class {class_name}\b", (tmp_path / f"{file}.py").read_text(), flags=re.MULTILINE)
    others = {path.name for path in tmp_path.iterdir()} - {path.name for path in needed}
    assert others == {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize("backend", ["", "Pil"])
def test_both_backends_of_a_processor_travel(backend, tmp_path):
    """Whichever of them was saved."""
    names = [name.removesuffix("Pil") for name in pvt_hf.__all__ if name.endswith("ImageProcessorPil")]
    assert len(names) == 5
    model = KINDS["model"].model()
    for name in names:
        save_repository(model, getattr(pvt_hf, name + backend)(), tmp_path / name)
        settings = json.loads((tmp_path / name / "preprocessor_config.json").read_text())
        classes = {reference.partition(".")[2] for reference in settings["auto_map"]["AutoImageProcessor"].values()}
        assert classes == {name, f"{name}Pil"} and settings["image_processor_type"] == name
