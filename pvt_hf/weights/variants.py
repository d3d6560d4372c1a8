"""
The published classifiers, one row each: architecture, official checkpoint, and the paper's figures.

The figures are the paper's (Tables 2 and 9, ImageNet-1K at 224x224). None of them was measured here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..families import FAMILIES, load


if TYPE_CHECKING:
    from ..models.configuration_pvt import PvtConfig


# Arguments of PvtConfig that are not fields
_ARGUMENTS = {"num_labels", "out_features", "out_indices", "output_attentions", "attn_implementation"}
_RELEASE = "https://github.com/whai362/PVT/releases/download/v2/"


@dataclass(frozen=True)
class Variant:
    """
    Attributes:
        name: as users type it, e.g. "pvt-small".
        config: fields of [`PvtConfig`] that differ from its defaults.
        paper_params_m: parameters of the classifier with 1000 classes, in millions.
        paper_gflops: multiply-adds of one 224x224 forward pass, in 10^9; None if the paper has no figure.
        paper_top1_error: ImageNet-1K top-1 error, in percent.
        checkpoint_url: file of the official release; None if no weights were released.
        checkpoint_sha256: SHA-256 of that file, if known; checked after the download.
    """

    name: str
    config: dict[str, Any]
    paper_params_m: float
    paper_gflops: float | None
    paper_top1_error: float
    checkpoint_url: str | None
    checkpoint_sha256: str | None = None


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("pvt-tiny", {"depths": [2, 2, 2, 2]}, 13.2, 1.9, 24.9, _RELEASE + "pvt_tiny.pth"),
        Variant("pvt-small", {"depths": [3, 4, 6, 3]}, 24.5, 3.8, 20.2, _RELEASE + "pvt_small.pth"),
        Variant("pvt-medium", {"depths": [3, 4, 18, 3]}, 44.2, 6.7, 18.8, _RELEASE + "pvt_medium.pth"),
        Variant("pvt-large", {"depths": [3, 8, 27, 3]}, 61.4, 9.8, 18.3, _RELEASE + "pvt_large.pth"),
        # Table 9: PVT-Small with widths times 1.4. The exact widths were not published; these give the paper's 46.8 M.
        Variant(
            "pvt-small-wide",
            {"depths": [3, 4, 6, 3], "hidden_sizes": [89, 178, 445, 712]},
            46.8,
            None,
            19.3,
            None,
        ),
    )
}
# Variants with a checkpoint in the official release. It has classifiers only: detectors and segmentors were published
# elsewhere or not at all.
RELEASED = tuple(variant.name for variant in VARIANTS.values() if variant.checkpoint_url)


def get_variant(name: str) -> Variant:
    """The row of variant `name`, e.g. "pvt-small". Raises a ValueError that lists the names if it is unknown."""
    if name not in VARIANTS:
        raise ValueError(f"Unknown variant {name!r}: choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def get_config(name: str, **overrides: Any) -> PvtConfig:
    """
    The [`PvtConfig`] of a variant, with fields replaced by `overrides`: `get_config("pvt-small", num_labels=10)`.

    Raises:
        ValueError: an unknown variant, a field that `PvtConfig` does not have, or an invalid value.
    """
    config_class = load(FAMILIES["pvt"].config)
    known = {field.name for field in fields(config_class) if not field.name.startswith("_")} | _ARGUMENTS
    for unknown in sorted(overrides.keys() - known):
        similar = difflib.get_close_matches(unknown, known, n=1)
        raise ValueError(f"PvtConfig has no field {unknown!r}{f'; did you mean {similar[0]!r}?' if similar else '.'}")
    return config_class(**{**get_variant(name).config, **overrides})
