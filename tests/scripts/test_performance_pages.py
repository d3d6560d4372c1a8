"""
`scripts/make_performance_pages.py`: the pages have what their report says, and a report goes into the pages.

    pytest tests/scripts/test_performance_pages.py
"""

import importlib
import json
import sys

import pytest

from ..support.clean_process import REPOSITORY


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    return importlib.import_module("make_performance_pages")


def run(script, monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["make_performance_pages.py", *map(str, words)])
    return script.main()


def row(name, batch, speed, seconds, memory) -> dict:
    return {
        "row": name, "batch_size": batch, "pairs": 9, "speed": speed, "speed_quartiles": [speed - 0.1, speed + 0.1],
        "side": {
            "median": seconds, "images_per_second": batch / seconds, "peak_memory_bytes": memory, "matmul_share": 0.25
        },
    }  # fmt: skip


@pytest.fixture
def repository(script, monkeypatch, tmp_path):
    """A repository with empty sections, and a report beside it."""
    start, end = script.MARKERS["benchmark"]
    page = f"# Before\n\n{start}\n\nold\n\n{end}\n\nafter\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "deployment.md").write_text(page.replace("benchmark", "benchmark export"))
    (tmp_path / "README.md").write_text(page)
    (tmp_path / "docs" / "performance.md").write_text(page)
    report = {
        "complete": True,
        "arguments": {"variant": "pvt-small", "image_size": 224, "dtype": "float32", "device": "cpu"},
        "environment": {
            "device": "CPU", "cpu": "Some CPU, 2 cores", "threads": 2, "torch": "2.14", "transformers": "5.23"
        },
        "matmul": {"gflop_per_second": 100.0},
        "rows": [
            row("native", 8, 1.0, 0.8, 2**27), row("ours", 8, 1.6, 0.5, 2**26), row("resnet50", 8, 3.0, 0.25, None),
            {"row": "openvino", "batch_size": 8, "error": 'openvino not installed: pip install "pvt-hf[benchmark]"'},
        ],
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps(report))
    monkeypatch.setattr(script, "REPOSITORY", tmp_path)
    return tmp_path


def test_the_pages_of_this_repository_are_those_of_its_report(script, monkeypatch, capsys):
    assert run(script, monkeypatch, "--check") == 0, capsys.readouterr().err


def test_a_report_goes_into_the_pages(script, monkeypatch, repository, capsys):
    assert run(script, monkeypatch, repository / "report.json") == 0
    readme, page = ((repository / name).read_text() for name in ("README.md", "docs/performance.md"))
    for text in (readme, page):
        assert text.startswith("# Before\n") and text.endswith("\nafter\n") and "old" not in text
        assert "| **this package** | 1.60 (1.50 to 1.70) |" in text
        assert "| OpenVINO, native graph | not measured |" in text
        assert "Some CPU, 2 cores, threads: 2; PyTorch 2.14, Transformers 5.23; at least 9 pairs" in text
    assert "| native class | 8 | 800 | 10.0 | 128 MiB | 25% |" in page
    assert "| [ResNet50](https://arxiv.org/abs/2102.12122) | 78.5 % | 25.6 M | 4.1 G | 32.0 | not measured |" in page
    assert "[PVT-Small](https://arxiv.org/abs/2102.12122) | 79.8 % | 24.5 M | 3.8 G | 16.0 | 64 MiB |" in page
    assert "Not measured: openvino (batch 8)." in page
    assert (repository / "docs" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert run(script, monkeypatch, "--check") == 0
    (repository / "README.md").write_text(readme.replace("1.60", "1.90"))
    assert run(script, monkeypatch, "--check") == 1 and "out of date: README.md" in capsys.readouterr().err


def test_a_report_of_exports_goes_into_its_page(script, monkeypatch, repository, capsys):
    report = json.loads((repository / "report.json").read_text())
    report["arguments"] = {"variant": "pvt-small", "image_size": 224, "programs": None}
    report["rows"] = [
        row("native", 1, 1.0, 0.1, None), row("native", 8, 1.0, 0.8, None), row("native-openvino", 1, 1.7, 0.06, None),
        row("ours-openvino-int8", 1, 4.0, 0.025, None), row("ours-openvino-static", 1, 1.9, 0.05, None),
        {"row": "ours-openvino-bf16", "batch_size": 1, "error": "this processor does not compute in bf16"},
    ]  # fmt: skip
    (repository / "exports.json").write_text(json.dumps(report))
    assert run(script, monkeypatch, repository / "exports.json") == 0
    page = (repository / "docs" / "deployment.md").read_text()
    assert page.startswith("# Before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "| **OpenVINO, this package, int8** | 4.00 (3.90 to 4.10) | not measured |" in page
    assert "| **OpenVINO, this package, one size** | 1.90 (1.80 to 2.00) | - |" in page
    assert "ours-openvino-bf16: this processor does not compute in bf16." in page
    assert "old" in (repository / "README.md").read_text()
    assert run(script, monkeypatch, "--check") == 0
    (repository / "docs" / "deployment.md").write_text(page.replace("1.90", "2.90"))
    assert run(script, monkeypatch, "--check") == 1 and "out of date: docs/deployment.md" in capsys.readouterr().err


def test_several_reports_go_into_one_table(script, monkeypatch, repository, capsys):
    report = json.loads((repository / "report.json").read_text())
    report["rows"] = [row("native", 1, 1.0, 0.1, None), row("ours", 1, 1.2, 0.08, None), row("ours", 8, 9, 1, None)]
    (repository / "second.json").write_text(json.dumps(report))
    assert run(script, monkeypatch, repository / "second.json", repository / "report.json") == 0
    page = (repository / "docs" / "performance.md").read_text()
    assert "| **this package** | 1.20 (1.10 to 1.30) | 1.60 (1.50 to 1.70) |" in page
    assert "The rows are from 2 runs" in page and run(script, monkeypatch, "--check") == 0
    report["arguments"]["variant"] = "pvt-tiny"
    (repository / "second.json").write_text(json.dumps(report))
    assert run(script, monkeypatch, repository / "second.json", repository / "report.json") == 1
    assert "several values of variant" in capsys.readouterr().err


def test_a_short_run_or_a_busy_machine_is_named(script, repository):
    report = json.loads((repository / "report.json").read_text())
    assert "A short run" not in script.describe_run(report)
    assert "A short run" in script.describe_run({**report, "complete": False})
    report["rows"][1]["pairs"] = 3
    assert "A short run" in script.describe_run(report) and "busy" not in script.describe_run(report)
    report["environment"]["load_average"] = 4.75
    assert "The machine was busy: load average 4.8." in script.describe_run(report)


@pytest.mark.parametrize("content", ['{"rows": []}', "[]", '{"rows": [{"section": "native"}]}', "{"])
def test_other_files_are_refused_and_nothing_is_written(script, monkeypatch, repository, capsys, content):
    (repository / "other.json").write_text(content)
    before = (repository / "README.md").read_text()
    assert run(script, monkeypatch, repository / "other.json") == 1
    assert "error: " in capsys.readouterr().err and (repository / "README.md").read_text() == before
    assert not (repository / "docs" / "benchmark.json").exists()
