"""
DETR on PVT is Transformers' DETR: names, numbers and outputs are those of `DetrForObjectDetection` on the same backbone
and weights. What is ours, initialisation, configuration and travel, is tested here and in test_detection_pipelines.py.

    python -m pytest tests/models/test_modeling_pvt_detr.py
"""

import json
import math

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForObjectDetection, DetrConfig, DetrForObjectDetection, ResNetConfig

from pvt_hf import (
    PvtBackbone,
    PvtConfig,
    PvtDetrConfig,
    PvtDetrForObjectDetection,
    PvtForImageClassification,
    load_pretrained_backbone,
)
from pvt_hf.weights.variants import get_config

from ..support.common import random_images, randomize, tiny_pvt_config
from ..support.detection_cases import assert_extreme_boxes_train, boxes_only, empty_labels, random_labels
from ..support.warm_processes import run


SMALL = dict(
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=12, dropout=0.0, num_labels=6,
)  # fmt: skip


def tiny_detr_config(**overrides) -> PvtDetrConfig:
    return PvtDetrConfig(**{"backbone_config": tiny_pvt_config(out_features=["stage4"]), **SMALL, **overrides})


def make_model(**overrides) -> PvtDetrForObjectDetection:
    torch.manual_seed(0)
    return randomize(PvtDetrForObjectDetection(tiny_detr_config(**overrides))).eval()


def test_names_numbers_and_outputs_are_transformers_own():
    ours = make_model()
    theirs = DetrForObjectDetection(
        DetrConfig(backbone_config=tiny_pvt_config(out_features=["stage4"]), auxiliary_loss=True, **SMALL)
    ).eval()
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]
    theirs.load_state_dict(ours.state_dict())
    images, labels = random_images(2, 96, 128), boxes_only(random_labels(2, 96, 128))
    mask = torch.ones(2, 96, 128, dtype=torch.long)
    mask[0, 70:] = 0
    with torch.no_grad():
        one, other = (model(images, pixel_mask=mask, labels=labels) for model in (ours, theirs))
    for key in ("loss", "logits", "pred_boxes"):
        assert torch.equal(one[key], other[key])
    assert one.loss_dict.keys() == other.loss_dict.keys() and "loss_giou_0" in one.loss_dict


def test_losses_of_processes_are_those_of_the_whole_batch(tmp_path):
    """Gradients of processes are averaged: so averaged, box losses are those of one process that has all images."""
    from ..support.detr_processes import batch_of_three  # which imports this module

    run(["-m", "tests.support.detr_processes", tmp_path], processes=2)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    model, (images, labels) = make_model(), batch_of_three()
    for name, together in {"uneven": [0, 1], "few": [1, 2]}.items():
        with torch.no_grad():
            whole = model(images[together], labels=[labels[index] for index in together]).loss_dict
        for key in ("loss_bbox", "loss_giou", "loss_bbox_0", "loss_giou_0"):
            # sums of some ten fp32 terms in another order
            assert sum(rank[name][key] for rank in ranks) / 2 == pytest.approx(whole[key].item(), rel=1e-5)
        for rank in ranks:
            terms = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
            total = sum(weight * (rank[name][key] + rank[name][f"{key}_0"]) for key, weight in terms.items())
            assert rank[name]["loss"] == pytest.approx(total, rel=1e-5)


def test_parameters_of_the_paper_sized_model():
    """Transformers' own DETR has as many beside its backbone; the paper does not publish a number."""
    with torch.device("meta"):
        ours = PvtDetrForObjectDetection(
            PvtDetrConfig(backbone_config=get_config("pvt-small", out_features=["stage4"]))
        )
        theirs = DetrForObjectDetection(
            DetrConfig(backbone_config=ResNetConfig(out_features=["stage4"]), num_labels=80)
        )
    beside = [m.num_parameters() - m.model.backbone.model.num_parameters() for m in (ours, theirs)]
    # the projection of 512 channels instead of 2048
    assert beside[0] == beside[1] - (2048 - 512) * 256
    assert ours.config.num_queries == 100 and ours.class_labels_classifier.out_features == 81


def test_new_weights_are_those_of_the_original_code():
    torch.manual_seed(0)
    model = PvtDetrForObjectDetection(tiny_detr_config(d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128))
    linears = [
        module
        for part in (model.model.encoder, model.model.decoder)
        for module in part.modules()
        if isinstance(module, nn.Linear)
    ]
    assert len(linears) == 2 * 6 + 2 * 10
    for linear in linears:
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert 0.95 * bound < linear.weight.abs().max() <= bound and not linear.bias.any()
    # PyTorch's own: uniform up to 1 / sqrt(inputs), of weights and biases
    inputs = model.model.input_projection.in_channels
    heads = [model.class_labels_classifier, *model.bbox_predictor.layers]
    for module, fan_in in [(model.model.input_projection, inputs)] + [(head, head.in_features) for head in heads]:
        bound = fan_in**-0.5
        assert 0.9 * bound < module.weight.abs().max() <= bound and 0 < module.bias.abs().max() <= bound
    queries = model.model.query_position_embeddings.weight
    assert 0.9 < queries.std() < 1.1  # of some 800 draws, whose standard deviation strays by 2.5 %


def test_backbone_and_its_weights(tmp_path):
    model = make_model()
    backbone = model.model.backbone.model
    assert type(backbone) is PvtBackbone and backbone.out_features == ["stage4"]
    classifier = randomize(PvtForImageClassification(tiny_pvt_config(image_size=96)))
    classifier.save_pretrained(tmp_path)
    report = load_pretrained_backbone(model, tmp_path)
    assert not report.missing and report.loaded
    for key in report.loaded:
        assert torch.equal(backbone.state_dict()[key], classifier.state_dict()[f"pvt.{key}"])


def test_saving_and_loading(tmp_path):
    model, images = make_model(), random_images(1, 64, 96)
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is PvtDetrForObjectDetection and not any(map(len, info.values())), info
    assert type(reloaded.config) is PvtDetrConfig and type(reloaded.config.backbone_config) is PvtConfig
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(images).logits, model(images).logits)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.auxiliary_loss and again.num_labels == 6 and again.num_queries == 12


@pytest.mark.parametrize("height_width", [(33, 2000), (64, 64), (45, 101)])
def test_sizes(height_width):
    with torch.no_grad():
        outputs = make_model()(random_images(1, *height_width))
    assert outputs.logits.shape == (1, 12, 7) and torch.isfinite(outputs.pred_boxes).all()


def test_resnet_as_in_the_baseline_of_the_paper():
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    model = PvtDetrForObjectDetection(tiny_detr_config(backbone_config=backbone))
    model(random_images(2, 64, 64), labels=boxes_only(random_labels(2, 64, 64))).loss.backward()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen and all(name.startswith("model.backbone.model.") for name in frozen)


def test_every_parameter_has_a_gradient():
    for labels in (boxes_only(random_labels(2, 64, 64)), boxes_only([empty_labels(), empty_labels()])):
        model = make_model().train()
        loss = model(random_images(2, 64, 64), labels=labels).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_extreme_labels():
    """One-pixel and flat boxes, and more objects than queries; labels that would train something else are refused."""
    model = make_model()
    assert_extreme_boxes_train(model)
    one_pixel = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 1 / 64, 1 / 64]])}
    for label in (6, 7, -1):  # 6 is "no object"
        with pytest.raises(ValueError, match="num_labels 6"):
            model(random_images(1, 64, 64), labels=[{**one_pixel, "class_labels": torch.tensor([label])}])
    with pytest.raises(ValueError, match="of types list and list"):
        model(random_images(1, 64, 64), labels=[{"class_labels": [0], "boxes": [[0.5, 0.5, 0.1, 0.1]]}])
    with pytest.raises(ValueError, match="float32 class_labels"):
        model(random_images(1, 64, 64), labels=[{**one_pixel, "class_labels": torch.tensor([0.0])}])
    with pytest.raises(ValueError, match=r"such as \[0.5, 0.5, nan"):
        boxes = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, math.nan, 0.1]])
        model(random_images(1, 64, 64), labels=[{"class_labels": torch.tensor([0, 0]), "boxes": boxes}])
    for mask, words in ((torch.ones(1, 32, 64), "expected"), (torch.zeros(1, 64, 64), "all padding")):
        with pytest.raises(ValueError, match=f"pixel_mask .*{words}"):
            model(random_images(1, 64, 64), pixel_mask=mask.long())
    with pytest.raises(ValueError, match="from 0 to 1"):
        model(random_images(1, 64, 64), labels=[{**one_pixel, "boxes": torch.tensor([[32.0, 32, 10, 10]])}])
