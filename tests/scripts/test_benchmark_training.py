"""
`scripts/benchmark.py training` runs end to end on a CPU, and stops where the two sides disagree.

    pytest tests/scripts/test_benchmark_training.py
"""

import importlib
import json
import sys

import pytest
import torch

from pvt_hf import PvtConfig, PvtForImageClassification
from pvt_hf.metrics.costs import count_parameters
from pvt_hf.models.modeling_fast_mlp import AddMlp


TINY = "--variant pvt-tiny --device cpu --dtype float32 --batch_size 2 --image_size 32 --steps 2 --repeats 3".split()


@pytest.fixture
def run_here(monkeypatch, tmp_path):
    """Runs the script's main function in this process; returns its exit code and report."""
    main = importlib.import_module("pvt_hf.commands.benchmark").main

    def run(*arguments):
        output = tmp_path / "report.json"
        words = [*TINY, "--row_seconds", "0", "--output", str(output), *arguments]
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "training", *words])
        return main(), json.loads(output.read_text())

    return run


@pytest.mark.slow
def test_rows_follow_from_the_seconds(run_here, capsys):
    code, report = run_here("--modes", "plain", "checkpointing")
    assert code == 0 and report["complete"] and [row["mode"] for row in report["rows"]] == ["plain", "checkpointing"]
    for row in report["rows"]:
        for side in ("ours", "native"):
            rates = sorted(2 * 2 / seconds for seconds in row[side]["seconds"])
            assert row["pairs"] == len(rates) == 3
            assert row[side]["images_per_second"]["median"] == pytest.approx(rates[1])
            # weights, gradients and the two moments of AdamW, and then some
            assert row[side]["peak_memory_bytes"] > 4 * 4 * count_parameters(PvtForImageClassification(PvtConfig()))
        ratios = sorted(b / a for a, b in zip(row["ours"]["seconds"], row["native"]["seconds"]))
        assert row["ratio"] == pytest.approx(ratios[1]) and row["relative_difference"] < 1e-4
    assert "checkpointing" in capsys.readouterr().out


def test_checkpointing_recomputes_blocks_on_our_side_only(run_here):
    module = importlib.import_module("pvt_hf.commands.benchmark_training")
    arguments = module.TrainingArguments(variant="pvt-tiny", device="cpu", dtype="float32", batch_size=2, image_size=32)
    calls = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda layer, inputs: calls.append(1) if type(layer).__name__ == "PvtAttention" else None
    )
    try:
        for side, mode, expected in (
            ("ours", "plain", 8),
            ("native", "checkpointing", 8),
            ("ours", "checkpointing", 16),
        ):
            calls.clear()
            module.build_step(side, mode, arguments)()
            assert len(calls) == expected  # PVT-Tiny has eight blocks
    finally:
        hook.remove()


@pytest.mark.parametrize("head", ["semantic_fpn", "retinanet"])
def test_heads_are_compared_with_their_modules(monkeypatch, head):
    module = importlib.import_module("pvt_hf.commands.benchmark_training")
    arguments = module.TrainingArguments(
        variant="pvt-tiny", head=head, device="cpu", dtype="float32", batch_size=2, image_size=64
    )
    monkeypatch.setattr("pvt_hf.models.modeling_fast_mlp.MIN_BYTES_WITH_GRADIENTS", 0)
    fast_calls, apply = [], AddMlp.apply
    monkeypatch.setattr(AddMlp, "apply", lambda *inputs: (fast_calls.append(1), apply(*inputs))[1])
    losses = {}
    for side, expected in zip(module.sides(arguments), (8, 0), strict=True):  # PVT-Tiny has eight blocks
        fast_calls.clear()
        losses[side] = module.build_step(side, "plain", arguments)().item()
        assert len(fast_calls) == expected
    assert losses["ours"] == pytest.approx(losses["modules"], rel=1e-5)  # sums in another order


def test_disagreement_stops(run_here, monkeypatch, capsys):
    module = importlib.import_module("pvt_hf.commands.benchmark_training")
    monkeypatch.setitem(module.TOLERANCE, "float32", -1.0)
    monkeypatch.setattr(module, "peak_memory", lambda *_: None)  # would start processes
    code, report = run_here("--modes", "plain")
    assert code == 1 and not report["complete"] and report["rows"] == []
    assert "Nothing was timed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image_size", "100"], "multiple of 32"),
        (["--steps", "0"], "must be at least 1"),
        (["--repeats", "1"], "--repeats must be at least 3"),
    ],
)
def test_arguments_that_cannot_be(run_here, capsys, words, message):
    with pytest.raises(SystemExit):
        run_here(*words)
    assert message in capsys.readouterr().err
