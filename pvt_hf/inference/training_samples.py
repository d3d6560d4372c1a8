"""A picture of what a training sees: images and labels after augmentation."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.samples import short_name
from ..engine.run import training_batches
from ..engine.task import Task
from .pictures import overlay_classes, overlay_objects


SMALLEST_DRAWN = 320  # pixels of the longer side; smaller images are enlarged
ONE_PROCESS = SimpleNamespace(process_index=0, num_processes=1)


def plot_training_samples(task: Task, settings: Any, path: str | Path, count: int = 3) -> int:
    """
    Writes a PNG with the first usable samples of the first epoch of a training in one process, with their labels.
    Mixup and CutMix, which mix a batch, are not shown.

    Args:
        settings: of the class `task.training_settings`.
        path: of the PNG.
        count: number of samples.

    Returns:
        The number of samples drawn. If there are none, no file is written.
    """
    import matplotlib.figure

    processor = task.build_processor(settings)
    stream = task.open_stream(settings, settings.train_split, processor, training=True)
    sample = task.training_sample(settings, stream, processor)
    batches = training_batches(
        task, settings, sample, ONE_PROCESS,
        batch_size=1, seed=settings.seed, shuffle_window=settings.shuffle_window,
    )  # fmt: skip
    batches.max_bad_share = 1.0
    found = list(islice((batch for batch in batches if "sample_ids" in batch), count))
    if not found:
        return 0
    id2label = dict(enumerate(sample.class_names))
    figure = matplotlib.figure.Figure(figsize=(4.5 * len(found), 4.8), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(found), squeeze=False)[0], found):
        image, title = draw_sample(batch, processor, id2label)
        axes.imshow(image)
        axes.set_title(f"{short_name(batch['sample_ids'][0])}\n{title}", fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=100)
    return len(found)


def draw_sample(batch: dict[str, Any], processor: Any, id2label: dict[int, str]) -> tuple[Image.Image, str]:
    """
    The image of a training batch of one sample, with its masks or boxes drawn, and its title.

    Args:
        batch: from [`pvt_hf.data.batches.BatchStream`] with a task's `collate_training`.
        processor: has the `image_mean` and `image_std` with which the image was normalised.
        id2label: class names.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    pixels = ((batch["pixel_values"][0] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    labels = batch["labels"][0]
    size = f"{pixels.shape[1]}x{pixels.shape[2]}"
    scale = max(1, SMALLEST_DRAWN // max(pixels.shape[1:]))  # names and legends need room
    image = Image.fromarray(_enlarged(pixels, scale).permute(1, 2, 0).numpy())
    if isinstance(labels, dict):  # objects
        height, width = labels["size"].tolist()  # without padding
        boxes = labels["boxes"]
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
        boxes_xyxy = corners * torch.tensor([width, height] * 2) * scale
        masks = _enlarged(labels["masks"], scale).bool() if "masks" in labels else None
        drawn = overlay_objects(image, boxes_xyxy, labels["class_labels"].tolist(), None, id2label, masks)
        return drawn.crop((0, 0, width * scale, height * scale)), f"{height}x{width}, {len(boxes)} object(s)"
    if labels.ndim:  # a mask
        classes, none = _enlarged(labels, scale).numpy(), len(id2label)
        classes = np.where(classes < none, classes, none)
        return overlay_classes(image, classes, {**id2label, none: "no class"}), size
    return image, f"{size}, {id2label[int(labels)]}"


def _enlarged(pixels: torch.Tensor, scale: int) -> torch.Tensor:
    """(..., height, width), with each pixel `scale` times as high and wide."""
    return pixels.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
