"""
The imports of the package keep to its design: no circle, nothing against the direction of its folders, travelling files
that import each other only, and tests that share code through `tests/support` alone.

    python -m pytest tests/package/test_imports.py
"""

import re
import sys
from pathlib import Path

import pytest

from ..support.clean_process import REPOSITORY
from ..support.imports import find_circle, find_modules, module_name, read_imports, resolve, travelling_files


# A folder may import what is above it, and itself; folders of one line do not import each other.
LAYERS = [
    ["families"],  # strings only
    ["models"],
    ["metrics"],  # and the JSON files that hold figures, which everything above writes
    ["weights", "baselines", "data"],
    ["engine"],
    ["tasks"],
    ["inference"],
    ["export"],
    ["hub"],
    ["commands"],
]
LEVELS = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}
# What `import pvt_hf` itself loads
ROOT_MODULES = {"pvt_hf", "pvt_hf.__main__", "pvt_hf.registry"}
ROOT_IMPORTS = {"families", "models", "weights", "inference", "commands"}
# Imports that the rules would refuse, with the reason for each
ALLOWED = {
    ("pvt_hf.commands", "pvt_hf"): "prints `__version__`",
    ("pvt_hf.metrics.reports", "pvt_hf"): "reads `__version__`, which setuptools has to find in pvt_hf/__init__.py",
}


def folder_of(module: str) -> str:
    """The part of the package that a module belongs to: "data" for `pvt_hf.data.digits`."""
    return module.split(".")[1] if "." in module else ""


def package_faults(root: Path, allowed: dict[tuple[str, str], str] = ALLOWED) -> list[str]:
    """Imports in `root/pvt_hf` against the direction or in a circle."""
    modules, graph, faults = find_modules(root, "pvt_hf"), {}, []
    scripts = {path.stem for path in (root / "scripts").glob("*.py")} | {"scripts", "tests"}
    for module, file in modules.items():
        graph[module] = set()
        for imported in read_imports(file, root):
            place = f"{file.relative_to(root)}:{imported.line}"
            if imported.level == 0 and imported.module.split(".")[0] in scripts:
                faults.append(f"{place}: the package imports {imported.module}")
            target = resolve(imported, modules)
            if target is None or target == module or (module, target) in allowed:
                continue
            graph[module].add(target)
            if module in ROOT_MODULES:
                right = target in ROOT_MODULES or folder_of(target) in ROOT_IMPORTS
            elif target in ROOT_MODULES:
                right = False
            else:
                for one in (module, target):
                    if folder_of(one) not in LEVELS:
                        faults.append(f"{one}: not in LAYERS of tests/package/test_imports.py")
                own, other = (LEVELS.get(folder_of(one), 0) for one in (module, target))
                right = other < own or folder_of(module) == folder_of(target) != "families"
            if not right:
                faults.append(f"{place}: {module} must not import {target}")
    circle = find_circle(graph)
    return faults + ([f"circle: {' -> '.join(circle)}"] if circle else [])


def travel_faults(root: Path) -> list[str]:
    """
    Travelling files that could not be copied into one flat folder and imported there. Transformers finds what to copy
    line by line, in docstrings too; so what it finds has to be what Python's parser finds.
    """
    faults, files = [], travelling_files(root)
    names = {file.stem for file in files}
    for file in files:
        place, found = file.relative_to(root), set()
        for imported in read_imports(file, root):
            if imported.level == 0 and imported.module.split(".")[0] == "pvt_hf":
                faults.append(f"{place}:{imported.line}: imports pvt_hf by its name")
            if imported.level:
                name = imported.module.removeprefix(f"{module_name(file.parent, root)}.")
                found.add(name)
                if imported.level > 1 or name not in names:
                    faults.append(f"{place}:{imported.line}: imports {imported.module}, which does not travel")
        lines = set(re.findall(r"^\s*(?:from|import)\s+\.(\S+)", file.read_text(), flags=re.MULTILINE))
        if lines != found:
            faults.append(f"{place}: Transformers reads imports of {sorted(lines)}, Python of {sorted(found)}")
    return faults


def test_faults(root: Path) -> list[str]:
    """Test modules, scripts and support that import a test module, and scripts that import tests."""
    modules, faults = find_modules(root, "tests", "scripts"), []
    for module, file in modules.items():
        for imported in read_imports(file, root):
            target = resolve(imported, modules) or imported.module
            is_test = target.split(".")[0] == "tests"
            if is_test and (module.startswith("scripts") or target.rpartition(".")[2].startswith("test_")):
                faults.append(f"{file.relative_to(root)}:{imported.line}: imports {target}")
    return sorted(set(faults))  # once for each line, however many names it imports


test_faults.__test__ = False  # pytest takes it for a test by its name


def test_the_package():
    assert package_faults(REPOSITORY) == []


def test_exceptions_are_still_needed():
    faults = package_faults(REPOSITORY, allowed={})
    for module, target in ALLOWED:
        assert any(f"{module} must not import {target}" in fault for fault in faults), (module, target)


def test_travelling_files():
    assert {"configuration_pvt", "modeling_pvt", "image_processing_pvt"} < {
        file.stem for file in travelling_files(REPOSITORY)
    }
    assert travel_faults(REPOSITORY) == []


def test_families_need_the_standard_library_only():
    imported = read_imports(REPOSITORY / "pvt_hf" / "families.py", REPOSITORY)
    assert {one.module.split(".")[0] for one in imported} <= sys.stdlib_module_names


def test_tests_share_code_through_support():
    assert test_faults(REPOSITORY) == []


# The rules can fail: one file of a made-up tree breaks one of them

TREE = {
    "pvt_hf/__init__.py": "from .registry import register\n",
    "pvt_hf/registry.py": "from .models.configuration_pvt import PvtConfig\n",
    "pvt_hf/families.py": "from dataclasses import dataclass\n",
    "pvt_hf/models/__init__.py": "",
    "pvt_hf/models/configuration_pvt.py": "import torch\n",
    "pvt_hf/models/modeling_pvt.py": "from .configuration_pvt import PvtConfig\n",
    "pvt_hf/data/__init__.py": "",
    "pvt_hf/data/batches.py": "from . import samples\nfrom ..models import modeling_pvt\n",
    "pvt_hf/data/samples.py": "",
    "pvt_hf/metrics/__init__.py": "",
    "pvt_hf/metrics/accuracy.py": "",
    "pvt_hf/engine/loop.py": "from ..data.batches import BatchStream\nfrom ..families import FAMILIES\n",
    "scripts/train.py": "import pvt_hf\nfrom pvt_hf.engine import loop\n",
    "tests/support/tiny.py": "import pvt_hf\n",
    "tests/data/test_batches.py": "from ..support.tiny import tiny\n",
}
BROKEN = [
    (package_faults, "pvt_hf/data/samples.py", "from .batches import BatchStream", "circle"),
    (package_faults, "pvt_hf/data/samples.py", "def f():\n    from .batches import BatchStream", "circle"),
    (
        package_faults,
        "pvt_hf/data/samples.py",
        "from ..engine import loop",
        "must not import pvt_hf.engine",
    ),
    (package_faults, "pvt_hf/data/samples.py", "import pvt_hf.engine.loop", "must not import pvt_hf.engine.loop"),
    (package_faults, "pvt_hf/metrics/accuracy.py", "from ..data import samples", "must not import pvt_hf.data"),
    (package_faults, "pvt_hf/data/samples.py", "from pvt_hf import PvtConfig", "must not import pvt_hf"),
    (package_faults, "pvt_hf/families.py", "from .models.configuration_pvt import PvtConfig", "must not import"),
    (package_faults, "pvt_hf/registry.py", "from .engine.loop import train", "must not import pvt_hf.engine.loop"),
    (package_faults, "pvt_hf/engine/loop.py", "import train", "the package imports train"),
    (package_faults, "pvt_hf/engine/loop.py", "from tests.support import tiny", "the package imports tests"),
    (package_faults, "pvt_hf/toys/toy.py", "from ..data import samples", "not in LAYERS"),
    (travel_faults, "pvt_hf/models/modeling_pvt.py", "from ..data import samples", "does not travel"),
    (travel_faults, "pvt_hf/models/modeling_pvt.py", "from . import configuration_pvt", "does not travel"),
    (travel_faults, "pvt_hf/models/modeling_pvt.py", "import pvt_hf", "imports pvt_hf by its name"),
    (travel_faults, "pvt_hf/models/modeling_pvt.py", '"""\nfrom .heads come\n"""', "Transformers reads"),
    (test_faults, "tests/data/test_samples.py", "from .test_batches import make", "imports tests.data.test_batches"),
    (test_faults, "tests/support/tiny.py", "from tests.data import test_batches", "imports tests.data.test_batches"),
    (test_faults, "scripts/train.py", "from tests.support import tiny", "imports tests.support.tiny"),
]


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_made_up_tree_is_right(tree):
    assert package_faults(tree) == travel_faults(tree) == test_faults(tree) == []


@pytest.mark.parametrize(("rule", "file", "line", "words"), BROKEN)
def test_a_rule_that_is_broken_is_found(rule, file, line, words, tree):
    (tree / file).parent.mkdir(exist_ok=True)
    (tree / file).write_text(TREE.get(file, "") + line + "\n")
    faults = rule(tree)
    assert faults and all(file.removesuffix(".py").split("/")[-1] in fault for fault in faults)
    assert any(words in fault for fault in faults), faults
