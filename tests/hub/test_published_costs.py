"""
Every parameter count and every GFLOP figure that the paper prints, typed here once more, is compared with a count of
the model; where ours is another one, the explanation holds.

    python -m pytest tests/hub/test_published_costs.py
"""

import pytest
from torch import nn
from transformers import ResNetConfig

from pvt_hf.hub import published_costs as published
from pvt_hf.hub.published import PUBLISHED
from pvt_hf.hub.published_costs import count_row, published_costs
from pvt_hf.metrics.costs import as_printed, build_on_meta, count_costs, count_parameters


# PAPER_FACTS sections 3 to 6. A column is a table: parameters in millions, and GFLOPs after a slash.
TABLE_2 = """
ResNet18 11.7/1.8, DeiT-Tiny/16 5.7/1.3, PVT-Tiny 13.2/1.9, ResNet50 25.6/4.1, ResNeXt50-32x4d 25.0/4.3,
T2T-ViT_t-14 22.0/6.1, TNT-S 23.8/5.2, DeiT-Small/16 22.1/4.6, PVT-Small 24.5/3.8, ResNet101 44.7/7.9,
ResNeXt101-32x4d 44.2/8.0, T2T-ViT_t-19 39.0/9.8, ViT-Small/16 48.8/9.9, PVT-Medium 44.2/6.7,
ResNeXt101-64x4d 83.5/15.6, ViT-Base/16 86.6/17.6, T2T-ViT_t-24 64.0/15.0, TNT-B 66.0/14.1, DeiT-Base/16 86.6/17.6,
PVT-Large 61.4/9.8
"""
TABLES_3_TO_5 = """
ResNet18 21.3 31.2 15.5/32.2, PVT-Tiny 23.0 32.9 17.0/33.2, ResNet50 37.7 44.2 28.5/45.6,
PVT-Small 34.2 44.1 28.2/44.5, ResNet101 56.7 63.2 47.5/65.1, ResNeXt101-32x4d 56.4 62.8 47.1/64.7,
PVT-Medium 53.9 63.9 48.0/61.0, ResNeXt101-64x4d 95.5 101.9 86.4/103.9, PVT-Large 71.1 81.0 65.1/79.6
"""
OTHERS = {
    (6, "ResNet50"): ("", ""), (6, "PVT-Small"): ("", ""),
    (7, "ResNet50-d8 + DeepLabV3+"): ("26.8", "120.5"), (7, "ResNet50-d16 + DeepLabV3+"): ("26.8", "45.5"),
    (7, "ResNet50-d16 + Trans2Seg"): ("56.1", "79.3"), (7, "PVT-Small + Trans2Seg"): ("32.1", "31.6"),
    (8, "ViT-Small/4"): ("60.9", ""), (8, "ViT-Small/32"): ("60.8", ""), (8, "PVT-Small"): ("34.2", ""),
    (9, "Wider PVT-Small"): ("46.8", ""), (9, "Deeper PVT-Small"): ("44.2", ""),
    (10, "ResNet50 + GC r4"): ("54.2", "279.6"), (10, "PVT-Small"): ("44.1", "304.4"),
    (11, "ResNet50, 800"): ("", "239.3"), (11, "PVT-Small, 640"): ("", "157.2"), (11, "PVT-Small, 800"): ("", "285.8"),
}  # fmt: skip
# Where ours differs: parameters and GFLOPs
DIFFERENT = {
    (2, "T2T-ViT_t-14"): ("21.5", "6.1"),
    (2, "ResNet101"): ("44.6", "7.9"),
    (2, "T2T-ViT_t-19"): ("39.1", "9.8"),
    (2, "TNT-B"): ("65.4", "14.1"),
    (5, "ResNet101"): ("47.5", "65.0"),
    (7, "ResNet50-d8 + DeepLabV3+"): ("26.9", "120.4"),
    (7, "ResNet50-d16 + DeepLabV3+"): ("26.9", "45.4"),
    (7, "ResNet50-d16 + Trans2Seg"): ("31.5", "53.5"),
    (7, "PVT-Small + Trans2Seg"): ("31.4", "30.1"),
    (10, "ResNet50 + GC r4"): ("54.2", "260.3"),
}


def printed() -> dict[tuple[int, str], tuple[str, str]]:
    """(parameters, GFLOPs) by table and row, "" where the paper gives none."""
    found = dict(OTHERS)
    for table, text in ((2, TABLE_2), (3, TABLES_3_TO_5)):
        for row in text.replace("\n", " ").split(","):
            model, *columns = row.split()
            for number, column in enumerate(columns, table):
                params_m, _, gflops = column.partition("/")
                found[number, model] = (params_m, gflops)
    return found


PRINTED = printed()
ROWS = {(row.table, row.model): row for row in published_costs()}


def test_the_rows_are_the_papers():
    assert {key: (row.params_m, row.gflops) for key, row in ROWS.items()} == PRINTED
    assert len(ROWS) == len(published_costs()) == 63
    assert {key for key, row in ROWS.items() if row.explanation} == set(DIFFERENT)


@pytest.mark.parametrize("key", [key for key in ROWS if any(PRINTED[key])], ids=str)
def test_every_figure_of_the_paper(key):
    params_m, gflops = PRINTED[key]
    expected = DIFFERENT.get(key, (params_m, gflops))
    if gflops:
        counted = count_row(ROWS[key])
        assert (counted.params_m if params_m else "", counted.gflops) == expected
        assert counted.differs == (key in DIFFERENT)
    else:  # half the time
        model = build_on_meta(ROWS[key].build)
        assert as_printed(count_parameters(model) - published.count_frozen(ROWS[key], model)) == params_m


# The explanations of the differences


def test_resnet101_in_table_2_has_the_statistics_of_batch_norm():
    model = build_on_meta(ROWS[2, "ResNet101"].build)
    statistics = sum(buffer.numel() for buffer in model.buffers() if buffer.ndim)
    assert as_printed(count_parameters(model) + statistics) == "44.7"


@pytest.mark.parametrize(("key", "gflops"), [("ResNet50-d8", "120.6"), ("ResNet50-d16", "45.5")])
def test_deeplab_in_table_7(key, gflops):
    row = ROWS[7, f"{key} + DeepLabV3+"]
    model = build_on_meta(row.build)
    norms = sum(count_parameters(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert as_printed(count_parameters(model) - norms) == "26.8" and "26.8 M" in row.explanation
    assert as_printed(count_costs(model, *row.size, batch_norm=1).multiply_adds) == gflops
    assert f"{gflops} GFLOPs" in row.explanation


@pytest.mark.parametrize(("model", "cells"), [("PVT-Small", 16 * 16), ("ResNet50-d16", 32 * 32)])
def test_trans2seg_in_table_7_with_the_mlps_that_we_leave_out(model, cells):
    """One per decoder block, over the positions of the score maps of 150 classes and 8 heads, with a norm."""
    row = ROWS[7, f"{model} + Trans2Seg"]
    costs, hidden = count_row(row).costs, 3 * cells
    parameters = costs.parameters + 4 * (2 * cells + (cells + 1) * hidden + (hidden + 1) * cells)
    products = costs.multiply_adds + 4 * 2 * cells * hidden * 150 * 8
    assert f"{parameters / 1e6:.1f} M and {products / 1e9:.1f} GFLOPs" in row.explanation


def test_what_global_context_blocks_cost_in_table_10():
    with_blocks, without = count_row(ROWS[10, "ResNet50 + GC r4"]), count_row(ROWS[4, "ResNet50"])
    assert as_printed(1e9 + with_blocks.costs.multiply_adds - without.costs.multiply_adds) == "1.1"
    assert "cost 0.1 of our GFLOPs" in with_blocks.published.explanation


# The same count from other places


@pytest.mark.parametrize(("table", "head"), [(3, "retinanet"), (4, "mask_rcnn")])
def test_detectors_on_the_resnet_of_transformers(table, head):
    stages = list(published.FAMILIES[head].stages)
    model = build_on_meta(lambda: published._head(head, ResNetConfig(out_features=stages)))
    frozen = published.count_frozen(ROWS[table, "ResNet50"], model)
    assert as_printed(count_parameters(model) - frozen) == PRINTED[table, "ResNet50"][0]


@pytest.mark.parametrize(
    ("config", "paper"),
    [
        (dict(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"), "ResNet18"),
        (dict(depths=[3, 4, 6, 3]), "ResNet50"),
        (dict(depths=[3, 4, 23, 3]), "ResNet101"),
    ],
)
def test_segmentation_on_the_resnets_of_transformers(config, paper):
    """Their stem is one 7x7 convolution: 9,408 parameters, the three convolutions of the paper's have 28,640."""
    config = ResNetConfig(**config, out_features=["stage1", "stage2", "stage3", "stage4"])
    parameters = count_parameters(build_on_meta(lambda: published._head("semantic_fpn", config)))
    assert as_printed(parameters + 28_640 - 9_408) == PRINTED[5, paper][0]


def test_model_cards_have_these_figures():
    for name, model in PUBLISHED.items():
        table = {"semantic": 5, "trans2seg": 7, "retinanet": 3, "mask": 4, "detr": 6}.get(name.split("-")[0], 2)
        row = f"PVT-{model.variant.removeprefix('pvt-').capitalize()}" + (" + Trans2Seg" if table == 7 else "")
        assert model.params_m == PRINTED[table, row][0]
        if table in (2, 5, 7):
            assert model.gflops.startswith(f"{PRINTED[table, row][1]} (")
