"""
What a model costs: parameters, and multiply-adds of one forward pass. Counted on the "meta" device, without weights and
without computing, in about a second.

Two conventions:

- *The paper's.* A multiply-add counts as one operation ("FLOP" in the paper). Counted are convolutions with their bias,
  linear layers without, and matrix products, so also both products of attention. As in the counter of the official
  code (mmcv), a ReLU counts one operation per element of its output, and pooling one per element of its input. Norms,
  softmax, GELU, resizing and sums count nothing.
- *PyTorch's*, `torch.utils.flop_counter`: two operations for each multiply-add of convolutions, linear layers and
  matrix products, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from ..models.modeling_pvt import PvtEncoder


aten = torch.ops.aten

# Transformers builds masks for the implementations of attention that it knows, and for that looks at values, which
# tensors on the meta device do not have (DETR). Masks do not change what is counted.
_UNMASKED = "pvt_hf_unmasked"
ALL_ATTENTION_FUNCTIONS.register(_UNMASKED, ALL_ATTENTION_FUNCTIONS["sdpa"])


@dataclass(frozen=True)
class Part:
    """
    A part of a model, such as a stage of the backbone.

    Attributes:
        name: "stage1" ... for the stages of a backbone, otherwise the attribute of the model.
        parameters: number of parameters.
        multiply_adds: operations in the paper's convention.
        torch_flops: operations in PyTorch's convention.
    """

    name: str
    parameters: int
    multiply_adds: int
    torch_flops: int


@dataclass(frozen=True)
class Costs:
    """
    Costs of a model and of one forward pass with one image.

    Attributes:
        height: of the image, in pixels.
        width: of the image, in pixels.
        parameters: number of parameters.
        multiply_adds: operations in the paper's convention.
        torch_flops: operations in PyTorch's convention, about twice as many.
        parts: the parts that have parameters or operations, in the order of the forward pass.
    """

    height: int
    width: int
    parameters: int
    multiply_adds: int
    torch_flops: int
    parts: tuple[Part, ...]


def build_on_meta(build: Callable[[], nn.Module]) -> Any:
    """The model that `build` makes, in eval mode and frozen, with shapes instead of weights."""
    with torch.device("meta"):
        model = build().eval().requires_grad_(False)
    if isinstance(model, PreTrainedModel) and model._supports_attention_backend:
        model.set_attn_implementation(_UNMASKED)
    return model


def count_costs(model: nn.Module, height: int, width: int, *, batch_norm: int = 0) -> Costs:
    """
    Counts parameters and operations of a forward pass with one image.

    Args:
        model: on the meta device, see [`build_on_meta`]. For Mask R-CNN, whose regions depend on the image, the counts
            are those of the paper: `num_proposals` regions go through the box head and `max_detections` through the
            mask head.
        height: in pixels.
        width: in pixels.
        batch_norm: operations per element of a BatchNorm's output in the paper's convention. The counter of the
            official code has 2, but does not see synchronised BatchNorm.

    Raises:
        ValueError: the model refuses images of this size.
    """
    counter = _Counter(batch_norm)
    modules_of = split(model)
    counted = {name: [0, 0] for name in modules_of}
    handles = []
    for name, modules in modules_of.items():
        before, after = counter.hooks(counted[name])
        for module in modules:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with counter:
            _run(model, height, width)
    finally:
        for handle in handles:
            handle.remove()
    parts = [
        Part(name, sum(parameter.numel() for module in modules for parameter in module.parameters()), *counted[name])
        for name, modules in modules_of.items()
    ]
    return Costs(
        height,
        width,
        count_parameters(model),
        counter.multiply_adds,
        counter.torch_flops,
        tuple(part for part in parts if part.parameters or part.multiply_adds),
    )


@torch.inference_mode()
def time_passes(model: Any, height: int, width: int, seconds: float = 5.0) -> list[float]:
    """
    The seconds of each forward pass of one image, float32 noise, where the model is. The first pass does not count.

    Args:
        model: in eval mode, called with `pixel_values` (1, channels, height, width).
        seconds: for which passes are repeated; at least three of them.
    """
    config = getattr(model.config, "backbone_config", None) or model.config
    images = torch.randn(1, getattr(config, "num_channels", 3), height, width)
    model(pixel_values=images)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        begun = time.perf_counter()
        model(pixel_values=images)
        times.append(time.perf_counter() - begun)
    return times


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once. Buffers, such as the statistics of BatchNorm, do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def as_printed(number: float) -> str:
    """
    Millions of parameters, or GFLOPs from 1e9 on, with the one decimal of the paper. Rounded from the two decimals that
    the counter of its framework prints. (This differs from rounding once for the 15.446 M of ResNet18 with Semantic FPN
    only.)
    """
    counted = Decimal(number / 1e6 if number < 1e9 else number / 1e9)
    return str(counted.quantize(Decimal("0.01"), ROUND_HALF_UP).quantize(Decimal("0.1"), ROUND_HALF_UP))


def split(model: nn.Module) -> dict[str, list[nn.Module]]:
    """
    The parts of a model: its children, with the backbone divided into stages. Works for a PVT, and for backbones that
    keep their stages in a list of that name, as those of Transformers do.
    """
    found: dict[str, list[nn.Module]] = {}

    def visit(parent: nn.Module, path: str) -> None:
        for name, child in parent.named_children():
            full_name = f"{path}.{name}" if path else name
            if isinstance(child, PvtEncoder):
                for stage, (embeddings, blocks) in enumerate(zip(child.patch_embeddings, child.block), 1):
                    found[f"stage{stage}"] = [embeddings, *blocks]  # type: ignore[misc]  # a ModuleList
                found["norm"] = [child.layer_norm]
            elif _is_list_of_stages(name, child):
                found.update({f"stage{index}": [stage] for index, stage in enumerate(child.children(), 1)})
            elif _has_stages(child):
                visit(child, full_name)
            else:
                found[full_name if name in found else name] = [child]

    visit(model, "")
    return found


def _is_list_of_stages(name: str, module: nn.Module) -> bool:
    return name == "stages" and isinstance(module, nn.ModuleList)


def _has_stages(module: nn.Module) -> bool:
    return any(
        isinstance(child, PvtEncoder) or _is_list_of_stages(name.rpartition(".")[2], child)
        for name, child in module.named_modules()
    )


def _run(model: Any, height: int, width: int) -> None:
    config = getattr(model, "config", None)
    config = getattr(config, "backbone_config", None) or config
    images = torch.empty(1, getattr(config, "num_channels", 3), height, width, device="meta")
    if getattr(model.config if config else None, "model_type", "") == "mask_rcnn":
        _run_mask_rcnn(model, images)
    else:
        model(images)


def _run_mask_rcnn(model: Any, images: torch.Tensor) -> None:
    config = model.config
    maps = model.neck(model.backbone(images).feature_maps)
    coarsest = nn.functional.max_pool2d(maps[-1], kernel_size=1, stride=2)
    # The proposals, which depend on the values, cost nothing in either convention
    model.rpn.proposals = lambda *inputs: []
    try:
        model.rpn([*maps, coarsest], torch.empty(1, 2, device="meta"))
    finally:
        del model.rpn.proposals
    model.box_head(images.new_empty(config.num_proposals, config.fpn_channels, 7, 7))
    model.mask_head(images.new_empty(config.max_detections, config.fpn_channels, 14, 14))


class _Counter(TorchDispatchMode):
    """
    Adds up what each function of PyTorch costs, in both conventions. It sees functions as `FlopCounterMode` does, and
    uses its formulas.
    """

    def __init__(self, batch_norm: int):
        super().__init__()
        self.batch_norm = batch_norm
        self.multiply_adds = self.torch_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        function = func._overloadpacket
        if function in flop_registry:
            flops = flop_registry[function](*args, **kwargs, out_val=output)
            self.torch_flops += flops
            self.multiply_adds += flops // 2
            if function is aten.convolution and args[2] is not None:  # the bias
                self.multiply_adds += output.numel()
        elif function in (aten.relu, aten.relu_):
            self.multiply_adds += output.numel()
        elif function in _POOLING or function is aten.mean and _is_global_pooling(*args):
            self.multiply_adds += args[0].numel()
        elif function in _BATCH_NORM:
            self.multiply_adds += self.batch_norm * args[0].numel()
        return output

    def hooks(self, counted: list[int]) -> tuple[Callable[..., None], Callable[..., None]]:
        """Hooks for before and after a module, which add its multiply-adds and its FLOPs to `counted`."""

        def before(module: nn.Module, inputs: Any) -> None:
            counted[0] -= self.multiply_adds
            counted[1] -= self.torch_flops

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            counted[0] += self.multiply_adds
            counted[1] += self.torch_flops

        return before, after


_POOLING = (aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d)
_BATCH_NORM = (aten.native_batch_norm, aten._native_batch_norm_legit_no_training)


def _is_global_pooling(images: torch.Tensor, dims: Any = None, *options: Any) -> bool:
    return images.ndim == 4 and sorted(dim % 4 for dim in dims or ()) == [2, 3]
