"""
DETR on PVT keeps the contract of heads and is Transformers' DETR: names, numbers and outputs are those of
`DetrForObjectDetection` on the same backbone and weights. What is ours, initialisation, losses on several processes and
checks of labels, is tested here.

    python -m pytest tests/models/test_modeling_pvt_detr.py
"""

import inspect
import json
import math

import pytest
import torch
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from pvt_hf import PvtDetrConfig, PvtDetrForObjectDetection
from pvt_hf.weights.variants import get_config

from ..support.common import random_images, tiny_pvt_config
from ..support.detr_processes import batch_of_three
from ..support.head_contract import DetectorContract
from ..support.heads import BACKBONES, SMALL, boxes_only, random_objects, tiny_head, tiny_head_config
from ..support.warm_processes import run


class TestPvtDetr(DetectorContract):
    family = "detr"
    backbone_name = "model.backbone.model"
    refused_stages = []  # it reads the last of any feature maps
    least_progress = 1.0  # it hardly begins to learn in so few steps
    # Transformers' own: states, attentions and dispatch of encoder and decoder, and how they are split between devices
    test_hidden_states_and_attentions_are_the_backbones = test_hidden_states_by_index = None
    test_the_configuration_asks_for_hidden_states_and_attentions = None
    test_attentions_are_true_maps_under_every_implementation = None
    test_every_attention_implementation_is_dispatched = None
    test_no_layer_is_split_between_devices = test_offloaded_model_computes_the_same = None
    test_bad_pixel_values = None  # it unpacks their shape itself; then the backbone raises what it always does
    test_compiled_training_step = None  # its encoder asks in training whether a value is infinite
    test_initialisation_statistics = None  # the original code's, below

    @property
    def compile_overrides(self):
        return {**super().compile_overrides, "encoder_layers": 1, "decoder_layers": 1}

    def output_tensors(self, outputs):
        return [outputs.logits, outputs.pred_boxes]

    def test_half_precision(self):
        """Images must have the model's precision."""
        images = random_images(2, 64, 64)
        expected = self.run_model(self.make_model(), images)
        for dtype in (torch.bfloat16, torch.float16):
            for one, other in zip(self.run_model(self.make_model().to(dtype), images.to(dtype)), expected):
                # bf16 keeps 8 bits: a few percent of the output's own scale after some twenty layers
                assert one.dtype == dtype and (one.float() - other).abs().max() < 0.06 * other.abs().max()


def test_names_numbers_and_outputs_are_transformers_own():
    ours = tiny_head("detr")
    theirs = DetrForObjectDetection(
        DetrConfig(
            backbone_config=tiny_pvt_config(out_features=["stage4"]), auxiliary_loss=True, num_labels=6, **SMALL["detr"]
        )
    ).eval()
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]
    theirs.load_state_dict(ours.state_dict())
    images, labels = random_images(2, 96, 128), boxes_only(random_objects(2, 96, 128))
    mask = torch.ones(2, 96, 128, dtype=torch.long)
    mask[0, 70:] = 0
    with torch.no_grad():
        one, other = (model(images, pixel_mask=mask, labels=labels) for model in (ours, theirs))
    for key in ("loss", "logits", "pred_boxes"):
        assert torch.equal(one[key], other[key])
    assert one.loss_dict.keys() == other.loss_dict.keys() and "loss_giou_0" in one.loss_dict


def test_losses_of_processes_are_those_of_the_whole_batch(tmp_path):
    """Averaged over processes, as gradients are, box losses equal those of one process with all images."""
    run(["-m", "tests.support.detr_processes", tmp_path], processes=2)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    model, (images, labels) = tiny_head("detr"), batch_of_three()
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
    """Without backbones, as many as Transformers' DETR. The paper gives no number."""
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
    model = PvtDetrForObjectDetection(tiny_head_config("detr", d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128))
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


def test_weights_that_a_checkpoint_lacks_start_as_in_a_new_model(tmp_path):
    """Other queries and classes than those saved: the new ones have the original code's spread, the rest is loaded."""
    model = tiny_head("detr", num_queries=20)
    model.save_pretrained(tmp_path)
    changed = {"num_queries": 50, "num_labels": 30, "ignore_mismatched_sizes": True}
    opened, info = PvtDetrForObjectDetection.from_pretrained(tmp_path, **changed, output_loading_info=True)
    new = {"model.query_position_embeddings.weight", "class_labels_classifier.weight", "class_labels_classifier.bias"}
    assert {name for name, *_ in info["mismatched_keys"]} == new
    queries, classifier = opened.model.query_position_embeddings.weight, opened.class_labels_classifier
    assert queries.shape == (50, 32) and 0.9 < queries.std() < 1.1  # 1600 draws: 1.8 % of spread
    bound = 32**-0.5  # uniform up to it
    assert 0.9 * bound < classifier.weight.abs().max() <= bound and 0 < classifier.bias.abs().max() <= bound
    for name, tensor in opened.state_dict().items():
        assert name in new or torch.equal(tensor, model.state_dict()[name]), name


def test_arguments_are_in_the_order_of_transformers():
    ours = inspect.signature(PvtDetrForObjectDetection.forward).parameters
    assert list(ours) == list(inspect.signature(DetrForObjectDetection.forward).parameters)
    model, images, labels = tiny_head("detr"), random_images(2, 64, 64), boxes_only(random_objects(2, 64, 64))
    mask, queries = torch.ones(2, 64, 64, dtype=torch.long), torch.randn(2, 12, 32)
    with torch.no_grad():
        named = model(images, pixel_mask=mask, decoder_inputs_embeds=queries, labels=labels)
        placed = model(images, mask, None, None, None, queries, labels)
        default = model(images, mask, labels=labels)
    assert torch.equal(named.loss, placed.loss) and torch.equal(named.logits, placed.logits)
    assert not torch.equal(named.logits, default.logits)


def test_resnet_as_in_the_baseline_of_the_paper():
    """Transformers' DETR freezes it."""
    model = tiny_head("detr", backbone_config=BACKBONES["resnet"](["stage4"])).train()
    model(random_images(2, 64, 64), labels=boxes_only(random_objects(2, 64, 64))).loss.backward()
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen and all(name.startswith("model.backbone.model.") for name in frozen)


def test_labels_and_masks_that_cannot_be():
    model = tiny_head("detr")
    with pytest.raises(ValueError, match="a single image needs a batch of one"):
        model(random_images(1, 64, 64)[0])
    one_pixel = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 1 / 64, 1 / 64]])}
    for label in (7, -1):  # the contract tries 6, which is "no object"
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
