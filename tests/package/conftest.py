"""The wheel and the environments that these tests share: each is made once, also for several processes of pytest."""

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from ..support.distributions import build_distributions, install_core, install_wheel


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: the paths that `make(folder)` returned in the first process that asked for `name`."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def get(name: str, make) -> list[Path]:
        folder, result = root / name, root / f"{name}.json"
        with FileLock(root / f"{name}.lock"):
            if not result.is_file():
                folder.mkdir()
                result.write_text(json.dumps([str(path) for path in make(folder)]))
        return [Path(path) for path in json.loads(result.read_text())]

    return get


@pytest.fixture(scope="session")
def distributions(once) -> tuple[Path, Path]:
    """The wheel and the source distribution of this checkout."""
    wheel, sdist = once("distributions", build_distributions)
    return wheel, sdist


@pytest.fixture(scope="session")
def wheel_python(once, distributions) -> Path:
    """Python of an environment with the wheel and, from this one, its dependencies, but not this checkout."""
    return once("wheel-environment", lambda folder: [install_wheel(distributions[0], folder / "venv")])[0]


@pytest.fixture(scope="session")
def core_python(once, distributions) -> Path:
    """Python of `.venv-core`, which has the wheel with the dependencies of the core and nothing else."""
    return once("core-environment", lambda folder: [install_core(distributions[0])])[0]
