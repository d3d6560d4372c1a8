"""
The best model beside the last one, early stopping, and evaluations within an epoch; also after a kill. (Two processes
are killed in tests/engine/test_resume.py.)

    pytest tests/engine/test_best.py
"""

import json

import pytest
import torch

from pvt_hf import PvtForImageClassification, PvtImageProcessor
from pvt_hf.engine import best, loop
from pvt_hf.engine.best import best_evaluation, evaluations_since_best

from ..support.training_runs import make_photos, train_here


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos") / "photos", 16)


def evaluated_steps(report) -> list[int]:
    return [entry["step"] for entry in report["history"] if "loss" not in entry]


class Accuracies:
    """Answers of the evaluations, and the weights that each of them saw."""

    def __init__(self, *values):
        self.values, self.weights = iter(values), []

    def __call__(self, model):
        self.weights.append(model.classifier.weight.detach().clone())
        return next(self.values)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.7}], ids=["plain", "ema"])
def test_the_first_of_the_best_is_kept_and_the_last_stays_the_result(photos, tmp_path, options):
    accuracies = Accuracies(None, 0.75, 0.75, 0.5)  # undefined, the best, no better, worse
    last, report = train_here(
        photos, tmp_path, accuracy=accuracies, eval_every_steps=2, keep_best=True, save_total_limit=1, **options
    )
    assert evaluated_steps(report) == [2, 4, 6, 8]  # the last of an epoch once
    assert [entry["epoch"] for entry in report["history"] if "loss" not in entry] == [0, 0, 1, 1]
    assert report["best_step"] == 4 and report["best_metrics"] == {"accuracy@1": 0.75, "epoch": 0}
    assert report["metrics"]["accuracy@1"] == 0.5 and report["stopped_early"] is False
    kept = PvtForImageClassification.from_pretrained(tmp_path / "best")
    assert torch.equal(kept.classifier.weight, accuracies.weights[1])
    assert torch.equal(last.classifier.weight, accuracies.weights[3])
    assert not torch.equal(kept.classifier.weight, last.classifier.weight)
    assert PvtImageProcessor.from_pretrained(tmp_path / "best").size == {"height": 32, "width": 32}
    content = json.loads((tmp_path / "best" / "best.json").read_text())
    assert content == {"metric": "accuracy@1", "evaluation": {"step": 4, "epoch": 0, "accuracy@1": 0.75}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint-00000008"]


def test_without_the_options_nothing_is_kept(photos, tmp_path):
    train_here(photos, tmp_path)
    assert not (tmp_path / "best").exists()


def digest(model) -> float:
    """An accuracy that follows from the weights, up and down from step to step."""
    return (model.classifier.weight.double().sum().item() * 1e5) % 1


OPTIONS = {"eval_every_steps": 3, "keep_best": True, "accuracy": digest, "shuffle_window": 8}
OPTIONS["config"] = {"drop_path_rate": 0.5}


@pytest.fixture(scope="module")
def straight(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, *train_here(photos, folder, **OPTIONS)


def test_evaluations_do_not_change_the_training(photos, tmp_path, straight):
    """Drop path is on: a model that stayed in eval mode would end with other weights."""
    model, _ = train_here(photos, tmp_path, **OPTIONS | {"eval_every_steps": 0, "keep_best": False})
    for name, tensor in straight[1].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("when", "evaluation"), [("before_evaluation", 1), ("best_written", 2), ("after_evaluation", 2)]
)
def test_killed_around_an_evaluation_within_an_epoch(photos, tmp_path, straight, monkeypatch, when, evaluation):
    """The resumed run has the same weights, the same evaluations and the same best model."""
    _, model, report = straight
    step = 3 * evaluation  # 3 in the first, 6 in the second epoch
    assert evaluated_steps(report) == [3, 6, 8]
    saves = []

    def save(*arguments):
        if when == "best_written" and saves and saves[-1] == step == arguments[2]["step"]:
            raise KeyboardInterrupt  # as a kill would: nothing is saved any more
        real(*arguments)
        saves.append(arguments[2]["step"])
        if saves.count(step) == (2 if when == "after_evaluation" else 1) and when != "best_written":
            raise KeyboardInterrupt

    real = loop.save_checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            train_here(photos, tmp_path, **OPTIONS)
    seen = []
    again, resumed = train_here(
        photos, tmp_path, lambda model, batch: seen.append(1), resume_from_checkpoint="latest", **OPTIONS
    )
    assert len(seen) == 8 - step and resumed["history"] == report["history"]
    assert resumed["best_step"] == report["best_step"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    kept, expected = (PvtForImageClassification.from_pretrained(f / "best") for f in (tmp_path, straight[0]))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, kept.state_dict()[name]), name
    assert digest(kept) == max(entry["accuracy@1"] for entry in report["history"] if "loss" not in entry)


def test_patience_counts_evaluations_and_goes_on_counting_after_a_resume(photos, tmp_path, monkeypatch, capsys):
    options = {"eval_every_steps": 1, "patience": 3, "keep_best": True}
    values = (0.5, 0.6, 0.6, None, 0.1, 0.9)
    _, report = train_here(photos, tmp_path / "straight", accuracy=Accuracies(*values), **options)
    assert report["steps"] == 5 and report["stopped_early"] and report["best_step"] == 2
    assert "3 evaluation(s) in a row without a higher accuracy@1 than at step 2" in capsys.readouterr().out

    def stop_in_the_third(model):
        raise KeyboardInterrupt

    calls = iter((lambda model: 0.5, lambda model: 0.6, lambda model: 0.6, stop_in_the_third))
    with pytest.raises(KeyboardInterrupt):
        train_here(photos, tmp_path / "killed", accuracy=lambda model: next(calls)(model), **options)
    resume = {"resume_from_checkpoint": "latest", **options}
    _, resumed = train_here(photos, tmp_path / "killed", accuracy=Accuracies(*values[3:]), **resume)
    assert resumed["history"] == report["history"] and resumed["stopped_early"]
    # Once more: nothing is left to do. With more patience: it goes on, in the middle of the epoch.
    _, again = train_here(photos, tmp_path / "killed", accuracy=Accuracies(), **resume)
    assert again["history"] == report["history"]
    assert "already complete" in capsys.readouterr().out
    _, longer = train_here(photos, tmp_path / "killed", accuracy=Accuracies(0.9, 0.8, 0.7), **resume | {"patience": 4})
    assert longer["steps"] == 8 and longer["best_step"] == 6 and not longer["stopped_early"]


def test_a_best_model_that_is_not_of_this_run_is_replaced_and_said(photos, tmp_path, capsys):
    """Resumed before the evaluation whose model was kept."""
    options = {"eval_every_steps": 2, "keep_best": True, "save_total_limit": 0}
    train_here(photos, tmp_path, accuracy=Accuracies(0.3, 0.4, 0.5, 0.6), **options)
    capsys.readouterr()
    accuracies = Accuracies(0.2, 0.1)
    train_here(photos, tmp_path, accuracy=accuracies, resume_from_checkpoint="checkpoint-00000004", **options)
    assert "has no model of an evaluation before this checkpoint" in capsys.readouterr().out
    kept = PvtForImageClassification.from_pretrained(tmp_path / "best")
    assert torch.equal(kept.classifier.weight, accuracies.weights[0])


def test_a_full_disk_leaves_the_one_before(photos, tmp_path, monkeypatch):
    real = best.write_json

    def write(path, content):
        if content["evaluation"]["step"] == 4:
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(best, "write_json", write)
    options = {"eval_every_steps": 2, "keep_best": True}
    with pytest.raises(OSError, match="Could not save the best model in .*disk is full.*--resume_from_checkpoint"):
        train_here(photos, tmp_path, accuracy=Accuracies(0.3, 0.4), **options)
    assert json.loads((tmp_path / "best" / "best.json").read_text())["evaluation"]["step"] == 2
    assert not list(tmp_path.glob(".best*"))
    monkeypatch.setattr(best, "write_json", real)
    _, report = train_here(
        photos, tmp_path, accuracy=Accuracies(0.4, 0.3, 0.2), resume_from_checkpoint="latest", **options
    )
    assert evaluated_steps(report) == [2, 4, 6, 8]
    assert json.loads((tmp_path / "best" / "best.json").read_text())["evaluation"]["step"] == 4


def test_counting():
    history = [{"step": 1, "loss": 2.0}, *({"step": n, "ap": value} for n, value in enumerate((None, 0.2, 0.2, None)))]
    assert best_evaluation(history, "ap") == {"step": 1, "ap": 0.2} and evaluations_since_best(history, "ap") == 2
    assert best_evaluation(history[:1], "ap") is None and evaluations_since_best(history[:1], "ap") == 0
    assert evaluations_since_best(history[:2], "ap") == 0  # undefined so far
