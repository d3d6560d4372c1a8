"""Real training runs for the tests: of the script in processes that can be killed, and of the loop in this process."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from PIL import Image
from safetensors.torch import load_file

from pvt_hf import PvtForImageClassification, PvtImageProcessor
from pvt_hf.data.batches import BatchStream
from pvt_hf.data.samples import ProcessorTransform
from pvt_hf.engine import loop
from pvt_hf.engine.processes import make_accelerator
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.tasks.classification.streams import open_classification_stream

from .common import tiny_pvt_config
from .warm_processes import ROOT, Launched, run


TRAIN = str(ROOT / "scripts" / "train_image_classification.py")
TINY_RUN = {
    "dataset": "digits",
    "eval_split": "test",
    "image_size": 32,
    "crop_ratio": 1.0,
    "config_overrides": json.dumps(
        {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
    ),
    "auto_augment": "rand-m3-n1",
    "horizontal_flip": 0.0,
    "batch_size": 32,
    "samples_per_epoch": 256,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "shuffle_window": 64,
    "num_workers": 0,
    "learning_rate": 1e-3,
    "cpu": True,
}


def flags(**overrides) -> list[str]:
    return [part for name, value in {**TINY_RUN, **overrides}.items() for part in (f"--{name}", str(value))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one: Path, other: Path) -> None:
    expected = weights(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, expected[name]), name


def kill_at_step(folder: Path, wanted: int, signal_number: int, processes: int, warm: bool = True, **overrides) -> int:
    """Starts a run that saves after every step, and kills it when the checkpoint of step `wanted` is there."""
    child = Launched(
        [TRAIN, *flags(output_dir=folder, save_every_steps=1, save_total_limit=3, **overrides)], processes, warm
    )
    child.wait_for(folder / f"checkpoint-{wanted:08d}")
    os.killpg(child.pid, signal_number)
    return child.wait(120).returncode


def run_patched(patch: str, folder: Path, processes: int = 1, **overrides) -> subprocess.CompletedProcess:
    """Runs the script after `patch`, which may use `checkpoints` and `loop`, two modules of the engine."""
    code = f"import os, resource, runpy, signal, sys\nfrom pvt_hf.engine import checkpoints, loop\n{patch}\n"
    code += f"sys.argv[0] = {TRAIN!r}\nrunpy.run_path({TRAIN!r}, run_name='__main__')\n"
    file = folder / "patched.py"
    file.write_text(code)
    arguments = flags(output_dir=folder / "out", save_every_steps=4, save_total_limit=0, **overrides)
    return run([str(file), *arguments], processes=processes, check=False)


def make_photos(root: Path, count: int) -> Path:
    """A folder of JPEGs in two classes that a colour tells apart."""
    rng = np.random.default_rng(0)
    for name, color in (("apple", (200, 40, 40)), ("leaf", (40, 180, 60))):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(rng.normal(color, 40, (48, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.jpg")
    return root


def forget_accelerate() -> None:
    """Accelerate keeps precision and compilation for the whole process."""
    PartialState._reset_state()
    AcceleratorState._reset_state(True)


def train_here(
    source, output_dir, watch=None, config=None, compute_loss=None, stream_options=None, accuracy=None, **overrides
):
    """
    Two epochs of `loop.train` in this process, without a script: (model, report), with evaluations of 0.75 and 0.5.

    `watch(model, batch)` is called before each loss; `compute_loss` replaces the model's own; `stream_options` are for
    `open_classification_stream`; `accuracy(model)` replaces the two evaluations.
    """
    defaults = {"batch_size": 8, "epochs": 2, "num_workers": 0, "shuffle_window": 0, "warmup_epochs": 0.5}
    defaults |= {"learning_rate": 1e-3, "mixup": 0.0, "cutmix": 0.0, "log_every_steps": 1}
    settings = ClassificationSettings(dataset="digits", output_dir=str(output_dir), cpu=True, **defaults | overrides)
    accelerator = make_accelerator(settings)
    stream = open_classification_stream(str(source), **stream_options or {})
    processor = PvtImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    batches = BatchStream(
        stream,
        ClassificationSample(stream, ProcessorTransform(processor)),
        settings.batch_size,
        drop_last=True,
        max_bad_share=settings.max_bad_share,
    )
    torch.manual_seed(0)
    model = PvtForImageClassification(tiny_pvt_config(num_labels=2, image_size=32, **config or {}))

    def watched_loss(prepared, batch):
        if watch is not None:
            watch(model, batch)
        return compute_loss(prepared, batch) if compute_loss else prepared(**batch).loss

    accuracies = iter((0.75, 0.5))
    accuracy = accuracy or (lambda model: next(accuracies))
    if settings.report_to != "none":
        accelerator.init_trackers("test")
    try:
        return loop.train(
            accelerator, settings, model, batches, stream.num_samples, watched_loss,
            lambda model: {"accuracy@1": accuracy(model)}, "accuracy@1", processor=processor,
        )  # fmt: skip
    finally:
        accelerator.end_training()
        forget_accelerate()
