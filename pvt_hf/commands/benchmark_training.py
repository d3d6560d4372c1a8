"""
Task "training" of `pvt-hf benchmark`: training steps of our classifier against those of the native class. With
`--head`, of our model against the same model without fast paths, because the native class has no head.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers.models.pvt import PvtConfig as NativeConfig
from transformers.models.pvt import PvtForImageClassification as NativeClassifier

from ..families import FAMILIES, load
from ..metrics.timing import summarise, summarise_ratios, time_pairs
from ..models.modeling_pvt import PvtForImageClassification
from ..weights.variants import get_config, get_variant
from .benchmark_arguments import TrainingArguments
from .benchmark_models import peak_resident_bytes
from .benchmark_report import DisagreementError, choose_device, describe_environment, run_and_report, save
from .separate_process import call_apart


# Largest relative difference of losses. Kernels sum in different orders, and the native softmax is in autocast's dtype.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
NUM_LABELS = {"segmentation": 150, "detection": 80}  # of ADE20K and COCO


def sides(arguments: TrainingArguments) -> tuple[str, str]:
    return ("ours", "native") if arguments.head == "none" else ("ours", "modules")


def build_classifier(side: str, arguments: TrainingArguments) -> nn.Module:
    # One epsilon for all norms, because the native class has only one
    config = get_config(arguments.variant, image_size=arguments.image_size, reduction_layer_norm_eps=1e-6)
    model = PvtForImageClassification(config)
    if side == "ours":
        return model
    fields = get_variant(arguments.variant).config
    native = NativeClassifier(NativeConfig(**fields, image_size=arguments.image_size, layer_norm_eps=1e-6))
    native.load_state_dict(model.state_dict())
    return native


def build_with_head(side: str, arguments: TrainingArguments) -> nn.Module:
    family = FAMILIES[arguments.head]
    backbone = get_config(arguments.variant, image_size=arguments.image_size, out_features=list(family.stages))
    config = load(family.config)(backbone_config=backbone, num_labels=NUM_LABELS[family.task])
    if family.task == "segmentation":
        config.classifier_dropout_prob = 0.0  # random, so losses could not be compared
    model: nn.Module = load(family.models[0].path)(config)
    if side == "modules":
        for module in model.modules():
            if isinstance(module, nn.Linear):  # a hook turns the fast paths off, see modeling_fast_checks.py
                module.register_forward_hook(lambda *_: None)
    return model


def make_batch(arguments: TrainingArguments, num_labels: int) -> dict[str, Any]:
    """A batch of noise with labels, the same in every run: `pixel_values` (batch, 3, height, width) and `labels`."""
    generator = torch.Generator().manual_seed(0)
    batch, side = arguments.batch_size, arguments.image_size
    images = torch.randn((batch, 3, side, side), generator=generator).to(arguments.device)
    shape = (batch, side, side) if arguments.head == "semantic_fpn" else (batch,)
    if arguments.head != "retinanet":
        labels = torch.randint(num_labels, shape, generator=generator).to(arguments.device)
        return {"pixel_values": images, "labels": labels}
    # Seven objects for each image, the average of COCO: centre and size as shares of the image
    centres = torch.rand((batch, 7, 2), generator=generator) * 0.5 + 0.25
    boxes = torch.cat([centres, torch.rand((batch, 7, 2), generator=generator) * 0.4 + 0.05], dim=-1)
    classes = torch.randint(num_labels, (batch, 7), generator=generator)
    return {
        "pixel_values": images,
        "labels": [
            {"class_labels": own_classes.to(arguments.device), "boxes": own_boxes.to(arguments.device)}
            for own_classes, own_boxes in zip(classes, boxes)
        ],
    }


def build_step(side: str, mode: str, arguments: TrainingArguments) -> Callable[[], torch.Tensor]:
    """Returns a function that takes one training step and returns its loss, a float32 scalar on the device."""
    torch.manual_seed(0)
    model: Any = (build_classifier if arguments.head == "none" else build_with_head)(side, arguments)
    if side != "native" and "checkpointing" in mode:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.to(arguments.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    call = torch.compile(model, dynamic=False) if "compiled" in mode else model
    inputs = make_batch(arguments, model.config.num_labels)
    dtype, enabled = getattr(torch, arguments.dtype), arguments.dtype != "float32"

    def step() -> torch.Tensor:
        with torch.autocast(arguments.device, dtype, enabled=enabled):
            loss = call(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach().float()

    return step


def synchronise(arguments: TrainingArguments) -> None:
    if arguments.device == "cuda":
        torch.cuda.synchronize()


def peak_of_steps(side: str, mode: str, arguments: TrainingArguments) -> int:
    """Peak memory of a model and three steps on a CPU, in bytes. For a process of its own."""
    torch.set_num_threads(arguments.threads)

    def run() -> None:
        step = build_step(side, mode, arguments)
        for _ in range(3):
            step()

    return peak_resident_bytes(run)


def peak_memory(side: str, mode: str, arguments: TrainingArguments) -> int | None:
    """Peak bytes with this side alone, on CUDA of the second and third step; None where it cannot be measured."""
    if arguments.device == "cpu":
        can_measure = os.access("/proc/self/clear_refs", os.W_OK) and "compiled" not in mode
        return call_apart(peak_of_steps, side, mode, arguments) if can_measure else None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    step = build_step(side, mode, arguments)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    step()
    synchronise(arguments)
    return torch.cuda.max_memory_allocated() - before


def measure_row(mode: str, arguments: TrainingArguments) -> dict[str, Any]:
    """
    Compares the losses of two steps, and times pairs of blocks.

    Returns:
        The row of the report: `images_per_second`, `peak_memory_bytes` and `seconds` of each side; the ratio.

    Raises:
        DisagreementError: the losses of the two sides differ.
    """
    torch._dynamo.reset()
    names = sides(arguments)
    memory = [peak_memory(side, mode, arguments) for side in names]
    steps = [build_step(side, mode, arguments) for side in names]
    losses = [torch.stack([step(), step()]) for step in steps]
    difference = ((losses[0] - losses[1]).abs() / losses[1]).max().item()
    if not difference <= TOLERANCE[arguments.dtype]:
        raise DisagreementError(
            f"{mode}: the losses of ours {losses[0].tolist()} and {names[1]} {losses[1].tolist()} differ by "
            f"{difference:.2g} (relative), more than the allowed {TOLERANCE[arguments.dtype]:.2g}. Nothing was timed."
        )

    def time_pair() -> list[float]:
        pair = []
        for step in steps:
            synchronise(arguments)
            start = time.perf_counter()
            for _ in range(arguments.steps):
                step()
            synchronise(arguments)
            pair.append(time.perf_counter() - start)
        return pair

    pairs = time_pairs(time_pair, 1.0, arguments.repeats, arguments.row_seconds)
    result = {"mode": mode, "relative_difference": difference}
    images = arguments.batch_size * arguments.steps
    for side, seconds, peak in zip(names, zip(*pairs), memory):
        rates = summarise([images / each for each in seconds])
        result[side] = {"images_per_second": rates, "peak_memory_bytes": peak, "seconds": seconds}
    return result | summarise_ratios([second / first for first, second in pairs])


def format_row(result: dict[str, Any], names: tuple[str, str]) -> str:
    text = f"{result['mode']:<24}"
    for side in names:
        rates, peak = result[side]["images_per_second"], result[side]["peak_memory_bytes"]
        lower, upper = rates["quartiles"]
        memory = "" if peak is None else f" {peak / 2**30:.2f} GiB"
        text += f"{rates['median']:8.1f} [{lower:.1f}, {upper:.1f}]{memory}".ljust(38)
    lower, upper = result["ratio_quartiles"]
    return text + f"{result['ratio']:.3f} [{lower:.3f}, {upper:.3f}] {result['pairs']:>5}"


def measure_rows(arguments: TrainingArguments, results: dict[str, Any]) -> None:
    """Measures all modes: adds each row to `results`, saves them and prints the row."""
    names = sides(arguments)
    first, second = (f"{name}, images/s" for name in names)
    print(f"\n{'':<24}{first:<38}{second:<38}{'/'.join(names):<21}pairs")
    with tqdm(arguments.modes, disable=None, leave=False) as progress:  # only on a terminal
        for mode in progress:
            progress.set_description(mode)
            result = measure_row(mode, arguments)
            results["rows"].append(result)
            save(results, arguments.output)
            progress.write(format_row(result, names))


def benchmark_training(arguments: TrainingArguments) -> int:
    """Runs the task "training". Returns the exit code of [`run_and_report`]."""
    choose_device(arguments)
    arguments.threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    environment = describe_environment(arguments.device, arguments.threads)
    return run_and_report(
        arguments, environment, len(arguments.modes), lambda results: measure_rows(arguments, results)
    )
