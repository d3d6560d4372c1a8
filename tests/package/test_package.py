"""
What would be published: a wheel and a source distribution that hold what they should, are valid, and work where this
checkout is not.

    python -m pytest tests/package/test_package.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pvt_hf

from ..support.clean_process import REPOSITORY, run_python
from ..support.distributions import tracked_files, uv


def test_twine_accepts_both(distributions):
    process = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *distributions], capture_output=True, text=True
    )
    assert process.returncode == 0 and process.stdout.count("PASSED") == 2, process.stdout + process.stderr


def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    wheel, _ = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = f"pvt_hf-{pvt_hf.__version__}.dist-info"
    expected = {path.as_posix() for path in tracked_files() if path.parts[0] == "pvt_hf"}
    assert {name for name in names if not name.startswith(metadata)} == expected
    assert "pvt_hf/py.typed" in expected and f"{metadata}/licenses/LICENSE" in names


def test_the_source_distribution_holds_the_repository(distributions):
    """All tracked files except settings of git and CI. setuptools adds files of its own, which are named below."""
    _, sdist = distributions
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(member.name).parts[1:]) for member in archive.getmembers() if member.isfile()}
    generated = {name for name in names if name.parts[0] in ("PKG-INFO", "setup.cfg", "pvt_hf.egg-info")}
    expected = {path for path in tracked_files() if not path.parts[0].startswith(".")}
    assert {str(path) for path in names - generated} == {str(path) for path in expected}


INSTALLED = """
import contextlib, importlib.metadata, importlib.resources, io, json, pkgutil, runpy, sys
from pathlib import Path

import pvt_hf
import torch

modules = [module.name for module in pkgutil.walk_packages(pvt_hf.__path__, "pvt_hf.")]
for name in modules:
    __import__(name)
config = pvt_hf.PvtConfig(
    image_size=64, hidden_sizes=[16, 32, 80, 128], depths=[1, 1, 1, 1], mlp_ratios=[2, 2, 2, 2], num_labels=5,
    out_features=["stage1", "stage2", "stage3", "stage4"],
)
head = pvt_hf.SemanticFpnConfig(backbone_config=config, fpn_channels=8, head_channels=8, num_labels=3)
images = torch.randn(1, 3, 64, 96)

helps = {}
for script in map(Path, sys.argv[1:]):
    sys.argv = [str(script), "--help"]
    sys.path.insert(0, str(script.parent))  # as `python SCRIPT` does
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(str(script), run_name="__main__")
        status = "did not exit"
    except SystemExit as end:
        status = end.code
    helps[script.name] = [status, output.getvalue()]
print(json.dumps({
    "file": pvt_hf.__file__,
    "names": sorted(name for name in pvt_hf.__all__ if not hasattr(pvt_hf, name)),
    "files": sorted({sys.modules[name].__file__ for name in modules}),
    "version": [pvt_hf.__version__, importlib.metadata.version("pvt-hf")],
    "typed": importlib.resources.files("pvt_hf").joinpath("py.typed").is_file(),
    "shapes": [
        list(pvt_hf.PvtForImageClassification(config)(images).logits.shape),
        list(pvt_hf.SemanticFpnForSemanticSegmentation(head).eval()(images).logits.shape),
    ],
    "helps": helps,
}))
"""


@pytest.fixture(scope="module")
def installed(distributions, wheel_python, tmp_path_factory):
    """
    What a process finds in an environment with the wheel, where it runs the scripts of the unpacked source
    distribution.
    """
    folder = tmp_path_factory.mktemp("installed")
    with tarfile.open(distributions[1]) as archive:
        archive.extractall(folder, filter="data")
    scripts = [
        script
        for script in sorted(folder.glob("pvt_hf-*/scripts/*.py"))
        if '__name__ == "__main__"' in script.read_text()
    ]
    facts = json.loads(run_python(INSTALLED, *scripts, python=wheel_python, cwd=folder).stdout)
    (site_packages,) = (wheel_python.parents[1] / "lib").glob("*/site-packages")
    return facts, site_packages, scripts


def test_the_installed_package_works_elsewhere(installed):
    facts, site_packages, _ = installed
    assert Path(facts["file"]) == site_packages / "pvt_hf" / "__init__.py"
    assert facts["names"] == [] and facts["typed"]
    in_checkout = {str(site_packages / path) for path in tracked_files() if path.parts[0] == "pvt_hf"}
    assert set(facts["files"]) == {path for path in in_checkout if path.endswith(".py")} - {facts["file"]}
    assert facts["shapes"] == [[1, 5], [1, 3, 16, 24]]


def test_scripts_of_the_source_distribution_explain_themselves(installed):
    facts, _, scripts = installed
    assert {script.name for script in scripts} >= {"predict.py", "train_image_classification.py", "demo.py"}
    for script in scripts:
        status, output = facts["helps"][script.name]
        assert status in (None, 0) and output.startswith(f"usage: {script.name}"), (script.name, status, output[:200])


def test_the_version_is_in_one_place(installed):
    facts, _, _ = installed
    version = pvt_hf.__version__
    assert facts["version"] == [version, version]
    assert tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    # The changelog has every version by nature, constraints.txt those of others.
    number = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\d.]*\d)")
    texts = {path: (REPOSITORY / path).read_text(errors="replace") for path in tracked_files()}
    # What was measured or trained names the version that did it.
    measured = ("docs/benchmark", "model_cards/ablations", "pvt_hf/samples/")
    texts = {path: text for path, text in texts.items() if not path.as_posix().startswith(measured)}
    repeated = {str(path) for path, text in texts.items() if number.search(text)}
    assert repeated - {"CHANGELOG.md", "constraints.txt"} == {"pvt_hf/__init__.py"}
    headings = re.findall(r"^## (\S+)", texts[Path("CHANGELOG.md")], flags=re.MULTILINE)
    assert headings[0] == version


@pytest.mark.slow
def test_import_and_travel_tests_pass_from_the_wheel(distributions, tmp_path):
    """
    In an environment that holds what the wheel asks for, and in the unpacked source distribution without its package:
    the wheel is all that there is to import.
    """
    wheel, sdist = distributions
    uv("venv", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    uv(
        "pip", "install", "--python", python, "--constraint", REPOSITORY / "constraints.txt", f"{wheel}[all]", "pytest",
    )  # fmt: skip
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.glob("pvt_hf-*")
    shutil.rmtree(folder / "pvt_hf")
    files = [
        "tests/package/test_travel.py",
        "tests/models/test_auto_and_pipelines.py",
        "tests/models/test_pipelines.py",
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    process = subprocess.run(
        [python, "-m", "pytest", "--basetemp", tmp_path / "temporary", *files],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    last_line = process.stdout.splitlines()[-1]
    assert process.returncode == 0 and re.search(r"= \d+ passed.* in ", last_line), process.stdout + process.stderr
    assert "skipped" not in last_line, process.stdout
