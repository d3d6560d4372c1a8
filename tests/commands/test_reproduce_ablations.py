"""
`pvt-hf reproduce ablations`: parts that are resumed, models of equal size, and a report that says what came out.

    python -m pytest tests/commands/test_reproduce_ablations.py
"""

import json
import sys

import pytest
from PIL import Image

from pvt_hf.commands import ablation_models, ablation_report, reproduce, reproduce_ablations
from pvt_hf.commands.ablation_parts import BUDGETS, Part
from pvt_hf.metrics.reports import write_json


@pytest.fixture
def run(monkeypatch, tmp_path):
    def call(*arguments) -> int:
        words = ["ablations", "--budget", "small", "--jobs", "1", "--output_dir", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", ["pvt-hf reproduce", *words])
        return reproduce.main()

    return call


def fake_result(part: Part, value: float = 0.5) -> dict:
    """What a part writes, without running it."""
    result = {**vars(part), "seconds": 1.0, "processor_seconds": 1.0}
    if part.kind == "train":
        figures = {"parameters": 1000, "multiply_adds": 2_000_000, "steps": 2, "batch_size": 8, "training_seconds": 1}
        result |= {
            "metric": "mean_iou",
            "value": value,
            "metrics": {},
            "curve": [[1, value / 2], [2, value]],
            **figures,
        }
    if part.kind == "sizes":
        names = [str(size) for size in ablation_report.TEST_SIZES]
        result |= {"accuracy": dict.fromkeys(names, value), "native": dict.fromkeys(names, "refuses: the size")}
    if part.kind == "memory":
        result["memory_bytes"] = 5 * 2**30 if part.model == "ViT/4" else 2**20
    return result


def test_parts_that_are_done_are_not_run_again(run, monkeypatch, tmp_path, capsys):
    """All but two parts are done: these run, and the report has all. A second call runs none."""
    work = tmp_path / "out" / "small"
    (work / "parts").mkdir(parents=True)
    parts = [part for phase in reproduce_ablations.all_parts(BUDGETS["small"]) for part in phase]
    assert len({part.name for part in parts}) == len(parts)
    left = [part for part in parts if (part.head, part.model) == ("detr", "ResNet")]
    for part in parts:
        if part not in left:
            write_json(
                part.file(work), fake_result(part, 0.9 if part.model.startswith("PVT") else 0.5 + part.seed / 10)
            )
    ran = []

    def run_phase(phase, work, budget, jobs, deadline, total, parts):
        for part in phase:
            if not part.file(work).exists():
                ran.append(part)
                write_json(part.file(work), fake_result(part, 0.95))
        return True

    monkeypatch.setattr(reproduce_ablations, "_run_phase", run_phase)
    assert run() == 0 and ran == left
    assert run() == 0 and ran == left
    text = (tmp_path / "out" / "ablations.md").read_text()
    assert "RetinaNet: PVT +30.0 points against ViT/16, clear; as in the paper." in text
    assert "DETR head: PVT -5.0 points against ResNet, clear; contrary to the paper." in text
    assert "PVT, deeper +0.0 points against PVT, wider, within the spread of the seeds; no answer" in text
    assert "ViT/4 no longer fits into 4 GB at 64 pixels." in text and "refuses: the size" in text
    assert "PVT fits into 4 GB up to 384 pixels, the largest size tried." in text
    assert "RetinaNet: PVT +30.0 points against ViT/4, clear.\n" in text  # the paper has no figure for it
    assert "own class, with the same weights, refuses 32, 48, 64, 80, 96, 128 and takes none (pixels)." in text
    assert "| 1. A pyramid or a columnar transformer? | 3 | 0 | 0 |" in text  # clear on three tasks
    assert "| 5. PVT or a ResNet of equal size? | 4 | 1 | 0 |" in text
    assert "| Semantic FPN | PVT, R 4 2 1 1 |" in text
    assert "Seeds: 0, 1, 2\n" in text and "torch" in text and "quick form" not in text and "2 call(s)" in text
    content = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert content["parts"].keys() == {part.name for part in parts}
    for number in range(1, 8):
        assert Image.open(tmp_path / "out" / f"ablations_{number}.png").size[0] > 400


def test_what_the_seeds_say():
    def rows(*values):
        return "PVT", [{"value": value, "metric": "mean_iou"} for value in values]

    answers = ablation_report.ANSWERS
    for first, other, expected in (
        (rows(0.5, 0.6, 0.7), rows(0.2, 0.3, 0.49), ("clear", answers[0])),
        (rows(0.5, 0.6, 0.7), rows(0.71, 0.8, 0.9), ("clear", answers[1])),
        (rows(0.5, 0.6, 0.7), rows(0.2, 0.3, 0.5), ("within the spread of the seeds", answers[2])),
        (rows(0.09, 0.08, 0.09), rows(0.01, 0.01, 0.02), ("neither above chance", answers[2])),
        (rows(0.9), rows(0.1), ("one seed only", answers[2])),
    ):
        assert ablation_report._verdict(first, other) == expected


def test_no_time_is_left(run, tmp_path, capsys):
    assert run("--max_minutes", "0.000001") == 3
    assert "0 of " in capsys.readouterr().out and not (tmp_path / "out" / "ablations.md").exists()


@pytest.mark.parametrize("name", ["ViT/16", "ViT/4", "ResNet", "ResNet + GC"])
def test_models_have_equally_many_parameters(name):
    """The nearest width in steps of four channels: within a tenth."""
    ours = ablation_models._parameters(ablation_models.backbone_config("PVT"))
    theirs = ablation_models._parameters(ablation_models.backbone_config(name))
    assert abs(theirs / ours - 1) < 0.1


@pytest.mark.parametrize(("arguments", "words"), [(["--jobs", "0"], "--jobs"), (["--max_minutes", "-1"], "negative")])
def test_arguments_that_cannot_work(run, arguments, words, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    assert exit.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow
def test_from_end_to_end(run, tmp_path):
    """Stopped once after a few parts, and continued."""
    assert run("--budget", "smoke", "--max_minutes", "0.2") == 3
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "smoke" / "parts").glob("*.json")}
    assert first and run("--budget", "smoke", "--jobs", "2") == 0
    assert all(file.stat().st_mtime_ns == time for file, time in first.items())
    text = (tmp_path / "out" / "ablations.md").read_text()
    assert text.count("\n## ") == 9 and "refuses" in text and "quick form" in text
