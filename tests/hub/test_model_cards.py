"""
The cards of the paper's checkpoints: the figures are the paper's (typed here once more), the metadata survive
huggingface_hub, and the command writes these files. The Hub's own validation needs the network.

    python -m pytest tests/hub/test_model_cards.py
"""

import importlib
import json
import re
import sys

import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import ModelCardData, eval_results_to_model_index, model_index_to_eval_results
from transformers.pipelines import PIPELINE_REGISTRY

from pvt_hf.engine.recipes import read_recipe
from pvt_hf.hub.published import PUBLISHED

from ..support.card_text import section, table_rows
from ..support.warm_processes import ROOT


CARDS = {file.stem: file for file in sorted((ROOT / "model_cards").glob("*.md")) if file.stem != "ablations"}
OFFICIAL = None  # in place of a table's number: the official repository
TOP1, TOP5, MIOU = ["Top-1 accuracy (%)"], ["Top-5 accuracy (%)"], ["Mean IoU (%)"]
BOX = [f"Box {name} (%)" for name in ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")]
BOX_MASK = [f"{kind} {name} (%)" for kind in ("Box", "Mask") for name in ("AP", "AP50", "AP75")]
# PAPER_FACTS sections 3 to 6: parameters, GFLOPs, then per row of a table its number, columns and figures. The first
# row is that of the checkpoint. Table 2 prints errors: 24.9, 20.2, 18.8, 18.3.
EXPECTED = {
    "pvt-tiny": ("13.2", "1.9", (2, TOP1, "75.1")),
    "pvt-small": ("24.5", "3.8", (2, TOP1, "79.8"), (OFFICIAL, TOP1 + TOP5, "79.764 94.95")),
    "pvt-medium": ("44.2", "6.7", (2, TOP1, "81.2")),
    "pvt-large": ("61.4", "9.8", (2, TOP1, "81.7")),
    "semantic-fpn-pvt-tiny": ("17.0", "33.2", (5, MIOU, "35.7"), (OFFICIAL, MIOU, "36.6")),
    "semantic-fpn-pvt-small": ("28.2", "44.5", (5, MIOU, "39.8"), (OFFICIAL, MIOU, "41.9")),
    "semantic-fpn-pvt-medium": ("48.0", "61.0", (5, MIOU, "41.6"), (OFFICIAL, MIOU, "43.5")),
    "semantic-fpn-pvt-large": ("65.1", "79.6", (5, MIOU, "42.1"), (OFFICIAL, MIOU, "43.5"), (5, MIOU, "44.8")),
    "trans2seg-pvt-small": ("32.1", "31.6", (7, MIOU, "42.6")),
    "retinanet-pvt-tiny": (
        "23.0", "",
        (3, BOX, "36.7  56.9  38.9  22.6  38.8  50.0"), (3, BOX, "39.4  59.8  42.0  25.5  42.0  52.1"),
    ),
    "retinanet-pvt-small": (
        "34.2", "285.8",
        (3, BOX, "40.4  61.3  43.0  25.0  42.9  55.7"), (3, BOX, "42.2  62.7  45.0  26.2  45.2  57.2"),
        (11, BOX[:3], "38.7  59.3  40.8"),
    ),
    "retinanet-pvt-medium": (
        "53.9", "",
        (3, BOX, "41.9  63.1  44.3  25.0  44.9  57.6"), (3, BOX, "43.2  63.8  46.1  27.3  46.3  58.9"),
    ),
    "retinanet-pvt-large": (
        "71.1", "",
        (3, BOX, "42.6  63.7  45.4  25.8  46.0  58.4"), (3, BOX, "43.4  63.6  46.1  26.1  46.0  59.5"),
    ),
    "mask-rcnn-pvt-tiny": (
        "32.9", "",
        (4, BOX_MASK, "36.7  59.2  39.3  35.1  56.7  37.3"), (4, BOX_MASK, "39.8  62.2  43.0  37.4  59.3  39.9"),
    ),
    "mask-rcnn-pvt-small": (
        "44.1", "304.4",
        (4, BOX_MASK, "40.4  62.9  43.8  37.8  60.1  40.3"), (4, BOX_MASK, "43.0  65.3  46.9  39.9  62.5  42.8"),
    ),
    "mask-rcnn-pvt-medium": (
        "63.9", "",
        (4, BOX_MASK, "42.0  64.4  45.6  39.0  61.6  42.1"), (4, BOX_MASK, "44.2  66.0  48.2  40.5  63.1  43.5"),
    ),
    "mask-rcnn-pvt-large": (
        "81.0", "",
        (4, BOX_MASK, "42.9  65.0  46.6  39.5  61.9  42.5"), (4, BOX_MASK, "44.5  66.0  48.3  40.7  63.4  43.7"),
    ),
    "detr-pvt-small": ("", "", (6, BOX, "34.7 55.7 35.4 12.0 36.4 56.7")),
}  # fmt: skip
# Numbers with a point that are no figures: licences, the size of ImageNet-1K, preprocessing
OTHER_NUMBERS = {"2.0", "4.0", "1.28", "0.00392157", "0.485", "0.456", "0.406", "0.229", "0.224", "0.225"}


def test_there_is_a_card_for_every_checkpoint():
    assert set(CARDS) == set(EXPECTED) == set(PUBLISHED) and len(CARDS) == 18


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_are_the_papers(name):
    text = CARDS[name].read_text()
    params, gflops, *expected = EXPECTED[name]
    rows = table_rows(section(text, "Evaluation"))
    for row, (table, metrics, values) in zip(rows, expected, strict=True):
        source = f"[PVT paper, Table {table}](https://arxiv.org/abs/2102.12122)"
        if table is OFFICIAL:
            source = "[official repository](https://github.com/whai362/PVT)"
        figures = {metric: float(value) for metric, value in row.items() if "(%)" in metric and value}
        assert row["source"] == source and figures == dict(zip(metrics, map(float, values.split()), strict=True))
    assert "None of these figures was measured by us." in text

    counts = dict(re.findall(r"([\d.]+) (M parameters|GFLOPs)", text))
    assert {value: key for key, value in counts.items()} == {
        kind: count for kind, count in (("M parameters", params), ("GFLOPs", gflops)) if count
    }

    parameters, multiply_adds = re.search(r"pixels: ([\d,]+) parameters, ([\d.]+) G multiply-adds", text).groups()
    if not name.startswith("trans2seg"):  # where the paper's sizes are not known
        ours = f"{int(parameters.replace(',', '')) / 1e6:.1f}", multiply_adds
        assert all(paper in ("", count) for paper, count in zip((params, gflops), ours))

    table, metrics, values = expected[0]
    results = ModelCard.load(CARDS[name]).data.eval_results
    assert [(one.metric_name, one.metric_value) for one in results] == [
        (metric, float(value)) for metric, value in zip(metrics, values.split())
    ]
    sources = {(one.source_name, one.source_url) for one in results}
    assert sources == {(f"PVT paper, Table {table}", "https://arxiv.org/abs/2102.12122")}

    body = re.sub(r"^```.*?^```$", "", text.split("\n---\n", 1)[1], flags=re.MULTILINE | re.DOTALL)
    numbers = set(re.findall(r"\d+\.\d+", re.sub(r"\(\S+\)", "", body)))  # without the targets of links
    known = {float(value) for _, _, values in expected for value in values.split()}
    known |= {float(number) for number in (params, gflops, multiply_adds) if number}
    assert {float(number) for number in numbers - OTHER_NUMBERS} <= known


@pytest.mark.parametrize("name", EXPECTED)
def test_metadata_survive_huggingface_hub(name):
    card, raw = ModelCard.load(CARDS[name]), metadata_load(CARDS[name])
    assert str(card).encode() == CARDS[name].read_bytes()
    assert ModelCardData(**raw).to_dict() == raw
    model_name, results = model_index_to_eval_results(raw["model-index"])
    assert model_name == name and eval_results_to_model_index(name, results) == raw["model-index"]
    tasks = set(PIPELINE_REGISTRY.get_supported_tasks())
    assert raw["pipeline_tag"] in tasks and {one.task_type for one in results} <= tasks
    assert raw["library_name"] == "transformers" and raw["license"] == "apache-2.0"
    assert {one.dataset_type for one in results} == {raw["datasets"][0]}
    assert raw["datasets"][-1] == "ILSVRC/imagenet-1k"
    assert set(raw["metrics"]) == {one.metric_type for one in results}
    assert all(one.dataset_split and 0 < one.metric_value < 100 for one in results)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_recipe_is_there_and_agrees(name):
    text = CARDS[name].read_text()
    file = ROOT / re.search(r"The recipe is `(scripts/recipes/\S+\.yaml)`", text)[1]
    recipe, usage = read_recipe(file), section(text, "Usage")
    if name.startswith("pvt-"):
        side = recipe["image_size"]
        assert f"the shorter side to {side / recipe['crop_ratio']:.0f} pixels (bicubic)" in usage
        assert f"crops the centre to {side}x{side} pixels" in usage
    else:
        shorter = recipe.get("eval_shortest_edge") or recipe["shortest_edge"]
        assert f"to {shorter} pixels, but the longer to at most {recipe['longest_edge']} (bilinear)" in usage
    assert ("ignores label 0" in usage) == recipe.get("reduce_labels", False)
    hardware = re.search(r"The paper's hardware: (.*?)\.", section(text, "Training"))[1]
    assert f"The paper's hardware: {hardware}" in file.read_text()
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]*)\)", text))  # they work on the Hub
    for heading in ("Data", "Limits", "Licence", "Citation"):
        assert len(section(text, heading).strip()) > 40


# The command


@pytest.fixture
def make_cards(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    main = importlib.import_module("make_model_cards").main

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["make_model_cards.py", *map(str, arguments)])
        return main()

    return run


@pytest.mark.slow
def test_the_command_writes_these_files(make_cards, tmp_path, capsys):
    assert make_cards("--output_dir", tmp_path) == 0
    assert {file.stem: file.read_bytes() for file in tmp_path.iterdir()} == {
        name: file.read_bytes() for name, file in CARDS.items()
    }
    assert make_cards("--check") == 0
    changed = tmp_path / "detr-pvt-small.md"
    changed.write_text(changed.read_text().replace("34.7", "35.7"))
    before = changed.read_bytes()
    assert make_cards("--output_dir", tmp_path, "--check") == 1 and changed.read_bytes() == before
    assert "detr-pvt-small.md" in capsys.readouterr().err
    (tmp_path / "retinanet-pvt-smal.json").write_text("{}")
    assert make_cards("--output_dir", tmp_path) == 1
    assert "retinanet-pvt-smal: there are no such checkpoints" in capsys.readouterr().err


def test_an_evaluation_of_ours_goes_into_the_card(make_cards, monkeypatch, tmp_path, capsys):
    few = {name: PUBLISHED[name] for name in ("retinanet-pvt-small", "detr-pvt-small")}  # counting costs takes long
    monkeypatch.setattr("make_model_cards.PUBLISHED", few)
    figures = {"ap": 0.40123, "ap50": 0.5, "ap75": 0.25, "ap_small": None, "ap_medium": 0.125, "ap_large": 0.75}
    evaluation = {
        "settings": {"dataset": "./coco", "split": "validation"}, "results": figures | {"eval_samples": 5000},
        "model_class": "RetinaNetForObjectDetection", "weights": "0", "device": "some device",
    }  # fmt: skip
    (tmp_path / "retinanet-pvt-small.json").write_text(json.dumps(evaluation))
    assert make_cards("--output_dir", tmp_path) == 0
    card = ModelCard.load(tmp_path / "retinanet-pvt-small.md")
    assert [one.metric_value for one in card.data.eval_results] == [40.12, 50.0, 25.0, 12.5, 75.0]
    assert {one.source_name for one in card.data.eval_results} == {"evaluation with pvt_hf"}
    *papers, ours = table_rows(section(str(card), "Evaluation"))
    assert ours["setting"] == "on some device" and ours["Box AP (%)"] == "40.12" and ours["Box AP small (%)"] == ""
    assert papers[0]["Box AP (%)"] == "40.4" and "was measured by us" not in str(card)
    (tmp_path / "detr-pvt-small.json").write_text(json.dumps(evaluation))
    assert make_cards("--output_dir", tmp_path) == 1
    error = capsys.readouterr().err
    assert "detr-pvt-small: evaluation is of a RetinaNetForObjectDetection" in error
