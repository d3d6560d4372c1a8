"""
The MLP of a PVT block on a CPU, a few tokens at a time: `tokens + scale * mlp(layer_norm(tokens))`, equal to what the
modules compute up to the order of sums, with less memory and in less time.

The hidden activation has up to eight times the channels of the tokens. As one tensor, it is the largest of the model,
is cleared page by page by the operating system in every call, and is kept for the backward pass. Here it stays in the
cache of the processor, and is computed again in the backward pass.

Measured on 2 cores with AVX-512 (fp32, 224x224), PVT-Small against the native class, with the patch projections of
`modeling_fast_patches.py`: 1.4 to 1.6 times as fast at batch 8 and 1.1 to 1.3 times at batch 1 by `pvt-hf benchmark`; a
training step at batch 32 1.25 times, with 43 % of the memory, by `pvt-hf benchmark training`. In a graph of
`torch.compile` it is one operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation

from .modeling_fast_checks import is_plain, needs_gradients


# Hidden activation of a block per thread, the size of a core's L2 cache: the fastest of 0.5, 1, 2 and 4 MB.
BYTES_PER_THREAD = 2 * 2**20

# With gradients, only a larger hidden activation is computed in blocks: at batch 1, computing it again takes longer
# than it saves.
MIN_BYTES_WITH_GRADIENTS = 16 * 2**20

# oneDNN's product with bias and GELU in one pass. Used where it was measured to be the faster one, such as at batch 1
# and 224x224. Below this number of multiply-adds, as in the last two stages at 64x64, it was slower by up to a half.
MIN_FUSED_PRODUCT = 2**23
HAS_FUSED_LINEAR = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


def parameters_of(layer_norm: nn.LayerNorm, mlp: Any) -> tuple[torch.Tensor | None, ...]:
    """Weight and bias of the norm, the first and the second linear layer."""
    return tuple(part for module in (layer_norm, mlp.dense1, mlp.dense2) for part in (module.weight, module.bias))


def can_run_in_blocks(hidden_states: torch.Tensor, layer_norm: nn.LayerNorm, mlp: Any) -> bool:
    """
    Whether [`add_mlp`] computes the same as the modules. Not on a GPU, in training in half precision, or where anyone
    could notice that the modules are not called: hooks, adapters, quantised layers, dropout, compilers and so on.

    Args:
        hidden_states: (batch, tokens, channels), for which [`may_be_fast`] is true.
        mlp: with `dense1`, `activation`, `dense2` and `dropout`.
    """
    if not (
        is_plain(layer_norm, nn.LayerNorm)
        and is_plain(mlp.dense1, nn.Linear)
        and is_plain(mlp.activation, GELUActivation)
        and mlp.activation.act is F.gelu
        and is_plain(mlp.dense2, nn.Linear)
        and is_plain(mlp.dropout, nn.Dropout)
        and (mlp.dropout.p == 0 or not mlp.dropout.training)
    ):
        return False
    dtype, device = hidden_states.dtype, hidden_states.device
    parameters = parameters_of(layer_norm, mlp)
    if any(part is None or part.dtype != dtype or part.device != device for part in parameters):
        return False
    if not needs_gradients(hidden_states, *parameters):
        return True
    num_tokens, hidden_size = hidden_states.shape[:2].numel(), len(mlp.dense1.weight)
    # Sums over blocks would round the gradients of half-precision weights once per block.
    return (
        dtype in (torch.float32, torch.float64)
        and num_tokens * hidden_size * hidden_states.element_size() >= MIN_BYTES_WITH_GRADIENTS
    )


def add_mlp(
    hidden_states: torch.Tensor, scale: torch.Tensor | None, layer_norm: nn.LayerNorm, mlp: Any
) -> torch.Tensor:
    """
    Computes `hidden_states + scale * mlp(layer_norm(hidden_states))`. Without gradients, overwrites `hidden_states`.

    Args:
        hidden_states: (batch, tokens, channels), for which [`can_run_in_blocks`] is true.
        scale: (batch, 1, 1), None for 1.
    """
    tokens = hidden_states.flatten(0, 1)
    if scale is not None:
        scale = scale.expand(-1, hidden_states.shape[1], -1).flatten(0, 1)
    parameters = parameters_of(layer_norm, mlp)
    if torch.compiler.is_compiling():
        tokens = add_mlp_in_graph(tokens, scale, layer_norm.eps, list(parameters))
    elif needs_gradients(tokens, *parameters):
        tokens = AddMlp.apply(tokens, scale, layer_norm.eps, *parameters)
    else:
        tokens = run_blocks(tokens, scale, layer_norm.eps, parameters, out=tokens)
    return tokens.view_as(hidden_states)


def blocks(tokens: torch.Tensor, hidden_size: int) -> Iterator[slice]:
    """Splits the rows of `tokens`, so that a block of `hidden_size` channels has the size given above."""
    rows = max(1, BYTES_PER_THREAD * torch.get_num_threads() // (hidden_size * tokens.element_size()))
    return (slice(start, start + rows) for start in range(0, len(tokens), rows))


def run_blocks(
    tokens: torch.Tensor, scale: torch.Tensor | None, eps: float, parameters: Any, out: torch.Tensor
) -> torch.Tensor:
    """Writes the result for `tokens` (tokens, channels) and `scale` (tokens, 1) to `out`, which may be `tokens`."""
    norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2 = parameters
    is_fused = (
        HAS_FUSED_LINEAR
        and tokens.dtype == torch.float32
        and len(tokens) * weight_1.numel() >= MIN_FUSED_PRODUCT
        and torch.backends.mkldnn.enabled
    )
    for block in blocks(tokens, len(weight_1)):
        change = F.layer_norm(tokens[block], norm_weight.shape, norm_weight, norm_bias, eps)
        if is_fused:
            change = torch.ops.mkldnn._linear_pointwise(change, weight_1, bias_1, "gelu", [], "none")
            change = torch.ops.mkldnn._linear_pointwise(change, weight_2, bias_2, "none", [], "")
        else:
            change = torch.ops.aten.gelu_(F.linear(change, weight_1, bias_1))
            change = F.linear(change, weight_2, bias_2)
        if scale is not None:
            change *= scale[block]
        torch.add(tokens[block], change, out=out[block])
    return out


@torch.library.custom_op("pvt_hf::add_mlp", mutates_args=(), device_types="cpu")
def add_mlp_in_graph(
    tokens: torch.Tensor, scale: torch.Tensor | None, eps: float, parameters: list[torch.Tensor]
) -> torch.Tensor:
    """[`run_blocks`] as an operation of compiled graphs: the compiler would write the whole hidden activation."""
    return run_blocks(tokens, scale, eps, parameters, out=torch.empty_like(tokens))


@add_mlp_in_graph.register_fake
def _(tokens: torch.Tensor, scale: torch.Tensor | None, eps: float, parameters: list[torch.Tensor]) -> torch.Tensor:
    return torch.empty_like(tokens)


class AddMlp(torch.autograd.Function):
    """
    [`run_blocks`] with gradients. Keeps the tokens and no activation, which it computes again.
    """

    @staticmethod
    def forward(ctx, tokens, scale, eps, *parameters):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(tokens, scale, *parameters)
        ctx.eps = eps
        return run_blocks(tokens, scale, eps, parameters, out=torch.empty_like(tokens))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tokens, scale, *parameters = ctx.saved_tensors
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        # With create_graph=True the gradient itself needs gradients; batched gradients cannot be written in place
        create_graph = torch.is_grad_enabled()
        is_batched = torch._C._functorch.is_batchedtensor(grad) or torch._C._functorch.is_legacy_batchedtensor(grad)
        with torch.autocast("cpu", enabled=False), torch.set_grad_enabled(create_graph or is_batched):
            compute = differentiable_gradients if create_graph or is_batched else gradients_in_blocks
            gradients = compute(grad, tokens, scale, ctx.eps, parameters, needed)
        return gradients[0], None, None, *gradients[1:]


def differentiable_gradients(
    grad: torch.Tensor,
    tokens: torch.Tensor,
    scale: torch.Tensor | None,
    eps: float,
    parameters: Any,
    needed: list[bool],
) -> list[torch.Tensor | None]:
    """As [`gradients_in_blocks`], by the operations of the modules."""
    norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2 = parameters
    change = F.linear(F.layer_norm(tokens, norm_weight.shape, norm_weight, norm_bias, eps), weight_1, bias_1)
    change = F.linear(F.gelu(change), weight_2, bias_2)
    result = tokens + (change if scale is None else change * scale)
    inputs = [tensor for tensor, is_needed in zip((tokens, *parameters), needed) if is_needed]
    found = iter(torch.autograd.grad(result, inputs, grad, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needed]


def gradients_in_blocks(
    grad: torch.Tensor,
    tokens: torch.Tensor,
    scale: torch.Tensor | None,
    eps: float,
    parameters: Any,
    needed: list[bool],
) -> list[torch.Tensor | None]:
    """The gradients of the tokens and the six parameters, None where not needed; `grad` is that of the result."""
    norm_weight, norm_bias, weight_1, bias_1, weight_2, bias_2 = parameters
    gradients = [
        torch.zeros_like(tensor) if is_needed else None for tensor, is_needed in zip((tokens, *parameters), needed)
    ]
    grad_tokens, grad_norm_weight, grad_norm_bias, grad_weight_1, grad_bias_1, grad_weight_2, grad_bias_2 = gradients
    for block in blocks(tokens, len(weight_1)):
        normed, mean, deviation = torch.native_layer_norm(tokens[block], norm_weight.shape, norm_weight, norm_bias, eps)
        hidden = F.linear(normed, weight_1, bias_1)
        grad_change = grad[block] if scale is None else grad[block] * scale[block]
        if grad_weight_2 is not None:
            grad_weight_2.addmm_(grad_change.t(), F.gelu(hidden))
        if grad_bias_2 is not None:
            grad_bias_2 += grad_change.sum(0)
        grad_hidden = torch.ops.aten.gelu_backward(grad_change @ weight_2, hidden)
        if grad_weight_1 is not None:
            grad_weight_1.addmm_(grad_hidden.t(), normed)
        if grad_bias_1 is not None:
            grad_bias_1 += grad_hidden.sum(0)
        grad_part, block_norm_weight, block_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_hidden @ weight_1, tokens[block], norm_weight.shape, mean, deviation, norm_weight, norm_bias,
            [grad_tokens is not None, grad_norm_weight is not None, grad_norm_bias is not None],
        )  # fmt: skip
        if grad_tokens is not None:
            torch.add(grad[block], grad_part, out=grad_tokens[block])
        if grad_norm_weight is not None:
            grad_norm_weight += block_norm_weight
        if grad_norm_bias is not None:
            grad_norm_bias += block_norm_bias
    return gradients


__all__ = ["add_mlp", "can_run_in_blocks"]
