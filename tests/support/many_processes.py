"""
Trains and evaluates on several processes for tests/engine/test_many_processes.py, and records which samples each
process saw. Writes `<output>/rank<r>.json` and weights.

    torchrun --standalone --nproc_per_node 2 -m tests.support.many_processes DATA MODEL OUTPUT
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pvt_hf import PvtForImageClassification, PvtImageProcessor
from pvt_hf.data.batches import BatchStream
from pvt_hf.data.samples import ProcessorTransform
from pvt_hf.data.sharding import split_strategy
from pvt_hf.engine import feed, loop
from pvt_hf.engine.evaluation import evaluate
from pvt_hf.engine.processes import make_accelerator
from pvt_hf.tasks.classification.evaluation import ClassificationEvaluation
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.tasks.classification.streams import open_classification_stream


def settings_of(output_dir: Path, **overrides) -> ClassificationSettings:
    defaults = {"batch_size": 4, "epochs": 2, "num_workers": 0, "shuffle_window": 8, "warmup_epochs": 0.5}
    defaults |= {"learning_rate": 1e-3, "mixup": 0.0, "cutmix": 0.0, "log_every_steps": 1, "max_bad_share": 0.2}
    return ClassificationSettings(dataset="digits", output_dir=str(output_dir), cpu=True, **defaults | overrides)


def batches_of(accelerator, stream, settings, **options) -> BatchStream:
    transform = ProcessorTransform(PvtImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False))
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    return BatchStream(
        stream, ClassificationSample(stream, transform), settings.batch_size, max_bad_share=0.2, **place, **options
    )


COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "barrier", "broadcast",
    "broadcast_object_list", "gather", "gather_object", "reduce", "reduce_scatter", "scatter",
)  # fmt: skip


def count_collectives(calls: list[str]) -> None:
    """Adds the name of every collective that Python code starts to `calls`. DDP's gradients travel without."""

    def counted(name: str, function):
        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(torch.distributed, name, counted(name, getattr(torch.distributed, name)))


def train(accelerator, stream, model_dir: Path, output_dir: Path, **overrides) -> dict:
    """
    Trains; returns the report, with `groups`: for each epoch and step the names of this process' samples, and
    `collectives`: the names of those between one step's batches and the next one's.
    """
    settings = settings_of(output_dir, **overrides)
    groups, collectives = [], []

    class RecordingFeed(feed.Feed):
        def groups(self, limit, agree):
            groups.append([])
            for group in super().groups(limit, agree):
                groups[-1].append([name for batch in group for name in batch["sample_ids"]])
                collectives.append(list(CALLS))
                CALLS.clear()
                yield group

    loop.Feed = RecordingFeed
    batches = batches_of(
        accelerator,
        stream,
        settings,
        shuffle_window=settings.shuffle_window,
        repeats=settings.repeated_augmentation,
        drop_last=True,
        strategy=None if settings.shuffle_window else "examples",
    )
    model = PvtForImageClassification.from_pretrained(model_dir)
    # What every process changes in a step, like the statistics of a BatchNorm
    model.register_buffer("last_rank", torch.tensor(-1), persistent=False)

    def compute_loss(wrapped, batch):
        loss = wrapped(**batch).loss
        model.last_rank.fill_(accelerator.process_index)
        return loss

    model, report = loop.train(
        accelerator, settings, model, batches, stream.num_samples, compute_loss,
        lambda evaluated: {"accuracy@1": 0.0, "last_rank": evaluated.last_rank.item()}, "accuracy@1",
    )  # fmt: skip
    if accelerator.is_main_process:
        save_file(model.state_dict(), output_dir / "weights.safetensors")
    accelerator.free_memory()  # the next run's checkpoints are its own
    return report | {"groups": groups, "collectives": collectives, "output_dir": str(output_dir)}


CALLS: list[str] = []


def run(data: Path, model_dir: Path, output: Path) -> None:
    count_collectives(CALLS)
    accelerator = make_accelerator(settings_of(output))
    world_size = accelerator.num_processes
    results = {"world_size": world_size, "rank": accelerator.process_index}
    for name in ("six", "five"):  # unequal shards, whole ones for 2 and 3 processes, and none of them
        stream = open_classification_stream(str(data / name), "train")
        results[name] = train(accelerator, stream, model_dir, output / name)
        results[name]["strategy"] = split_strategy(stream.dataset.num_shards, world_size)
        held_out = open_classification_stream(str(data / name), "validation")
        batches = batches_of(accelerator, held_out, settings_of(output))
        model = PvtForImageClassification.from_pretrained(model_dir).eval()
        results[name]["evaluation"] = evaluate(accelerator, model, batches, 0, ClassificationEvaluation((32, 32)))
        results[name]["evaluated"] = [name for batch in batches for name in batch.get("sample_ids", [])]
    six = open_classification_stream(str(data / "six"), "train")
    results["repeats"] = train(
        accelerator,
        six,
        model_dir,
        output / "repeats",
        repeated_augmentation=2,
        epochs=3,
        log_every_steps=100,
    )
    if world_size == 2:
        digits = open_classification_stream("digits", "train", image_size=32)
        equal = {"shuffle_window": 0, "epochs": 1, "samples_per_epoch": 256}
        results["halves"] = train(accelerator, digits, model_dir, output / "halves", batch_size=16, **equal)
        results["quarters"] = train(
            accelerator, digits, model_dir, output / "quarters", batch_size=8, gradient_accumulation_steps=2, **equal
        )
    (output / f"rank{accelerator.process_index}.json").write_text(json.dumps(results))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(*map(Path, sys.argv[1:]))
