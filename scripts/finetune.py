"""
Fine-tunes a model of any task with Transformers' Trainer, on a stream of images that is never held in memory.

    python scripts/finetune.py image-classification --model org/pvt-small --dataset path/to/folder --output_dir out \\
        --max_steps 2000 --per_device_train_batch_size 32 --learning_rate 1e-4
    python scripts/finetune.py semantic-segmentation --backbone org/pvt-small --dataset path/to/folder --output_dir out
    python scripts/finetune.py object-detection --model org/retinanet-pvt-small --dataset path/to/coco --output_dir out
    torchrun --nproc_per_node 2 scripts/finetune.py ...                    # several processes; on CPUs with --use_cpu

- Data are read as in the training scripts, every process its own part. Unusable samples are skipped, named and counted;
  more than --max_bad_share of them end the run. Evaluation gives the same figures as the `evaluate_...` scripts.
- --model is a checkpoint of the task. Its classifier is replaced if the number of classes differs. Without --model,
  --backbone (a trained classifier, of any architecture that AutoBackbone knows) gets a new head, --architecture.
- All arguments of `TrainingArguments` are there. Some defaults differ, see `default_arguments`: the model is evaluated
  and saved every 100 steps, and the best one is loaded at the end.
- The steps follow from --num_train_epochs and the length of the stream; if that is unknown, give --max_steps.
- --lora_rank 8 trains LoRA adapters (PEFT) and the classifier of an image classifier. `out` then has the adapter, and
  `out/merged` the whole model.
- --resume_from_checkpoint out/checkpoint-200 continues with the next sample.

Afterwards `out` has the model, its image processor, `all_results.json` and `trainer_state.json`. For long runs use the
`train_...` scripts, which add the paper's schedules, EMA, repeated augmentation and checkpoints that survive a crash.
"""

import math
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import HfArgumentParser, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

import pvt_hf  # noqa: F401  registers PVT with the Auto classes
from pvt_hf.data.streams import StreamError
from pvt_hf.engine.evaluation import Monitor, evaluate
from pvt_hf.engine.feed import Batch, TrainingStream
from pvt_hf.engine.processes import check_world_size, quiet_progress_bars, share_buffers, synchronize_batch_norm
from pvt_hf.engine.run import evaluation_batches, open_streams, samples_to_train_on, training_batches
from pvt_hf.engine.settings import HelpFormatter, option
from pvt_hf.engine.task import Evaluation, Task
from pvt_hf.metrics.reports import without_nan
from pvt_hf.tasks import TASKS, get_task


@dataclass
class FinetuneSettings:
    """Arguments of this script, beside the task's and Trainer's."""

    shuffle_window: int = option(1000, "Samples that each loader process reads ahead to shuffle; 0: source order.")
    lora_rank: int = option(0, "Train LoRA adapters of this rank instead of all weights, e.g. 8; 0: all weights.")
    lora_targets: str = option("query,value", "Layers that get an adapter, by the endings of their names.")


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
        super().__init__(*args, callbacks=[SavePosition()], **kwargs)
        self.loss, self.evaluation = loss, evaluation
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        self.skipped: dict[str, str] = {}

    def get_train_dataloader(self) -> Any:
        return self.train_dataset  # not prepared by Accelerate, which would send each process a part of the batches

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.loss(model, inputs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, Any]:
        """Evaluates the main process' model, the one that is saved. Undefined figures are NaN."""
        model, batches = self.accelerator.unwrap_model(self.model).eval(), self.eval_dataset
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
    stream, checkpoint = trainer.train_dataset, training.resume_from_checkpoint
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
        merged = Path(training.output_dir, "merged")
        trainer.model.merge_and_unload().save_pretrained(merged)
        trainer.processing_class.save_pretrained(merged)
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


def parse_arguments(arguments: list[str] | None = None) -> tuple[Task, Any, FinetuneSettings, TrainingArguments]:
    """`TASK [--argument value ...]`. Exits with the usage if it is wrong."""
    name, *arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        usage = "%(prog)s TASK [--argument value ...]"
        epilog = f"Tasks: {', '.join(TASKS)}. Their arguments: %(prog)s TASK --help"
        ArgumentParser(usage=usage, description=__doc__, epilog=epilog, formatter_class=HelpFormatter).print_help()
        raise SystemExit(0)
    if name not in TASKS:
        raise SystemExit(f"error: the first argument is the task, one of {', '.join(TASKS)}; got {name}.")
    task = get_task(name)
    arguments_of_task = (task.finetuning_settings, FinetuneSettings, TrainingArguments)
    parser = HfArgumentParser(arguments_of_task, formatter_class=HelpFormatter)
    parser.usage = f"%(prog)s {task.name} [--argument value ...]"
    parser.set_defaults(**default_arguments(task))
    try:
        return task, *parser.parse_args_into_dataclasses(arguments)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    try:
        with quiet_progress_bars():
            finetune(*parse_arguments())
    except (ImportError, OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
