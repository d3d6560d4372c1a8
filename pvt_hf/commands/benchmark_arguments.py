"""Arguments of the tasks of `pvt-hf benchmark`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..metrics.timing import MIN_PAIRS
from ..weights.variants import VARIANTS


DTYPES = ("float32", "float16", "bfloat16")
AUTOCAST_DTYPES = ("float32", "bfloat16")
MODES = ("plain", "compiled", "checkpointing", "compiled+checkpointing")  # rows of task "training"
ROWS = ("crop", "recipe", "evaluation")  # of task "data"
SOURCES = ("parquet", "folder", "webdataset")
# Of task "peers". What compiles comes last, because it takes long.
RELATIVES = ("pvt_v2_b2", "twins_pcpvt_small", "resnet50", "swin_tiny")
COMPILED = ("native-compiled", "ours-compiled")
PEERS = ("native", "ours", "onnxruntime", "openvino", *RELATIVES, *COMPILED)


class ExportedRow(NamedTuple):
    """
    An export of ours, in task "export".

    Attributes:
        format: of `pvt-hf export`.
        precision: "fp32", "bf16" or "int8".
        static: whether the program is for one image of one size.
    """

    format: str
    precision: str = "fp32"
    static: bool = False


EXPORTED = {
    "ours-onnxruntime": ExportedRow("onnx"),
    "ours-onnxruntime-static": ExportedRow("onnx", static=True),
    "ours-openvino": ExportedRow("openvino"),
    "ours-openvino-static": ExportedRow("openvino", static=True),
    "ours-aotinductor": ExportedRow("aotinductor"),
    "ours-aotinductor-static": ExportedRow("aotinductor", static=True),
    "ours-openvino-bf16": ExportedRow("openvino", "bf16"),
    "ours-aotinductor-bf16": ExportedRow("aotinductor", "bf16"),
    "ours-onnxruntime-int8": ExportedRow("onnx", "int8"),
    "ours-openvino-int8": ExportedRow("openvino", "int8"),
    "ours-openvino-int8-static": ExportedRow("openvino", "int8", static=True),
}
EXPORT_ROWS = ("native", "ours", "native-onnxruntime", "native-openvino", *EXPORTED, "ours-compiled")


def check_arguments(arguments: Any) -> None:
    """Raises a ValueError for too few `repeats`, or an `output` that is a folder."""
    if arguments.repeats < MIN_PAIRS:
        raise ValueError(f"--repeats must be at least {MIN_PAIRS}, got {arguments.repeats}.")
    if arguments.output is not None and arguments.output.is_dir():
        raise ValueError(f"--output {arguments.output} is a folder: give the name of a JSON file.")


def check_model_arguments(arguments: Any) -> None:
    """Raises a ValueError for an `image_size`, `batch_sizes` or `threads` that cannot be."""
    if arguments.image_size < 32 or arguments.image_size % 32:
        raise ValueError(f"--image_size must be a multiple of 32, got {arguments.image_size}.")
    if min(arguments.batch_sizes) < 1:
        raise ValueError(f"--batch_sizes must be at least 1, got {arguments.batch_sizes}.")
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}.")


ALLOCATOR_ROWS = ("forward", "training", "segmentation")


def check_pause(pause: float) -> None:
    """Raises a ValueError for a `pause` that cannot be."""
    if not 0 <= pause < 60:
        raise ValueError(f"--pause must be from 0 to 60 seconds, got {pause}.")


def parse_size(text: str) -> tuple[int, int]:
    """Parses "512" or "800x1312" to (height, width) in pixels. Raises a ValueError for others, or below 32 pixels."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(height, width) < 32:
        raise ValueError(
            f"--sizes: {text!r} is not an image size: give one like 512 or 800x1312 (height x width), at least 32x32."
        )
    return height, width


@dataclass
class PeersArguments:
    """Measures the classifier beside other ways to run it and beside related models."""

    output: Path = field(
        default=Path("outputs/benchmark.json"),
        metadata={"help": "JSON file for the results, replaced after every row; the chart has its name with .png."},
    )
    rows: list[str] = field(
        default_factory=lambda: list(PEERS), metadata={"help": "Rows to measure.", "choices": list(PEERS)}
    )
    variant: str = field(default="pvt-small", metadata={"help": "PVT to measure.", "choices": list(VARIANTS)})
    device: str = field(
        default="auto", metadata={"help": "auto: CUDA if available.", "choices": ["auto", "cpu", "cuda"]}
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Data type of weights and images; other runtimes: float32.",
            "choices": list(DTYPES),
        },
    )
    image_size: int = field(default=224, metadata={"help": "Height and width in pixels, a multiple of 32."})
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 8], metadata={"help": "Images per batch; related models: the largest one."}
    )
    repeats: int = field(default=30, metadata={"help": f"Most pairs per row, at least {MIN_PAIRS}."})
    row_seconds: float = field(
        default=12.0, metadata={"help": f"Seconds for the pairs of a row; {MIN_PAIRS} pairs are measured in any case."}
    )
    pause: float = field(
        default=0.1, metadata={"help": "Seconds before each call, in which the threads of the call before it rest."}
    )
    max_minutes: float = field(default=8.5, metadata={"help": "Start no row after this many minutes."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads, e.g. 2; default: PyTorch's choice."})

    def __post_init__(self) -> None:
        check_arguments(self)
        check_model_arguments(self)
        check_pause(self.pause)
        if self.image_size != 224 and set(self.rows) & set(RELATIVES):
            raise ValueError(
                f"--image_size {self.image_size}: the related models are measured at 224, the size of their published "
                f"figures. Name other rows: --rows native ours."
            )


@dataclass
class ExportArguments:
    """Measures the classifier's exports beside PyTorch and the native class's graph."""

    device: ClassVar[str] = "cpu"
    dtype: ClassVar[str] = "float32"

    output: Path = field(
        default=Path("outputs/benchmark_export.json"),
        metadata={"help": "JSON file for the results, replaced after every row."},
    )
    rows: list[str] = field(
        default_factory=lambda: list(EXPORT_ROWS),
        metadata={"help": "Rows to measure.", "choices": list(EXPORT_ROWS)},
    )
    programs: Path | None = field(
        default=None,
        metadata={
            "help": "Folder to keep the exported programs in; those that are there are measured and not exported "
            "again, e.g. outputs/programs; default: none are kept."
        },
    )
    variant: str = field(default="pvt-small", metadata={"help": "PVT to measure.", "choices": list(VARIANTS)})
    image_size: int = field(default=224, metadata={"help": "Height and width in pixels, a multiple of 32."})
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 8], metadata={"help": "Images per batch; static exports: 1."}
    )
    repeats: int = field(default=30, metadata={"help": f"Most pairs per row, at least {MIN_PAIRS}."})
    row_seconds: float = field(
        default=6.0, metadata={"help": f"Seconds for the pairs of a row; {MIN_PAIRS} pairs are measured in any case."}
    )
    pause: float = field(
        default=0.1, metadata={"help": "Seconds before each call, in which the threads of the call before it rest."}
    )
    max_minutes: float = field(default=30.0, metadata={"help": "Start no row after this many minutes."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads, e.g. 2; default: PyTorch's choice."})

    def __post_init__(self) -> None:
        check_arguments(self)
        check_model_arguments(self)
        check_pause(self.pause)


@dataclass
class ModelsArguments:
    """Measures PVT on this machine, two models at a time in one process."""

    output: Path | None = field(
        default=None, metadata={"help": "JSON file for the results, written after every row, e.g. models.json."}
    )
    variant: str = field(default="pvt-small", metadata={"help": "PVT to measure.", "choices": list(VARIANTS)})
    device: str = field(
        default="auto", metadata={"help": "auto: CUDA if available.", "choices": ["auto", "cpu", "cuda"]}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Data type of weights and images.", "choices": list(DTYPES)},
    )
    sections: list[str] = field(
        default_factory=lambda: ["native", "attention"],
        metadata={
            "help": "native: ours against the native class; attention: our backbone with SDPA against eager attention.",
            "choices": ["native", "attention"],
        },
    )
    skip_compile: bool = field(default=False, metadata={"help": "Section native: leave out the torch.compile rows."})
    image_size: int = field(
        default=224, metadata={"help": "Section native: height and width in pixels, a multiple of 32."}
    )
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 8], metadata={"help": "Section native: images per batch, one row each."}
    )
    sizes: list[str] = field(
        default_factory=lambda: ["512", "800x1312", "1344"],
        metadata={"help": "Section attention: HEIGHTxWIDTH or one side, in pixels; the batch size is 1."},
    )
    attention_backward: bool = field(
        default=False, metadata={"help": "Section attention: also forward+backward, which is slow on a CPU."}
    )
    repeats: int = field(default=30, metadata={"help": f"Most pairs per row, at least {MIN_PAIRS}."})
    row_seconds: float = field(
        default=12.0, metadata={"help": f"Seconds for the pairs of a row; {MIN_PAIRS} pairs are measured in any case."}
    )
    profile: bool = field(
        default=False, metadata={"help": "Also show which operators take the time, for rows that are not compiled."}
    )
    max_minutes: float = field(default=12.0, metadata={"help": "Start no row after this many minutes."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads, e.g. 2; default: PyTorch's choice."})

    def __post_init__(self) -> None:
        check_arguments(self)
        for size in self.sizes:
            parse_size(size)
        check_model_arguments(self)


@dataclass
class TrainingArguments:
    """
    Measures training steps of our classifier against those of Transformers' native class, or of a model with a head
    against itself without fast paths.
    """

    output: Path | None = field(
        default=None, metadata={"help": "JSON file for the results, written after every row, e.g. training.json."}
    )
    variant: str = field(default="pvt-small", metadata={"help": "PVT to measure.", "choices": list(VARIANTS)})
    head: str = field(
        default="none",
        metadata={
            "help": "none: the classifier; a head: a model with that head, without fast paths on the other side.",
            "choices": ["none", "semantic_fpn", "retinanet"],
        },
    )
    device: str = field(
        default="auto", metadata={"help": "auto: CUDA if available.", "choices": ["auto", "cpu", "cuda"]}
    )
    dtype: str = field(
        default="bfloat16",
        metadata={"help": "Data type of autocast; float32: none.", "choices": list(AUTOCAST_DTYPES)},
    )
    modes: list[str] = field(
        default_factory=lambda: list(MODES), metadata={"help": "Rows to measure.", "choices": list(MODES)}
    )
    batch_size: int = field(default=128, metadata={"help": "Images per step."})
    image_size: int = field(
        default=224, metadata={"help": "Height and width of the images, in pixels, a multiple of 32."}
    )
    steps: int = field(default=5, metadata={"help": "Steps in a block, which is timed as a whole."})
    repeats: int = field(default=20, metadata={"help": f"Most pairs of blocks per row, at least {MIN_PAIRS}."})
    row_seconds: float = field(
        default=30.0, metadata={"help": f"Seconds for the pairs of a row; {MIN_PAIRS} pairs are measured in any case."}
    )
    threads: int | None = field(default=None, metadata={"help": "CPU threads, e.g. 2; default: PyTorch's choice."})

    def __post_init__(self) -> None:
        check_arguments(self)
        if self.batch_size < 1 or self.steps < 1:
            raise ValueError(f"--batch_size and --steps must be at least 1, got {self.batch_size} and {self.steps}.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}.")
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"--image_size must be a multiple of 32, got {self.image_size}.")


@dataclass
class AllocatorArguments:
    """Measures the speed gained by keeping freed memory, and its cost in memory."""

    output: Path | None = field(
        default=None, metadata={"help": "JSON file for the results, written after every row, e.g. allocator.json."}
    )
    rows: list[str] = field(
        default_factory=lambda: list(ALLOCATOR_ROWS),
        metadata={"help": "Rows to measure.", "choices": list(ALLOCATOR_ROWS)},
    )
    variant: str = field(default="pvt-small", metadata={"help": "PVT to measure.", "choices": list(VARIANTS)})
    processes: int = field(default=4, metadata={"help": "Pairs of new processes per row."})
    repeats: int = field(default=30, metadata={"help": f"Most pairs of calls of two processes, at least {MIN_PAIRS}."})
    row_seconds: float = field(default=60.0, metadata={"help": "Seconds for the pairs of a row."})
    pause: float = field(default=0.05, metadata={"help": "Seconds before each call."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads, e.g. 2; default: PyTorch's choice."})

    def __post_init__(self) -> None:
        check_arguments(self)
        check_pause(self.pause)
        if self.processes < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError("--processes and --threads must be at least 1.")


@dataclass
class LoadingArguments:
    """Measures opening a checkpoint and importing the package."""

    output: Path | None = field(
        default=None, metadata={"help": "JSON file for the results, written after every row, e.g. loading.json."}
    )
    variant: str = field(default="pvt-large", metadata={"help": "PVT to open.", "choices": list(VARIANTS)})
    repeats: int = field(default=10, metadata={"help": f"Most pairs per row, at least {MIN_PAIRS}."})
    row_seconds: float = field(
        default=60.0, metadata={"help": f"Seconds for the pairs of a row; {MIN_PAIRS} pairs are measured in any case."}
    )

    def __post_init__(self) -> None:
        check_arguments(self)


@dataclass
class DataArguments:
    """Measures the input pipeline against a bare loop that decodes, resizes and crops, on one core."""

    output: Path | None = field(
        default=None, metadata={"help": "JSON file for the results, written after every row, e.g. data.json."}
    )
    rows: list[str] = field(
        default_factory=lambda: list(ROWS), metadata={"help": "Rows to measure.", "choices": list(ROWS)}
    )
    source: str = field(default="parquet", metadata={"help": "Format of the image files.", "choices": list(SOURCES)})
    images: int = field(default=384, metadata={"help": "Images per pass, a multiple of --batch_size."})
    batch_size: int = field(default=32, metadata={"help": "Images per batch."})
    shuffle_window: int = field(
        default=2000, metadata={"help": "Rows crop and recipe: images that are read ahead to shuffle; 0: no shuffling."}
    )
    quality: int = field(default=90, metadata={"help": "JPEG quality of the images, 1 to 95."})
    repeats: int = field(default=20, metadata={"help": f"Most pairs of passes per row, at least {MIN_PAIRS}."})
    row_seconds: float = field(
        default=60.0, metadata={"help": f"Seconds for the pairs of a row; {MIN_PAIRS} pairs are measured in any case."}
    )

    def __post_init__(self) -> None:
        check_arguments(self)
        if self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, got {self.batch_size}.")
        if self.images < 1 or self.images % self.batch_size:
            raise ValueError(f"--images {self.images} must be a multiple of --batch_size {self.batch_size}.")
        if self.shuffle_window < 0:
            raise ValueError(f"--shuffle_window must be at least 0, got {self.shuffle_window}.")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"--quality must be from 1 to 95, got {self.quality}.")
