"""Plain implementations, written from definitions, that tests compare with."""

import torch

from pvt_hf.models.modeling_anchors import IGNORED, NEGATIVE


def resize_bilinear(feature_map: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(batch, channels, rows, columns) by half-pixel centres, edges repeated; in the dtype of `feature_map`."""

    def weights(old: int, new: int) -> torch.Tensor:
        matrix = torch.zeros(new, old, dtype=feature_map.dtype)
        for index in range(new):
            position = min(max((index + 0.5) * old / new - 0.5, 0), old - 1)
            low = int(position)
            matrix[index, low] += 1 - (position - low)
            matrix[index, min(low + 1, old - 1)] += position - low
        return matrix

    height, width = feature_map.shape[2:]
    return torch.einsum("hi,wj,bcij->bchw", weights(height, rows), weights(width, columns), feature_map)


def iou_of(first: list[float], second: list[float]) -> float:
    """Intersection over union of two xyxy boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return common / (sum(areas) - common) if sum(areas) > common else 0.0


def assign_boxes(boxes, objects, positive, negative, low_quality) -> list[int]:
    """
    mmdetection's MaxIoUAssigner, one box after another, then one object after another. For each of `boxes` the index of
    its object, NEGATIVE or IGNORED; boxes and objects are lists of xyxy coordinates.
    """
    table = [[iou_of(obj, box) for box in boxes] for obj in objects]
    assigned = []
    for index in range(len(boxes)):
        column = [row[index] for row in table]
        best = max(range(len(column)), key=column.__getitem__, default=None)
        overlap = column[best] if column else 0.0
        assigned.append(best if overlap >= positive else NEGATIVE if overlap < negative else IGNORED)
    for index, row in enumerate(table):
        if low_quality is not None and max(row) > 0 and max(row) >= low_quality:
            for position, overlap in enumerate(row):
                if overlap == max(row):
                    assigned[position] = index
    return assigned
