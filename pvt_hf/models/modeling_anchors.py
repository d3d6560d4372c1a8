"""
Shared by RetinaNet and the region proposals of Mask R-CNN: anchors, their assignment to objects, and checks and
conversions of labels.

The rules are those of mmdetection 2.x, which trained the official PVT detectors (`AnchorGenerator`, `MaxIoUAssigner`,
`DeltaXYWHBBoxCoder`). torchvision's box coder computes the same and is used. Its `AnchorGenerator` and `Matcher` differ
and are not: the former rounds anchors, and divides image size by grid size to get strides, which may differ between the
two directions; the latter assigns an object's best anchor to the object that this anchor overlaps most, which may be
another object.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils import is_torchvision_available


if is_torchvision_available():
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import box_convert, box_iou

# Limits memory: the IoU of 32 objects with all 201,600 anchors of an 800x1344 image takes 26 MB.
OBJECTS_AT_ONCE = 32
SIZE_DIVISOR = 32  # mmdetection pads each image to a multiple of this, then to the size of the batch

NEGATIVE, IGNORED = -1, -2  # in place of an object's index: background, and not counted in the loss


def require_torchvision(name: str) -> None:
    """Raises an ImportError if torchvision is not installed. `name`: of the class that needs it."""
    if not is_torchvision_available():
        raise ImportError(f"{name} needs torchvision's operators: `pip install torchvision`.")


def base_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> torch.Tensor:
    """
    The anchors of one cell: for each ratio, all sizes.

    Args:
        sizes: square roots of the areas, in pixels.
        ratios: height / width.

    Returns:
        (len(ratios) * len(sizes), 4) fp32, xyxy in pixels, centred at (0, 0).
    """
    size, ratio = torch.tensor(sizes, dtype=torch.float32), torch.tensor(ratios, dtype=torch.float32)
    half_widths = (size[None] / ratio.sqrt()[:, None]).flatten() / 2
    half_heights = (size[None] * ratio.sqrt()[:, None]).flatten() / 2
    return torch.stack([-half_widths, -half_heights, half_widths, half_heights], dim=1)


class AnchorGrid(nn.Module):
    """
    The anchors of all levels of a pyramid. An anchor's centre is the index of its cell times the stride of its level.

    Args:
        strides: pixels per cell, for each level. They do not depend on the image size, even if grids were rounded.
        sizes: square roots of the anchors' areas, in pixels, for each level; the same number for all levels.
        ratios: height / width.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float]):
        super().__init__()
        self.strides = list(strides)
        self.sizes = [list(level) for level in sizes]
        self.ratios = list(ratios)
        self.anchors_per_cell = len(self.sizes[0]) * len(self.ratios)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """For each level (rows * columns * anchors_per_cell, 4) fp32, xyxy in pixels, in row-major order of cells."""
        anchors = []
        for feature_map, stride, sizes in zip(feature_maps, self.strides, self.sizes):
            rows, columns = feature_map.shape[-2:]
            y = torch.arange(rows, device=feature_map.device) * stride
            x = torch.arange(columns, device=feature_map.device) * stride
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (cells, 1, 4)
            around_zero = base_anchors(sizes, self.ratios).to(feature_map.device)
            anchors.append((centres + around_zero).flatten(0, 1))
        return anchors

    def inside(self, feature_maps: Sequence[torch.Tensor], image_sizes: torch.Tensor) -> torch.Tensor:
        """
        Which anchors belong to cells inside the image, not in padding. As in mmdetection, padding up to a multiple of
        32 counts as inside.

        Args:
            feature_maps: (batch, channels, rows_i, columns_i), for each level.
            image_sizes: (batch, 2), (height, width) in pixels, without padding.

        Returns:
            (batch, anchors of all levels) bool.
        """
        padded = (image_sizes + SIZE_DIVISOR - 1).div(SIZE_DIVISOR, rounding_mode="floor") * SIZE_DIVISOR
        levels = []
        for feature_map, stride in zip(feature_maps, self.strides):
            rows, columns = feature_map.shape[-2:]
            y = torch.arange(rows, device=feature_map.device) * stride
            x = torch.arange(columns, device=feature_map.device) * stride
            inside = (y < padded[:, :1])[:, :, None] & (x < padded[:, 1:])[:, None]  # (batch, rows, columns)
            levels.append(inside.flatten(1).repeat_interleave(self.anchors_per_cell, dim=1))
        return torch.cat(levels, dim=1)


def box_coder(standard_deviations: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> BoxCoder:
    """torchvision's coder of box offsets (dx, dy, dw, dh) from other boxes, divided by `standard_deviations`."""
    return BoxCoder(weights=tuple(1 / deviation for deviation in standard_deviations))


def assign_to_objects(
    boxes_xyxy: torch.Tensor,
    object_boxes_xyxy: torch.Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality_iou: float | None,
) -> torch.Tensor:
    """
    Assigns an object, background or nothing to each box, by IoU.

    A box is background if its IoU is below `negative_iou` with all objects. It is assigned the object that it overlaps
    most if that IoU is at least `positive_iou`. In between it is ignored. Afterwards each object also gets its best
    boxes (several if their IoU is equal), even those assigned to another object, if their IoU is at least
    `low_quality_iou` and above 0.

    Follows mmdetection's `MaxIoUAssigner` with `min_pos_iou=low_quality_iou`. Deviation: there, an object that overlaps
    no box gets all boxes with an IoU of 0.

    Args:
        boxes_xyxy: (boxes, 4).
        object_boxes_xyxy: (objects, 4), in the same units.
        positive_iou: see above.
        negative_iou: see above.
        low_quality_iou: see above; None skips that step.

    Returns:
        (boxes,) int64: index of the object, `NEGATIVE` or `IGNORED`.
    """
    count = len(boxes_xyxy)
    best_iou = boxes_xyxy.new_zeros(count)
    best = torch.zeros(count, dtype=torch.long, device=boxes_xyxy.device)
    low_quality = torch.full_like(best, NEGATIVE)
    for first in range(0, len(object_boxes_xyxy), OBJECTS_AT_ONCE):
        iou = box_iou(object_boxes_xyxy[first : first + OBJECTS_AT_ONCE], boxes_xyxy)  # (objects, boxes)
        some_iou, some = iou.max(dim=0)
        best = torch.where(some_iou > best_iou, some + first, best)
        best_iou = torch.maximum(best_iou, some_iou)
        if low_quality_iou is not None:
            most = iou.amax(dim=1, keepdim=True)  # (objects, 1)
            is_best = (iou == most) & (most >= low_quality_iou) & (most > 0)
            indices = torch.arange(len(iou), device=iou.device)[:, None] + first
            # If a box is the best of several objects, the last object gets it.
            low_quality = torch.maximum(low_quality, torch.where(is_best, indices, NEGATIVE).amax(dim=0))
    assigned = torch.where(best_iou < negative_iou, NEGATIVE, IGNORED)
    assigned = torch.where((best_iou >= positive_iou) & (best_iou > 0), best, assigned)
    return torch.where(low_quality >= 0, low_quality, assigned)


def image_sizes_of(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
    """
    The size of each image without padding, which is at the right and bottom.

    Args:
        pixel_values: (batch, channels, height, width).
        pixel_mask: (batch, height, width), 1 for the image and 0 for padding; None if nothing is padded.

    Returns:
        (batch, 2) int64: (height, width) in pixels.

    Raises:
        ValueError: the mask has another shape, or an image has no pixels. (The latter is not checked in compiled code.)
    """
    batch, _, height, width = pixel_values.shape
    if pixel_mask is None:
        # torch.tensor([height, width]) would freeze the size in an exported graph.
        sides = (torch.full((batch,), side, device=pixel_values.device) for side in (height, width))
        return torch.stack(list(sides), dim=1)
    if pixel_mask.shape != (batch, height, width):
        raise ValueError(
            f"pixel_mask has the shape {tuple(pixel_mask.shape)}: expected (batch, height, width) of pixel_values, "
            f"{(batch, height, width)}, with 1 for the image and 0 for padding."
        )
    mask = pixel_mask.bool()
    sizes = torch.stack([mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)], dim=1)
    if not torch.compiler.is_compiling() and not sizes.all():
        raise ValueError("pixel_mask marks an image as all padding: it must be 1 where the image is.")
    return sizes


def check_detection_labels(labels: list[dict[str, torch.Tensor]], batch: int, num_labels: int) -> None:
    """
    Raises a ValueError if the labels of a batch have a wrong number, wrong keys, types, shapes or values. (Values are
    not checked in compiled code.)
    """
    if not isinstance(labels, (list, tuple)) or len(labels) != batch:
        given = f"{len(labels)}" if isinstance(labels, (list, tuple)) else f"a {type(labels).__name__}"
        raise ValueError(f"labels must be a list with a dict for each of the {batch} images, got {given}.")
    for index, label in enumerate(labels):
        missing = [key for key in ("class_labels", "boxes") if key not in label]
        if missing:
            raise ValueError(
                f"labels[{index}] has no {' and no '.join(missing)}; it has {', '.join(label) or 'nothing'}."
            )
        classes, boxes = label["class_labels"], label["boxes"]
        if not (isinstance(classes, torch.Tensor) and isinstance(boxes, torch.Tensor)):
            kinds = f"{type(classes).__name__} and {type(boxes).__name__}"
            raise ValueError(f"labels[{index}] has class_labels and boxes of types {kinds}: expected tensors.")
        if classes.is_floating_point() or not boxes.is_floating_point():
            raise ValueError(
                f"labels[{index}] has {classes.dtype} class_labels and {boxes.dtype} boxes: expected integers (int64) "
                "and floats (float32)."
            )
        if boxes.ndim != 2 or boxes.shape[-1] != 4 or classes.shape != boxes.shape[:1]:
            raise ValueError(
                f"labels[{index}] has class_labels of shape {tuple(classes.shape)} and boxes of shape "
                f"{tuple(boxes.shape)}: expected (objects,) and (objects, 4)."
            )
        if torch.compiler.is_compiling() or not len(boxes):
            continue
        unknown = classes[(classes < 0) | (classes >= num_labels)].unique().tolist()
        if unknown:
            raise ValueError(
                f"labels[{index}] has the class_labels {unknown[:5]}: with num_labels {num_labels} they must be 0 to "
                f"{num_labels - 1}. Correct the labels, or the configuration."
            )
        if not torch.isfinite(boxes).all() or (boxes[:, 2:] < 0).any():
            wrong = boxes[~torch.isfinite(boxes).all(dim=1) | (boxes[:, 2:] < 0).any(dim=1)]
            raise ValueError(
                f"labels[{index}] has boxes that are not finite or of negative width or height, such as "
                f"{wrong[0].tolist()}: leave such objects out."
            )
        if boxes.max() > 1.01 or boxes.min() < -0.01:
            raise ValueError(
                f"labels[{index}] has boxes with values from {boxes.min().item():.4g} to {boxes.max().item():.4g}: "
                "expected (centre x, centre y, width, height) divided by the image's width and height, from 0 to 1. "
                "Pixels? The image processor converts COCO annotations; or divide them."
            )


def boxes_in_pixels(boxes_cxcywh: torch.Tensor, image_size: torch.Tensor) -> torch.Tensor:
    """
    Boxes (..., objects, 4), cxcywh from 0 to 1, to fp32 xyxy in pixels of images with sizes (..., 2), (height, width).
    """
    return box_convert(boxes_cxcywh.float(), "cxcywh", "xyxy") * _width_height_twice(image_size)


def clip_to_image(boxes_xyxy: torch.Tensor, image_size: torch.Tensor) -> torch.Tensor:
    """
    Boxes (..., boxes, 4), xyxy in pixels, clipped to images with sizes (..., 2), (height, width). torchvision's
    function takes the size as Python numbers, which would wait for the device and break a compiled graph.
    """
    return torch.minimum(boxes_xyxy.clamp(min=0), _width_height_twice(image_size))


def normalised_boxes(boxes_xyxy: torch.Tensor, image_size: torch.Tensor) -> torch.Tensor:
    """Boxes (..., boxes, 4), xyxy in pixels, to cxcywh from 0 to 1, clipped to images with sizes (..., 2)."""
    clipped = clip_to_image(boxes_xyxy, image_size)
    return box_convert(clipped / _width_height_twice(image_size), "xyxy", "cxcywh")


def _width_height_twice(image_size: torch.Tensor) -> torch.Tensor:
    """Sizes (..., 2), (height, width), to (..., 1, 4), (width, height, width, height)."""
    return image_size[..., [1, 0, 1, 0]].unsqueeze(-2)


__all__ = [
    "IGNORED",
    "NEGATIVE",
    "AnchorGrid",
    "assign_to_objects",
    "base_anchors",
    "box_coder",
    "boxes_in_pixels",
    "check_detection_labels",
    "clip_to_image",
    "image_sizes_of",
    "normalised_boxes",
    "require_torchvision",
]
