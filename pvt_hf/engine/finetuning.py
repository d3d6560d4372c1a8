"""Fine-tuning with Transformers' `Trainer`, on the streams, the loss and the evaluation of the training commands."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from ..data.streams import StreamError
from ..metrics.reports import without_nan
from .evaluation import Monitor, evaluate
from .feed import Batch, TrainingStream
from .processes import check_world_size, share_buffers, synchronize_batch_norm
from .run import evaluation_batches, open_streams, samples_to_train_on, training_batches
from .settings import FinetuneSettings
from .task import Evaluation, Task


def default_arguments(task: Task) -> dict[str, Any]:
    """Defaults that differ from those of `TrainingArguments`."""
    return {
        "eval_strategy": "steps",
        "eval_steps": 100,
        "save_steps": 100,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": task.best_metric,
        "logging_steps": 20,
        # As in the evaluation script: a detector's figures depend on the padding in a batch.
        "per_device_eval_batch_size": task.evaluation_settings.batch_size,
        "disable_tqdm": not sys.stderr.isatty(),
    }


class SavePosition(TrainerCallback):
    """Saves the position in the stream with every checkpoint."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.save_only_model:
            checkpoint = f"{args.output_dir}/checkpoint-{state.global_step}"
            torch.save(kwargs["train_dataloader"].state_dict(), position_file(checkpoint, args))


def position_file(checkpoint: str, training: TrainingArguments) -> Path:
    """Each process has its own."""
    return Path(checkpoint, f"stream_{training.process_index}.pt")


class StreamTrainer(Trainer):
    """Trainer with the streams, the loss and the evaluation of the training scripts."""

    def __init__(
        self, *args: Any, loss: Callable[[Any, Batch], torch.Tensor], evaluation: Evaluation, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(SavePosition())
        self.loss, self.evaluation = loss, evaluation
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        self.skipped: dict[str, str] = {}

    def get_train_dataloader(self) -> Any:
        return self.train_dataset  # not prepared by Accelerate, which would send each process a part of the batches

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.loss(model, inputs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, Any]:
        """Evaluates the main process' model, the one that is saved. Undefined figures are NaN."""
        model = self.accelerator.unwrap_model(self.model).eval()
        batches: Any = self.eval_dataset
        share_buffers(self.accelerator, model)
        with Monitor(self.accelerator, batches.stream, "evaluation", self.skipped) as monitor:
            metrics = evaluate(
                self.accelerator, model, batches, self.args.dataloader_num_workers, self.evaluation, monitor
            )
        metrics = {f"{metric_key_prefix}_{name.removeprefix('eval_')}": value for name, value in metrics.items()}
        defined = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self.log(defined)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, defined)
        return {name: math.nan if value is None else value for name, value in metrics.items()}


def make_trainer(task: Task, settings: Any, options: FinetuneSettings, training: TrainingArguments) -> StreamTrainer:
    """
    Opens streams and model.

    Args:
        settings: of the class `task.finetuning_settings`.

    Raises:
        OSError, ValueError: as `task`'s methods; or the number of steps is unknown.
    """
    state = training.distributed_state  # this process among all
    processor = task.build_processor(settings)
    train_stream, eval_stream = open_streams(task, settings, processor)
    train_sample = task.training_sample(settings, train_stream, processor)
    class_names = train_sample.class_names
    eval_sample = task.evaluation_sample(settings, eval_stream, processor, class_names)
    model = synchronize_batch_norm(state, task.build_model(settings, class_names))
    evaluation = task.evaluation(settings, model, processor, len(class_names))
    if options.lora_rank:
        model = add_lora(model, options.lora_rank, options.lora_targets)
    train_batches = training_batches(
        task,
        settings,
        train_sample,
        state,
        batch_size=training.train_batch_size,
        seed=training.seed,
        shuffle_window=options.shuffle_window,
    )
    training.max_steps = training_steps(training, samples_to_train_on(train_stream, settings), train_stream.name)
    training.ignore_data_skip = True  # the stream resumes by itself
    return StreamTrainer(
        model,
        training,
        train_dataset=TrainingStream(
            train_batches,
            training.gradient_accumulation_steps,
            training.dataloader_num_workers,
            pin_memory=training.device.type == "cuda",
        ),
        eval_dataset=evaluation_batches(task, settings, eval_sample, state, training.eval_batch_size),
        processing_class=processor,
        loss=task.loss(settings, len(class_names)),
        evaluation=evaluation,
    )


def finetune(task: Task, settings: Any, options: FinetuneSettings, training: TrainingArguments) -> dict[str, Any]:
    """
    Trains, evaluates the best checkpoint and saves it, all in `training.output_dir`.

    Returns:
        The metrics of that evaluation, with None where one is undefined.

    Raises:
        OSError, ValueError: as [`make_trainer`]; or the checkpoint to resume from is of fewer processes.
        StreamError: the data cannot be read, or do not fill a batch.
    """
    check_processes(training)
    set_seed(training.seed)
    trainer = make_trainer(task, settings, options, training)
    stream: Any = trainer.train_dataset
    checkpoint = training.resume_from_checkpoint
    if checkpoint:
        file = position_file(checkpoint, training)
        if not file.is_file():
            raise FileNotFoundError(
                f"There is no {file}: resume from a checkpoint of as many processes as there are now."
            )
        stream.load_state_dict(torch.load(file, weights_only=True))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step == 0:
        raise StreamError(
            f"{stream.batches.stream.name} does not fill {training.gradient_accumulation_steps} batch(es) of "
            f"{training.train_batch_size} on each of {training.world_size} process(es): use smaller ones."
        )
    skipped = sum(gather_object([stream.counts.skipped]))
    metrics = without_nan(trainer.evaluate())
    trainer.save_metrics("train", {**result.metrics, "train_skipped": skipped})
    trainer.save_metrics("eval", metrics)
    trainer.save_state()
    trainer.save_model()  # an adapter where there is one
    if options.lora_rank and trainer.is_world_process_zero():
        merged = Path(str(training.output_dir), "merged")
        cast(Any, trainer.model).merge_and_unload().save_pretrained(merged)
        cast(Any, trainer.processing_class).save_pretrained(merged)
    trainer.accelerator.print(
        f"Saved in {training.output_dir}. Best checkpoint: {trainer.state.best_model_checkpoint}. Evaluated on "
        f"{metrics['eval_samples']} samples. Skipped: {skipped} in training, {metrics['eval_skipped']} in evaluation."
    )
    trainer.accelerator.end_training()
    return metrics


def check_processes(training: TrainingArguments) -> None:
    """Raises a ValueError if a launcher's processes would each train alone, or one process has several GPUs."""
    check_world_size(training.distributed_state)
    if training.n_gpu > 1:  # Trainer's DataParallel would cut objects and masks like images
        raise ValueError(
            f"One process sees {training.n_gpu} GPUs: start one process for each, with `torchrun --nproc_per_node "
            f"{training.n_gpu} scripts/finetune.py ...`, or choose one with CUDA_VISIBLE_DEVICES=0."
        )


def training_steps(training: TrainingArguments, num_samples: int | None, name: str) -> int:
    """--max_steps, or the steps of --num_train_epochs. Raises a ValueError if neither is known."""
    if training.max_steps > 0:
        return training.max_steps
    if not num_samples:
        raise ValueError(f"{name} does not say how many samples it has: give --max_steps.")
    per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return max(math.ceil(training.num_train_epochs * (num_samples // per_step)), 1)


def add_lora(model: PreTrainedModel, rank: int, targets: str) -> torch.nn.Module:
    """
    Adapters of `rank` on the layers whose names end in `targets`. The classifier is trained whole.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: the model is no image classifier, or has no such layers.
    """
    from peft import LoraConfig, get_peft_model

    if not hasattr(model, "classifier"):
        raise ValueError(f"--lora_rank is for image classifiers; {type(model).__name__} has no layer `classifier`.")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets.split(","), modules_to_save=["classifier"])
    return get_peft_model(model, config)
