"""What a run needs before its first step, and how its processes agree: thin functions over Accelerate."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object, set_seed

from .fsdp import check_fsdp, make_fsdp_plugin
from .settings import TrainingSettings


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """
    Raises:
        ValueError: what was asked for does not exist on this device, a tracker is not installed, the launcher started
            another number of processes than Accelerate sees (each would train alone), or `--fsdp` where Accelerate has
            none of it.
    """
    trackers = [name.strip() for name in settings.report_to.split(",") if name.strip() not in ("", "none")]
    missing = sorted(set(trackers) - set(map(str, get_available_trackers())))
    if missing:
        raise ValueError(
            f"--report_to {settings.report_to}: {', '.join(missing)} is not installed (pip install it) or not known to "
            "Accelerate."
        )
    on_cpu = settings.cpu or not torch.accelerator.is_available()
    if settings.mixed_precision == "fp16" and on_cpu:
        raise ValueError("--mixed_precision fp16 needs a GPU: on a CPU use bf16 or no.")
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
    limit_cpu_threads(accelerator, settings.num_workers)
    return accelerator


def check_world_size(accelerator: Accelerator) -> None:
    """Raises a ValueError if the launcher started another number of processes than Accelerate sees."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"WORLD_SIZE is {launched}, but Accelerate runs {accelerator.num_processes} process(es), each of which "
            "would work alone. On CPUs use `torchrun --nproc_per_node N SCRIPT --cpu`; on GPUs `accelerate launch`."
        )


def limit_cpu_threads(accelerator: Accelerator, num_workers: int) -> None:
    """On a CPU: a core for each loader worker; threads that wait for a taken core slow each other down badly."""
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - num_workers))


def agree(accelerator: Accelerator, flag: bool, reduction: str) -> bool:
    """Whether all ("all") or any ("any") of the processes have `flag`."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item()
    return total == accelerator.num_processes if reduction == "all" else total > 0


def gather_objects(accelerator: Accelerator, value: Any) -> list[Any]:
    """`value` of every process, in order of rank, on every process."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]
