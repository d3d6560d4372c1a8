"""
Whether the Hub has a data set is asked before anything is read.

    python -m pytest tests/data/test_paths.py
"""

from unittest.mock import Mock

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from pvt_hf.data.paths import check_on_hub


def answer(monkeypatch, error: Exception | None) -> Mock:
    """The Hub answers with this error, or that it has the data set."""
    asked = Mock(side_effect=error)
    monkeypatch.setattr(HfApi, "dataset_info", asked)
    return asked


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    (tmp_path / "photos").mkdir()
    return tmp_path


def test_what_is_not_asked_for(here, monkeypatch, capsys):
    asked = answer(monkeypatch, RuntimeError())
    for source in ("digits", "digit-scenes", "photos", str(here)):
        check_on_hub(source)
    monkeypatch.setenv("RANK", "1")
    check_on_hub("org/absent")
    assert not asked.called and capsys.readouterr().out == ""


def test_answers_of_the_hub(here, monkeypatch, capsys):
    response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    answer(monkeypatch, RepositoryNotFoundError("404", response=response))
    with pytest.raises(FileNotFoundError, match=r"the Hub has no such data set, .*\. Did you mean photos\?"):
        check_on_hub("photoz")
    assert "There is no folder photoz here: looking for the data set photoz on the Hub." in capsys.readouterr().out
    for error in (None, HfHubHTTPError("500", response=response)):  # the latter says nothing
        answer(monkeypatch, error)
        check_on_hub("org/name")


@pytest.mark.parametrize("place", ["hub/datasets--org--name", "datasets/org___name"])
def test_a_data_set_in_the_cache_needs_no_hub(here, place, monkeypatch):
    answer(monkeypatch, OSError("no network.\nmore"))
    with pytest.raises(FileNotFoundError, match=r"the Hub cannot be asked: no network\. Give a folder"):
        check_on_hub("org/name")
    (here / "home" / place).mkdir(parents=True)
    check_on_hub("org/name")
