"""`pvt-hf benchmark [TASK]`: measures speed and memory on this machine."""

from __future__ import annotations

import sys
from dataclasses import fields
from importlib import import_module
from typing import Any, NamedTuple

from ..engine.arguments import describe_unknown
from ..engine.settings import DataclassParser
from .benchmark_arguments import (
    AllocatorArguments,
    DataArguments,
    ExportArguments,
    LoadingArguments,
    ModelsArguments,
    PeersArguments,
    TrainingArguments,
)


PEERS = """
Measures the speed and memory of PVT on this machine, beside other ways to run it and beside related models. It takes
under 10 minutes on two cores.

    pvt-hf benchmark
    pvt-hf benchmark --rows native ours ours-compiled --batch_sizes 1 32 --output outputs/ours.json
    pvt-hf benchmark --variant pvt-large --threads 2

Tasks: "peers", the default, is described here. "export" measures our exports, "models" forward and backward passes and
sizes of dense prediction, "training" training steps, "loading" opening a checkpoint, "allocator" keeping freed memory,
and "data" the input pipeline: pvt-hf benchmark TASK --help.

Rows, for every batch size:

- native, native-compiled: Transformers' own class, without and with torch.compile;
- ours, ours-compiled: this package's class with the same weights;
- onnxruntime, openvino: these runtimes with the ONNX graph of the native class, exported for this size;
- pvt_v2_b2, twins_pcpvt_small, resnet50 (timm) and swin_tiny (Transformers): related models with random weights, at
  the largest batch size. Speed and memory are measured here; the pages that scripts/make_performance_pages.py writes
  put their published accuracy and costs beside them, with the source.

What is not installed is a row that says how to install it: pip install "pvt-hf[benchmark]".

- Every row has a process of its own, in which its model and the native class, without torch.compile, alternate
  (A B A B ...), so that other load affects both. A pause before each call lets the threads of the call before it rest.
- Speed is the median over the pairs of native time / time of the row: above 1, the row is faster. The row "native" is
  the native class against itself: its quartiles show how much this machine varies.
- Memory is the peak during the first three calls, less what was in use before them (weights, loaded libraries): on CUDA
  of allocated tensors, on a CPU of resident memory (Linux only, otherwise null). For compiled rows, of three calls
  after the one that compiles.
- The share is FLOP / median time, relative to the rate of a large square matmul, see: pvt-hf benchmark models --help.
- Outputs of the same model are compared before anything is timed. If they differ, the run stops.

The JSON file is written after every row, so Ctrl-C keeps what was measured; the chart is drawn at the end.
"""
EXPORT = """
Measures the speed of the classifier's exports on this machine, beside PyTorch and the native class's graph in the same
runtimes. It takes about 20 minutes on two cores, most of them for exporting and compiling.

    pvt-hf benchmark export
    pvt-hf benchmark export --rows native ours-openvino ours-openvino-int8 --batch_sizes 1
    pvt-hf benchmark export --programs outputs/programs    # exports; once more: measures what is there

Rows, for every batch size:

- native: Transformers' own class, against itself; ours, ours-compiled: this package's class with the same weights,
  without and with torch.compile;
- native-onnxruntime, native-openvino: the native class's ONNX graph, exported for this size, in these runtimes;
- ours-onnxruntime, ours-openvino, ours-aotinductor: what pvt-hf export writes, for any size and number of images;
  with -static for one image of one size, with -bf16 and -int8 in that precision.

Weights are random, and 8-bit integers are calibrated on noise: this measures speed, pvt-hf export --dataset accuracy.
Rows alternate with the native class in processes of their own, as in pvt-hf benchmark --help, which also says what the
columns are. In fp32, bf16 and int8 the share is relative to the rate of a large matmul in fp32.
"""
MODELS = """
Measures the speed of PVT on this machine. Two sides alternate in one process (A B A B ...), so other load on the
machine affects both.

    pvt-hf benchmark models --output outputs/models.json
    pvt-hf benchmark models --device cuda --dtype bfloat16 --variant pvt-large
    pvt-hf benchmark models --sections attention --sizes 512 800x1312
    pvt-hf benchmark models --sections native --skip_compile --profile    # which operators take the time

Two sections:

- "native": our classifier against that of plain Transformers with the same weights, at the size both are built for;
- "attention": our backbone with SDPA against eager attention, at the sizes of dense prediction, with memory.

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
native: above 1, ours is faster. Memory is the peak with one side alone: weights, gradients, optimiser and activations;
on CUDA of allocated tensors, on a CPU of the resident memory of a separate process (Linux only, otherwise null).
"""
LOADING = """
Measures how long it takes to open a checkpoint and to import this package.

    pvt-hf benchmark loading --output outputs/loading.json

Row "from_pretrained": our classifier and the native class open the same folder in turns. The ratio is the median over
the pairs of ours / native: below 1, ours is faster. Row "import": what `import pvt_hf` adds, in a new process, to
importing Transformers' Auto classes and `PreTrainedModel`.
"""
ALLOCATOR = """
Measures the speed gained by keeping freed memory, and its cost in resident memory (glibc only). train, evaluate,
finetune and predict keep it when they compute on a CPU.

    pvt-hf benchmark allocator --output outputs/allocator.json
    pvt-hf benchmark allocator --rows training --processes 8

Two new processes take turns (A B B A A B ...): one as the C library is by default, one that keeps freed memory. Rows: a
forward pass of the classifier with one and with eight images of 224x224, a training step with 16, and a segmenter with
Semantic FPN from the image of 512x512 to the map. The ratio is the median over the pairs of default / kept: above 1,
keeping is faster. It differs from process to process, so several pairs of processes are started (--processes), and the
median of each pair of processes is shown. MiB is resident memory after the last call.
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


# First word of the command line; "peers" if there is none. `benchmark_NAME.py` has the function that runs it.
TASKS = {
    "peers": Task(PeersArguments, PEERS),
    "export": Task(ExportArguments, EXPORT),
    "models": Task(ModelsArguments, MODELS),
    "training": Task(TrainingArguments, TRAINING),
    "loading": Task(LoadingArguments, LOADING),
    "allocator": Task(AllocatorArguments, ALLOCATOR),
    "data": Task(DataArguments, DATA),
}


def main() -> int:
    words = sys.argv[1:]
    name = words.pop(0) if words and words[0] in TASKS else "peers"
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
