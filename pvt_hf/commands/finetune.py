"""`pvt-hf finetune TASK`: fine-tunes a model of any task with Transformers' `Trainer`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..engine.arguments import describe_unknown, read_fields
from ..engine.settings import DataclassParser, FinetuneSettings, TrainerSettings, split_task
from ..tasks import TASKS, finetuning_settings, get_task
from . import check_dataset


DESCRIPTION = r"""
Fine-tunes a model of any task with Transformers' Trainer, on a stream of images that is never held in memory.

    pvt-hf finetune image-classification --model org/pvt-small --dataset path/to/folder --output_dir out \
        --max_steps 2000 --per_device_train_batch_size 32 --learning_rate 1e-4
    pvt-hf finetune semantic-segmentation --backbone org/pvt-small --dataset path/to/folder --output_dir out
    pvt-hf finetune object-detection --model org/retinanet-pvt-small --dataset path/to/coco --output_dir out
    torchrun --nproc_per_node 2 -m pvt_hf finetune ...                    # several processes; on CPUs with --use_cpu

- Data are read as in the training commands, every process its own part. Unusable samples are skipped, named and
  counted; more than --max_bad_share of them end the run. Evaluation gives the figures of `pvt-hf evaluate`.
- --model is a checkpoint of the task. Its classifier is replaced if the number of classes differs. Without --model,
  --backbone (a trained classifier, of any architecture that AutoBackbone knows) gets a new head, --architecture.
- All arguments of `TrainingArguments` are there. Some defaults differ, see `default_arguments`: the model is evaluated
  and saved every 100 steps, and the best one is loaded at the end.
- The steps follow from --num_train_epochs and the length of the stream; if that is unknown, give --max_steps.
- --lora_rank 8 trains LoRA adapters (PEFT) and the classifier of an image classifier. `out` then has the adapter, and
  `out/merged` the whole model.
- --resume_from_checkpoint latest, or out/checkpoint-200, continues with the next sample.

Afterwards `out` has the model, its image processor, `all_results.json` and `trainer_state.json`. For long runs use the
`train-...` commands, which add the paper's schedules, EMA, repeated augmentation and checkpoints that survive a crash.
"""


def main() -> None:
    name = split_task(DESCRIPTION, list(TASKS))
    check_arguments(name)
    task, settings, options, training = parse_arguments(name)

    from ..data.streams import StreamError
    from ..engine.finetuning import finetune
    from ..engine.processes import quiet_progress_bars
    from ..inference.held_out_page import write_page
    from .allocator import keep_freed_memory

    keep_freed_memory(on_cpu=training.use_cpu)
    try:
        with quiet_progress_bars():
            finetune(task, settings, options, training, write_page)
    except (ImportError, OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None


def check_arguments(name: str) -> None:
    """Exits with a message if arguments are wrong, before `TrainingArguments` is imported."""
    if not {"-h", "--help"} & set(sys.argv):
        others = read_fields("transformers.training_args", "TrainingArguments")
        settings, *_ = _parse((finetuning_settings(name), FinetuneSettings, TrainerSettings), others=others)
        check_dataset(settings.dataset)


def parse_arguments(name: str, words: list[str] | None = None) -> tuple[Any, Any, Any, Any]:
    """
    The task, its settings, the fine-tuning settings and Trainer's. Exits with the usage if an argument is wrong.

    Args:
        name: of the task.
        words: of the command line, after the task; default: those of this process.
    """
    from transformers import TrainingArguments

    from ..engine.finetuning import default_arguments

    task = get_task(name)
    classes = (finetuning_settings(name), FinetuneSettings, TrainingArguments)
    return task, *_parse(classes, words, **default_arguments(task))


def _parse(classes: Any, words: list[str] | None = None, others: Sequence[str] = (), **defaults: Any) -> Any:
    """Parses the command line. `others`: arguments that are in none of `classes` and may be there."""
    parser = DataclassParser(classes)
    parser.usage = "%(prog)s [--argument value ...]"
    parser.set_defaults(**defaults)
    parser.other_names = [name for other in others for name in (other, f"no_{other}", other.replace("_", "-"))]
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
        if rest and not others:
            raise ValueError(describe_unknown(rest[0], [field.name for one in classes for field in fields(one)]))
        return parsed
    except (OSError, ValueError) as error:
        parser.error(str(error))
