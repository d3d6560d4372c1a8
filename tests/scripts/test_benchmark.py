"""
`scripts/benchmark.py` runs end to end: its JSON is complete and its figures follow from the seconds it recorded. It
stops where two models disagree, keeps what it has on Ctrl-C, and reports what a compiler cannot do.

    pytest tests/scripts/test_benchmark.py
"""

import dataclasses
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from pvt_hf.commands.benchmark import main
from pvt_hf.weights.variants import VARIANTS

from ..support.clean_process import run_python
from ..support.warm_processes import Launched


SCRIPT = str(Path(__file__).parents[2] / "scripts" / "benchmark.py")


SMALL_NATIVE = [
    "models", "--variant", "pvt-tiny", "--device", "cpu", "--sections", "native", "--image_size", "32",
    "--batch_sizes", "1", "--repeats", "3", "--row_seconds", "0",
]  # fmt: skip


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmark") / "report.json"
    result = benchmark(
        "models", "--variant", "pvt-tiny", "--device", "cpu", "--skip_compile", "--image_size", "64",
        "--batch_sizes", "1", "2", "--sizes", "384x512", "--repeats", "3", "--row_seconds", "0.1", "--threads", "1",
        "--profile", "--output", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(output.read_text()), result.stdout


@pytest.mark.slow
def test_every_row_is_there(report):
    content, table = report
    assert content["complete"] and content["matmul"]["gflop_per_second"] > 0
    native = [(r["mode"], r["batch_size"]) for r in content["rows"] if r["section"] == "native"]
    assert sorted(native) == sorted((m, b) for m in ("forward", "forward+backward") for b in (1, 2))
    sizes = [(r["height"], r["width"]) for r in content["rows"] if r["section"] == "attention"]
    assert sizes == [(384, 512)]
    assert "GFLOP/s" in table and "ours/native" in table and "sdpa/eager" in table


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_profile_counts_the_operators_of_a_call(report):
    """PVT-Tiny has two norms in each of 8 blocks, one per reduction in 6 of them, one per stage, and a last one."""
    content, table = report
    for row in content["rows"]:
        for name in ("ours", "native") if row["section"] == "native" else ():
            operators = {each["operator"]: each for each in row[name]["operators"]}
            seconds = [each["seconds"] for each in operators.values()]
            assert min(seconds) >= 0 and seconds == sorted(seconds, reverse=True)
            assert operators["aten::native_layer_norm"]["count"] == 2 * 8 + 6 + 4 + 1
            assert ("aten::gelu_backward" in operators) == (row["mode"] == "forward+backward")
    assert "aten::addmm" in table


@pytest.mark.slow
def test_flop_are_twice_the_papers_multiply_adds(report):
    """PAPER_FACTS section 1.1 has 1.933 G multiply-adds at 224. At 64 they are counted layer by layer."""
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


@pytest.mark.slow
def test_loading(tmp_path, monkeypatch, capsys):
    output = tmp_path / "loading.json"
    words = ["--variant", "pvt-tiny", "--repeats", "3", "--row_seconds", "0", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [SCRIPT, "loading", *words])
    assert main() == 0
    content = json.loads(output.read_text())
    checkpoint, package = content["rows"]
    assert content["complete"] and checkpoint["row"] == "from_pretrained" and package["row"] == "import"
    low, high = (f(checkpoint[side]["median"] for side in ("ours", "native")) for f in (min, max))
    assert 0 < low <= high and checkpoint["pairs"] == package["pairs"] == 3
    assert 0 < package["ours"]["median"] < package["auto_classes"]["median"]
    assert "ours/native" in capsys.readouterr().out


@pytest.fixture
def module(monkeypatch):
    module = importlib.import_module("pvt_hf.commands.benchmark_models")
    monkeypatch.setattr(module, "measure_matmul", lambda *_: {"side": 1, "repeats": 1, "gflop_per_second": 1.0})
    monkeypatch.setattr(module, "WARM_UP_SECONDS", 0.0)
    tiny = VARIANTS["pvt-tiny"]  # with one block per stage: the time goes with their number, most of it when compiled
    one_block = dataclasses.replace(tiny, config={**tiny.config, "depths": [1, 1, 1, 1]})
    monkeypatch.setitem(VARIANTS, "pvt-tiny", one_block)
    return module


@pytest.fixture
def run_here(module, monkeypatch, tmp_path):
    """Runs the script's main function in this process; returns its exit code and report."""

    def run(*arguments):
        output = tmp_path / "new" / "report.json"
        monkeypatch.setattr(sys, "argv", [SCRIPT, *SMALL_NATIVE, "--output", str(output), *arguments])
        return main(), json.loads(output.read_text())

    return run


@pytest.mark.parametrize("part", ["classifier.weight", "pvt.encoder.block.2.0.mlp.dense1.weight"])
def test_models_that_disagree_are_not_timed(module, run_here, monkeypatch, capsys, part):
    def build_unequal(section, arguments):
        sides = build_sides(section, arguments)
        with torch.no_grad():
            weight = sides[1].model.get_parameter(part)[0]
            weight += 0.02 * torch.randn(weight.shape)  # one unit of many; the weights' standard deviation is 0.02
        return sides

    build_sides = module.build_sides
    monkeypatch.setattr(module, "build_sides", build_unequal)
    code, content = run_here("--skip_compile")
    assert code == 1 and not content["complete"] and content["rows"] == []
    assert "ours and native disagree in forward of (1, 3, 32, 32)" in capsys.readouterr().err


def test_gradients_that_disagree_are_not_timed(module, run_here, monkeypatch):
    def build_unequal(section, arguments):
        sides = build_sides(section, arguments)
        sides[1].model.classifier.weight.register_hook(lambda gradient: 1.01 * gradient)
        return sides

    build_sides = module.build_sides
    monkeypatch.setattr(module, "build_sides", build_unequal)
    code, content = run_here("--skip_compile")
    assert code == 1 and [row["mode"] for row in content["rows"]] == ["forward"]


@pytest.mark.slow
def test_graph_breaks_are_counted(module, run_here, monkeypatch):
    def forward_with_a_break(*arguments, **keywords):
        torch._dynamo.graph_break()
        return forward(*arguments, **keywords)

    forward = module.NativeClassifier.forward
    monkeypatch.setattr(module.NativeClassifier, "forward", forward_with_a_break)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    code, content = run_here()
    assert code == 0 and content["complete"]
    assert [row["compiled"] for row in content["rows"]] == [False, False, True, True]
    for row in content["rows"][2:]:
        assert row["ours"]["graph_breaks"] == 0 and row["native"]["graph_breaks"] >= 1


@pytest.mark.slow
def test_a_compiler_that_fails_is_a_row(module, run_here, monkeypatch, capsys):
    def fail(graph, inputs):
        raise OSError("no C++ compiler here")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    code, content = run_here()
    assert code == 0 and content["complete"]
    for row in content["rows"]:
        assert ("error" in row) == row["compiled"] and ("ratio" in row) != row["compiled"]
    assert "torch.compile of ours failed with" in content["rows"][2]["error"]
    assert "not measured: torch.compile of ours failed" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_well_enough_to_be_timed(run_here, dtype):
    code, content = run_here("--skip_compile", "--dtype", dtype)
    assert code == 0 and content["complete"] and content["arguments"]["dtype"] == dtype


def test_no_row_starts_when_the_time_is_over(run_here, capsys):
    code, content = run_here("--max_minutes", "0")
    assert code == 0 and not content["complete"] and content["rows"] == []
    assert "Incomplete: 0 of 4 rows were measured." in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_keeps_the_rows_so_far(tmp_path):
    output = tmp_path / "report.json"
    batch_sizes = ["--batch_sizes", *["1"] * 200]
    child = Launched([SCRIPT, *SMALL_NATIVE, "--skip_compile", "--output", output, *batch_sizes])
    while "\nforward" not in child.output()[0]:
        assert child.poll() is None, child.output()[1]
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    result = child.wait(60)
    content = json.loads(output.read_text())
    assert result.returncode == 130 and result.stderr == "", result.stderr
    assert not content["complete"] and 1 <= len(content["rows"]) < 400
    assert f"Interrupted.\nIncomplete: {len(content['rows'])} of 400 rows were measured." in result.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc, which only Linux has")
def test_peak_memory_is_that_of_the_call_alone():
    """Measures a known 100 MiB after an earlier, larger peak, in a process whose parent is large."""
    ballast = torch.ones(2**27)  # 512 MiB here must not be found there
    code = """
        import torch
        from pvt_hf.commands.benchmark_models import peak_resident_bytes
        torch.ones(2**26)
        print(peak_resident_bytes(lambda: torch.ones(25 * 2**20)))
    """
    peak = int(run_python(code, warm=True).stdout)
    assert ballast.numel() and peak / 2**20 == pytest.approx(100, abs=2)  # pages of code that the call runs first


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc, which only Linux has")
@pytest.mark.slow
def test_peak_memory_of_a_model_is_that_of_its_first_stage(report):
    """
    With SDPA: more than three arrays of its tokens, and well below the input and the output of an MLP's activation (8 *
    64 channels each), of which there is only a block at a time. Eager attention adds its maps, before and after the
    softmax.
    """
    row = report[0]["rows"][-1]
    tokens, keys = row["height"] // 4 * (row["width"] // 4), row["height"] // 32 * (row["width"] // 32)
    sdpa, eager = (row[name]["peak_memory_bytes"] for name in ("sdpa", "eager"))
    array, hidden, maps = (4 * tokens * numbers for numbers in (64, 8 * 64, keys))  # bytes in float32
    assert 3 * array < sdpa < 1.5 * hidden
    assert maps < eager - sdpa < 3 * maps


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sizes", "16"],
        ["--sizes", "12xx3"],
        ["--image_size", "100"],
        ["--repeats", "2"],
        ["--batch_sizes", "0"],
        ["--threads", "0"],
        ["--variant", "pvt-huge"],
        ["--output", str(Path(SCRIPT).parent)],
        pytest.param(
            ["--device", "cuda"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="accepted with CUDA"),
        ),
    ],
)
def test_arguments_that_cannot_be_are_named(module, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, "models", *arguments])
    with pytest.raises(SystemExit) as exit_information:
        main()
    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_information.value.code == 2 and "error: " in error and arguments[0] in error and arguments[1] in error


@pytest.mark.gpu
def test_memory_and_times_on_a_gpu(tmp_path):
    output = tmp_path / "report.json"
    result = benchmark(
        "models", "--variant", "pvt-tiny", "--device", "cuda", "--skip_compile", "--batch_sizes", "1", "--sizes", "512",
        "--attention_backward", "--repeats", "3", "--row_seconds", "0", "--output", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    content = json.loads(output.read_text())
    assert content["complete"] and content["environment"]["device"] == torch.cuda.get_device_name()
    for row in content["rows"][2:]:
        assert 0 < row["sdpa"]["peak_memory_bytes"] < row["eager"]["peak_memory_bytes"]
