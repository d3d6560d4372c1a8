"""When the fast paths for CPUs must step aside: wherever someone could notice that a module is not called."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


def is_plain(module: nn.Module, cls: type) -> bool:
    """
    Whether a call of `module` runs the `forward` that `cls` was written with and nothing else: no adapter, hook, or
    weights of another type.
    """
    return (
        type(module) is cls
        and "forward" not in module.__dict__
        and is_own(cls.forward, cls)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and all(type(parameter) in (nn.Parameter, torch.Tensor) for parameter in module._parameters.values())
    )


def is_own(method: Any, cls: type) -> bool:
    """Whether `method` of `cls` was not replaced or wrapped by another module."""
    return method.__module__ == cls.__module__ and not hasattr(method, "__wrapped__")


def may_be_fast(tensor: torch.Tensor) -> bool:
    """
    Whether operations on `tensor` run on a CPU, at once, and nothing records or transforms them: a compiler, exporter,
    autocast, torch.func, a mode, hooks on all modules.
    """
    return tensor.device.type == "cpu" and not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(tensor) is not torch.Tensor
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack() > 0
        or not all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or global_hooks._has_any_global_hook()
    )


def is_in_graph(tensor: torch.Tensor) -> bool:
    """
    Whether `torch.compile` builds a graph for a CPU, without gradients, autocast and `torch.func.vmap`. There, a fast
    path is a single operation. An exported program must run without this package, so it has none.
    """
    return (
        torch.compiler.is_dynamo_compiling()
        and not torch.compiler.is_exporting()
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_batchedtensor(tensor)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def needs_gradients(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


__all__ = ["is_in_graph", "is_plain", "may_be_fast", "needs_gradients"]
