"""
Fine-tunes an image classifier with Transformers' Trainer on a stream of images that is never held in memory.

    python scripts/finetune_with_trainer.py --model path/or/hub-id --dataset path/to/folder --output_dir out \\
        --max_steps 2000 --per_device_train_batch_size 32 --learning_rate 1e-4 --eval_steps 200 --save_steps 200

- The folder has `train` and `validation` (others: --train_split, --eval_split), each with one sub-folder per class, or
  parquet files, or webdataset tars. A Hub data set id works too, and 'digits', which is built in.
- All arguments of `TrainingArguments` are there. These defaults differ from Transformers': evaluation and checkpoints
  every 100 steps; the checkpoint with the best `accuracy@1` is loaded at the end (--load_best_model_at_end False keeps
  the last one); two checkpoints are kept; --remove_unused_columns False, because the stream carries `pixel_values` and
  `labels` alone, and Trainer cannot see what a PEFT model wants.
- Without --max_steps the steps follow from --num_train_epochs and the length of the stream, where that is known.
- A damaged image or an unknown label is skipped, named and counted; more than --max_bad_share of them end the run.
- `--lora_rank 8` trains LoRA adapters and the new head only (PEFT). `out` then holds the adapter, and `out/merged` the
  whole model, which AutoModel opens as any other. --lora_targets names the layers; the default fits PVT and ViT.
- Several processes: `torchrun --nproc_per_node 2 scripts/finetune_with_trainer.py ...`, on CPUs with --use_cpu.
  Trainer's way with a stream is that the first process reads for all of them and gives each its part, so that every
  image is used once. That process has to keep up: --dataloader_num_workers helps. For large runs use
  `train_image_classification.py`, whose processes read for themselves and whose resume is exact.

Afterwards `out` has the model, its processor, `all_results.json` and `trainer_state.json`; open it with
`AutoModelForImageClassification.from_pretrained("out")`, or give it to `evaluate_image_classification.py` or
`predict.py`.
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader, get_worker_info
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

import pvt_hf  # noqa: F401  registers PVT with the Auto classes
from pvt_hf.data.batches import StreamError
from pvt_hf.data.samples import BadSample, ProcessorTransform, sample_id
from pvt_hf.data.streams import Stream
from pvt_hf.engine.processes import check_world_size
from pvt_hf.metrics.accuracy_at_k import AccuracyAtK
from pvt_hf.tasks.classification.evaluate import output_size
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.tasks.classification.transforms import training_transform
from pvt_hf.tasks.models import label_fields, share_buffers
from pvt_hf.weights.opening import check_model_path


@dataclass
class ScriptArguments:
    model: str = field(metadata={"help": "Checkpoint to fine-tune: a folder or Hub id."})
    dataset: str = field(metadata={"help": "'digits', a folder, or a Hub data set id."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    image_column: str = field(default="", metadata={"help": "If it cannot be found by its type."})
    label_column: str = field(default="", metadata={"help": "If it cannot be found by its name."})
    class_names: str = field(default="", metadata={"help": "Comma-separated names, for labels without names."})
    shuffle_buffer: int = field(default=1000, metadata={"help": "Undecoded images held for shuffling; 0 keeps order."})
    min_scale: float = field(default=0.35, metadata={"help": "Smallest area share of a random crop; 1 crops nothing."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability."})
    auto_augment: str = field(default="", metadata={"help": "timm policy such as rand-m9-mstd0.5-inc1."})
    max_bad_share: float = field(default=0.01, metadata={"help": "Largest share of unusable samples, of 100 or more."})
    lora_rank: int = field(default=0, metadata={"help": "Train LoRA adapters of this rank instead of all weights."})
    lora_targets: str = field(default="query,value", metadata={"help": "Layers that get an adapter."})


DEFAULTS = {
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy@1",
    "remove_unused_columns": False,
    "logging_steps": 20,
}


class Encode:
    """
    Batches of undecoded examples to `pixel_values` and `labels`, without those that cannot be used.

    `seen` and `bad` count per loader worker, in memory that the main process shares with them. Raises a StreamError
    when too large a share cannot be used; a sample that comes back in every epoch is one, and a hundred are the base.
    """

    MAX_WORKERS = 256

    def __init__(self, stream: Stream, sample: ClassificationSample, max_bad_share: float, is_main: bool):
        self.stream, self.sample, self.max_bad_share, self.is_main = stream, sample, max_bad_share, is_main
        self.bad_names: set[str] = set()
        self.seen, self.bad = (torch.zeros(self.MAX_WORKERS, dtype=torch.int64).share_memory_() for _ in range(2))

    def __deepcopy__(self, memo: dict) -> "Encode":
        return self  # `datasets` copies streams with all they hold; a copy would count for itself

    def __call__(self, columns: dict[str, list]) -> dict[str, list]:
        worker = get_worker_info()
        slot = worker.id if worker is not None else 0
        samples = []
        for values in zip(*columns.values()):
            example = dict(zip(columns, values))
            self.seen[slot] += 1
            try:
                samples.append(self.sample(example))
            except BadSample as error:
                self.bad[slot] += 1
                name = sample_id(example, self.stream.image_column)
                if self.is_main and name not in self.bad_names:
                    print(f"skipped {name}: {error}", file=sys.stderr)
                self.bad_names.add(name)
                seen, bad = int(self.seen[slot]), len(self.bad_names)
                if bad > self.max_bad_share * max(seen, 100):
                    raise StreamError(
                        f"{bad} of {seen} samples of {self.stream.name} cannot be used, more than the allowed share of "
                        f"{self.max_bad_share:.2%} (of 100 or more). Mend or remove them, or raise max_bad_share."
                    ) from error
        return {name: [sample[name] for sample in samples] for name in ("pixel_values", "labels")}

    def apply(self, seed: int = 0, shuffle_buffer: int = 0) -> datasets.IterableDataset:
        """The stream of encoded samples, made as they are asked for; shuffled before that if there is a buffer."""
        dataset = self.stream.dataset
        if shuffle_buffer:
            dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer)
        # Small groups: the first batch is there soon, and little is decoded in vain when a run ends.
        return dataset.map(self, batched=True, batch_size=8, remove_columns=list(dataset.features))


class StreamTrainer(Trainer):
    """
    Trainer whose evaluation reads with one loader worker at most, so that every sample counts once; and which evaluates
    the main process' model, which is the one that it saves.

    With several, each ends with an incomplete batch, and where several processes share the batches Accelerate drops
    what does not divide among them, except at the very end.
    """

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        workers = self.args.dataloader_num_workers
        self.args.dataloader_num_workers = min(workers, 1)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_num_workers = workers

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        share_buffers(self.accelerator, self.model)
        return super().evaluation_loop(*args, **kwargs)


def open_streams(script: ScriptArguments, image_size: int) -> tuple[Stream, Stream]:
    """Training and evaluation streams. Raises a ValueError if their classes differ, or there are fewer than two."""
    columns = {
        "image_column": script.image_column or None,
        "label_column": script.label_column or None,
        "class_names": [name.strip() for name in script.class_names.split(",")] if script.class_names else None,
        "image_size": image_size,  # of the built-in digits
    }
    train = open_classification_stream(script.dataset, script.train_split, **columns)
    evaluation = open_classification_stream(script.dataset, script.eval_split, **columns)
    if train.class_names != evaluation.class_names:
        differences = sorted(set(train.class_names or ()) ^ set(evaluation.class_names or ()))
        raise ValueError(f"{train.name} and {evaluation.name} have different classes; not in both: {differences}.")
    return train, evaluation


def training_steps(training: TrainingArguments, stream: Stream) -> int:
    """--max_steps, or the steps of --num_train_epochs. Raises a ValueError if neither is known."""
    if training.max_steps > 0:
        return training.max_steps
    if not stream.num_samples:
        raise ValueError(f"{stream.name} does not say how many samples it has: give --max_steps.")
    per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return math.ceil(training.num_train_epochs * stream.num_samples / per_step)


def add_lora(model: torch.nn.Module, rank: int, targets: str) -> torch.nn.Module:
    """Adapters of `rank` on the layers whose names end in `targets`; the new classifier is trained whole."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets.split(","), modules_to_save=["classifier"])
    return get_peft_model(model, config)


def train_and_evaluate(trainer: StreamTrainer, train_set: Encode, eval_set: Encode) -> dict[str, Any]:
    """
    Trains, evaluates the best checkpoint and saves it, with its processor; returns the metrics of that evaluation.
    Raises a StreamError if there was nothing to train on.
    """
    training = trainer.args
    if train_set.is_main:
        print(f"{training.max_steps} steps of {training.train_batch_size} images on {training.world_size} process(es).")
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if trainer.state.global_step == 0:
        raise StreamError(f"{train_set.stream.name} gave no sample to train on.")
    eval_set.bad.zero_()  # of one pass, not of all the evaluations so far
    metrics = trainer.evaluate()
    metrics["eval_skipped"] = int(eval_set.bad.sum())
    trainer.save_metrics("train", {**result.metrics, "train_skipped": int(train_set.bad.sum())})
    trainer.save_state()
    trainer.save_model()  # an adapter where there is one
    return metrics


def main(script: ScriptArguments, training: TrainingArguments) -> dict[str, float]:
    """Trains, evaluates the best checkpoint, saves it; returns the metrics of that evaluation."""
    check_world_size(training.distributed_state)
    check_model_path(script.model)
    processor = AutoImageProcessor.from_pretrained(script.model)
    height, width = output_size(processor)
    train_stream, eval_stream = open_streams(script, max(height, width))
    train_transform = training_transform(
        height,
        width,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        min_scale=script.min_scale,
        horizontal_flip=script.horizontal_flip,
        auto_augment=script.auto_augment or None,
        random_erasing=0.0,
    )
    is_main = training.process_index == 0
    train_set, eval_set = (
        Encode(stream, ClassificationSample(stream, transform), script.max_bad_share, is_main)
        for stream, transform in ((train_stream, train_transform), (eval_stream, ProcessorTransform(processor)))
    )
    names = train_set.sample.class_names
    if len(names) < 2:
        raise ValueError(f"There is only the class {names[0]!r}, and so nothing to tell apart: give two or more.")
    model = AutoModelForImageClassification.from_pretrained(
        script.model,
        num_labels=len(names),
        **label_fields(names),
        ignore_mismatched_sizes=True,
    )
    if script.lora_rank:
        model = add_lora(model, script.lora_rank, script.lora_targets)
    ranks = min(5, len(names))

    def best_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.topk(ranks).indices  # (batch, ranks): what is gathered and kept, not all the logits

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        metrics = AccuracyAtK(keep_in_memory=True).compute(
            predictions=prediction.predictions.tolist(), references=prediction.label_ids.tolist(), k=(1, ranks)
        )
        return {**metrics, "samples": len(prediction.label_ids)}

    training.max_steps = training_steps(training, train_stream)
    training.label_names = ["labels"]  # Trainer cannot find it in the signature of a PEFT model
    trainer = StreamTrainer(
        model,
        training,
        train_dataset=train_set.apply(training.seed, script.shuffle_buffer),
        eval_dataset=eval_set.apply(),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=best_classes,
        processing_class=processor,
    )
    metrics = train_and_evaluate(trainer, train_set, eval_set)
    trainer.save_metrics("eval", metrics)
    if is_main:
        if script.lora_rank:
            merged = Path(training.output_dir) / "merged"
            trainer.model.merge_and_unload().save_pretrained(merged)
            processor.save_pretrained(merged)
        print(
            f"Best checkpoint: {trainer.state.best_model_checkpoint}. accuracy@1 {metrics['eval_accuracy@1']:.4f} on "
            f"{metrics['eval_samples']} samples. Skipped: {int(train_set.bad.sum())} in training, "
            f"{metrics['eval_skipped']} in evaluation. Saved in {training.output_dir}."
        )
    trainer.accelerator.end_training()
    return metrics


def parse_arguments(arguments: list[str] | None = None) -> tuple[ScriptArguments, TrainingArguments]:
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    return parser.parse_args_into_dataclasses(arguments)


if __name__ == "__main__":
    try:
        main(*parse_arguments())
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
