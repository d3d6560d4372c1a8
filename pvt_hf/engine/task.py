"""What training, evaluation and fine-tuning need to know about a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.batches import Sample
from ..data.samples import stack
from ..data.streams import Stream
from .settings import EvaluationSettings, TrainingSettings


class SampleMaker(Protocol):
    """Makes a sample of an example of `stream`, or raises [`pvt_hf.data.samples.BadSample`]."""

    stream: Stream
    class_names: tuple[str, ...]

    def __call__(self, example: dict[str, Any]) -> Sample: ...


class Evaluation(ABC):
    """
    Collects what a model answers and turns it into metrics.

    Every process adds its batches; the states of all are gathered, and [`compute`] sees them together.
    """

    @abstractmethod
    def add(self, forward: Callable[..., Any], batch: dict[str, Any]) -> None:
        """
        Runs the model on a batch and counts its answers.

        Args:
            forward: keyword arguments (tensors on the CPU) to the model's output on its device.
        """

    @abstractmethod
    def state(self) -> Any:
        """Takes out what this process has collected: can be pickled, on the CPU. The next evaluation starts afresh."""

    @abstractmethod
    def compute(self, states: list[Any]) -> dict[str, Any]:
        """The metrics over the states of all processes: numbers, NaN where undefined, or lists of them by class."""

    @abstractmethod
    def count(self, states: list[Any]) -> int:
        """Samples in these states."""

    def idle_inputs(self) -> dict[str, torch.Tensor]:
        """Inputs of a forward pass whose answer is thrown away (see [`pvt_hf.engine.evaluation.evaluate`])."""
        return {"pixel_values": torch.zeros(1, 3, 64, 64)}


@dataclass
class EvaluationPart:
    """
    One pass of the evaluation of a checkpoint.

    Attributes:
        title: shown beside the progress bar and the figures.
        sample: makes the samples, with the model's labels.
        evaluation: collects the answers.
        report: metrics to this part's entry in the results file.
        table: metrics to the text that is printed.
        facts: entries of the report beside the results.
        save: called on the main process with the states of all processes, to write more files.
    """

    title: str
    sample: Callable[[dict[str, Any]], Sample]
    evaluation: Evaluation
    report: Callable[[dict[str, Any]], dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    facts: dict[str, Any] = field(default_factory=dict)
    save: Callable[[list[Any]], None] | None = None


class Task(ABC):
    """
    A task. There is one object of each; see `pvt_hf.tasks`.

    Attributes:
        name: such as "semantic-segmentation".
        auto_class: Transformers' Auto class that opens its models.
        best_metric: the metric by which models are compared, larger is better.
        training_settings, evaluation_settings: dataclasses of the commands' arguments.
        finetuning_settings: dataclass of the task's own arguments in training with Transformers' `Trainer`.
        eval_batch_size: images per batch in the evaluations of a training; None: as in training.
    """

    name: ClassVar[str]
    auto_class: ClassVar[Any]
    best_metric: ClassVar[str]
    training_settings: ClassVar[type[TrainingSettings]]
    evaluation_settings: ClassVar[type[EvaluationSettings]]
    finetuning_settings: ClassVar[type]
    eval_batch_size: ClassVar[int | None] = None

    @abstractmethod
    def open_stream(self, settings: Any, split: str, processor: Any, training: bool = False) -> Stream:
        """The examples of a split, undecoded. `training`: without those that only an evaluation needs."""

    @abstractmethod
    def build_processor(self, settings: Any) -> Any:
        """The image processor of the evaluation, which is saved with the model."""

    @abstractmethod
    def build_model(self, settings: Any, class_names: tuple[str, ...]) -> PreTrainedModel:
        """The model to train: a checkpoint with a classifier for these classes, or a new one."""

    @abstractmethod
    def training_sample(self, settings: Any, stream: Stream, processor: Any) -> SampleMaker:
        """Makes samples to train on."""

    @abstractmethod
    def evaluation_sample(
        self, settings: Any, stream: Stream, processor: Any, class_names: tuple[str, ...]
    ) -> SampleMaker:
        """Makes samples to evaluate a model of these classes on."""

    @abstractmethod
    def loss(self, settings: Any, num_labels: int) -> Callable[[nn.Module, dict[str, Any]], torch.Tensor]:
        """(model, batch on the device) to a scalar."""

    @abstractmethod
    def evaluation(self, settings: Any, model: PreTrainedModel, processor: Any, num_labels: int) -> Evaluation:
        """The evaluation of a training."""

    @abstractmethod
    def checkpoint_evaluations(
        self, settings: Any, stream: Stream, model: PreTrainedModel, processor: Any
    ) -> Iterator[EvaluationPart]:
        """The passes of the evaluation of a checkpoint, such as one for each image size."""

    def summarize(self, results: list[dict[str, Any]]) -> Any:
        """The results of the passes, as the results file has them."""
        return results[0]

    def collate_training(self, samples: list[Sample]) -> dict[str, Any]:
        """Samples to a training batch."""
        return stack(samples)

    def collate_evaluation(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Samples to a batch for the evaluation."""
        return stack(list(samples))

    def group(self, settings: Any, stream: Stream) -> Callable[[dict[str, Any]], Hashable] | None:
        """Undecoded example to a key: shuffled batches have samples of one key. None: of any."""
        return None
