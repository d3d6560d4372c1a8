"""The best model of a training run, kept beside the last one (`--keep_best`), and early stopping (`--patience`)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..metrics.reports import write_json
from .disk import describe_write_error, tensor_bytes
from .processes import any_process


BEST_FOLDER, BEST_FILE = "best", "best.json"


def evaluations(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations in a [`pvt_hf.engine.state.TrainingState`]'s history."""
    return [entry for entry in history if "loss" not in entry]


def quality(evaluation: dict[str, Any], metric: str) -> float:
    """The value of `metric`, higher is better. An undefined one (None) is worse than all others."""
    value = evaluation[metric]
    return -math.inf if value is None else value


def best_evaluation(history: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The first evaluation with the highest value of `metric`; None if there was no evaluation."""
    return max(evaluations(history), key=lambda evaluation: quality(evaluation, metric), default=None)


def evaluations_since_best(history: list[dict[str, Any]], metric: str) -> int:
    """How many evaluations came after the best one. Follows from the history, so a resumed run goes on counting."""
    qualities = [quality(evaluation, metric) for evaluation in evaluations(history)]
    return len(qualities) - 1 - qualities.index(max(qualities)) if qualities else 0


class BestModel:
    """
    Keeps the model of the best evaluation in `<output_dir>/best`: model, image processor, and the evaluation in
    `best.json`. The folder is replaced as a whole. A kill leaves the old one or none; a resumed run then repeats the
    evaluation, because the checkpoint before it says that it is due.

    Args:
        output_dir: of the training.
        metric: a key of the evaluations; higher is better.
        processor: the image processor; None: none is saved.
        history: of a resumed run, else empty.

    Attributes:
        kept: the evaluation whose model is in the folder; None if the folder has none of this run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str,
        metric: str,
        processor: Any,
        history: list[dict[str, Any]],
    ):
        self.accelerator, self.metric, self.processor = accelerator, metric, processor
        self.folder = Path(output_dir, BEST_FOLDER)
        found = [self._find(history) if accelerator.is_main_process else None]
        self.kept: dict[str, Any] | None = broadcast_object_list(found)[0]
        if evaluations(history) and self.kept is None:
            accelerator.print(
                f"{self.folder} has no model of an evaluation before this checkpoint: it gets the best one from now on."
            )

    def _find(self, history: list[dict[str, Any]]) -> dict[str, Any] | None:
        try:
            saved = json.loads((self.folder / BEST_FILE).read_text())
            return saved["evaluation"] if saved["evaluation"] in evaluations(history) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def update(self, model: PreTrainedModel, evaluation: dict[str, Any]) -> bool:
        """
        Saves `model` if its evaluation is better than the one kept. Every process has to call this.

        Returns:
            Whether it was saved.

        Raises:
            OSError: on every process, if it cannot be written. The folder has what it had before.
        """
        if self.kept is not None and quality(evaluation, self.metric) <= quality(self.kept, self.metric):
            return False
        weights = self.accelerator.get_state_dict(model)  # on all processes, because each may hold a shard
        reason = self._write(model, weights, evaluation) if self.accelerator.is_main_process else ""
        if any_process(bool(reason)):
            raise OSError(
                f"Could not save the best model in {self.folder}: {reason or 'the main process failed'}. Free some "
                "space and continue with --resume_from_checkpoint latest."
            )
        self.kept = evaluation
        return True

    def _write(self, model: PreTrainedModel, weights: dict[str, Any], evaluation: dict[str, Any]) -> str:
        """Replaces the folder. Returns why it could not be written; "" if it was."""
        partial, replaced = (self.folder.with_name(f".best.{word}") for word in ("partial", "replaced"))
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            model.save_pretrained(partial, state_dict=weights)
            if self.processor is not None:
                self.processor.save_pretrained(partial)
            write_json(partial / BEST_FILE, {"metric": self.metric, "evaluation": evaluation})
        except Exception as error:  # a full disk is an OSError, a RuntimeError (torch) or a SafetensorError
            folder = partial if partial.is_dir() else self.folder.parent
            reason = describe_write_error(folder, error, tensor_bytes(weights))
            shutil.rmtree(partial, ignore_errors=True)
            return reason
        if self.folder.exists():
            self.folder.rename(replaced)
        partial.rename(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        return ""
