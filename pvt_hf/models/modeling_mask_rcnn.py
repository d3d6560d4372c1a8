"""
Mask R-CNN (arXiv 1703.06870) on any backbone: instance segmentation as in section 5.2 of the PVT paper.

Follows mmdetection's `FPN`, `StandardRoIHead`, `Shared2FCBBoxHead` and `FCNMaskHead` in the official configuration
`detection/configs/_base_/models/mask_rcnn_r50_fpn.py` of https://github.com/whai362/PVT. Uses torchvision's
`roi_align`, sampler, box coder and NMS, but not its Mask R-CNN: that pools regions without alignment and chooses their
levels by another formula (`MultiScaleRoIAlign`), and has a smooth L1 box loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
)
from transformers import initialization as init
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, is_torchvision_available
from transformers.utils.generic import can_return_tuple

from .configuration_mask_rcnn import MaskRcnnConfig
from .modeling_anchors import (
    assign_to_objects,
    box_coder,
    boxes_in_pixels,
    check_detection_labels,
    clip_to_image,
    image_sizes_of,
    normalised_boxes,
    require_torchvision,
)
from .modeling_fixed_regions import fixed_detect
from .modeling_fpn import FeaturePyramidNetwork, FpnConv2d
from .modeling_head import HeadPreTrainedModel
from .modeling_rpn import RegionProposalNetwork, check_scores


if is_torchvision_available():
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
    from torchvision.ops import batched_nms, roi_align

STRIDES = (4, 8, 16, 32)
BOX_REGION_SIZE, MASK_REGION_SIZE, MASK_SIZE = 7, 14, 28
POSITIVE_SHARE = 0.25


@dataclass
class MaskRcnnInstanceSegmentationOutput(ModelOutput):
    """
    Args:
        loss: fp32 scalar, the sum of `loss_dict`; if labels are given.
        loss_dict: `loss_rpn_classification`, `loss_rpn_box`, `loss_classification`, `loss_box` and `loss_mask` (0 if
            labels have no masks), scalars.
        pred_scores: (batch, max_detections) fp32, highest first. This and all other predictions are None in training.
        pred_labels: (batch, max_detections) int64.
        pred_boxes: (batch, max_detections, 4) fp32, (centre x, centre y, width, height) from 0 to 1, relative to the
            image without padding.
        pred_masks: (batch, max_detections, 28, 28) fp32, logits inside the box, for the predicted label.
        num_detections: (batch,) int64. Predictions beyond this number are 0.
        hidden_states: of the backbone, on request.
        attentions: of the backbone, on request.

    Predictions carry no gradient.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    pred_scores: torch.Tensor | None = None
    pred_labels: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None
    num_detections: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class Regions:
    """
    Sampled regions of a batch, with their targets. In each image, positive regions come first.

    Attributes:
        rois: (regions, 5) fp32: index of the image, and xyxy in pixels.
        classes: (regions,) int64; num_labels for background.
        codes: (regions, 4) fp32, offsets to the object's box; 0 for background.
        masks: (positive regions, 28, 28) fp32, 0 or 1; None if the labels have no masks.
    """

    rois: torch.Tensor
    classes: torch.Tensor
    codes: torch.Tensor
    masks: torch.Tensor | None


class RegionPooler(nn.Module):
    """Pools regions from the level of a pyramid that fits their size, by RoIAlign with `aligned=True`."""

    def __init__(self, finest_scale: int):
        super().__init__()
        self.finest_scale = finest_scale

    def levels(self, rois: torch.Tensor) -> torch.Tensor:
        """Level of each region, (regions,) int64: floor(log2(sqrt(area) / finest_scale)), clamped to 0 ... 3."""
        sides = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0)
        scale = sides.prod(dim=1).sqrt()
        return (scale / self.finest_scale + 1e-6).log2().floor().clamp(0, len(STRIDES) - 1).long()

    def forward(self, feature_maps: list[torch.Tensor], rois: torch.Tensor, size: int) -> torch.Tensor:
        """Returns (regions, channels, size, size) in the dtype of the maps."""
        levels = self.levels(rois)
        pooled = rois.new_zeros(len(rois), feature_maps[0].shape[1], size, size)
        for level, (feature_map, stride) in enumerate(zip(feature_maps, STRIDES)):
            (chosen,) = torch.where(levels == level)
            # Runs even without regions, so that every parameter gets a gradient on every process. In fp32, because
            # RoIAlign has no half precision on CPUs.
            regions = roi_align(feature_map.float(), rois[chosen], size, 1 / stride, sampling_ratio=0, aligned=True)
            pooled.index_copy_(0, chosen, regions)  # `index_add` took 8 % of the model's time
        return pooled.to(feature_maps[0].dtype)


class MaskRcnnBoxHead(nn.Module):
    """Two fully connected layers, then scores of the classes (background last) and box offsets for each class."""

    def __init__(self, config: MaskRcnnConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.fpn_channels * BOX_REGION_SIZE**2, config.box_head_size)
        self.fc2 = nn.Linear(config.box_head_size, config.box_head_size)
        self.classifier = nn.Linear(config.box_head_size, config.num_labels + 1)
        self.box_regressor = nn.Linear(config.box_head_size, config.num_labels * 4)

    def forward(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(regions, channels, 7, 7) to logits (regions, num_labels + 1) and offsets (regions, num_labels, 4)."""
        hidden = nn.functional.relu(self.fc1(regions.flatten(1)))
        hidden = nn.functional.relu(self.fc2(hidden))
        return self.classifier(hidden), self.box_regressor(hidden).unflatten(1, (-1, 4))


class MaskRcnnMaskHead(nn.Module):
    """3x3 convolutions, an upsampling by 2, and a mask for each class."""

    def __init__(self, config: MaskRcnnConfig):
        super().__init__()
        channels = config.fpn_channels
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(config.num_mask_convs)
        )
        self.upsample = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.classifier = nn.Conv2d(channels, config.num_labels, kernel_size=1)

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """(regions, channels, 14, 14) to logits (regions, num_labels, 28, 28)."""
        for conv in self.convs:
            regions = nn.functional.relu(conv(regions))
        return self.classifier(nn.functional.relu(self.upsample(regions)))


class MaskRcnnForInstanceSegmentation(HeadPreTrainedModel):
    """
    Backbone, FPN, region proposals, box head and mask head. The backbone starts from random weights.

    `torch.export` gives a program for any size and batch, with fixed numbers of proposals and detections
    (`modeling_fixed_regions.py`); `torch.jit.trace` one for the traced size and batch only.
    """

    config: MaskRcnnConfig
    config_class = MaskRcnnConfig
    _no_split_modules = ["FeaturePyramidNetwork", "RegionProposalNetwork", "MaskRcnnBoxHead", "MaskRcnnMaskHead"]
    # No _can_compile_fullgraph: the number of regions depends on the image, which breaks the graph.

    def __init__(self, config: MaskRcnnConfig):
        require_torchvision(type(self).__name__)
        super().__init__(config)
        channels = self.add_backbone("four feature maps, at strides 4, 8, 16 and 32", 4, 4)
        self.neck = FeaturePyramidNetwork(channels, config.fpn_channels)
        self.rpn = RegionProposalNetwork(config)
        self.pooler = RegionPooler(config.finest_scale)
        self.box_head = MaskRcnnBoxHead(config)
        self.mask_head = MaskRcnnMaskHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        As mmdetection: Xavier-uniform in the neck and the fully connected layers; normal with standard deviation 0.01
        in the proposal network and the classifier of the box head, 0.001 in its box regressor; Kaiming-normal (fan-out)
        in the mask head. The backbone initialises itself.
        """
        super()._init_weights(module)
        if isinstance(module, FpnConv2d):
            module.reset_parameters()
        elif module in (self.box_head.fc1, self.box_head.fc2):
            init.xavier_uniform_(module.weight)
        elif module is self.box_head.box_regressor:
            init.normal_(module.weight, std=0.001)
        elif module is self.box_head.classifier or module in self.rpn.children():
            if isinstance(module, (nn.Conv2d, nn.Linear)):  # not the anchors
                init.normal_(module.weight, std=0.01)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and module.bias is not None:
            init.zeros_(module.bias)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskRcnnInstanceSegmentationOutput:
        """
        Args:
            pixel_values: (batch, num_channels, height, width), float, of any size that the backbone accepts.
            pixel_mask: (batch, height, width), 1 for the image and 0 for padding at the right and bottom.
            labels: for each image a dict with `class_labels` (objects,), integers; `boxes` (objects, 4), cxcywh from 0
                to 1, relative to the image without padding; and, for all images or none, `masks` (objects, height,
                width), 0 or 1. Without masks only boxes are trained, as in Faster R-CNN. Other keys are ignored.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: labels or mask have wrong shapes or values; or the backbone refuses its input.
        """
        objects: list[torch.Tensor] | None = None
        if labels is not None:
            check_detection_labels(labels, len(pixel_values), self.config.num_labels)
            check_masks(labels, pixel_values.shape[-2:])
        outputs = self.run_backbone(pixel_values, **kwargs)
        image_sizes = image_sizes_of(pixel_values, pixel_mask)
        if labels is not None:
            objects = [boxes_in_pixels(label["boxes"], size) for label, size in zip(labels, image_sizes)]
        maps = self.neck(outputs.feature_maps)
        coarsest = nn.functional.max_pool2d(maps[-1], kernel_size=1, stride=2)
        proposals, loss_dict = self.rpn([*maps, coarsest], image_sizes, objects)

        loss, detections = None, {}
        if labels is not None and objects is not None:
            loss_dict |= self.region_losses(maps, self.sample_regions(proposals, objects, labels))
            loss = sum(loss_dict.values())
        if torch.compiler.is_exporting():
            boxes, there = proposals
            detections = fixed_detect(self, maps, boxes, there, image_sizes, STRIDES, BOX_REGION_SIZE, MASK_REGION_SIZE)
        elif not self.training:
            detections = self.detect(maps, proposals, image_sizes)
        return MaskRcnnInstanceSegmentationOutput(
            loss=loss,
            loss_dict=loss_dict,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **detections,
        )

    @torch.no_grad()
    def sample_regions(
        self, proposals: list[torch.Tensor], objects: list[torch.Tensor], labels: list[dict[str, torch.Tensor]]
    ) -> Regions:
        """
        Samples regions for the losses from proposals and objects' boxes. At most a quarter are positive.

        Args:
            proposals: for each image (n, 4), xyxy in pixels.
            objects: for each image (objects, 4), xyxy in pixels.
            labels: as in `forward`.
        """
        sampler = BalancedPositiveNegativeSampler(self.config.box_num_samples, POSITIVE_SHARE)
        coder = box_coder(self.config.box_code_std)
        rois, classes, codes, masks = [], [], [], []
        for index, (boxes, image_objects, label) in enumerate(zip(proposals, objects, labels)):
            has_area = (image_objects[:, 2:] > image_objects[:, :2]).all(dim=1)
            boxes = torch.cat([image_objects[has_area], boxes])
            assigned = assign_to_objects(
                boxes,
                image_objects,
                positive_iou=self.config.box_positive_iou,
                negative_iou=self.config.box_positive_iou,
                low_quality_iou=None,
            )
            (positive,), (negative,) = sampler([assigned + 1])
            (positive,), (negative,) = torch.where(positive), torch.where(negative)
            chosen, of_object = torch.cat([positive, negative]), assigned[positive]
            rois.append(torch.cat([boxes.new_full((len(chosen), 1), index), boxes[chosen]], dim=1))
            background = of_object.new_full(negative.shape, self.config.num_labels)
            classes.append(torch.cat([label["class_labels"].long()[of_object], background]))
            code = coder.encode_single(image_objects[of_object], boxes[positive])
            codes.append(torch.cat([code, code.new_zeros(len(negative), 4)]))
            if "masks" in label:
                masks.append(mask_targets(label["masks"], of_object, boxes[positive]))
        return Regions(torch.cat(rois), torch.cat(classes), torch.cat(codes), torch.cat(masks) if masks else None)

    def region_losses(self, maps: list[torch.Tensor], regions: Regions) -> dict[str, torch.Tensor]:
        """
        Cross-entropy of classes and L1 loss of box offsets, both divided by the number of regions; binary cross-entropy
        of the masks of the objects' classes, averaged over the pixels of positive regions.
        """
        logits, codes = self.box_head(self.pooler(maps, regions.rois, BOX_REGION_SIZE))
        total = max(len(regions.rois), 1)
        (positive,) = torch.where(regions.classes < self.config.num_labels)
        classes = regions.classes[positive]
        distance = (codes[positive, classes].float() - regions.codes[positive]).abs().sum()
        entropy = nn.functional.cross_entropy(logits.float(), regions.classes, reduction="sum")

        # Without masks, the head runs on zero regions, so that its parameters get gradients as on other processes.
        with_masks = positive if regions.masks is not None else positive[:0]
        masks = self.mask_head(self.pooler(maps, regions.rois[with_masks], MASK_REGION_SIZE))
        masks = masks[torch.arange(len(with_masks), device=masks.device), classes[: len(with_masks)]].float()
        targets = regions.masks if regions.masks is not None else masks.new_zeros(masks.shape)
        mask_entropy = nn.functional.binary_cross_entropy_with_logits(masks, targets, reduction="sum")
        return {
            "loss_classification": entropy / total,
            "loss_box": distance / total,
            "loss_mask": mask_entropy / max(masks.numel(), 1),
        }

    @torch.no_grad()
    def detect(
        self, maps: list[torch.Tensor], proposals: list[torch.Tensor], image_sizes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The predictions of the output: boxes and classes of the proposals, NMS, then masks of what remains."""
        limit = self.config.max_detections
        logits, codes = self.box_head(self.pooler(maps, as_rois(proposals), BOX_REGION_SIZE))
        scores = logits.float().softmax(dim=-1)[:, :-1]  # (regions, num_labels)
        counts = [len(boxes) for boxes in proposals]
        found = [
            self.suppress_duplicates(*parts)
            for parts in zip(scores.split(counts), codes.float().split(counts), proposals, image_sizes)
        ]
        found_boxes, found_scores, found_labels = zip(*found)
        masks = self.mask_head(self.pooler(maps, as_rois(found_boxes), MASK_REGION_SIZE)).float()
        masks = masks[torch.arange(len(masks), device=masks.device), torch.cat(found_labels)]
        num_detections = torch.tensor([len(image) for image in found_boxes], device=masks.device)
        boxes = [normalised_boxes(image, size) for image, size in zip(found_boxes, image_sizes)]

        def padded(parts: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> torch.Tensor:
            return torch.stack(
                [torch.cat([part, part.new_zeros(limit - len(part), *part.shape[1:])]) for part in parts]
            )

        return {
            "pred_scores": padded(found_scores),
            "pred_labels": padded(found_labels),
            "pred_boxes": padded(boxes),
            "pred_masks": padded(masks.split(num_detections.tolist())),
            "num_detections": num_detections,
        }

    def suppress_duplicates(
        self, scores: torch.Tensor, codes: torch.Tensor, proposals: torch.Tensor, image_size: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Decodes the boxes of one image and applies threshold and NMS.

        Args:
            scores: (regions, num_labels), from 0 to 1.
            codes: (regions, num_labels, 4), predicted box offsets.
            proposals: (regions, 4), xyxy in pixels.
            image_size: (2,), (height, width) in pixels.

        Returns:
            Highest score first: boxes (n, 4), xyxy in pixels; scores (n,); labels (n,).
        """
        check_scores(scores)
        region, label = torch.where(scores > self.config.score_threshold)
        scores = scores[region, label]
        boxes = box_coder(self.config.box_code_std).decode_single(codes[region, label], proposals[region])
        boxes = clip_to_image(boxes, image_size)
        kept = batched_nms(boxes, scores, label, self.config.nms_threshold)[: self.config.max_detections]
        return boxes[kept], scores[kept], label[kept]


def as_rois(boxes: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Boxes (n, 4) of each image to (all, 5): the image's index and the box."""
    return torch.cat(
        [torch.cat([part.new_full((len(part), 1), index), part], dim=1) for index, part in enumerate(boxes)]
    )


@torch.no_grad()
def mask_targets(masks: torch.Tensor, of_object: torch.Tensor, boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """
    Targets of the mask head: for each box, its object's mask inside the box, resized to 28x28.

    Args:
        masks: (objects, height, width), 0 or 1.
        of_object: (boxes,) int64, index of each box's object.
        boxes_xyxy: (boxes, 4), in pixels.

    Returns:
        (boxes, 28, 28) fp32, 0 or 1.
    """
    used, position = of_object.unique(return_inverse=True)
    rois = torch.cat([position[:, None].to(boxes_xyxy.dtype), boxes_xyxy], dim=1)
    cut = roi_align(masks[used, None].float(), rois, MASK_SIZE, sampling_ratio=0, aligned=True)
    return (cut[:, 0] >= 0.5).float()


def check_masks(labels: list[dict[str, torch.Tensor]], image_size: tuple[int, int] | torch.Size) -> None:
    """Raises a ValueError if only some images have masks, or masks have the wrong number or size."""
    have = [index for index, label in enumerate(labels) if "masks" in label]
    if have and len(have) < len(labels):
        without = next(index for index in range(len(labels)) if index not in have)
        raise ValueError(
            f"labels[{have[0]}] has masks and labels[{without}] has none: give masks for all images (of shape (0, "
            "height, width) without objects), or for none, to train boxes only."
        )
    for index in have:
        expected = (len(labels[index]["boxes"]), *image_size)
        if tuple(labels[index]["masks"].shape) != expected:
            raise ValueError(
                f"labels[{index}] has masks of shape {tuple(labels[index]['masks'].shape)}: expected (objects, height, "
                f"width) of pixel_values, {expected}, padded as they are."
            )


# Pipelines print an error for class names that are not in these tables.
for _names, _auto_class in (
    (MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, AutoModelForObjectDetection),
    (MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES, AutoModelForInstanceSegmentation),
    (MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES, AutoModelForImageSegmentation),
):
    _names["mask_rcnn"] = "MaskRcnnForInstanceSegmentation"
    _auto_class.register(MaskRcnnConfig, MaskRcnnForInstanceSegmentation, exist_ok=True)

__all__ = ["MaskRcnnForInstanceSegmentation", "MaskRcnnInstanceSegmentationOutput"]
