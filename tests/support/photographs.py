"""The photographs of `pvt_hf.photo` as small images, and one with a mask."""

import numpy as np
from PIL import Image

from pvt_hf import photo


def photographs() -> dict[str, Image.Image]:
    """By name: a person, a cat, a cup and a rocket of scikit-image, a temple and a dahlia of scikit-learn, small."""
    names = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")
    return {name: _shrunk(Image.open(photo(name)).convert("RGB")) for name in names}


def coins_and_mask() -> tuple[Image.Image, Image.Image]:
    """scikit-image's coins (Brooklyn Museum), 384x303 pixels, and a mask: 1 where a blurred pixel is bright."""
    from scipy.ndimage import binary_fill_holes, gaussian_filter
    from skimage.filters import threshold_local

    coins = Image.open(photo("coins"))
    grey = np.asarray(coins, np.float32)
    # The ground is brighter at the top: a threshold of its own for each neighbourhood
    smooth = gaussian_filter(grey, 2)
    mask = binary_fill_holes(smooth > threshold_local(smooth, 151, offset=-8))
    return coins.convert("RGB"), Image.fromarray(mask.astype(np.uint8))


def _shrunk(image: Image.Image) -> Image.Image:
    image.thumbnail((128, 128))
    return image
