"""A small model with random weights of every class that can be pushed to the Hub, and its image processor."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel

import pvt_hf
from pvt_hf.families import load

from .common import randomize, tiny_pvt_config
from .heads import HEADS, tiny_head


ANIMALS = dict(enumerate("cat dog cow hen pig".split()))
THINGS = dict(enumerate("cat dog cow car bus jet".split()))
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@dataclass(frozen=True)
class Kind:
    """`tasks` are the pipelines that run it."""

    model: Callable[[], PreTrainedModel]
    make_processor: Callable[..., BaseImageProcessor]
    tasks: tuple[str, ...] = ()


def _pvt(name: str, **fields) -> PreTrainedModel:
    return randomize(getattr(pvt_hf, name)(tiny_pvt_config(**fields))).eval()


def _head_processor(path: str) -> BaseImageProcessor:
    return load(path)(size={"shortest_edge": 64, "longest_edge": 256})


_make_processor = partial(pvt_hf.PvtImageProcessor, size=73, crop_size=64)

KINDS = {
    "classifier": Kind(
        # one epsilon for all norms, as the native class has it
        partial(_pvt, "PvtForImageClassification", id2label=ANIMALS, reduction_layer_norm_eps=1e-6),
        _make_processor,
        ("image-classification", "image-feature-extraction"),
    ),
    "model": Kind(partial(_pvt, "PvtModel"), _make_processor, ("image-feature-extraction",)),
    "backbone": Kind(partial(_pvt, "PvtBackbone", out_features=STAGES), _make_processor),
    **{
        name: Kind(
            partial(tiny_head, name, id2label=THINGS),
            partial(_head_processor, family.processor),
            family.models[0].pipelines,
        )
        for name, family in HEADS.items()
    },
}
