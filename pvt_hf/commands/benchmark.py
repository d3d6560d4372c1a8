"""`pvt-hf benchmark [TASK]`: measures speed and memory on this machine."""

from __future__ import annotations

import sys
from dataclasses import fields
from importlib import import_module
from typing import Any, NamedTuple

from ..engine.arguments import describe_unknown
from ..engine.settings import DataclassParser
from .benchmark_arguments import DataArguments, ModelsArguments, TrainingArguments


MODELS = """
Measures the speed of PVT on this machine. Two sides alternate in one process (A B A B ...), so other load on the
machine affects both.

    pvt-hf benchmark --output outputs/benchmark.json
    pvt-hf benchmark models --device cuda --dtype bfloat16 --variant pvt-large
    pvt-hf benchmark models --sections attention --sizes 512 800x1312
    pvt-hf benchmark training
    pvt-hf benchmark data

Tasks: "training" measures training steps against the native class, "data" the input pipeline, and "models", the
default, the model alone, in two sections:

- "native": our classifier against that of plain Transformers with the same weights, at the size both are built for;
- "attention": our classifier with SDPA against eager attention, at the sizes of dense prediction, with memory.

Before anything is timed, the outputs of both models are compared, and for forward+backward the gradients too. If they
differ, the run stops.

- Times are wall-clock times of one call (synchronised on CUDA): median and quartiles.
- The ratio is the median over the pairs of first / second time: below 1, the first model is faster.
- The share is FLOP / median time, relative to the rate of a large square matmul with the same device and dtype. FLOP,
  2 per multiply-add, are counted for convolutions, linear layers and matrix products, for both models with eager
  attention.
- float32 means float32: TF32 is off.
- Memory is the peak during one call, less what was in use before it (weights, loaded libraries): on CUDA of allocated
  tensors (`max_memory_allocated`), on a CPU of the resident memory of a separate process (Linux only, otherwise null).
"""
TRAINING = """
Measures training steps of our classifier against those of the native class.

    pvt-hf benchmark training --output outputs/training.json
    pvt-hf benchmark training --variant pvt-tiny --device cpu --dtype float32 --batch_size 4 --modes plain

A step consists of forward pass (autocast, weights in float32), loss, backward pass and AdamW, on random images that are
already on the device. Rows: both plain; both compiled; and ours with gradient checkpointing, which the native class
lacks, against the plain native class. Both sides begin with equal weights and must have equal losses in two steps.

Images per second are measured in blocks of steps, alternating between the sides (A B A B ...). The ratio is ours /
native: above 1, ours is faster. Memory is the peak of allocated CUDA memory with one side alone: weights, gradients,
optimiser and activations.
"""
DATA = """
Measures the input pipeline against a bare loop with the same libraries, on one core.

    pvt-hf benchmark data --output outputs/benchmark_data.json
    pvt-hf benchmark data --rows crop recipe --source webdataset

"ours" is what training and evaluation iterate over: `BatchStream` and `make_loader`, without workers. It reads files
that are made for the benchmark: JPEGs of about 500x375 pixels and 110 kB, with the spectrum of photographs. "bare" is a
loop that opens the same bytes from memory with Pillow, converts them to RGB, transforms and stacks them. It has no
`datasets`, no shuffling, no error handling and no random state per sample.

Row "crop": random resized crop and flip, with the same transform object on both sides.
Row "recipe": the same, with RandAugment and random erasing.
Row "evaluation": our image processor against torchvision's v2 transforms on tensors, which resize in the same way.

A pair is one pass of each side over all images, alternating batch by batch, and includes the start of the pass. The
ratio is the median over the pairs of ours / bare, in images per second: above 1, ours is faster. Before anything is
timed, the tensors of both sides are compared, with the bare side using the random states of ours. If they differ, the
run stops.
"""


class Task(NamedTuple):
    arguments: Any  # a dataclass
    description: str


# First word of the command line; "models" if there is none. `benchmark_NAME.py` has the function that runs it.
TASKS = {
    "models": Task(ModelsArguments, MODELS),
    "training": Task(TrainingArguments, TRAINING),
    "data": Task(DataArguments, DATA),
}


def main() -> int:
    words = sys.argv[1:]
    name = words.pop(0) if words and words[0] in TASKS else "models"
    task = TASKS[name]
    parser = DataclassParser(task.arguments, description=task.description)
    parser.usage = f"%(prog)s {name} [--argument value ...]"
    try:
        arguments, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
        if rest and not rest[0].startswith("-"):
            raise ValueError(f"the first argument is the task, one of {', '.join(TASKS)}; got {rest[0]}.")
        if rest:
            raise ValueError(describe_unknown(rest[0], [field.name for field in fields(task.arguments)]))
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # rows appear at once in a log file too
        run = getattr(import_module(f".benchmark_{name}", __package__), f"benchmark_{name}")
        return run(arguments)
    except ValueError as error:
        parser.error(str(error))
