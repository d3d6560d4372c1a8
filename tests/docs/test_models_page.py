"""
The tables of docs/models.md have a row for each published result, with the figures of `pvt_hf/hub/published.py` and
`pvt_hf/weights/variants.py`, and the parameters that our classes have.

    python -m pytest tests/docs/test_models_page.py
    python -m tests.docs.test_models_page               # prints the tables, to be pasted into the page
"""

import json
import re
import statistics

import torch

from pvt_hf.families import MODELS, load
from pvt_hf.hub.card_figures import METRICS
from pvt_hf.hub.published import ADE20K, COCO, IMAGENET, PAPER_URL, PUBLISHED, DataSet, PublishedModel
from pvt_hf.weights.variants import VARIANTS, Variant, get_config

from ..support.pages import DOCS


CLASSES = {IMAGENET: 1000, COCO: 80, ADE20K: 150}
COLUMNS = (
    "| model | parameters: published | counted | multiply-adds | ms | result, % | setting | source |\n"
    "|---|---|---|---|---|---|---|---|"
)
# The figures of a result that a row shows
SHOWN = ("accuracy@1", "mean_iou", "ap", "mask_ap")
LATENCY = json.loads((DOCS / "latency.json").read_text())
# Table 9 has no card, because there are no weights
WIDE = VARIANTS["pvt-small-wide"]


def count_parameters(model_class: str, variant: str, num_labels: int) -> float:
    """Millions of parameters of a model of this package. No memory is used for the weights."""
    family, model = MODELS[model_class]
    config = get_config(variant, num_labels=num_labels)
    if family.stages:
        backbone = get_config(variant, out_features=list(family.stages))
        config = load(family.config)(backbone_config=backbone, num_labels=num_labels)
    with torch.device("meta"):
        return load(model.path)(config).num_parameters() / 1e6


def milliseconds(title: str) -> str:
    """The median of what `pvt-hf info --time` measured in three processes."""
    return f"{statistics.median(LATENCY['milliseconds'][title]):,}"


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def model_rows(model: PublishedModel) -> list[str]:
    """A row for each published result. Only the first one repeats what the model is."""
    counted = count_parameters(model.model_class, model.variant, CLASSES[model.data])
    cells = [model.title, model.params_m or "–", f"{counted:.2f}", model.gflops or "–", milliseconds(model.title)]
    rows = []
    for results in model.results:
        names = {key: METRICS[key].name.removesuffix(" (%)").removesuffix(" accuracy") for key in SHOWN}
        figures = ", ".join(f"{name} {results.figures[key]}" for key, name in names.items() if key in results.figures)
        rows.append(line(*cells, figures, results.setting, results.source.name.removeprefix("PVT paper, ")))
        cells = [""] * len(cells)
    return rows


def wide_row(variant: Variant) -> str:
    counted = count_parameters("PvtForImageClassification", variant.name, CLASSES[IMAGENET])
    result = f"Top-1 {round(100 - variant.paper_top1_error, 1)}"
    return line(
        "PVT-Small-Wide", variant.paper_params_m, f"{counted:.2f}", variant.paper_gflops or "–",
        milliseconds("PVT-Small-Wide"), result, "224x224 centre crop of 256", "Table 9",
    )  # fmt: skip


def table(data: DataSet) -> str:
    rows = [row for model in PUBLISHED.values() if model.data == data for row in model_rows(model)]
    return "\n".join((COLUMNS, *rows, *([wide_row(WIDE)] if data == IMAGENET else [])))


def test_the_tables_are_complete():
    page = (DOCS / "models.md").read_text().partition("\n## Table of models\n")[2]
    for data in CLASSES:
        assert f"\n### {data.name}\n\n{table(data)}\n" in page, f"docs/models.md should have:\n{table(data)}"
    rows = re.findall(r"^\|(?!---| model )", page, re.MULTILINE)
    assert len(rows) == sum(table(data).count("\n") - 1 for data in CLASSES)  # and no others
    assert PAPER_URL in page and LATENCY["machine"] in page.replace("\n", " ")


if __name__ == "__main__":
    print("\n\n".join(f"### {data.name}\n\n{table(data)}" for data in CLASSES))
