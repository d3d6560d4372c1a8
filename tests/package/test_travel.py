"""
The files that travel to the Hub can: they need nothing of the package but each other, nothing beyond the core's
dependencies to be imported, and a repository holds those that its classes need.

    python -m pytest tests/package/test_travel.py
"""

import ast
import json
import re
from pathlib import Path

import pytest

import pvt_hf
from pvt_hf.hub.repository import save_repository

from ..support.clean_process import run_python
from ..support.hub_kinds import KINDS
from .test_core_only import EXTRAS, core_python  # noqa: F401  (a fixture)


PACKAGE = Path(pvt_hf.__file__).parent / "models"
TRAVELLING = sorted(
    path for kind in ("configuration", "image_processing", "modeling") for path in PACKAGE.glob(f"{kind}_*.py")
)


def relative_imports(file: Path) -> set[Path]:
    """The files that `file` imports, at its top or in a function, by Python's own parser (Transformers reads lines)."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    return {file.with_name(f"{node.module}.py") for node in nodes if node.level == 1}


def test_there_are_travelling_files():
    names = {path.stem for path in TRAVELLING}
    assert {"configuration_pvt", "modeling_pvt", "image_processing_pvt"} < names


@pytest.mark.parametrize("file", TRAVELLING, ids=lambda file: file.stem)
def test_it_imports_its_like_only(file):
    text = file.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "pvt_hf" for alias in node.names), file
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "pvt_hf"
            # copied flat: one dot, one level, and names from a file rather than a file
            assert node.level == 0 or (node.level == 1 and node.module and "." not in node.module), ast.unparse(node)
    assert relative_imports(file) <= set(TRAVELLING)
    # Transformers finds imports line by line, in texts too
    lines = re.findall(r"^\s*(?:from|import)\s+\.(\S+)", text, flags=re.MULTILINE)
    assert {file.with_name(f"{name}.py") for name in lines} == relative_imports(file)


CHECK_IMPORTS = """
import importlib.util, json, sys
from transformers.dynamic_module_utils import check_imports

found = [name for name in sys.argv[1].split(",") if importlib.util.find_spec(name)]
print(json.dumps({"found": found, "checked": {file: check_imports(file) for file in sys.argv[2:]}}))
"""


def test_imports_are_met_by_the_core(core_python, tmp_path):  # noqa: F811
    process = run_python(CHECK_IMPORTS, ",".join(EXTRAS), *TRAVELLING, python=core_python, cwd=tmp_path)
    result = json.loads(process.stdout)
    assert result["found"] == []
    for file in TRAVELLING:
        assert {file.with_name(f"{name}.py") for name in result["checked"][str(file)]} == relative_imports(file)


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
