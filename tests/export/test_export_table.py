"""
Every class exports to ONNX with open sizes, agrees with its model at sizes that the export itself did not compare, and
stands in the table of docs/deployment.md.

    pytest tests/export/test_export_table.py
"""

import re

import pytest

from pvt_hf.export.comparison import compare
from pvt_hf.export.source import open_source
from pvt_hf.families import MODELS
from pvt_hf.weights.export_formats import EXPORT_FORMATS
from pvt_hf.weights.exported import open_exported

from ..support.export_table import opened_as
from ..support.exports import export, save_model
from ..support.pages import DOCS


BUILT_FOR = 96  # pixels, square
SHAPES = [(1, 67, 79), (3, 151, 90), (5, 73, 133)]  # (batch, height, width): below, above, and one side of each


def table() -> dict[str, dict[str, str]]:
    """The cells of the table "Which class exports to what", by class and format."""
    text = (DOCS / "deployment.md").read_text().partition("### Which class exports to what\n")[2]
    lines = [line for line in text.partition("\n### ")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    heading, _, *others = rows[: 2 + len(MODELS)]
    return {name: dict(zip(heading[1:], cells, strict=True)) for name, *cells in others}


def test_the_table_says_what_each_class_exports_to():
    assert list(table()) == list(MODELS)
    for name, cells in table().items():
        assert list(cells) == list(EXPORT_FORMATS), name
        for kind, cell in cells.items():
            assert re.fullmatch(r"(any|one) size, (0|\de-\d\d)|no: [\w' -]+", cell), (name, kind, cell)
            assert EXPORT_FORMATS[kind].dynamic or not cell.startswith("any size"), (name, kind, cell)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", MODELS)
def test_onnx_at_sizes_that_the_export_did_not_compare(model_class, tmp_path):
    family = MODELS[model_class][0].name
    model = save_model(family, tmp_path / "model", image_size=BUILT_FOR)
    report = export(model, tmp_path / "export", model_class=opened_as(model_class))
    assert report["model_class"] == model_class and report["fixed_size"] is None
    assert table()[model_class]["onnx"].startswith("any size")
    compared = [(one["batch"], one["height"], one["width"]) for one in report["comparison"]]
    assert not set(compared) & set(SHAPES)
    opened = open_source(str(model), opened_as(model_class)).model
    for one in compare(opened, open_exported(tmp_path / "export"), SHAPES):
        # fp32 sums in another order give 1e-6 to 1e-5
        assert one.difference < 1e-4 and one.agrees(), one
