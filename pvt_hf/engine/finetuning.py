"""Fine-tuning with Transformers' `Trainer`, on the streams, the loss and the evaluation of the training commands."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.batches import BatchStream
from ..data.streams import StreamError
from ..metrics.reports import without_nan
from ..weights.opening import open_complete
from .checkpoints import ensure_output_dir
from .disk import describe_write_error, tensor_bytes
from .epochs import EpochLengths
from .evaluation import Monitor, evaluate
from .feed import Batch, TrainingStream
from .figures import LastEvaluation, WritePage, write_figures
from .guard import LabelGuard
from .lock import lock_output_dir
from .processes import check_world_size, share_buffers
from .run import evaluation_batches, open_training, samples_to_train_on, training_batches
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
        # As in the evaluation command: a detector's figures depend on the padding in a batch.
        "per_device_eval_batch_size": task.evaluation_settings.batch_size,
        "disable_tqdm": not sys.stderr.isatty(),
    }


def position_file(checkpoint: str | Path, process_index: int) -> Path:
    """The file with a process's position in the stream."""
    return Path(checkpoint, f"stream_{process_index}.pt")


def missing_file(checkpoint: Path, world_size: int) -> str:
    """The first file that a checkpoint lacks for an exact resume by `world_size` processes; "" if it is complete."""
    ranks = range(world_size)
    states = ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in ranks]
    # Trainer writes its own state last.
    names = [*(position_file("", rank).name for rank in ranks), *states, TRAINER_STATE_NAME]
    return next((name for name in names if not (checkpoint / name).is_file()), "")


def find_resumable(training: TrainingArguments) -> str | None:
    """
    The folder that `--resume_from_checkpoint` names: a path, a name in the output folder, or "latest" for the newest
    complete checkpoint there. None if nothing is to be resumed.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it is not complete.
    """
    wanted, output_dir, world_size = training.resume_from_checkpoint, str(training.output_dir), training.world_size
    if not wanted:
        return None
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    folders.sort(key=lambda path: int(path.name.rpartition("-")[2]))
    complete = [str(path) for path in folders if not missing_file(path, world_size)]
    if wanted == "latest":
        return complete[-1] if complete else None
    found = next((path for path in (Path(wanted), Path(output_dir, wanted)) if path.is_dir()), None)
    missing = found and missing_file(found, world_size)
    if found is None or missing:
        problem = "there is no such folder"
        if missing:
            problem = f"it has no {missing}: it was saved by another number of processes, or saving was cut off"
        raise FileNotFoundError(
            f"--resume_from_checkpoint {wanted}: {problem}. Checkpoints in {output_dir} that {world_size} process(es) "
            f"can resume: {', '.join(complete) or 'none'}."
        )
    return str(found)


class Patience(EarlyStoppingCallback):
    """Early stopping of Transformers, which goes on counting after a resume."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        saved = state.stateful_callbacks.get(type(self).__name__)  # of the checkpoint, or what a new one begins with
        if saved is not None:
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]


class StreamTrainer(Trainer):
    """Trainer with the streams, the loss and the evaluation of the training commands."""

    def __init__(
        self,
        *args: Any,
        loss: Callable[[Any, Batch], torch.Tensor],
        evaluation: Evaluation,
        guard: LabelGuard,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss, self.evaluation, self.guard = loss, evaluation, guard
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch
        self.skipped: dict[str, str] = {}
        self.last: LastEvaluation | None = None  # filled by the next evaluation

    def get_train_dataloader(self) -> Any:
        return self.train_dataset  # not prepared by Accelerate, which would send each process a part of the batches

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """
        Saves a checkpoint with the positions in the stream. They are written before Trainer's own state, which is its
        last file, and before Trainer deletes older checkpoints. So if a kill interrupts saving, the checkpoint is
        recognised as incomplete, and an older one is still there.
        """
        stream: Any = self.train_dataset
        checkpoint = Path(str(self.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        try:
            if self.args.should_save:
                shutil.rmtree(checkpoint, ignore_errors=True)  # of an earlier run, or cut off
                checkpoint.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            if not self.args.save_only_model:
                torch.save(stream.state_dict(), position_file(checkpoint, self.args.process_index))
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # each library reports a full disk in its own way
            optimizer: Any = self.optimizer
            needed = tensor_bytes([model.state_dict(), list(optimizer.state.values())])
            reason = describe_write_error(checkpoint, error, needed)
            if self.args.should_save:
                shutil.rmtree(checkpoint, ignore_errors=True)
            raise OSError(
                f"Could not save {checkpoint}: {reason}. Free some space, and continue with --resume_from_checkpoint "
                "latest."
            ) from error

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.loss(model, inputs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, Any]:
        """Evaluates the main process' model, the one that is saved. Undefined figures are NaN."""
        model = self.accelerator.unwrap_model(self.model).eval()
        batches: Any = self.eval_dataset
        share_buffers(self.accelerator, model)
        num_workers = self.args.dataloader_num_workers
        with Monitor(self.accelerator, batches, num_workers, "evaluation", self.skipped) as monitor:
            metrics = evaluate(
                self.accelerator, model, batches, num_workers, self.evaluation, monitor, guard=self.guard,
                last=self.last,
            )  # fmt: skip
        metrics = {f"{metric_key_prefix}_{name.removeprefix('eval_')}": value for name, value in metrics.items()}
        defined = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self.log(defined)
        undefined = [name for name, value in metrics.items() if value is None]
        if undefined:
            self.accelerator.print(f"undefined: {', '.join(undefined)}")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, defined)
        return {name: math.nan if value is None else value for name, value in metrics.items()}

    # Trainer loads checkpoints by the names in the file, and silently skips names that the model does not have.
    # Transformers saves DETR and others under older names, which only `from_pretrained` translates.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._load_whole(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_whole(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_whole(self, checkpoint: Any) -> bool:
        """
        Loads all weights of `checkpoint` through `from_pretrained`. Returns False for what that cannot open: an
        adapter, or the shards of FSDP or DeepSpeed.

        Raises:
            OSError, ValueError: see [`open_complete`].
            RuntimeError: the checkpoint is of another model.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded or not isinstance(self.model, PreTrainedModel):
            return False
        self.model.load_state_dict(open_complete(type(self.model), checkpoint).state_dict())
        return True


def make_trainer(task: Task, settings: Any, options: FinetuneSettings, training: TrainingArguments) -> StreamTrainer:
    """
    Opens streams and model.

    Args:
        settings: of the class `task.finetuning_settings`.

    Raises:
        OSError, ValueError: as `task`'s methods; or there is nothing to learn from or to evaluate; or the number of
            steps is unknown.
    """
    if options.patience and training.eval_strategy == "no":
        raise ValueError(f"--patience {options.patience} counts evaluations: it needs --eval_strategy steps or epoch.")
    state = training.distributed_state  # this process among all
    opened = open_training(task, settings, state)
    model: Any = opened.model
    num_labels = len(opened.class_names)
    evaluation = task.evaluation(settings, model, opened.processor, num_labels)
    if options.lora_rank:
        model = add_lora(model, options.lora_rank, options.lora_targets)
    train_batches = training_batches(
        task,
        settings,
        opened.train_sample,
        state,
        batch_size=training.train_batch_size,
        seed=training.seed,
        shuffle_window=options.shuffle_window,
    )
    num_samples = samples_to_train_on(opened.train_sample.stream, settings)
    training.max_steps = training_steps(training, train_batches, num_samples)
    training.ignore_data_skip = True  # the stream resumes by itself
    return StreamTrainer(
        model,
        training,
        train_dataset=TrainingStream(
            train_batches,
            training.gradient_accumulation_steps,
            training.dataloader_num_workers,
            pin_memory=training.device.type == "cuda",
            guard=opened.train_guard,
        ),
        eval_dataset=evaluation_batches(task, settings, opened.eval_sample, state, training.eval_batch_size),
        processing_class=opened.processor,
        callbacks=[Patience(options.patience)] if options.patience else None,
        loss=task.loss(settings, num_labels),
        evaluation=evaluation,
        guard=opened.eval_guard,
    )


def finetune(
    task: Task,
    settings: Any,
    options: FinetuneSettings,
    training: TrainingArguments,
    write_page: WritePage | None = None,
) -> dict[str, Any]:
    """
    Trains, evaluates the best checkpoint and saves it and the figures of its evaluation (see
    [`pvt_hf.engine.figures.write_figures`], also for `write_page`), all in `training.output_dir`.

    Returns:
        The metrics of that evaluation, with None where one is undefined.

    Raises:
        BlockingIOError: another training writes into the output folder.
        FileExistsError: the output folder has checkpoints, and none is to be resumed.
        OSError, ValueError: as [`make_trainer`]; or the checkpoint to resume from is not complete, or is of another
            number of processes; or a checkpoint cannot be written.
        StreamError: the data cannot be read, or do not fill a batch.
    """
    check_processes(training)
    with lock_output_dir(str(training.output_dir), training.distributed_state):
        return _finetune(task, settings, options, training, write_page)


def _finetune(
    task: Task, settings: Any, options: FinetuneSettings, training: TrainingArguments, write_page: WritePage | None
) -> dict[str, Any]:
    set_seed(training.seed)
    ensure_output_dir(str(training.output_dir), training.resume_from_checkpoint or "", TRAINER_STATE_NAME)
    checkpoint = find_resumable(training)
    trainer = make_trainer(task, settings, options, training)
    stream: Any = trainer.train_dataset
    if checkpoint:
        trainer.accelerator.print(f"Resuming from {checkpoint}.")
        stream.load_state_dict(torch.load(position_file(checkpoint, training.process_index), weights_only=True))
    elif training.resume_from_checkpoint:
        trainer.accelerator.print(f"No complete checkpoint in {training.output_dir} yet: starting from the beginning.")
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step == 0:
        raise StreamError(
            f"{stream.batches.stream.name} does not fill {training.gradient_accumulation_steps} batch(es) of "
            f"{training.train_batch_size} on each of {training.world_size} process(es): use smaller ones."
        )
    skipped = sum(gather_object([stream.counts.skipped]))
    trainer.last = LastEvaluation(trainer.processing_class)
    metrics = without_nan(trainer.evaluate())
    trainer.save_metrics("train", {**result.metrics, "train_skipped": skipped})
    trainer.save_metrics("eval", metrics)
    trainer.save_state()
    trainer.save_model()  # an adapter where there is one
    if trainer.is_world_process_zero():
        names = [name for _, name in sorted(cast(Any, trainer.model).config.id2label.items())]
        write_figures(Path(str(training.output_dir)), trainer.evaluation, trainer.last, names, write_page)
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
            f"{training.n_gpu} -m pvt_hf finetune ...`, or choose one with CUDA_VISIBLE_DEVICES=0."
        )


def training_steps(training: TrainingArguments, batches: BatchStream, num_samples: int | None) -> int:
    """
    --max_steps, or the steps of --num_train_epochs.

    Args:
        batches: the training stream of any process.
        num_samples: samples in one epoch over all processes; None if unknown.

    Raises:
        ValueError: neither is known, or the stream is too short for a step.
    """
    if training.max_steps > 0:
        return training.max_steps
    if num_samples is None:
        raise ValueError(f"{batches.stream.name} does not say how many samples it has: give --max_steps.")
    lengths = EpochLengths(batches, num_samples, training.gradient_accumulation_steps, training.dataloader_num_workers)
    whole = int(training.num_train_epochs)
    part = math.ceil((training.num_train_epochs - whole) * lengths.steps(whole))
    return max(lengths.total(0, whole) + part, 1)


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
