"""
`pvt-hf reproduce` prints and writes what was counted and measured, and refuses arguments that cannot work. The counts
are compared with the paper in tests/hub/test_published_costs.py.

    python -m pytest tests/commands/test_reproduce.py
"""

import csv
import json
import sys

import pytest
from PIL import Image

from pvt_hf.commands import reproduce, reproduce_figure6
from pvt_hf.metrics.costs import build_on_meta, count_costs


@pytest.fixture
def run(monkeypatch):
    def call(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["pvt-hf reproduce", *map(str, arguments)])
        return reproduce.main()

    return call


def read_files(folder, name):
    with (folder / f"{name}.csv").open(newline="") as file:
        return json.loads((folder / f"{name}.json").read_text()), list(csv.DictReader(file))


def test_cost(run, tmp_path, capsys):
    run("cost", "--tables", 9, 2, "--output_dir", tmp_path / "new")
    text = capsys.readouterr().out
    content, table = read_files(tmp_path / "new", "cost")
    assert content["versions"]["torch"] and len(content["rows"]) == len(table) == 22
    by_row = {(row["table"], row["model"]): row for row in content["rows"]}
    small = by_row[2, "PVT-Small"]
    assert small["params_m_paper"] == small["params_m_ours"] == 24.5 and small["parameters"] == 24_485_864
    assert small["gflops_difference"] == small["params_m_difference"] == 0 and small["explanation"] == ""
    assert abs(small["torch_flops"] / small["multiply_adds"] - 2) < 0.01
    t2t = by_row[2, "T2T-ViT_t-14"]
    assert t2t["params_m_difference"] == -0.5 and t2t["explanation"] in text
    wide = by_row[9, "Wider PVT-Small"]
    assert wide["gflops_paper"] is None and wide["gflops_difference"] is None and wide["gflops_ours"] > 0
    for row, entry in zip(table, content["rows"]):
        assert row == {key: "" if value is None else str(value) for key, value in entry.items()}
    assert text.index("Table 2") < text.index("Table 9") and "Table 3" not in text
    assert "42 printed figures in 22 rows; 4 rows differ by more than rounding." in text
    assert str(tmp_path / "new" / "cost.csv") in text
    (line,) = (line for line in text.splitlines() if line.startswith("T2T-ViT_t-14 "))
    assert line.split()[1:7] == ["22.0", "21.5", "-0.5", "6.1", "6.1", "="]


@pytest.mark.slow
def test_figure_6(run, tmp_path, capsys):
    """One measurement in a process of its own, as all are."""
    run("figure6", "--models", "PVT-Small", "--sizes", 64, "--repeats", 1, "--threads", 1, "--output_dir", tmp_path)
    content, table = read_files(tmp_path, "figure6")
    measured, counted = content["rows"]
    assert (measured["model"], counted["model"]) == ("PVT-Small", "ViT-Small/32") and len(table) == 2
    assert measured["seconds"] > 0 and not measured["error"] and counted["seconds"] is None
    # Activations of a megabyte at least; no more than the weights of PVT-Small, which must not count, at 64x64
    if sys.platform == "linux":
        assert 1e6 < measured["memory_bytes"] < 90e6
    assert content["environment"]["threads"] == 1 and content["erratum"] in capsys.readouterr().out
    assert Image.open(tmp_path / "figure6.png").size[0] > 1000


def test_figure_6_says_what_was_not_measured(run, monkeypatch, tmp_path, capsys):
    def measure(model, size, arguments, threads):
        if model == "ViT-Small/16":
            return {"error": "out of memory"}
        return {"seconds": size / 100, "memory_bytes": size * 2**20}

    monkeypatch.setattr(reproduce_figure6, "measure_apart", measure)
    run("figure6", "--sizes", 128, 64, 256, "--max_seconds", 1, "--output_dir", tmp_path)
    content, _ = read_files(tmp_path, "figure6")
    errors = {(row["model"], row["size"]): row["error"] for row in content["rows"]}
    assert errors["ResNet50", 64] == errors["ResNet50", 128] == "" and "128 pixels" in errors["ResNet50", 256]
    assert all(errors["ViT-Small/16", size] == "out of memory" for size in (64, 128, 256))
    assert [row["size"] for row in content["rows"] if row["model"] == "PVT-Small"] == [64, 128, 256]
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("ResNet50") and line.split()[1] == "128")
    assert line.split()[-2:] == ["x2.0", "x2.0"] and line.split()[3:5] == ["1.280", "128"]
    assert content["growth"][1].startswith("  PVT-Small, 64 to 128 pixels: multiply-adds x3.")
    assert content["growth"][1].endswith(", time x2.0 (less), memory x2.0 (less)") and content["growth"][1] in lines
    assert len(content["growth"]) == 3  # nothing was measured of ViT-Small/16


def test_growth_beside_that_of_the_multiply_adds():
    rows = [
        {"model": "PVT-Small", "size": size, "multiply_adds": cost, "seconds": time, "memory_bytes": memory}
        for size, cost, time, memory in ((64, 10, 1.0, 100), (128, 20, 2.1, None), (256, 40, 5.0, 390))
    ]
    assert reproduce_figure6.growth_lines(rows)[1:] == [
        "  PVT-Small, 64 to 256 pixels: multiply-adds x4.0, time x5.0 (more), memory x3.9 (as much)"
    ]


def test_the_erratum_of_figure_6():
    """PAPER_FACTS section 6, at sizes between those of the figure too."""
    for size in (224, 640, 1344):
        counts = {
            model: count_costs(build_on_meta(lambda: reproduce_figure6.build(model, size)), size, size).multiply_adds  # noqa: B023
            for model in reproduce_figure6.COLORS
        }
        assert counts["ViT-Small/32"] < counts["PVT-Small"] < counts["ViT-Small/16"] == max(counts.values())
        if size <= 640:
            assert 0.9 < counts["PVT-Small"] / counts["ResNet50"] < 1.2
        else:
            assert counts["PVT-Small"] > 2 * counts["ResNet50"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_measuring_runs_the_model(attention):
    result = reproduce_figure6.measure("ViT-Small/16", 64, attention, "cpu", repeats=2, threads=1)
    assert result["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cost", "--tables", 12], ["--tables", "12"]),
        (["figure6", "--sizes", 100], ["--sizes", "100", "multiple of 32"]),
        (["figure6", "--sizes", 32], ["--sizes", "32", "64"]),
        (["figure6", "--repeats", 0], ["--repeats", "0"]),
        (["figure5", "--runs", "a=here", "a=there"], ["a a", "each name once"]),
        (["figure6", "--models", "PVT-Tiny"], ["PVT-Tiny", "PVT-Small"]),
        ([], ["cost", "figure6"]),
    ],
)
def test_arguments_that_cannot_work(run, arguments, words, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and all(word in error or word in ("cost", "figure6") for word in words)


def test_a_file_where_the_folder_should_be(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit):
        run("cost", "--output_dir", tmp_path / "file")
    assert "is a file: give a folder" in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"


def test_an_interruption_says_where_the_results_are(run, monkeypatch, tmp_path, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("pvt_hf.commands.reproduce_cost.reproduce_cost", stop)
    assert run("cost", "--output_dir", tmp_path / "out") == 130
    assert f"Interrupted. What was done before is in {tmp_path / 'out'}." in capsys.readouterr().out
