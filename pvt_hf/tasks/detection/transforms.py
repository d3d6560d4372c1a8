"""
The training transform for object detection and instance segmentation, with the settings of the paper's recipe as
defaults.

It follows the train pipeline of the official `detection/configs/_base_/datasets/coco_{detection,instance}.py`, which
uses mmdetection: rescaling, flipping, normalisation. Batches are padded by `collate_detection` in samples.py. All steps
draw from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import SizeDict

from ...models.image_processing_sizes import rescaled_size


class ResizeToShortestEdge(v2.Transform):
    """
    Draws a limit for the shorter side from `shortest_edges`, and resizes to the largest size of the same aspect ratio
    within it and `longest_edge`, with mmcv's rounding: bilinear with antialiasing for images, nearest for masks.

    Source: mmdetection's `Resize`. That resizes with OpenCV, whose bilinear filter does not average pixels where it
    shrinks; here they are averaged, as in the image processors.
    """

    def __init__(self, shortest_edges: Sequence[int], longest_edge: int):
        super().__init__()
        self.shortest_edges, self.longest_edge = shortest_edges, longest_edge

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        edge = self.shortest_edges[int(torch.randint(len(self.shortest_edges), ()))]
        limits = SizeDict(shortest_edge=edge, longest_edge=self.longest_edge)
        height, width = F.get_size(flat_inputs[0])
        return {"size": rescaled_size(height, width, limits)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, size=list(params["size"]), antialias=True)


class DetectionTransform:
    """
    Turns a PIL RGB image, its boxes_xyxy (n, 4) float32 in pixels and its masks (n, H, W) uint8 or None into
    `pixel_values` (3, h, w) float32, boxes_xyxy (n, 4) float32 in pixels of the result, and masks (n, h, w) uint8 or
    None.

    Args:
        mean, std: per channel, of values in [0, 1].
        shortest_edges: lengths in pixels, one of which is drawn as the shorter side: `(800,)` for the paper's single
            scale, `range(640, 801)` for its multi-scale training.
        longest_edge: limit in pixels of the longer side. The shorter side of a long image is smaller accordingly.
        horizontal_flip: probability.

    Raises:
        ValueError: no sides, or sides that are not positive.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        shortest_edges: Sequence[int] = (800,),
        longest_edge: int = 1333,
        horizontal_flip: float = 0.5,
    ):
        if len(shortest_edges) == 0 or min(shortest_edges) < 1 or longest_edge < 1:
            raise ValueError(
                f"shortest_edges={shortest_edges!r} and longest_edge={longest_edge!r}; expected at least one side in "
                "pixels, all positive."
            )
        self.steps = v2.Compose(
            [
                ResizeToShortestEdge(shortest_edges, longest_edge),
                v2.RandomHorizontalFlip(horizontal_flip),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __call__(
        self, image: Image.Image, boxes_xyxy: torch.Tensor, masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        boxes = tv_tensors.BoundingBoxes(
            boxes_xyxy, format="XYXY", canvas_size=(image.height, image.width), clamping_mode=None
        )
        inputs = [F.to_image(image), boxes] + ([] if masks is None else [tv_tensors.Mask(masks)])
        outputs = [output.as_subclass(torch.Tensor) for output in self.steps(*inputs)]
        return outputs[0], outputs[1], None if masks is None else outputs[2]
