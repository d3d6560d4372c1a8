"""The processes of a run: setting them up, and exchanging small values between them."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast, set_seed
from torch import nn
from transformers.utils import logging

from .fsdp import check_fsdp, make_fsdp_plugin
from .settings import DeviceSettings, TrainingSettings


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """
    Makes the Accelerator of a training run. Also seeds the random generators, differently on each process, and limits
    the threads on a CPU.

    Raises:
        ValueError: fp16 on a CPU, a tracker that is not installed, `--fsdp` where Accelerate does not support it, or a
            launcher that started more processes than Accelerate sees.
    """
    trackers = [name.strip() for name in settings.report_to.split(",") if name.strip() not in ("", "none")]
    missing = sorted(set(trackers) - set(map(str, get_available_trackers())))
    if missing:
        raise ValueError(
            f"--report_to {settings.report_to}: {', '.join(missing)} is not installed (pip install it), or Accelerate "
            "does not know it."
        )
    check_precision(settings)
    accelerator = Accelerator(
        cpu=settings.cpu,
        mixed_precision=settings.mixed_precision,
        dynamo_backend=settings.compile_backend or None,
        log_with=trackers or None,
        project_dir=settings.output_dir,
        fsdp_plugin=make_fsdp_plugin(settings.mixed_precision) if settings.fsdp else None,
    )
    if settings.fsdp:
        check_fsdp(accelerator)
    check_world_size(accelerator)
    set_seed(settings.seed, device_specific=True)
    limit_cpu_threads(accelerator.device, settings.num_workers)
    return accelerator


@contextlib.contextmanager
def quiet_progress_bars() -> Iterator[None]:
    """Disables Transformers' progress bars if stderr is not a terminal: they would fill a log file."""
    quiet = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            logging.enable_progress_bar()


def check_precision(settings: DeviceSettings) -> None:
    """Raises a ValueError for fp16 on a CPU."""
    if settings.mixed_precision == "fp16" and (settings.cpu or not torch.accelerator.is_available()):
        raise ValueError("--mixed_precision fp16 needs a GPU: on a CPU use bf16 or no.")


def check_world_size(state: Any) -> None:
    """
    Args:
        state: an Accelerator, or another object with its `num_processes`.

    Raises:
        ValueError: the launcher started another number of processes than Accelerate sees: each would work alone.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != state.num_processes:
        raise ValueError(
            f"WORLD_SIZE is {launched}, but Accelerate runs {state.num_processes} process(es), so each would work "
            "alone. Use `torchrun --nproc_per_node N SCRIPT --cpu` on CPUs, `accelerate launch` on GPUs."
        )


def limit_cpu_threads(device: torch.device, num_workers: int) -> None:
    """
    On a CPU, leaves one core to each loader process, because threads that compete for a core are slow. Does nothing if
    OMP_NUM_THREADS is set.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - num_workers))


def gather_integers(*values: int) -> list[list[int]]:
    """
    Gathers integers (64 bits) from all processes, in the order of ranks. One collective between CPUs, which does not
    wait for work queued on a GPU.
    """
    if not dist.is_initialized():
        return [list(values)]
    own = torch.tensor(values)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own, group=_cpu_group(dist.group.WORLD))
    return [part.tolist() for part in parts]


def any_process(flag: bool) -> bool:
    """Whether `flag` is true on at least one process. Every process has to call this."""
    return any(value for (value,) in gather_integers(int(flag)))


@functools.lru_cache(maxsize=1)
def _cpu_group(world: Any) -> Any:
    """A process group with the members of `world` that communicates between CPUs."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """
    Copies the main process's buffers to all others, before an evaluation. A BatchNorm that is not synchronised has
    other statistics on each process; the main process's model is saved, so it has to be the one that is evaluated.
    """
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def synchronize_batch_norm(accelerator: Accelerator, model: Any) -> Any:
    """
    Makes BatchNorm layers use statistics over all GPUs, as in the official training. PyTorch supports that on CUDA
    only: elsewhere the model is unchanged, and a message is printed.

    Args:
        accelerator: an Accelerator, or another object with its `num_processes`, `device` and `print`.
    """
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if accelerator.num_processes == 1 or not has_batch_norm:
        return model
    if accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    accelerator.print(
        f"BatchNorm is not synchronised: PyTorch supports that on CUDA only, and this is {accelerator.device.type}. "
        "Each process normalises with the statistics of its own batch."
    )
    return model
