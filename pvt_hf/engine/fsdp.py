"""
FSDP2 through Accelerate: parameters, gradients and optimiser state are split into one shard per process.

Accelerate wraps the layers, clips gradients, and saves and loads checkpoints; this file configures it. The checkpoints
have one file per process for the model and one for the optimiser (torch.distributed.checkpoint). The final model is
gathered by `Accelerator.get_state_dict`, which every process has to call, and which returns the weights on the main
process and an empty dict on the others.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel


COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_fsdp_plugin(mixed_precision: str) -> FullyShardedDataParallelPlugin:
    """
    Makes the FSDP plugin for `Accelerator`. [`prepare_sharded`] sets the layers to wrap, once there is a model.

    Parameters and optimiser state are float32. With `mixed_precision` "bf16" or "fp16", parameters are gathered in that
    dtype for computation. Gradients are averaged in float32 all the same, as in DistributedDataParallel (Accelerate's
    default policy averages them in the low precision).
    """
    policy = None
    if mixed_precision in COMPUTE_DTYPES:
        dtype = COMPUTE_DTYPES[mixed_precision]
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=dtype)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        state_dict_type="SHARDED_STATE_DICT",
        mixed_precision_policy=policy,
        # The alternative to broadcast_weights, but it fails for buffers such as those of a BatchNorm.
        cpu_ram_efficient_loading=False,
    )


def check_fsdp(accelerator: Accelerator) -> None:
    """
    Checks that the Accelerator uses FSDP.

    Raises:
        ValueError: it ignored the plugin, which happens on CPUs and without a launcher.
    """
    if accelerator.is_fsdp2:
        return
    if accelerator.device.type == "cpu":
        raise ValueError(
            "--fsdp needs accelerator devices such as GPUs. This run is on CPUs, where Accelerate ignores FSDP and "
            "keeps the whole model in every process. Drop --fsdp: processes on CPUs use DistributedDataParallel."
        )
    raise ValueError(
        f"--fsdp needs one process per device. This is a single process on {accelerator.device} without a launcher: "
        "use `accelerate launch SCRIPT ...` or `torchrun --nproc_per_node N SCRIPT ...`, or drop --fsdp."
    )


def layers_to_shard(model: PreTrainedModel) -> list[str]:
    """
    Class names of the layers to shard: each layer is a unit whose parameters are gathered together. They come from the
    model's `_no_split_modules`; the rest of the model is one more unit.

    Classes that contain the input embedding (`PvtPatchEmbeddings`) are left out: Accelerate makes the embedding a unit
    of its own after it has wrapped the layers, and PyTorch refuses a unit inside one that is already sharded.
    """
    embedding = model.get_input_embeddings()
    names = []
    for name in sorted(getattr(model, "_no_split_modules", None) or ()):
        layers = [module for module in model.modules() if type(module).__name__ == name]
        around = any(inner is embedding for layer in layers for inner in layer.modules() if inner is not layer)
        if layers and not around:
            names.append(name)
    return names


def broadcast_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Copies the main process's parameters and buffers to all others, as DistributedDataParallel does by itself."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(broadcast(tensor.to(accelerator.device)))


def prepare_sharded(
    accelerator: Accelerator, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[Any, torch.optim.Optimizer]:
    """Shards `model` in place, with the main process's weights, and makes `optimizer` use the shards."""
    # FSDP takes each shard from the weights of its own process, which were initialised with different seeds.
    broadcast_weights(accelerator, model)
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layers_to_shard(model)
    return accelerator.prepare(model, optimizer)
