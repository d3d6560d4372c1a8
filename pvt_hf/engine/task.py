"""The interface of a task: what training, evaluation and fine-tuning need from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.batches import Sample
from ..data.label_counts import LabelCounts
from ..data.samples import stack
from ..data.streams import Stream
from .gallery import Gallery
from .settings import EvaluationSettings, TrainingSettings


@dataclass(frozen=True)
class Counted:
    """
    What is counted in the samples of a task, see [`pvt_hf.engine.guard.LabelGuard`].

    Attributes:
        what: the plural, such as "objects".
        needs_two_classes: whether a single class is nothing to learn.
        opens_files: whether [`SampleMaker.count`] opens image files.
        advice: a sentence on labels that are of no use, for messages.
    """

    what: str
    needs_two_classes: bool = True
    opens_files: bool = False
    advice: str = ""


class SampleMaker(Protocol):
    """
    Decodes and transforms an example of `stream` into a sample: a dict of tensors, labels, and `label_counts`.

    Attributes:
        stream: the source of the examples.
        class_names: the model's class names, by label.
        counted: what `label_counts` count.
    """

    stream: Stream
    class_names: tuple[str, ...]
    counted: Counted

    def __call__(self, example: dict[str, Any]) -> Sample:
        """Raises a [`pvt_hf.data.samples.BadSample`] for an example that cannot be used."""
        ...

    def count(self, example: dict[str, Any]) -> LabelCounts:
        """The labels of an example, without decoding its image. Raises a `BadSample` if they cannot be read."""
        ...


class Evaluation(ABC):
    """
    Collects predictions and computes metrics from them.

    Each process calls [`add`] with its own batches. The [`state`] of every process is then gathered and passed to
    [`compute`].

    Attributes:
        gallery: [`add`] offers each sample to it, if there is one.
    """

    gallery: Gallery | None = None

    @abstractmethod
    def add(self, forward: Callable[..., Any], batch: dict[str, Any]) -> None:
        """
        Runs the model on a batch and records its predictions.

        Args:
            forward: calls the model. Takes its inputs as keyword arguments (tensors on the CPU), and returns its output
                (tensors on the model's device).
        """

    @abstractmethod
    def state(self) -> Any:
        """Returns what this process has collected, and resets it. The state can be pickled and is on the CPU."""

    @abstractmethod
    def compute(self, states: list[Any]) -> dict[str, Any]:
        """Metrics from the states of all processes: numbers (NaN if undefined), or lists with one number per class."""

    @abstractmethod
    def count(self, states: list[Any]) -> int:
        """Number of samples in these states."""

    @abstractmethod
    def write_figures(self, states: list[Any], class_names: Sequence[str], folder: Path) -> None:
        """
        Writes PNG and JSON files into `folder`, such as a confusion matrix. Called after [`compute`] with the same
        states.
        """

    def idle_inputs(self) -> dict[str, torch.Tensor]:
        """Dummy inputs for a process that has run out of batches (see [`pvt_hf.engine.evaluation.evaluate`])."""
        return {"pixel_values": torch.zeros(1, 3, 64, 64)}


@dataclass
class EvaluationPart:
    """
    One pass over the data in the evaluation of a checkpoint, such as the pass for one image size.

    Attributes:
        title: label of the progress bar.
        sample: makes the samples, with the model's labels.
        evaluation: computes the metrics.
        report: turns the metrics into this pass's entry in the results file.
        table: turns the metrics into the text that is printed.
        facts: more entries for the results file, besides the results. A "warning" and a "note" are also printed.
        save: called on the main process with the states of all processes, to write more files.
        folder: for the figures of this pass, in that of `--figures`; "": that folder itself.
    """

    title: str
    sample: SampleMaker
    evaluation: Evaluation
    report: Callable[[dict[str, Any]], dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    facts: dict[str, Any] = field(default_factory=dict)
    save: Callable[[list[Any]], None] | None = None
    folder: str = ""


class Task(ABC):
    """
    A task such as image classification. [`pvt_hf.tasks.get_task`] makes one; it has no state.

    Methods take the settings of the command that runs: the training, fine-tuning or evaluation settings below.

    Attributes:
        name: for example "semantic-segmentation".
        auto_class: Transformers' Auto class that opens the task's models.
        best_metric: the metric that selects the best model; higher is better.
        training_settings: dataclass with the arguments of the training command.
        evaluation_settings: dataclass with the arguments of the evaluation command.
        finetuning_settings: dataclass with the task's arguments of `pvt-hf finetune`.
        eval_batch_size: images per batch and process when a training is evaluated; None: the training's batch size.
    """

    name: ClassVar[str]
    auto_class: ClassVar[Any]
    best_metric: ClassVar[str]
    training_settings: ClassVar[type[TrainingSettings]]
    evaluation_settings: ClassVar[type[EvaluationSettings]]
    finetuning_settings: ClassVar[type]
    eval_batch_size: ClassVar[int | None] = None

    # Data

    @abstractmethod
    def open_stream(self, settings: Any, split: str, processor: Any, training: bool = False) -> Stream:
        """The examples of a split, with images still encoded. `training` leaves out those not meant for training."""

    @abstractmethod
    def training_sample(self, settings: Any, stream: Stream, processor: Any) -> SampleMaker:
        """Makes augmented samples for training."""

    @abstractmethod
    def evaluation_sample(
        self, settings: Any, stream: Stream, processor: Any, class_names: tuple[str, ...]
    ) -> SampleMaker:
        """Makes samples for evaluating a model with these classes during training."""

    def collate_training(self, samples: list[Sample]) -> dict[str, Any]:
        """Makes a training batch."""
        return stack(samples)

    def collate_evaluation(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Makes an evaluation batch."""
        return stack(list(samples))

    def group(self, settings: Any, stream: Stream) -> Callable[[dict[str, Any]], Hashable] | None:
        """
        A function from an example, still encoded, to a key. A shuffled training batch has samples of one key only.
        None: any samples may share a batch.
        """
        return None

    def remarks(self, sample: Any, example: dict[str, Any]) -> dict[str, int]:
        """How many labels of a usable example training changes, by kind, for `pvt-hf check`."""
        return {}

    # Model

    @abstractmethod
    def build_processor(self, settings: Any) -> Any:
        """The image processor that prepares images for evaluation and is saved with the model."""

    @abstractmethod
    def build_model(self, settings: Any, class_names: tuple[str, ...]) -> PreTrainedModel:
        """The model to train: the checkpoint in the settings, with a classifier for these classes, or a new one."""

    @abstractmethod
    def loss(self, settings: Any, num_labels: int) -> Callable[[nn.Module, dict[str, Any]], torch.Tensor]:
        """The loss function: (model, batch on the model's device) to a scalar."""

    # Evaluation

    @abstractmethod
    def evaluation(self, settings: Any, model: PreTrainedModel, processor: Any, num_labels: int) -> Evaluation:
        """The evaluation that is run during training."""

    @abstractmethod
    def checkpoint_evaluations(
        self, settings: Any, stream: Stream, model: PreTrainedModel, processor: Any
    ) -> Iterator[EvaluationPart]:
        """The passes of the evaluation command, for example one for each image size."""

    def summarize(self, results: list[dict[str, Any]]) -> Any:
        """The entry `results` of the results file, from the reports of the passes."""
        return results[0]
