"""
Images to try a model with: photographs that scikit-learn and scikit-image install, under licences that allow it, and a
scene of digits for the models of this package.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


PHOTO = "photo:"  # what an input of a command begins with that names one, such as "photo:china"


class Photograph(NamedTuple):
    """
    Attributes:
        shows: what is on it, in a few words.
        package: that is imported.
        file: below the package's folder.
        source: who made it, and its licence.
    """

    shows: str
    package: str
    file: str
    source: str


DISTRIBUTIONS = {"pvt_hf": "pvt-hf", "sklearn": "scikit-learn", "skimage": "scikit-image"}
# Licences as the packages state them: sklearn/datasets/images/README.txt, and the docstrings of skimage.data
PHOTOGRAPHS = {
    "digits": Photograph(
        "digits", "pvt_hf", "samples/digits-detector/scene.png", "a scene of scikit-learn's handwritten digits"
    ),
    "china": Photograph(
        "a temple", "sklearn", "datasets/images/china.jpg", "danielbuechele on Flickr, Creative Commons Attribution 2.0"
    ),
    "flower": Photograph(
        "a dahlia", "sklearn", "datasets/images/flower.jpg", "vultilion on Flickr, Creative Commons Attribution 2.0"
    ),
    "chelsea": Photograph("a cat", "skimage", "data/chelsea.png", "Stéfan van der Walt, CC0"),
    "coffee": Photograph("a cup of coffee", "skimage", "data/coffee.png", "Rachel Michetti, CC0"),
    "astronaut": Photograph("Eileen Collins", "skimage", "data/astronaut.png", "NASA, public domain"),
    "rocket": Photograph("a rocket", "skimage", "data/rocket.jpg", "SpaceX, public domain"),
    "coins": Photograph(
        "Greek coins from Pompeii", "skimage", "data/coins.png", "Brooklyn Museum, no known copyright restrictions"
    ),
}


def photo(name: str) -> str:
    """
    The file of a photograph that another package has installed, or of a scene of digits of this package. Commands take
    it as "photo:NAME".

    ```python
    >>> Image.open(pvt_hf.photo("china"))
    ```

    Args:
        name: "china" or "flower" of scikit-learn; "astronaut", "chelsea", "coffee", "coins" or "rocket" of
            scikit-image; "digits" of this package, for the models of [`pvt_hf.sample`].

    Raises:
        FileNotFoundError: there is no such photograph, or the package does not have the file; the message says which.
        ImportError: the package is not installed; the message says how to install it.
    """
    if name not in PHOTOGRAPHS:
        raise FileNotFoundError(f"There is no photograph {name!r}: choose one of {', '.join(PHOTOGRAPHS)}.")
    package = PHOTOGRAPHS[name].package
    spec = find_spec(package)  # not imported, which takes seconds
    if spec is None or not spec.submodule_search_locations:
        distribution = DISTRIBUTIONS[package]
        raise ImportError(f"The photograph {name!r} is a file of {distribution}: pip install {distribution}")
    path = Path(spec.submodule_search_locations[0], PHOTOGRAPHS[name].file)
    if not path.is_file():
        raise FileNotFoundError(f"The installed {DISTRIBUTIONS[package]} has no {PHOTOGRAPHS[name].file}.")
    return str(path)


def installed_photos() -> list[str]:
    """The names of those that are here."""
    names = []
    for name in PHOTOGRAPHS:
        try:
            photo(name)
        except (ImportError, FileNotFoundError):
            continue
        names.append(name)
    return names
