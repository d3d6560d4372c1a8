"""
The training transform for classification: timm's, with the settings of the paper's recipe as defaults (official
`classification/datasets.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize as timm_posterize


class ClassificationTransform:
    """
    Turns a PIL RGB image into `pixel_values` (3, height, width) float32: random resized crop (bicubic, ratio
    3/4 to 4/3), flip, RandAugment, normalisation, random erasing (per-pixel noise).

    Args:
        mean, std: per channel, of values in [0, 1].
        image_size: (height, width) of the result in pixels.
        min_scale: smallest share of the image's area that is cropped; with 1 the whole image is used.
        horizontal_flip, random_erasing: probabilities.
        auto_augment: timm's policy string, or None. The official code passes colour jitter as well, which timm ignores
            if there is a policy, so it is not set here.

    Raises:
        ValueError: a policy that timm does not know.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        image_size: tuple[int, int] = (224, 224),
        min_scale: float = 0.08,
        horizontal_flip: float = 0.5,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        random_erasing: float = 0.25,
    ):
        try:
            self.steps: Any = create_transform(
                input_size=(3, *image_size),
                is_training=True,
                scale=(min_scale, 1.0),
                ratio=(3 / 4, 4 / 3) if min_scale < 1 else (1.0, 1.0),
                hflip=horizontal_flip,
                color_jitter=None,  # type: ignore[arg-type]  # timm's own default settings have None
                auto_augment=auto_augment or None,
                interpolation="bicubic",
                re_prob=random_erasing,
                re_mode="pixel",
                mean=mean,
                std=std,
            )
        except AssertionError as error:  # timm's way to refuse a policy
            raise ValueError(
                f"timm has no auto_augment policy {auto_augment!r} ({error}): give one such as "
                "'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2' or 'original', or '' for none."
            ) from None
        for operation in (op for step in self.steps.transforms for op in getattr(step, "ops", ())):
            if operation.aug_fn is timm_posterize:
                operation.aug_fn = posterize

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.steps(image)


def posterize(image: Image.Image, bits_to_keep: int, **settings: Any) -> Image.Image:
    """
    timm's posterize, except that 0 bits give a black image.

    timm asks for 0 bits when it draws a magnitude at its limit (about once in 660 images of the recipe). Pillow before
    13 made the image black, as in the official training; later versions raise an error, which would end the training.
    """
    return timm_posterize(image, bits_to_keep, **settings) if bits_to_keep else Image.new(image.mode, image.size)
