"""
`scripts/benchmark.py` runs end to end: its JSON is complete and its figures follow from the seconds it recorded.

    pytest tests/test_benchmark.py
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = str(Path(__file__).parent.parent / "scripts" / "benchmark.py")


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmark") / "report.json"
    result = benchmark(
        "--variant", "pvt-tiny", "--device", "cpu", "--skip_compile", "--image_size", "64", "--batch_sizes", "1", "2",
        "--sizes", "64", "64x96", "--repeats", "3", "--row_seconds", "0.1", "--threads", "1", "--output", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(output.read_text()), result.stdout


def test_every_row_is_there(report):
    content, table = report
    assert content["complete"] and content["matmul"]["gflop_per_second"] > 0
    native = [(r["mode"], r["batch_size"]) for r in content["rows"] if r["section"] == "native"]
    assert sorted(native) == sorted((m, b) for m in ("forward", "forward+backward") for b in (1, 2))
    sizes = [(r["height"], r["width"]) for r in content["rows"] if r["section"] == "attention"]
    assert sizes == [(64, 64), (64, 96)]
    assert "GFLOP/s" in table and "ours/native" in table and "sdpa/eager" in table


def test_figures_follow_from_the_seconds(report):
    content, _ = report
    rate = content["matmul"]["gflop_per_second"]
    for row in content["rows"]:
        first, second = ("ours", "native") if row["section"] == "native" else ("sdpa", "eager")
        assert row["pairs"] >= 3 and row["relative_difference"] < 1e-4
        pairs = list(zip(row[first]["seconds"], row[second]["seconds"]))
        assert row["ratio"] == pytest.approx(statistics.median(a / b for a, b in pairs))
        for name in (first, second):
            median = statistics.median(row[name]["seconds"])
            assert row[name]["median"] == pytest.approx(median)
            assert row[name]["matmul_share"] == pytest.approx(row["gflop"] / median / rate)


def test_flop_are_twice_the_papers_multiply_adds(report):
    """PAPER_FACTS section 1.1: 1.933 G multiply-adds at 224; at 64 counted by the formula of every layer."""
    from pvt_hf import PvtConfig

    config, total, channels_in, height = PvtConfig(), 0, 3, 64
    for stage, (patch, channels, depth, ratio, mlp) in enumerate(
        zip(config.patch_sizes, config.hidden_sizes, config.depths, config.sequence_reduction_ratios, config.mlp_ratios)
    ):
        height //= patch
        patches, cls = height * height, stage == 3
        tokens, keys = patches + cls, (height // ratio) ** 2 + cls
        total += patches * channels * channels_in * patch**2
        reduction = (height // ratio) ** 2 * channels**2 * ratio**2 if ratio > 1 else 0
        linear = 2 * tokens * channels**2 + 2 * keys * channels**2 + 2 * tokens * mlp * channels**2
        total += depth * (reduction + linear + 2 * tokens * keys * channels)
        channels_in = channels
    total += 512 * 1000
    row = next(r for r in report[0]["rows"] if r["section"] == "native" and r["mode"] == "forward")
    assert row["gflop"] == pytest.approx(2 * total * row["batch_size"] / 1e9)


def test_a_size_that_cannot_be_is_one_line():
    result = benchmark("--sizes", "12xx3")
    assert result.returncode != 0 and "12xx3" in result.stderr and "Traceback" not in result.stderr
