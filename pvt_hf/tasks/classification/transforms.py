"""Training transforms for classification: timm's, with the settings of the paper's recipe as defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize as timm_posterize


def training_transform(
    height: int,
    width: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    min_scale: float = 0.08,
    horizontal_flip: float = 0.5,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    random_erasing: float = 0.25,
) -> Callable[[Image.Image], torch.Tensor]:
    """
    Random resized crop (bicubic, ratio 3/4 to 4/3), flip, RandAugment, normalisation, random erasing (per-pixel noise).

    Args:
        height, width: of the result in pixels.
        mean, std: per channel, of values in [0, 1].
        min_scale: smallest share of the image's area that a crop takes; 1 takes it whole.
        horizontal_flip, random_erasing: probabilities.
        auto_augment: timm's policy string, or None. The official code passes colour jitter too, which timm ignores
            where there is a policy, so it is not set here.

    Returns:
        A function from a PIL RGB image to a float tensor (3, height, width).

    Raises:
        ValueError: a policy that timm does not know.
    """
    try:
        transform = create_transform(
            input_size=(3, height, width),
            is_training=True,
            scale=(min_scale, 1.0),
            ratio=(3 / 4, 4 / 3) if min_scale < 1 else (1.0, 1.0),
            hflip=horizontal_flip,
            color_jitter=None,  # type: ignore[arg-type]  # as its own default settings have it
            auto_augment=auto_augment or None,
            interpolation="bicubic",
            re_prob=random_erasing,
            re_mode="pixel",
            mean=mean,
            std=std,
        )
    except AssertionError as error:  # so timm says it
        raise ValueError(
            f"auto_augment {auto_augment!r} is no policy of timm ({error}): give one such as 'rand-m9-mstd0.5-inc1', "
            "'augmix-m5-w4-d2' or 'original', or '' for none."
        ) from None
    for operation in (op for step in transform.transforms for op in getattr(step, "ops", ())):
        if operation.aug_fn is timm_posterize:
            operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits_to_keep: int, **settings: Any) -> Image.Image:
    """
    timm's posterize, where 0 bits leave a black image.

    timm asks for 0 when a magnitude is drawn at its limit (about once in 660 images of the recipe). Pillow before 13
    gave black, as in the official training; later versions raise an error, which would end the training.
    """
    return timm_posterize(image, bits_to_keep, **settings) if bits_to_keep else Image.new(image.mode, image.size)
