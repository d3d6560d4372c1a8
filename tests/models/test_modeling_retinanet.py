"""
RetinaNet keeps the contract of heads, and computes what its paper describes: convolutions against torchvision's
RetinaNet, losses and candidates against a computation by hand. Anchors and their assignment are tested in
test_modeling_anchors.py, parameters and GFLOPs of the paper in tests/hub/test_published_costs.py.

    python -m pytest tests/models/test_modeling_retinanet.py
"""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.resnet import resnet50
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from transformers import TimmBackboneConfig

from pvt_hf import RetinaNetConfig, RetinaNetForObjectDetection
from pvt_hf.models.modeling_anchors import NEGATIVE

from ..support.common import random_images, randomize
from ..support.head_contract import DetectorContract
from ..support.heads import no_objects, random_objects, tiny_head, tiny_head_config
from ..support.references import assign_boxes


STAGES = ["stage2", "stage3", "stage4"]


class TestRetinaNet(DetectorContract):
    family = "retinanet"
    refused_stages = [["stage4"], ["stage1", *STAGES]]
    export_minimum = 160  # the coarsest level, of stride 128

    @property
    def compile_overrides(self):
        return {**super().compile_overrides, "num_head_convs": 1}

    def output_tensors(self, outputs):
        return [outputs.logits, outputs.pred_boxes]

    def test_half_precision(self):
        """Boxes are decoded in fp32."""
        images = random_images(2, 64, 64)
        expected = self.run_model(self.make_model(), images)
        for dtype in (torch.bfloat16, torch.float16):
            logits, boxes = self.run_model(self.make_model().to(dtype), images)
            assert logits.dtype == dtype and boxes.dtype == torch.float32
            # bf16 keeps 8 bits: a few percent of the output's own scale after some ten layers
            for one, other in zip((logits, boxes), expected):
                assert (one.float() - other).abs().max() < 0.06 * other.abs().max()


# Convolutions, against torchvision


def test_neck_and_heads_compute_what_torchvisions_do():
    """
    The same ResNet50 and weights. torchvision's last level has an activation before its convolution: the paper's does
    not, so that level is compared with the activation taken out.
    """
    torch.manual_seed(0)
    body = _resnet_fpn_extractor(
        resnet50(), trainable_layers=5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(2048, 256)
    )
    anchors = AnchorGenerator(tuple((x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)) for x in (32, 64, 128, 256, 512)),
                              ((0.5, 1.0, 2.0),) * 5)  # fmt: skip
    theirs = randomize(RetinaNet(body, num_classes=80, anchor_generator=anchors)).eval()
    ours = RetinaNetForObjectDetection(
        RetinaNetConfig(backbone_config=TimmBackboneConfig(backbone="resnet50", out_indices=[2, 3, 4]))
    ).eval()
    loaded = ours.backbone._backbone.load_state_dict(body.body.state_dict(), strict=False)
    assert not loaded.missing_keys and not loaded.unexpected_keys
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in (
            ("backbone.fpn.inner_blocks.{}.0", "neck.pyramid.lateral_convs.{}"),
            ("backbone.fpn.layer_blocks.{}.0", "neck.pyramid.output_convs.{}"),
            ("head.classification_head.conv.{}.0", "head.class_convs.{}"),
            ("head.regression_head.conv.{}.0", "head.box_convs.{}"),
        ):
            for index in range(4):
                if name.startswith(old.format(index) + "."):
                    renamed[name.replace(old.format(index), new.format(index))] = tensor
    for old, new in (
        ("backbone.fpn.extra_blocks.p6", "neck.extra_convs.0"),
        ("backbone.fpn.extra_blocks.p7", "neck.extra_convs.1"),
        ("head.classification_head.cls_logits", "head.classifier"),
        ("head.regression_head.bbox_reg", "head.box_regressor"),
    ):
        renamed |= {f"{new}.{part}": theirs.state_dict()[f"{old}.{part}"] for part in ("weight", "bias")}
    loaded = ours.load_state_dict(renamed, strict=False)
    assert not loaded.unexpected_keys and all(name.startswith("backbone.") for name in loaded.missing_keys)

    images = random_images(1, 160, 224)
    with torch.no_grad():
        their_maps = list(theirs.backbone(images).values())
        their_maps[4] = theirs.backbone.fpn.extra_blocks.p7(their_maps[3])
        their_outputs = theirs.head(their_maps)
        our_maps = ours.neck(ours.backbone(images).feature_maps)
        our_outputs = [torch.cat(level, dim=1) for level in zip(*(ours.head(feature_map) for feature_map in our_maps))]
    for one, other in zip(our_maps, their_maps):
        # fp32 sums of up to 2048 * 9 products, in another order
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
    for one, key in zip(our_outputs, ("cls_logits", "bbox_regression")):
        other = their_outputs[key]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


# Losses and candidates, by hand


def test_losses_one_anchor_at_a_time():
    model = tiny_head("retinanet")
    labels = random_objects(2, 64, 96, seed=3) + [no_objects()]
    generator = torch.Generator().manual_seed(0)
    anchors = torch.tensor([[x, y, x + s, y + s * r] for x in (0, 20, 40, 70) for y in (0, 10, 30)
                            for s in (10, 24) for r in (0.7, 1.5)], dtype=torch.float64)  # fmt: skip
    # around the objects too, so that there are positives of every kind
    for label in labels:
        boxes = label["boxes"].double() * torch.tensor([96, 64, 96, 64])
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
        anchors = torch.cat([anchors, corners + 2, corners * 1.1])
    count = len(anchors)
    logits = torch.randn(3, count, 6, generator=generator)
    codes = torch.randn(3, count, 4, generator=generator)
    inside = torch.rand(3, count, generator=generator) < 0.8
    actual = model.losses(logits, codes, anchors.float(), inside, labels, torch.tensor([[64, 96]] * 3))

    focal = distance = total = 0.0
    for image in range(3):
        boxes = labels[image]["boxes"].double().tolist()
        objects = [[(x - w / 2) * 96, (y - h / 2) * 64, (x + w / 2) * 96, (y + h / 2) * 64] for x, y, w, h in boxes]
        assigned = assign_boxes(anchors.tolist(), objects, 0.5, 0.4, 0.0)
        positives = 0
        for index, of_object in enumerate(assigned):
            if not inside[image, index]:
                continue
            if of_object >= 0:
                positives += 1
                x0, y0, x1, y1 = anchors[index].tolist()
                u0, v0, u1, v1 = objects[of_object]
                code = [
                    ((u0 + u1) - (x0 + x1)) / 2 / (x1 - x0), ((v0 + v1) - (y0 + y1)) / 2 / (y1 - y0),
                    math.log((u1 - u0) / (x1 - x0)), math.log((v1 - v0) / (y1 - y0)),
                ]  # fmt: skip
                distance += sum(abs(a - b) for a, b in zip(codes[image, index].tolist(), code))
            if of_object >= NEGATIVE:
                for name in range(6):
                    score = 1 / (1 + math.exp(-logits[image, index, name].item()))
                    if of_object >= 0 and labels[image]["class_labels"][of_object] == name:
                        focal -= 0.25 * (1 - score) ** 2 * math.log(score)
                    else:
                        focal -= 0.75 * score**2 * math.log(1 - score)
        total += max(positives, 1)
    assert total > 4  # an image without positives counts as one
    # fp32 sums of some hundred terms, against double precision
    assert actual["loss_classification"].item() == pytest.approx(focal / total, rel=1e-4)
    assert actual["loss_box"].item() == pytest.approx(distance / total, rel=1e-4)


def test_candidates_are_the_best_anchors_of_each_level():
    model, images = tiny_head("retinanet"), random_images(2, 96, 128)
    with torch.no_grad():
        model.config.num_candidates = 10_000
        whole = model(images)
        model.config.num_candidates = 40
        few = model(images)
    counts = [12 * 16 * 9, 6 * 8 * 9, 3 * 4 * 9, 2 * 2 * 9, 9]
    assert whole.logits.shape[1] == sum(counts) and few.logits.shape[1] == 40 * 3 + 36 + 9
    for image in range(2):
        expected = []
        for level in whole.logits[image].split(counts):
            scores = level.max(dim=1).values
            best = sorted(range(len(level)), key=lambda index: -scores[index])[:40]
            expected.append(torch.tensor(sorted(best)) + sum(counts[: len(expected)]))
        expected = torch.cat(expected)
        assert torch.equal(few.logits[image], whole.logits[image][expected])
        assert torch.equal(few.pred_boxes[image], whole.pred_boxes[image][expected])


def test_anchors_in_padding_are_no_candidates():
    model, images = tiny_head("retinanet"), random_images(2, 128, 128)
    mask = torch.zeros(2, 128, 128, dtype=torch.long)
    mask[0, :40, :64], mask[1] = 1, 1
    with torch.no_grad():
        model.config.num_candidates = 10_000
        outputs = model(images, pixel_mask=mask)
        alone = model(images).logits
    padded = (outputs.logits[0] == torch.finfo(torch.float32).min).all(dim=1)
    # 64x64 of 128x128 are image, 40x64 padded to a multiple of 32: a quarter of the cells, in each level of 16 to 2
    inside = (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1) * 9
    assert (~padded).sum() == inside
    same = (outputs.logits[0][~padded][:, None] == alone[0]).all(dim=-1)  # (kept, all candidates)
    assert same.any(dim=1).all() and torch.equal(outputs.logits[1], alone[1])
    boxes = outputs.pred_boxes
    assert boxes.min() >= 0 and boxes.max() <= 1


def test_boxes_are_relative_to_the_image_without_padding():
    model = tiny_head("retinanet")
    with torch.no_grad():
        maps = model.neck(model.backbone(random_images(1, 128, 128)).feature_maps)
        outputs = (*zip(*(model.head(feature_map) for feature_map in maps)), model.anchors(maps))
        everywhere = torch.ones(1, sum(map(len, outputs[2])), dtype=torch.bool)
        whole, part = (
            model.candidates(*outputs, everywhere, torch.tensor([size]))[1][0] for size in ([128, 128], [64, 96])
        )
    corners = torch.cat([whole[:, :2] - whole[:, 2:] / 2, whole[:, :2] + whole[:, 2:] / 2], dim=1) * 128
    limits = torch.tensor([96.0, 64, 96, 64])
    corners = torch.minimum(corners, limits) / limits
    expected = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


def test_the_first_scores_are_the_prior():
    torch.manual_seed(0)
    model = RetinaNetForObjectDetection(tiny_head_config("retinanet")).eval()
    with torch.no_grad():
        scores = model(random_images(1, 64, 64)).logits.sigmoid()
    assert abs(scores.mean() - 0.01) < 0.001
    assert abs(model.head.class_convs[0].weight.std() - 0.01) < 0.001 and not model.head.box_regressor.bias.any()


# Configuration


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"fpn_channels": 0}, ["fpn_channels", "0"]),
        ({"num_labels": 0}, ["num_labels", "0"]),
        ({"num_head_convs": -1}, ["num_head_convs", "-1"]),
        ({"anchor_scale": 0}, ["anchor_scale", "0"]),
        ({"anchor_ratios": []}, ["anchor_ratios"]),
        ({"negative_iou": 0.6}, ["negative_iou", "0.6", "0.5"]),
        ({"prior_probability": 1.0}, ["prior_probability", "1.0"]),
    ],
)
def test_configurations_that_cannot_work(overrides, words):
    with pytest.raises(ValueError) as error:
        RetinaNetConfig(**overrides)
    for word in words:
        assert word in str(error.value)
