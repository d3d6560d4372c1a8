"""Builds the wheel and the source distribution as they would be published, and installs the wheel."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .clean_process import REPOSITORY


CORE_ENVIRONMENT = REPOSITORY / ".venv-core"
CONSTRAINTS = REPOSITORY / "constraints.txt"


def tracked_files() -> list[Path]:
    """The files that git tracks, relative to the repository. Without git, as in an unpacked sdist, skips the test."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("only a git checkout can tell which files belong to the repository")
    git = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [Path(name) for name in git.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def build_distributions(folder: Path) -> tuple[Path, Path]:
    """
    Runs `python -m build` on a copy of the tracked files in `folder`; returns wheel and source distribution. The wheel
    is built from the source distribution, so that has everything that a build needs.

    A copy, because setuptools leaves folders behind and packs what it finds in them. Nothing is downloaded: setuptools
    is a development dependency, so the build needs no isolated environment.
    """
    for path in tracked_files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / path, folder / path)
    process = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", str(folder)], cwd=folder, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def uv(*arguments: object) -> None:
    """Runs the `uv` of the development environment."""
    program = Path(sys.executable).with_name("uv")
    assert program.is_file(), f"{program} is missing: install the development environment with `make install`."
    process = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def install_wheel(wheel: Path, folder: Path) -> Path:
    """
    Makes an environment in `folder` that has the wheel and, from this environment, its dependencies, but not this
    checkout. Returns its interpreter.
    """
    uv("venv", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    uv("pip", "install", "--python", python, "--no-deps", "--no-index", wheel)
    (site_packages,) = (folder / "lib").glob("*/site-packages")
    # Path files in these folders are not read: an editable installation there has no effect.
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    return python


def install_core(wheel: Path) -> Path:
    """
    Installs the wheel with its core dependencies into `.venv-core`; returns its interpreter. The environment is kept
    between runs while pyproject.toml, constraints.txt and the interpreter stay as they are.
    """
    python = CORE_ENVIRONMENT / "bin" / "python"
    inputs = (REPOSITORY / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes() + sys.version.encode()
    stamp, wanted = CORE_ENVIRONMENT / "installed-from", hashlib.sha256(inputs).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(CORE_ENVIRONMENT, ignore_errors=True)
        uv("venv", "--python", sys.executable, CORE_ENVIRONMENT)
    # Always: the code may have changed. A complete environment takes nothing else from this.
    uv("pip", "install", "--python", python, "--constraint", CONSTRAINTS, "--reinstall-package", "pvt-hf", wheel)
    stamp.write_text(wanted)
    return python
