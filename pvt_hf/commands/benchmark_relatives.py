"""Published accuracy and costs of the models in `pvt-hf benchmark`. None of these figures was measured by us."""

from __future__ import annotations

from typing import NamedTuple

from ..weights.variants import VARIANTS


class Published(NamedTuple):
    """
    Published figures of a classifier for ImageNet-1K at 224x224.

    Attributes:
        title: for readers.
        top1: top-1 accuracy in percent.
        parameters: in millions, as printed.
        multiply_adds: in 10^9, as printed; the sources call them GFLOPs.
        source: where the figures are printed.
    """

    title: str
    top1: float
    parameters: str
    multiply_adds: str
    source: str


_PVT = "https://arxiv.org/abs/2102.12122"
_PVT_CODE = "https://github.com/whai362/PVT/blob/v2/classification/README.md"
PUBLISHED = {
    **{
        name: Published(
            f"PVT-{name.removeprefix('pvt-').capitalize()}",
            round(100 - variant.paper_top1_error, 1),
            str(variant.paper_params_m),
            str(variant.paper_gflops),
            _PVT,
        )
        for name, variant in VARIANTS.items()
        if variant.checkpoint_url is not None
    },
    "pvt_v2_b2": Published("PVT v2 B2", 82.0, "25.4", "4.0", _PVT_CODE),
    "twins_pcpvt_small": Published("Twins-PCPVT-S", 81.2, "24.1", "3.7", "https://github.com/Meituan-AutoML/Twins"),
    # With the recipe of DeiT: 21.5 % error in Table 2 of the PVT paper
    "resnet50": Published("ResNet50", 78.5, "25.6", "4.1", _PVT),
    "swin_tiny": Published("Swin-T", 81.2, "28", "4.5", "https://github.com/microsoft/Swin-Transformer"),
}
