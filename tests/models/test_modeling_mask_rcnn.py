"""
Mask R-CNN keeps the contract of heads, and computes what its paper describes: convolutions against torchvision's Mask
R-CNN, levels, targets and losses against a computation by hand. Anchors and their assignment are tested in
test_modeling_anchors.py, parameters and GFLOPs of the paper in tests/hub/test_published_costs.py.

    python -m pytest tests/models/test_modeling_mask_rcnn.py
"""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.mask_rcnn import MaskRCNN
from torchvision.models.resnet import resnet50
from torchvision.ops import box_iou
from transformers import TimmBackboneConfig

from pvt_hf import MaskRcnnConfig, MaskRcnnForInstanceSegmentation
from pvt_hf.models.modeling_mask_rcnn import RegionPooler, Regions, mask_targets

from ..support.common import random_images, randomize
from ..support.head_contract import DetectorContract
from ..support.heads import boxes_only, no_objects, random_objects, tiny_head


STAGES = ["stage1", "stage2", "stage3", "stage4"]
ALL_REGIONS = {"rpn_num_samples": 100_000, "box_num_samples": 100_000}


class TestMaskRcnn(DetectorContract):
    family = "mask_rcnn"
    # All anchors and regions count in the losses: the contract compares gradients of training steps.
    overrides = ALL_REGIONS
    training_overrides = {"num_train_candidates": 100, "num_proposals": 50, "box_num_samples": 32}
    refused_stages = [["stage4"], STAGES[1:]]
    # How many regions there are depends on the image: no graph of fixed shapes holds them.
    test_compiles_without_graph_breaks = test_compiled_training_step = None
    test_traced_program_at_other_sizes = None

    def output_tensors(self, outputs):
        return [outputs.pred_scores, outputs.pred_boxes, outputs.pred_masks]

    def test_initialisation_statistics(self):
        """As in mmdetection. The backbone has its own test."""
        torch.manual_seed(0)
        model = self.model_class(self.make_config(fpn_channels=64, box_head_size=128))
        bound = math.sqrt(6 / (64 * 49 + 128))
        for weight, deviation in (
            (model.box_head.fc1.weight, bound / math.sqrt(3)),
            (model.box_head.classifier.weight, 0.01),
            (model.box_head.box_regressor.weight, 0.001),
            (model.rpn.convolution.weight, 0.01),
            (model.rpn.classifier.weight, 0.01),
            (model.mask_head.convs[0].weight, math.sqrt(2 / (64 * 9))),
            (model.mask_head.classifier.weight, math.sqrt(2 / 6)),
        ):
            # the fewest samples are 192: within 4 / sqrt(2 * 192) = 20 %
            assert abs(weight.std() / deviation - 1) < 0.2
        heads = [model.neck, model.rpn, model.box_head, model.mask_head]
        assert not any(m.bias.any() for head in heads for m in head.modules() if getattr(m, "bias", None) is not None)

    def test_half_precision(self):
        """Detections are always fp32. Precision may change which ones are found; losses change little."""
        labels = random_objects(1, 64, 64)
        model = self.make_model()
        expected = model(random_images(1, 64, 64), labels=labels).loss
        for dtype in (torch.bfloat16, torch.float16):
            outputs = self.make_model().to(dtype)(random_images(1, 64, 64), labels=labels)
            assert {t.dtype for t in self.output_tensors(outputs)} == {torch.float32}
            # bf16 keeps 8 bits: some percent after the layers of backbone, neck and heads
            assert abs(outputs.loss / expected - 1) < 0.1

    def test_autocast(self):
        labels, model = random_objects(1, 64, 64), self.make_model()
        expected = model(random_images(1, 64, 64), labels=labels).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = model(random_images(1, 64, 64), labels=labels).loss
        assert actual.dtype == torch.float32 and abs(actual / expected - 1) < 0.1

    @pytest.mark.slow
    def test_compiles_with_graph_breaks(self):
        torch.compiler.reset()
        model, images = self.make_model(**self.compile_overrides), random_images(1, 64, 96)
        compiled = torch.compile(model, backend="eager")
        self.assert_same(self.run_model(compiled, images), self.run_model(model, images))

    def test_a_batch_without_objects_trains_every_parameter_without_masks_too(self):
        model = self.make_model().train()
        loss = model(random_images(2, 64, 64), labels=boxes_only([no_objects(), no_objects()])).loss
        loss.backward()
        assert torch.isfinite(loss) and all(parameter.grad is not None for parameter in model.parameters())


def model_of_all_regions(**overrides) -> MaskRcnnForInstanceSegmentation:
    return tiny_head("mask_rcnn", **{**ALL_REGIONS, **overrides})


# Convolutions and linear layers, against torchvision


def test_neck_and_heads_compute_what_torchvisions_do():
    """
    The same ResNet50 and weights. torchvision has the background first in the classifier of boxes, a box and a mask for
    it too, and ours has it last and none; it orders the box head's input alike.
    """
    torch.manual_seed(0)
    theirs = randomize(MaskRCNN(_resnet_fpn_extractor(resnet50(), trainable_layers=5), num_classes=7)).eval()
    ours = MaskRcnnForInstanceSegmentation(
        MaskRcnnConfig(num_labels=6, backbone_config=TimmBackboneConfig(backbone="resnet50", out_indices=[1, 2, 3, 4]))
    ).eval()
    loaded = ours.backbone._backbone.load_state_dict(theirs.backbone.body.state_dict(), strict=False)
    assert not loaded.missing_keys and not loaded.unexpected_keys
    pairs = [
        *((f"backbone.fpn.inner_blocks.{i}.0", f"neck.lateral_convs.{i}") for i in range(4)),
        *((f"backbone.fpn.layer_blocks.{i}.0", f"neck.output_convs.{i}") for i in range(4)),
        ("rpn.head.conv.0.0", "rpn.convolution"),
        ("rpn.head.cls_logits", "rpn.classifier"),
        ("rpn.head.bbox_pred", "rpn.box_regressor"),
        ("roi_heads.box_head.fc6", "box_head.fc1"),
        ("roi_heads.box_head.fc7", "box_head.fc2"),
        *((f"roi_heads.mask_head.{i}.0", f"mask_head.convs.{i}") for i in range(4)),
        ("roi_heads.mask_predictor.conv5_mask", "mask_head.upsample"),
    ]
    state, renamed = theirs.state_dict(), {}
    for old, new in pairs:
        renamed |= {f"{new}.{part}": state[f"{old}.{part}"] for part in ("weight", "bias")}
    for part in ("weight", "bias"):
        scores = state[f"roi_heads.box_predictor.cls_score.{part}"]
        renamed[f"box_head.classifier.{part}"] = torch.cat([scores[1:], scores[:1]])
        renamed[f"box_head.box_regressor.{part}"] = state[f"roi_heads.box_predictor.bbox_pred.{part}"][4:]
        renamed[f"mask_head.classifier.{part}"] = state[f"roi_heads.mask_predictor.mask_fcn_logits.{part}"][1:]
    loaded = ours.load_state_dict(renamed, strict=False)
    assert not loaded.unexpected_keys and all(name.startswith("backbone.") for name in loaded.missing_keys)

    images, regions = random_images(1, 128, 160), random_images(3, 7, 7, channels=256)
    with torch.no_grad():
        their_maps = list(theirs.backbone(images).values())
        our_maps = ours.neck(ours.backbone(images).feature_maps)
        our_maps.append(F.max_pool2d(our_maps[-1], kernel_size=1, stride=2))
        compared = list(zip(our_maps, their_maps, strict=True))
        their_logits, their_codes = theirs.rpn.head(their_maps)
        for our_map, logits, codes in zip(our_maps, their_logits, their_codes):
            hidden = F.relu(ours.rpn.convolution(our_map))
            compared += [(ours.rpn.classifier(hidden), logits), (ours.rpn.box_regressor(hidden), codes)]
        scores, codes = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(regions))
        our_scores, our_codes = ours.box_head(regions)
        compared += [(our_scores, scores.roll(-1, dims=1)), (our_codes.flatten(1), codes[:, 4:])]
        masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(regions))
        compared.append((ours.mask_head(regions), masks[:, 1:]))
    for one, other in compared:
        # fp32 sums of up to 12,544 products, in another order
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


# Regions


def test_levels_by_the_rule_of_the_paper():
    rois = torch.tensor(
        [[0.0, 10, 20, 10 + side, 20 + side * 2] for side in (1, 20, 60, 79, 80, 158, 159, 300, 320, 9000)]
    )
    expected = [
        min(max(math.floor(math.log2(math.sqrt(w * 2 * w) / 56 + 1e-6)), 0), 3)
        for w in (1, 20, 60, 79, 80, 158, 159, 300, 320, 9000)
    ]
    assert RegionPooler(56).levels(rois).tolist() == expected and set(expected) == {0, 1, 2, 3}
    assert RegionPooler(56).levels(torch.tensor([[0.0, 5, 5, 5, 9]])).tolist() == [0]  # no area


def bilinear(feature_map: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """(channels,) at a place in cells, centres at whole numbers; 0 beyond one cell outside, the edge before."""
    rows, columns = feature_map.shape[1:]
    if y < -1 or y > rows or x < -1 or x > columns:
        return torch.zeros(feature_map.shape[0])
    y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    v, u = y - top, x - left
    upper = feature_map[:, top, left] * (1 - u) + feature_map[:, top, right] * u
    lower = feature_map[:, bottom, left] * (1 - u) + feature_map[:, bottom, right] * u
    return upper * (1 - v) + lower * v


def test_regions_are_cut_out_sample_by_sample():
    """Aligned sampling: shifted by half a cell, with as many samples per bin as it spans cells, rounded up."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 256 // s, 256 // s, generator=generator) for s in (4, 8, 16, 32)]
    rois = torch.tensor([[0, 10.3, 20.1, 50.9, 44.0], [1, 3.0, 0, 200.5, 180], [1, 100, 100, 230, 250.0]])
    pooled = RegionPooler(56)(maps, rois, 7)
    for roi, actual, level in zip(rois, pooled, (0, 1, 1)):
        stride, feature_map = (4, 8)[level], maps[level][int(roi[0])]
        x0, y0, x1, y1 = (value / stride - 0.5 for value in roi[1:].tolist())
        height, width = (y1 - y0) / 7, (x1 - x0) / 7
        down, across = math.ceil(height), math.ceil(width)
        for row, column in ((0, 0), (3, 2), (6, 6)):
            samples = [
                bilinear(
                    feature_map, y0 + (row + (i + 0.5) / down) * height, x0 + (column + (j + 0.5) / across) * width
                )
                for i in range(down)
                for j in range(across)
            ]
            expected = torch.stack(samples).mean(dim=0)
            torch.testing.assert_close(actual[:, row, column], expected, rtol=1e-4, atol=1e-4)


def test_region_targets_one_by_one():
    model = model_of_all_regions()
    labels = [*random_objects(2, 64, 96, seed=1), no_objects(64, 96)]
    objects = []
    for label in labels:
        boxes = label["boxes"] * torch.tensor([96, 64, 96, 64])
        objects.append(torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1))
    generator = torch.Generator().manual_seed(0)
    proposals = []
    for image_objects in objects:
        near = image_objects.repeat(4, 1) + 6 * torch.rand(4 * len(image_objects), 4, generator=generator) - 3
        far = 30 * torch.rand(10, 2, generator=generator)
        proposals.append(torch.cat([near, torch.cat([far, far + 12], dim=1)]))
    regions = model.sample_regions(proposals, objects, labels)
    assert len(regions.rois) == sum(len(p) + len(o) for p, o in zip(proposals, objects))
    masks = iter(regions.masks)
    positives = 0
    for roi, name, code in zip(regions.rois, regions.classes.tolist(), regions.codes):
        image = int(roi[0])
        overlaps = box_iou(objects[image], roi[None, 1:])[:, 0] if len(objects[image]) else torch.zeros(1)
        if overlaps.max() < 0.5:
            assert name == 6 and not code.any()
            continue
        positives += 1
        best = overlaps.argmax().item()
        assert name == labels[image]["class_labels"][best]
        x0, y0, x1, y1 = roi[1:].tolist()
        u0, v0, u1, v1 = objects[image][best].tolist()
        expected = [
            ((u0 + u1) - (x0 + x1)) / 2 / (x1 - x0) / 0.1,
            ((v0 + v1) - (y0 + y1)) / 2 / (y1 - y0) / 0.1,
            math.log((u1 - u0) / (x1 - x0)) / 0.2,
            math.log((v1 - v0) / (y1 - y0)) / 0.2,
        ]
        assert code.tolist() == pytest.approx(expected, abs=1e-3)
        # A bin of the mask is 1 if most of the object's rectangle covers it: where it does clearly, or clearly not
        mask = next(masks)
        for row, column in ((2, 3), (14, 14), (25, 20)):
            left, top = x0 + (x1 - x0) * column / 28, y0 + (y1 - y0) * row / 28
            right, bottom = left + (x1 - x0) / 28, top + (y1 - y0) / 28
            if min(left - u0, u1 - right, top - v0, v1 - bottom) > 1.5:
                assert mask[row, column] == 1
            if max(u0 - right, left - u1, v0 - bottom, top - v1) > 1.5:
                assert mask[row, column] == 0
    assert positives > 10 and next(masks, None) is None


def test_a_quarter_of_the_sample_is_of_objects():
    model = model_of_all_regions(box_num_samples=40)
    labels = [boxes_only(random_objects(1, 64, 64, count=5))[0]]
    boxes = labels[0]["boxes"] * 64
    objects = [torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)]
    regions = model.sample_regions(
        [torch.cat([objects[0].repeat(10, 1), torch.rand(90, 4).cumsum(1)])], objects, labels
    )
    assert len(regions.rois) == 40 and (regions.classes < 6).sum() == 10 and regions.masks is None
    few = model.sample_regions([objects[0][:1]], objects, labels)
    assert len(few.rois) == 6 and (few.classes < 6).all()  # the boxes of objects are regions, too


def test_mask_targets_of_a_triangle():
    """The box is as large as the grid of 28x28 bins, so each bin is one pixel of the mask."""
    mask = torch.ones(28, 28).tril()
    masks = torch.zeros(2, 40, 60)
    masks[1, 5:33, 10:38] = mask
    boxes = torch.tensor([[10.0, 5, 38, 33], [10, 5, 38, 33]])
    targets = mask_targets(masks, torch.tensor([1, 0]), boxes)
    # sampled at the pixels' centres, exactly
    assert torch.equal(targets[0], mask) and not targets[1].any()


def test_region_losses_one_by_one():
    model = model_of_all_regions()
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 16, 64 // s, 64 // s, generator=generator) for s in (4, 8, 16, 32)]
    corners = 30 * torch.rand(5, 2, generator=generator)
    rois = torch.cat([torch.zeros(5, 1), corners, corners + 20], dim=1)
    classes = torch.tensor([2, 6, 0, 5, 6])
    codes = torch.randn(5, 4, generator=generator)
    masks = (torch.rand(3, 28, 28, generator=generator) > 0.5).float()
    with torch.no_grad():
        actual = model.region_losses(maps, Regions(rois, classes, codes, masks))
        logits, predicted = model.box_head(model.pooler(maps, rois, 7))
        mask_logits = model.mask_head(model.pooler(maps, rois, 14))
    entropy = -sum(logits[i].log_softmax(0)[classes[i]] for i in range(5)) / 5
    distance = sum((predicted[i, classes[i]] - codes[i]).abs().sum() for i in (0, 2, 3)) / 5
    of_masks = [
        F.binary_cross_entropy(mask_logits[i, classes[i]].sigmoid(), target) for i, target in zip((0, 2, 3), masks)
    ]
    torch.testing.assert_close(actual["loss_classification"], entropy)
    torch.testing.assert_close(actual["loss_box"], distance)
    # sigmoid and logarithm in two steps lose some digits
    torch.testing.assert_close(actual["loss_mask"], sum(of_masks) / 3, rtol=1e-4, atol=1e-5)


def test_losses_of_proposals_one_by_one():
    model = model_of_all_regions()
    labels = random_objects(1, 64, 64, count=3)
    boxes = labels[0]["boxes"] * 64
    objects = [torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)]
    maps = [torch.randn(1, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64)]
    anchors = torch.cat(model.rpn.anchors(maps))
    logits, codes = torch.randn(1, len(anchors)), torch.randn(1, len(anchors), 4)
    inside = torch.rand(1, len(anchors)) < 0.9
    actual = model.rpn.losses(logits, codes, anchors, inside, objects)
    overlaps = box_iou(objects[0], anchors)
    entropy = distance = count = 0
    for index in torch.where(inside[0])[0].tolist():
        column = overlaps[:, index]
        best = [k for k in range(3) if column[k] == overlaps[k].max() and column[k] >= 0.3]
        if best or column.max() >= 0.7:
            target = best[-1] if best else column.argmax().item()
            x0, y0, x1, y1 = anchors[index].tolist()
            u0, v0, u1, v1 = objects[0][target].tolist()
            code = [((u0 + u1) - (x0 + x1)) / 2 / (x1 - x0), ((v0 + v1) - (y0 + y1)) / 2 / (y1 - y0),
                    math.log((u1 - u0) / (x1 - x0)), math.log((v1 - v0) / (y1 - y0))]  # fmt: skip
            distance += (codes[0, index] - torch.tensor(code)).abs().sum()
            entropy += F.softplus(-logits[0, index])
            count += 1
        elif column.max() < 0.3:
            entropy += F.softplus(logits[0, index])
            count += 1
    torch.testing.assert_close(actual["loss_rpn_classification"], entropy / count, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual["loss_rpn_box"], distance / count, rtol=1e-4, atol=1e-5)


# Detections


def brute_force_suppression(boxes, scores, groups, threshold):
    order, kept = sorted(range(len(scores)), key=lambda i: -scores[i]), []
    for i in order:
        if all(groups[i] != groups[j] or box_iou(boxes[i : i + 1], boxes[j : j + 1])[0, 0] <= threshold for j in kept):
            kept.append(i)
    return kept


def test_detections_of_an_image_one_by_one():
    model = model_of_all_regions(score_threshold=0.2, max_detections=9)
    generator = torch.Generator().manual_seed(0)
    corners = 40 * torch.rand(30, 2, generator=generator)
    proposals = torch.cat([corners, corners + 5 + 20 * torch.rand(30, 2, generator=generator)], dim=1)
    scores = torch.randn(30, 7, generator=generator).mul(2).softmax(dim=1)[:, :-1]
    codes = torch.randn(30, 6, 4, generator=generator)
    boxes, found, labels = model.suppress_duplicates(scores, codes, proposals, torch.tensor([60, 50]))
    candidates = []
    for region in range(30):
        for name in range(6):
            if scores[region, name] > 0.2:
                x0, y0, x1, y1 = proposals[region].tolist()
                dx, dy, dw, dh = (codes[region, name] * torch.tensor([0.1, 0.1, 0.2, 0.2])).tolist()
                x, y = (x0 + x1) / 2 + dx * (x1 - x0), (y0 + y1) / 2 + dy * (y1 - y0)
                w, h = (x1 - x0) * math.exp(dw), (y1 - y0) * math.exp(dh)
                box = [max(x - w / 2, 0), max(y - h / 2, 0), min(x + w / 2, 50), min(y + h / 2, 60)]
                candidates.append((box, scores[region, name].item(), name))
    all_boxes = torch.tensor([box for box, _, _ in candidates])
    kept = brute_force_suppression(all_boxes, [s for _, s, _ in candidates], [n for _, _, n in candidates], 0.5)
    assert len(candidates) > len(kept) > 9
    torch.testing.assert_close(boxes, all_boxes[kept[:9]], rtol=1e-4, atol=1e-3)
    assert labels.tolist() == [candidates[i][2] for i in kept[:9]]
    torch.testing.assert_close(found, torch.tensor([candidates[i][1] for i in kept[:9]]))


def test_what_is_behind_the_last_detection_is_zero():
    model, images = model_of_all_regions(score_threshold=0.0), random_images(3, 64, 96)
    with torch.no_grad():
        threshold = model(images).pred_scores[0, 11].item()  # what eleven detections of the first image exceed
        model.config.score_threshold = threshold
        outputs = model(images)
    counts = outputs.num_detections.tolist()
    assert len(set(counts)) > 1, "the images should differ in their number of detections"
    for image, count in enumerate(counts):
        scores = outputs.pred_scores[image]
        assert (scores[:count] > threshold).all() and (scores[:count].diff() <= 0).all() and not scores[count:].any()
        for key in ("pred_labels", "pred_boxes", "pred_masks"):
            assert not outputs[key][image, count:].any()
            assert key == "pred_labels" or outputs[key][image, :count].any()


def test_no_detections_at_all():
    model = model_of_all_regions(score_threshold=1.0)
    with torch.no_grad():
        outputs = model(random_images(2, 64, 64))
    assert outputs.num_detections.tolist() == [0, 0] and not outputs.pred_scores.any()


def test_no_detections_in_padding():
    model, images = model_of_all_regions(score_threshold=0.0), random_images(1, 128, 128)
    mask = torch.zeros(1, 128, 128, dtype=torch.long)
    mask[:, :40, :64] = 1
    proposals, _ = model.rpn(
        [torch.randn(1, 16, 128 // s, 128 // s) for s in (4, 8, 16, 32, 64)], torch.tensor([[40, 64]])
    )
    assert len(proposals[0]) > 10
    assert proposals[0].min() >= 0 and (proposals[0] <= torch.tensor([64.0, 40, 64, 40])).all()
    with torch.no_grad():
        boxes = model(images, pixel_mask=mask).pred_boxes
    assert boxes.min() >= 0 and boxes.max() <= 1


# Labels


def test_without_masks_it_is_faster_rcnn():
    model = model_of_all_regions().train()
    labels, images = random_objects(2, 64, 64), random_images(2, 64, 64)
    with_masks, without = model(images, labels=labels).loss_dict, model(images, labels=boxes_only(labels)).loss_dict
    assert without["loss_mask"] == 0 and with_masks["loss_mask"] > 0
    for name in ("loss_rpn_classification", "loss_rpn_box", "loss_classification", "loss_box"):
        assert torch.equal(with_masks[name], without[name])


def test_labels_that_cannot_be():
    model, images = model_of_all_regions(), random_images(2, 64, 64)
    labels = random_objects(2, 64, 64)
    for wrong, words in (
        ([labels[0], boxes_only(labels)[1]], ["labels[0] has masks", "labels[1] has none"]),
        ([labels[0], {**labels[1], "masks": labels[1]["masks"][:, :32]}], ["labels[1]", "32, 64", "64, 64"]),
        ([labels[0], {**labels[1], "masks": labels[1]["masks"][:0]}], ["labels[1]", "(0, 64, 64)"]),
        ([{**labels[0], "class_labels": labels[0]["class_labels"] + 6}, labels[1]], ["num_labels 6"]),
    ):
        with pytest.raises(ValueError) as error:
            model(images, labels=wrong)
        for word in words:
            assert word in str(error.value)


# Configuration


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"max_detections": 0}, ["max_detections", "0"]),
        ({"num_labels": 0}, ["num_labels", "0"]),
        ({"num_mask_convs": -1}, ["num_mask_convs", "-1"]),
        ({"anchor_scale": 0}, ["anchor_scale", "0"]),
        ({"anchor_ratios": []}, ["anchor_ratios"]),
        ({"box_code_std": [0.1, 0.1]}, ["box_code_std", "four"]),
        ({"rpn_negative_iou": 0.8}, ["rpn_negative_iou", "0.8", "0.7"]),
        ({"nms_threshold": 1.5}, ["nms_threshold", "1.5"]),
    ],
)
def test_configurations_that_cannot_work(overrides, words):
    with pytest.raises(ValueError) as error:
        MaskRcnnConfig(**overrides)
    for word in words:
        assert word in str(error.value)
