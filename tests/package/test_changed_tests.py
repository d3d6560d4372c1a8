"""
`make test-changed` runs the tests that a change can affect: found by imports, names and paths in a made-up repository,
and compared with what Python really imports in this one.

    python -m pytest tests/package/test_changed_tests.py
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from ..support.changed_tests import Dependencies, affected_tests, changed_files
from ..support.clean_process import REPOSITORY, run_python


TREE = {
    "README.md": "# A package\n",
    "pvt_hf/__init__.py": "from .models.configuration_pvt import PvtConfig\n",
    "pvt_hf/models/__init__.py": "",
    "pvt_hf/models/configuration_pvt.py": "class PvtConfig: ...\n",
    "pvt_hf/models/configuration_retinanet.py": "class RetinaNetConfig: ...\n",
    "pvt_hf/models/modeling_retinanet.py": "from .configuration_retinanet import RetinaNetConfig\n",
    "pvt_hf/data/__init__.py": "",
    "pvt_hf/data/samples.py": "def read(): ...\n",
    "pvt_hf/data/batches.py": "from . import samples\n",
    "pvt_hf/metrics/__init__.py": "",
    "pvt_hf/metrics/accuracy.py": '"""Not "retinanet", which a docstring may name."""\n',
    "scripts/train.py": "from pvt_hf.data.batches import BatchStream\nimport options\n",
    "scripts/options.py": "",
    "scripts/recipes/small.yaml": "epochs: 1\n",
    "tests/conftest.py": "",
    "tests/data/conftest.py": "",
    "tests/data/test_batches.py": "from pvt_hf.data import batches\n",
    "tests/data/test_samples.py": "import pvt_hf.data.samples\n",
    "tests/metrics/test_accuracy.py": "from ..support.tiny import tiny\nfrom pvt_hf.metrics import accuracy\n",
    "tests/models/test_retinanet.py": "from pvt_hf import RetinaNetConfig\n",
    "tests/models/test_by_name.py": 'ARGUMENTS = "--architecture retinanet"\n',
    "tests/models/test_code.py": 'CODE = """\n    from pvt_hf import RetinaNetConfig\n"""\n',
    "tests/scripts/test_train.py": 'SCRIPT = ROOT / "scripts" / "train.py"\n',
    "tests/scripts/test_recipes.py": 'RECIPES = Path(__file__).parents[2] / "scripts" / "recipes"\n',
    "tests/scripts/test_readme.py": 'README = (ROOT / "README.md").read_text()\nOTHER = folder / "LICENSE"\n',
    "tests/package/test_package.py": "from ..support.distributions import tracked_files\n",
    "tests/support/tiny.py": "from pvt_hf import PvtConfig\n",
    "tests/support/distributions.py": "def tracked_files(): ...\n",
    "LICENSE": "",
}
IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
ALL = {name for name in TREE if "/test_" in name}
PACKAGE = "tests/package/test_package.py"
RETINANET = {"tests/models/test_retinanet.py", "tests/models/test_by_name.py", "tests/models/test_code.py"}
BATCHES = {"tests/data/test_batches.py", "tests/scripts/test_train.py"}
CASES = {
    "pvt_hf/data/samples.py": {
        "tests/data/test_batches.py",
        "tests/data/test_samples.py",
        "tests/scripts/test_train.py",
    },
    "pvt_hf/data/batches.py": {"tests/data/test_batches.py", "tests/scripts/test_train.py"},
    "pvt_hf/metrics/accuracy.py": {"tests/metrics/test_accuracy.py"},
    "pvt_hf/models/configuration_retinanet.py": RETINANET,
    "pvt_hf/models/modeling_retinanet.py": RETINANET,
    "pvt_hf/models/configuration_pvt.py": {"tests/metrics/test_accuracy.py"},
    "tests/support/tiny.py": {"tests/metrics/test_accuracy.py"},
    "tests/data/test_samples.py": {"tests/data/test_samples.py"},
    "tests/data/conftest.py": {"tests/data/test_batches.py", "tests/data/test_samples.py"},
    "tests/conftest.py": ALL,
    "scripts/train.py": {"tests/scripts/test_train.py"},
    "scripts/options.py": {"tests/scripts/test_train.py"},
    "scripts/recipes/small.yaml": {"tests/scripts/test_recipes.py"},
    "README.md": {"tests/scripts/test_readme.py"},
    "LICENSE": set(),
    "pyproject.toml": ALL,
}


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("changed", CASES)
def test_a_change_selects_the_tests_that_depend_on_it(changed, tree):
    assert affected_tests(tree, [changed]).keys() == CASES[changed] | {PACKAGE}


def test_reasons_name_the_way(tree):
    reasons = affected_tests(tree, ["LICENSE", "pvt_hf/data/samples.py"])
    assert reasons["tests/data/test_samples.py"] == "it uses pvt_hf/data/samples.py"
    way = "scripts/train.py, pvt_hf/data/batches.py"
    assert reasons["tests/scripts/test_train.py"] == f"it uses pvt_hf/data/samples.py through {way}"
    assert reasons[PACKAGE] == "it looks at every file, so at LICENSE"


def test_changes_are_those_since_the_base(tree):
    def git(*arguments):
        subprocess.run(["git", *IDENTITY, *arguments], cwd=tree, check=True, capture_output=True)

    git("init", "--initial-branch", "main")
    git("add", ".")
    git("commit", "--message", "one")
    (tree / "LICENSE").write_text("changed")
    git("commit", "--all", "--message", "two")
    assert changed_files(tree, None) == ("HEAD~1", ["LICENSE"])
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert changed_files(tree, None) == ("HEAD~1", ["LICENSE"])  # nothing of its own yet
    git("switch", "--create", "branch")
    (tree / "README.md").unlink()
    git("commit", "--all", "--message", "three")
    (tree / "pvt_hf/data/samples.py").write_text("changed")
    (tree / "new file.py").write_text("not added yet")
    expected = ["README.md", "new file.py", "pvt_hf/data/samples.py"]
    assert changed_files(tree, None)[1] == expected
    assert changed_files(tree, "main") == ("main", expected)
    assert changed_files(tree, "HEAD~2")[1] == ["LICENSE", *expected]


def test_the_command_says_what_it_runs_and_runs_it(tmp_path):
    """In a repository that has nothing but the command, one test that fails and one that it must leave alone."""
    for name in ("__init__", "support/__init__", "support/imports", "support/changed_tests"):
        (tmp_path / "tests" / name).with_suffix(".py").parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / "tests" / f"{name}.py", tmp_path / "tests" / f"{name}.py")
    for name in ("test_changed", "test_other"):
        (tmp_path / "tests" / f"{name}.py").write_text("def test_nothing():\n    assert 1 + 1 == 2\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    for arguments in (["init"], ["add", "."], [*IDENTITY, "commit", "--message", "start"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "tests" / "test_changed.py").write_text("def test_nothing():\n    assert 1 + 1 == 3\n")
    command = [sys.executable, "-P", "-m", "tests.support.changed_tests", "--base", "HEAD", "--", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "1 files differ from HEAD; they can affect 1 test files:" in process.stdout, process.stderr
    assert "  tests/test_changed.py: it changed\n" in process.stdout and "test_other" not in process.stdout
    assert process.returncode == 1 and "1 failed" in process.stdout


# A test of a script with the Hub's support, and one that runs training
SEEN = ["tests/hub/test_hub_push.py", "tests/tasks/test_segmentation_training.py"]
IMPORTED = """
import importlib, json, sys
import pvt_hf
before = {name for name in sys.modules if name.startswith("pvt_hf")}
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name for name in sys.modules if name.startswith(("pvt_hf", "tests.support"))} - before)))
"""


@pytest.mark.parametrize("test", SEEN)
def test_what_python_imports_is_among_the_dependencies(test):
    dependencies = Dependencies(REPOSITORY)
    name = test.removesuffix(".py").replace("/", ".")
    modules = json.loads(run_python(IMPORTED, name, warm=True).stdout)
    assert modules and {dependencies.path(module) for module in modules} <= dependencies.reasons(test).keys()
