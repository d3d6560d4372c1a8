"""Milliseconds per image of a detector, for Table 11 of the paper."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForObjectDetection

from ..data.samples import BadSample, decode_rgb
from ..data.streams import Stream
from ..families import FAMILIES
from ..weights.opening import open_processor, open_to_run


IMAGES = 20
WARM_UP = 3  # passes that do not count


@torch.no_grad()
def milliseconds_per_image(folder: Path, stream: Stream, device: str) -> float:
    """
    The median over the first `IMAGES` usable images of a stream, one at a time, in float32: the model and the selection
    of boxes. Reading and preparing the images do not count.

    Args:
        folder: of the model and its image processor.
        device: "cpu" or "cuda".
    """
    model = open_to_run(AutoModelForObjectDetection, folder).to(device)
    processor: Any = open_processor(folder)
    thresholds = {family.model_type: family.score_threshold for family in FAMILIES.values()}
    threshold = thresholds.get(model.config.model_type, 0.0)

    def run(inputs: Any, size: tuple[int, int]) -> float:
        _finish(device)
        start = time.perf_counter()
        outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
        processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=[size])
        _finish(device)
        return 1000 * (time.perf_counter() - start)

    times: list[float] = []
    for example in stream.dataset:
        try:
            image = decode_rgb(example[stream.image_column])
        except BadSample:  # named in the evaluation
            continue
        inputs = processor(image, return_tensors="pt").to(device)
        for _ in range(0 if times else WARM_UP):
            run(inputs, (image.height, image.width))
        times.append(run(inputs, (image.height, image.width)))
        if len(times) == IMAGES:
            break
    return statistics.median(times)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
