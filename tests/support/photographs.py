"""Photographs that scikit-image and scikit-learn ship under free licences, read from the installed packages."""

import numpy as np
from PIL import Image


def photographs() -> dict[str, Image.Image]:
    """By name: a person, a cat, a cup and a rocket of scikit-image, a temple and a dahlia of scikit-learn, small."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    pixels = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    pixels |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: _shrunk(Image.fromarray(array)) for name, array in pixels.items()}


def coins_and_mask() -> tuple[Image.Image, Image.Image]:
    """scikit-image's coins (Brooklyn Museum), 384x303 pixels, and a mask: 1 where a blurred pixel is bright."""
    from scipy.ndimage import binary_fill_holes, gaussian_filter
    from skimage import data
    from skimage.filters import threshold_local

    grey = data.coins().astype(np.float32)
    # The ground is brighter at the top: a threshold of its own for each neighbourhood
    smooth = gaussian_filter(grey, 2)
    mask = binary_fill_holes(smooth > threshold_local(smooth, 151, offset=-8))
    return Image.fromarray(data.coins()).convert("RGB"), Image.fromarray(mask.astype(np.uint8))


def _shrunk(image: Image.Image) -> Image.Image:
    image.thumbnail((128, 128))
    return image
