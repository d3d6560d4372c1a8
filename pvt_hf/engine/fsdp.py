"""
FSDP2 through Accelerate: parameters, gradients and optimiser state are cut into one shard per process.

Accelerate wraps, clips, saves and loads; here is what it has to be told. Checkpoints of a sharded run hold one file
per process for the model and one for the optimiser (torch.distributed.checkpoint); the final model is gathered by
`Accelerator.get_state_dict`, which every process has to call and which gives an empty dict but on the main one.
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
    The plugin for `Accelerator`; which layers it wraps is set by [`prepare_sharded`], when there is a model.

    Parameters and optimiser state are fp32. With `mixed_precision` "bf16" or "fp16" they are gathered for computation
    in that dtype, and gradients are still averaged over the processes in fp32, as DistributedDataParallel does
    (Accelerate's own policy averages in the low precision).
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
        # The alternative to broadcast_weights; it fails at buffers, such as those of a BatchNorm.
        cpu_ram_efficient_loading=False,
    )


def check_fsdp(accelerator: Accelerator) -> None:
    """
    Raises:
        ValueError: Accelerate took no notice of the plugin, as it does on CPUs and without a launcher.
    """
    if accelerator.is_fsdp2:
        return
    if accelerator.device.type == "cpu":
        raise ValueError(
            "--fsdp needs accelerator devices such as GPUs, and this run is on the CPU, where Accelerate ignores FSDP "
            "and would keep the whole model in every process. Drop --fsdp: processes on CPUs train with "
            "DistributedDataParallel."
        )
    raise ValueError(
        f"--fsdp needs a process per device, and this is a single process on {accelerator.device} without a launcher. "
        "Start it with `accelerate launch SCRIPT ...` or `torchrun --nproc_per_node N SCRIPT ...`, or drop --fsdp."
    )


def layers_to_shard(model: PreTrainedModel) -> list[str]:
    """
    Names of the classes whose modules are gathered one at a time: those in the model's `_no_split_modules`. The rest
    of the model is one more unit.

    Left out are classes around the input embedding (`PvtPatchEmbeddings`): Accelerate makes the embedding a unit of
    its own after it has wrapped the layers, and torch refuses a unit inside of one that is already sharded.
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
    """Gives every process the main one's parameters and buffers, as DistributedDataParallel does by itself."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(broadcast(tensor.to(accelerator.device)))


def prepare_sharded(
    accelerator: Accelerator, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[Any, torch.optim.Optimizer]:
    """
    Shards `model` in place, from the main process' weights, and points `optimizer` at the shards, group by group.
    """
    # FSDP cuts each process' shard from that process' own weights, and seeds differ.
    broadcast_weights(accelerator, model)
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layers_to_shard(model)
    return accelerator.prepare(model, optimizer)
