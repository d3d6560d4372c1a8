"""Fixtures for tests of the Hub: a Hub on localhost, the client of this process, and scripts run in this process."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from .hub_server import HubServer, Repository


ROOT = Path(__file__).parents[2]
TOKEN = "hf_of-nobody"


@pytest.fixture(scope="module")
def hub():
    """A Hub where TOKEN can write to "me" and "org"."""
    server = HubServer()
    server.writers = {TOKEN: ["me", "org"], "hf_of-another": ["another"]}
    with server.running():
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Points the client of this process to the local Hub, as HF_ENDPOINT would if it were set before the import."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            patch.delenv(name, raising=False)
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "token"))
        # Between its tries it waits, 23 seconds in all
        patch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a script's main function in this process. Returns exit code, stdout and stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        code = module.main()
        return code, *capsys.readouterr()

    run.environment = monkeypatch.setenv
    return run


def new_repository() -> Repository:
    repository = Repository()
    repository.commit("main", {}, "initial commit")
    return repository
