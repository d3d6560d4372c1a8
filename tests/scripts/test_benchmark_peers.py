"""
`pvt-hf benchmark` without a task: its report follows from the seconds that it recorded, what is missing is named, and
what computes something else is not timed. With other runtimes and in processes of their own: slow.

    pytest tests/scripts/test_benchmark_peers.py
"""

import dataclasses
import importlib
import json
import statistics
import sys

import pytest
import torch
from PIL import Image

from pvt_hf.commands import benchmark_peers, benchmark_programs
from pvt_hf.commands.benchmark import main
from pvt_hf.commands.benchmark_arguments import PEERS, RELATIVES, PeersArguments
from pvt_hf.commands.benchmark_relatives import PUBLISHED
from pvt_hf.weights import export_formats
from pvt_hf.weights.variants import VARIANTS


SHORT = [
    "--variant", "pvt-tiny", "--device", "cpu", "--image_size", "32", "--repeats", "3", "--row_seconds", "0",
    "--pause", "0", "--threads", "1",
]  # fmt: skip


@pytest.fixture
def run_here(monkeypatch, tmp_path):
    """Runs the command in this process, with one block per stage; returns its exit code and report."""
    tiny = VARIANTS["pvt-tiny"]
    one_block = dataclasses.replace(tiny, config={**tiny.config, "depths": [1, 1, 1, 1]})
    monkeypatch.setitem(VARIANTS, "pvt-tiny", one_block)
    monkeypatch.setattr(
        benchmark_peers, "measure_matmul", lambda *_: {"side": 1, "repeats": 1, "gflop_per_second": 2.0}
    )
    for module in (benchmark_peers, benchmark_programs):
        monkeypatch.setattr(module, "call_apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr("pvt_hf.commands.benchmark_models.WARM_UP_SECONDS", 0.0)
    threads = torch.get_num_threads()

    def run(*arguments):
        output = tmp_path / "new" / "report.json"
        task = arguments[: arguments[:1] == ("export",)]
        short = [word for word in SHORT if word not in ("--device", "cpu")] if task else SHORT
        words = [*task, *short, "--output", str(output), *arguments[len(task) :]]
        monkeypatch.setattr(sys, "argv", ["benchmark", *words])
        return main(), json.loads(output.read_text())

    yield run
    torch.set_num_threads(threads)


def test_figures_follow_from_the_seconds(run_here, tmp_path, capsys):
    code, content = run_here("--rows", "native", "ours", "--batch_sizes", "1", "2")
    assert code == 0 and content["complete"]
    rows = content["rows"]
    assert [(row["row"], row["batch_size"]) for row in rows] == [
        ("native", 1), ("ours", 1), ("native", 2), ("ours", 2)
    ]  # fmt: skip
    for row in rows:
        side, native = row["side"], row["native"]
        assert len(side["seconds"]) == len(native["seconds"]) == row["pairs"] == 3
        ratios = [b / a for a, b in zip(side["seconds"], native["seconds"])]
        median = statistics.median(side["seconds"])
        assert row["speed"] == pytest.approx(statistics.median(ratios))
        assert row["speed_quartiles"] == pytest.approx(statistics.quantiles(ratios, n=4, method="inclusive")[::2])
        assert side["images_per_second"] == pytest.approx(row["batch_size"] / median)
        assert side["matmul_share"] == pytest.approx(row["gflop"] * row["batch_size"] / median / 2.0)
        assert row["relative_difference"] < 1e-4  # float32, sums in another order
    assert Image.open(tmp_path / "new" / "report.png").size[0] > 500
    assert "native" in capsys.readouterr().out


def test_what_is_missing_is_a_row_with_the_line_that_installs_it(run_here, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("openvino", "onnx") else find(name))
    code, content = run_here("--rows", "openvino", "--batch_sizes", "1")
    assert code == 0 and content["complete"]
    assert content["rows"][0]["error"] == 'onnx and openvino not installed: pip install "pvt-hf[benchmark]"'
    assert 'pip install "pvt-hf[benchmark]"' in capsys.readouterr().out


def test_another_data_type_leaves_the_runtimes_out(run_here):
    code, content = run_here("--rows", "onnxruntime", "--batch_sizes", "1", "--dtype", "bfloat16")
    assert code == 0 and "--dtype float32 only" in content["rows"][0]["error"]


def test_what_computes_something_else_is_not_timed(run_here, monkeypatch, capsys):
    def build_unequal(section, arguments):
        sides = build_sides(section, arguments)
        with torch.no_grad():
            sides[0].model.classifier.bias[0] += 1
        return sides

    build_sides = benchmark_peers.build_sides
    monkeypatch.setattr(benchmark_peers, "build_sides", build_unequal)
    code, content = run_here("--rows", "ours", "--batch_sizes", "1")
    assert code == 1 and not content["complete"] and content["rows"] == []
    assert "ours and native disagree" in capsys.readouterr().err


def test_rows_without_arguments():
    """All ways to run the model at both batch sizes, related models at the larger; what compiles comes last."""
    rows = benchmark_peers.plan_rows(PeersArguments())
    wanted = [(name, batch) for name in PEERS for batch in (1, 8) if batch == 8 or name not in RELATIVES]
    assert sorted((row["row"], row["batch_size"]) for row in rows) == sorted(wanted)
    assert [row["row"] for row in rows[-4:]] == ["native-compiled", "ours-compiled"] * 2


def test_exports_of_the_model_are_measured_and_kept(run_here, tmp_path):
    programs = tmp_path / "programs"
    words = ["export", "--rows", "native", "ours-onnxruntime-static", "--batch_sizes", "1", "2", "--programs", programs]
    code, content = run_here(*map(str, words))
    assert code == 0 and content["complete"]
    rows = [(row["row"], row["batch_size"]) for row in content["rows"]]
    assert rows == [("native", 1), ("ours-onnxruntime-static", 1), ("native", 2)]
    assert content["rows"][1]["relative_difference"] < 1e-4 and content["rows"][1]["speed"] > 0
    (kept,) = programs.iterdir()
    assert (kept / "model.onnx").is_file()
    changed = (kept / "model.onnx").stat().st_mtime_ns
    assert run_here(*map(str, words))[0] == 0 and (kept / "model.onnx").stat().st_mtime_ns == changed


def test_exports_that_this_machine_cannot_run_are_named(run_here, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(export_formats, "find_spec", lambda name: None)
    _, content = run_here("export", "--rows", "ours-openvino-bf16", "ours-openvino-int8", "--batch_sizes", "1")
    assert [row["error"] for row in content["rows"]] == [
        "this processor does not compute in bf16",
        'OpenVINO needs openvino and nncf, which are not installed: pip install "pvt-hf[openvino]"',
    ]


def test_related_models_have_their_published_size():
    """The parameters that are counted here are those that the source prints: to its last digit."""
    for name in RELATIVES:
        counted = benchmark_peers.count_row(name, PeersArguments())
        printed = PUBLISHED[name].parameters
        decimals = len(printed.partition(".")[2])
        assert counted["parameters"] / 1e6 == pytest.approx(float(printed), abs=0.6 * 10**-decimals), name
        # Multiply-adds: the sources count different operations of attention
        assert counted["gflop"] / 2 == pytest.approx(float(PUBLISHED[name].multiply_adds), rel=0.06), name


@pytest.mark.slow
def test_other_runtimes_in_processes_of_their_own(tmp_path, monkeypatch):
    output = tmp_path / "report.json"
    words = [*SHORT, "--rows", "onnxruntime", "openvino", "ours", "--batch_sizes", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    threads = torch.get_num_threads()
    assert main() == 0
    torch.set_num_threads(threads)
    content = json.loads(output.read_text())
    assert content["complete"] and len(content["rows"]) == 3
    for row in content["rows"]:
        if benchmark_peers.missing(row["row"]):
            assert "pip install" in row["error"]
        else:
            assert row["relative_difference"] < 1e-4 and row["speed"] > 0
            if sys.platform == "linux":
                assert 0 < row["side"]["peak_memory_bytes"] < 2**30
