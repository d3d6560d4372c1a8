"""
Fine-tunes a model of any task with Transformers' Trainer, on a stream of images that is never held in memory.

    python scripts/finetune.py image-classification --model org/pvt-small --dataset path/to/folder --output_dir out \\
        --max_steps 2000 --per_device_train_batch_size 32 --learning_rate 1e-4
    python scripts/finetune.py semantic-segmentation --backbone org/pvt-small --dataset path/to/folder --output_dir out
    python scripts/finetune.py object-detection --model org/retinanet-pvt-small --dataset path/to/coco --output_dir out
    torchrun --nproc_per_node 2 scripts/finetune.py ...                    # several processes; on CPUs with --use_cpu

- It reads data as the training scripts do: the same folders and files, the same errors; every process reads its own
  part. Unusable samples are skipped, named and counted; more than --max_bad_share of them end the run.
- `--model` is a checkpoint of the task. Its classifier is replaced if the classes differ. Without it, `--backbone`
  (a trained classifier) gets a new head, `--architecture`.
- All arguments of `TrainingArguments` are there. Their defaults differ in DEFAULTS below: the model is evaluated and
  saved every 100 steps, and the best one is loaded at the end.
- The steps follow from --num_train_epochs and the length of the stream; give --max_steps if that is not known.
- The evaluation is that of the `evaluate_...` scripts, and gives the same figures.
- `--lora_rank 8` trains LoRA adapters (PEFT) and a new classifier only. `out` then has the adapter and `out/merged` the
  whole model.
- Resuming (--resume_from_checkpoint out/checkpoint-200) continues with the next sample.

Afterwards `out` has the model, its processor, `all_results.json` and `trainer_state.json`. For large runs use the
`train_...` scripts, which add the paper's schedules, EMA, repeated augmentation and checkpoints that survive a crash.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments

import pvt_hf  # noqa: F401  registers PVT with the Auto classes
from pvt_hf.data.batches import BatchStream, StreamError
from pvt_hf.engine.evaluation import evaluate
from pvt_hf.engine.feed import Feed, SampleCounts, Status
from pvt_hf.engine.processes import check_world_size, gather_integers, share_buffers, synchronize_batch_norm
from pvt_hf.engine.run import evaluation_batches, open_streams, samples_to_train_on, training_batches
from pvt_hf.engine.task import Evaluation, Task
from pvt_hf.tasks import TASKS, get_task


DEFAULTS = {
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "logging_steps": 20,
    "remove_unused_columns": False,  # Trainer cannot see what a task's loss needs
}


@dataclass
class FinetuneSettings:
    """Arguments of this script, beside the task's and Trainer's."""

    shuffle_window: int = field(
        default=1000, metadata={"help": "Samples that each loader process reads ahead to shuffle; 0: source order."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Train LoRA adapters of this rank instead of all weights, e.g. 8."}
    )
    lora_targets: str = field(
        default="query,value", metadata={"help": "Endings of the names of the layers that get an adapter."}
    )


@dataclass
class StreamSettings:
    """What [`training_batches`] reads, with the names of the training scripts."""

    batch_size: int
    seed: int
    shuffle_window: int
    eval_share: float
    max_bad_share: float
    group_by_aspect: bool = False
    repeated_augmentation: int = 1


class TrainingStream:
    """
    Batches for Trainer, epoch by epoch; the same number on every process.

    Attributes:
        position: where the next batch comes from, to resume.
        counts: of this process' samples.
    """

    def __init__(self, batches: BatchStream, group_size: int, num_workers: int, pin_memory: bool):
        self.batches, self.group_size, self.num_workers, self.pin_memory = batches, group_size, num_workers, pin_memory
        self.counts = SampleCounts()
        self.position: dict[str, Any] = {"epoch": 0, "loader": None}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            resumed = self.position["loader"] is not None
            steps = 0
            self.batches.set_epoch(self.position["epoch"])
            feed = Feed(
                self.batches, self.group_size, self.num_workers, self.pin_memory, self.position["loader"], self.counts
            )
            for group in feed.groups(None, lambda status: Status(max(value for (value,) in gather_integers(status)))):
                self.position = {"epoch": self.position["epoch"], "loader": feed.stream_state}
                for batch in group:
                    yield {key: value for key, value in batch.items() if key not in ("sample_ids", "skipped")}
                steps += 1
            self.position = {"epoch": self.position["epoch"] + 1, "loader": None}
            if steps or not resumed:  # a checkpoint of an epoch's last step has nothing left in that epoch
                return


class SavePosition(TrainerCallback):
    """Saves the stream's position with every checkpoint, one file per process."""

    def __init__(self, stream: TrainingStream):
        self.stream = stream

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        torch.save(self.stream.position, position_file(Path(args.output_dir) / f"checkpoint-{state.global_step}", args))


def position_file(checkpoint: Path, training: TrainingArguments) -> Path:
    return checkpoint / f"stream_{training.process_index}.pt"


class StreamTrainer(Trainer):
    """Trainer that reads, computes its loss and evaluates as the training scripts do."""

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        stream: TrainingStream,
        loss: Callable[[Any, dict[str, Any]], torch.Tensor],
        eval_batches: BatchStream,
        evaluation: Evaluation,
        processor: Any,
    ):
        # With an evaluation strategy Trainer asks for an `eval_dataset`; only `evaluate` below uses it.
        super().__init__(
            model, args, eval_dataset=eval_batches, processing_class=processor, callbacks=[SavePosition(stream)]
        )
        self.stream, self.loss, self.eval_batches, self.evaluation = stream, loss, eval_batches, evaluation
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch

    def get_train_dataloader(self) -> Any:
        return self.stream

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.compute_loss_context_manager():
            return self.loss(model, inputs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Of the main process' model, which is the one that is saved."""
        model = self.accelerator.unwrap_model(self.model).eval()
        share_buffers(self.accelerator, model)
        workers = self.args.dataloader_num_workers
        metrics = evaluate(self.accelerator, model, self.eval_batches, workers, self.evaluation)
        metrics = {f"{metric_key_prefix}_{name.removeprefix('eval_')}": value for name, value in metrics.items()}
        # Trainer compares and logs numbers: an undefined figure is never the best.
        numbers = {
            name: math.nan if value is None else value for name, value in metrics.items() if not isinstance(value, list)
        }
        self.log(numbers)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        return {**metrics, **numbers}


def training_steps(training: TrainingArguments, num_samples: int | None, name: str) -> int:
    """--max_steps, or the steps of --num_train_epochs. Raises a ValueError if neither is known."""
    if training.max_steps > 0:
        return training.max_steps
    if not num_samples:
        raise ValueError(f"{name} does not say how many samples it has: give --max_steps.")
    per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return max(math.ceil(training.num_train_epochs * (num_samples // per_step)), 1)


def add_lora(model: torch.nn.Module, rank: int, targets: str) -> torch.nn.Module:
    """Adapters of `rank` on the layers whose names end in `targets`. The classifier is trained whole."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets.split(","), modules_to_save=["classifier"])
    return get_peft_model(model, config)


def finetune(task: Task, settings: Any, finetuning: FinetuneSettings, training: TrainingArguments) -> dict[str, Any]:
    """Trains, evaluates the best checkpoint and saves it. Returns the metrics of that evaluation."""
    check_world_size(training.distributed_state)
    if not (settings.model or getattr(settings, "backbone", "")):
        raise ValueError("There is nothing to fine-tune: give --model, or --backbone for a new head.")
    processor = task.build_processor(settings)
    train_stream, eval_stream = open_streams(task, settings, processor)
    train_sample = task.training_sample(settings, train_stream, processor)
    names = train_sample.class_names
    eval_sample = task.evaluation_sample(settings, eval_stream, processor, names)
    model = synchronize_batch_norm(training.distributed_state, task.build_model(settings, names))
    evaluation = task.evaluation(settings, model, processor, len(names))
    if finetuning.lora_rank:
        model = add_lora(model, finetuning.lora_rank, finetuning.lora_targets)

    training.max_steps = training_steps(training, samples_to_train_on(train_stream, settings), train_stream.name)
    training.metric_for_best_model = training.metric_for_best_model or task.best_metric
    training.ignore_data_skip = True  # the stream resumes by itself
    workers, state = training.dataloader_num_workers, training.distributed_state
    streams = StreamSettings(
        training.train_batch_size,
        training.seed,
        finetuning.shuffle_window,
        settings.eval_share,
        settings.max_bad_share,
        getattr(settings, "group_by_aspect", False),
    )
    stream = TrainingStream(
        training_batches(task, streams, train_sample, state),
        training.gradient_accumulation_steps,
        workers,
        training.device.type == "cuda",
    )
    if training.resume_from_checkpoint:
        file = position_file(Path(training.resume_from_checkpoint), training)
        stream.position = torch.load(file, weights_only=True)
    eval_batch_size = task.eval_batch_size or training.eval_batch_size
    trainer = StreamTrainer(
        model,
        training,
        stream,
        task.loss(settings, len(names)),
        evaluation_batches(task, settings, eval_sample, state, eval_batch_size),
        evaluation,
        processor,
    )
    return train_and_save(trainer, finetuning, processor)


def train_and_save(trainer: StreamTrainer, finetuning: FinetuneSettings, processor: Any) -> dict[str, Any]:
    """Trains, evaluates the best checkpoint, and writes models and metrics. Raises a StreamError without any sample."""
    training, is_main = trainer.args, trainer.args.process_index == 0
    if is_main:
        print(f"{training.max_steps} steps of {training.train_batch_size} images on {training.world_size} process(es).")
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if trainer.state.global_step == 0:
        raise StreamError(f"{trainer.stream.batches.stream.name} gave no batch to train on: use a smaller batch size.")
    metrics = trainer.evaluate()
    skipped = sum(gather_object([trainer.stream.counts.skipped]))
    trainer.save_metrics("train", {**result.metrics, "train_skipped": skipped})
    trainer.save_metrics("eval", metrics)
    trainer.save_state()
    trainer.save_model()  # an adapter where there is one
    if is_main:
        if finetuning.lora_rank:
            merged = Path(training.output_dir) / "merged"
            trainer.model.merge_and_unload().save_pretrained(merged)
            processor.save_pretrained(merged)
        best = training.metric_for_best_model
        print(
            f"Best checkpoint: {trainer.state.best_model_checkpoint}. {best} {metrics[f'eval_{best}']:.4f} on "
            f"{metrics['eval_samples']} samples. Skipped: {skipped} in training, {metrics['eval_skipped']} in "
            f"evaluation. Saved in {training.output_dir}."
        )
    trainer.accelerator.end_training()
    return metrics


def parse_arguments(arguments: list[str] | None = None) -> tuple[Task, Any, FinetuneSettings, TrainingArguments]:
    """`TASK [--argument value ...]`. Exits with the usage if it is wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in TASKS:
        wrong = f", got {arguments[0]!r}" if arguments and arguments[0] not in ("-h", "--help") else ""
        print(f"{__doc__}\nThe first argument is the task, one of {', '.join(TASKS)}{wrong}.", file=sys.stderr)
        raise SystemExit(0 if arguments and not wrong else 2)
    task = get_task(arguments[0])
    parser = HfArgumentParser((task.finetuning_settings, FinetuneSettings, TrainingArguments))
    parser.usage = f"%(prog)s {task.name} [--argument value ...]"
    parser.set_defaults(**DEFAULTS)
    try:
        return task, *parser.parse_args_into_dataclasses(arguments[1:])
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    try:
        finetune(*parse_arguments())
    except (ImportError, OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
