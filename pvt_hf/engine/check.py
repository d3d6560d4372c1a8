"""
Reads a whole data set once, as a training would, and reports what is in it: `pvt-hf check`.

Streams, samples and refusals are those of a training (`run.py`, `guard.py`, the samples of the task). Only the
transform is replaced, so that images are decoded but not augmented.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.batches import BatchStream, make_loader
from ..data.label_counts import LabelCounts
from ..data.samples import BadSample, sample_id
from ..data.streams import Stream, StreamError
from .epochs import EpochLengths
from .feed import stream_error_message
from .guard import LabelGuard
from .run import held_out, samples_to_train_on, training_batches
from .task import SampleMaker, Task


# Samples that are listed of each kind. All are counted.
LISTED = 20
# Smaller splits are read without loader processes, which take longer to start.
FEW_SAMPLES = 500
SECONDS_BETWEEN_LINES = 30  # where there is no terminal for a progress bar
ONE_PROCESS = SimpleNamespace(process_index=0, num_processes=1)


@dataclass
class Listed:
    """How many of a kind there are, and the first of them."""

    count: int = 0
    first: list[Any] = field(default_factory=list)

    def add(self, one: Any) -> None:
        self.count += 1
        if self.count <= LISTED:
            self.first.append(one)


class _Seen:
    """Takes the place of a sample's transform, and records the decoded image."""

    def __call__(self, image: Any, *labels: Any) -> Any:
        self.size = (image.height, image.width)
        self.digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(self.size).encode()).digest()
        pixel_values = torch.zeros(3, 1, 1)
        return (pixel_values, *labels) if labels else pixel_values


class _Look:
    """Makes the facts about a sample. Raises a `BadSample` for one that training skips."""

    def __init__(self, task: Task, sample: Any):
        self.task, self.sample = task, sample

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        column = self.sample.stream.image_column
        name, file = sample_id(example, column), (example[column] or {}).get("path")
        where = f" ({file})" if file and file != name else ""
        seen, transform = _Seen(), self.sample.transform
        self.sample.transform = seen
        try:
            counts = self.sample(example)["label_counts"]
        except BadSample as error:
            raise BadSample(f"{error}{where}") from error
        finally:
            self.sample.transform = transform
        facts = (name + where, seen.size, seen.digest, dict(counts.per_class), self.task.remarks(self.sample, example))
        return {"facts": facts, "label_counts": counts}


def _in_lists(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"facts": [sample["facts"] for sample in samples]}


class SplitContent:
    """
    What is in a split.

    Attributes:
        sample: makes the samples.
        usable: number of samples that training takes.
        unusable: (name, reason) of the others; `reasons` counts them without the names and numbers in the reasons.
        counts: labels of the usable samples.
        images: usable samples by class.
        empty: names of usable samples in which nothing is labelled.
        sizes: usable samples by (height, width) of their images, in pixels.
        remarks: labels that training changes, by kind, such as boxes that it clips.
        complete: whether all of the split was read.
    """

    def __init__(self, sample: SampleMaker):
        self.sample, self.usable, self.complete = sample, 0, False
        self.unusable, self.empty, self.counts = Listed(), Listed(), LabelCounts()
        self.reasons: Counter[str] = Counter()
        self.images: Counter[int] = Counter()
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.remarks: Counter[str] = Counter()

    def add(self, batch: dict[str, Any]) -> None:
        for name, reason in batch["skipped"]:
            self.unusable.add({"sample": name, "reason": reason})
            self.reasons[re.sub(r"'[^']*'|\S*/\S+|\d+", "...", reason)] += 1
        self.counts.add(batch.get("label_counts", LabelCounts()))
        for name, size, _, per_class, remarks in batch.get("facts", ()):
            self.usable += 1
            self.sizes[size] += 1
            self.images.update(per_class.keys())
            self.remarks.update(remarks)
            if not per_class:
                self.empty.add(name)

    def report(self) -> dict[str, Any]:
        what, names = self.sample.counted.what, self.sample.class_names
        classes = [
            {"name": name, what: self.counts.per_class.get(label, 0), "images": self.images[label]}
            for label, name in enumerate(names)
        ]
        return {
            "source": self.sample.stream.name,
            "complete": self.complete,
            "samples": self.usable + self.unusable.count,
            "usable": self.usable,
            "unusable": {"count": self.unusable.count, "reasons": dict(self.reasons), "first": self.unusable.first},
            "labels": what,
            "classes": classes,
            "unused_labels": self.counts.unused,
            "changed_labels": dict(self.remarks),
            "empty": {"count": self.empty.count, "first": self.empty.first},
            "sizes": self._sizes(),
        }

    def _sizes(self) -> dict[str, Any] | None:
        if not self.sizes:
            return None
        found: dict[str, Any] = {"different": len(self.sizes)}
        for axis, side in enumerate(("height", "width")):
            values = sorted(size[axis] for size, images in self.sizes.items() for _ in range(images))
            found[side] = {"smallest": values[0], "median": values[len(values) // 2], "largest": values[-1]}
        common = self.sizes.most_common(5)
        return {**found, "most_common": [{"height": size[0], "width": size[1], "images": n} for size, n in common]}


class Duplicates:
    """Images with the same pixels, within splits and between them."""

    def __init__(self) -> None:
        self.seen: dict[bytes, tuple[str, str, int]] = {}
        self.found: dict[str, Listed] = {}
        self.other_labels = Listed()

    def add(self, split: str, batch: dict[str, Any]) -> None:
        for name, _, digest, per_class, _ in batch.get("facts", ()):
            labels = hash(tuple(sorted(per_class.items())))
            first = self.seen.get(digest)
            if first is None:
                self.seen[digest] = (split, name, labels)
                continue
            where = f"within {split}" if first[0] == split else f"between {first[0]} and {split}"
            self.found.setdefault(where, Listed()).add([first[1], name])
            if labels != first[2]:
                self.other_labels.add([first[1], name])

    def report(self) -> dict[str, Any]:
        found = {where: {"count": listed.count, "first": listed.first} for where, listed in self.found.items()}
        return {**found, "with other labels": {"count": self.other_labels.count, "first": self.other_labels.first}}


def check_data(task: Task, settings: Any) -> dict[str, Any]:
    """
    Reads the splits for training and evaluation, and the test split if there is one. Ctrl-C ends the reading early.

    Args:
        settings: of the class `task.training_settings`.

    Returns:
        - `splits`: the report of each [`SplitContent`], by name;
        - `duplicates`: by place, `count` and the `first` pairs of names; also those whose labels differ;
        - `warnings`: what a training would print, and go on;
        - `refusals`: why a training would refuse these data, or stop in its first epoch; empty if it would not;
        - `complete`: whether everything was read.
    """
    return _Check(task, settings).run()


class _Check:
    def __init__(self, task: Task, settings: Any):
        self.task, self.settings = task, settings
        self.warnings: list[str] = []
        self.refusals: list[str] = []
        self.duplicates = Duplicates()
        self.content: dict[str, SplitContent] = {}
        self.interrupted = False

    def run(self) -> dict[str, Any]:
        processor = self.task.build_processor(self.settings)
        for name, sample, training in self._samples(processor):
            self._read(name, sample, training)
            if self.interrupted:
                break
        return {
            "splits": {name: content.report() for name, content in self.content.items()},
            "duplicates": self.duplicates.report(),
            "warnings": self.warnings,
            "refusals": self.refusals,
            "complete": not self.interrupted and all(content.complete for content in self.content.values()),
        }

    def _refused(self, action: Callable[[], Any]) -> Any:
        """The result of `action`; None if it raises what a training ends with, which is noted."""
        try:
            return action()
        except (OSError, ValueError, StreamError) as error:
            self.refusals.append(str(error))
            return None

    def _samples(self, processor: Any) -> Iterator[tuple[str, SampleMaker, bool | None]]:
        """(name, sample maker, whether it is for training; None: neither for training nor for evaluation)."""
        task, settings = self.task, self.settings
        train_stream = self._refused(lambda: task.open_stream(settings, settings.train_split, processor, True))
        train_sample = train_stream and self._refused(lambda: task.training_sample(settings, train_stream, processor))
        if train_sample:
            yield settings.train_split, train_sample, True
        names = train_sample.class_names if train_sample else ()

        def open_evaluation(split: str) -> SampleMaker:
            stream = task.open_stream(settings, split, processor)
            if stream.num_samples == 0:
                raise ValueError(f"{stream.name} is empty: there is nothing to evaluate on.")
            return task.evaluation_sample(settings, stream, processor, names or stream.class_names or ())

        eval_split = settings.train_split if settings.eval_share else settings.eval_split
        eval_sample = self._refused(lambda: open_evaluation(eval_split))
        if eval_sample:
            yield "held-out share" if settings.eval_share else eval_split, eval_sample, False
        if "test" in (settings.train_split, settings.eval_split) or is_built_in(settings.dataset):
            return
        try:
            yield "test", open_evaluation("test"), None
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self.warnings.append(f"test is not read: {error}")

    def _read(self, name: str, sample: SampleMaker, training: bool | None) -> None:
        settings, stream = self.settings, sample.stream
        content = self.content[name] = SplitContent(sample)
        keep = None if training is None else held_out(settings, wanted=not training)
        guard = LabelGuard(sample, self._warn, training=bool(training), keep=keep)
        look = BatchStream(
            stream, _Look(self.task, sample), 16, keep=keep, max_bad_share=1.0, collate=_in_lists, strategy="examples"
        )  # fmt: skip
        few = stream.num_samples is not None and stream.num_samples < FEW_SAMPLES
        try:
            for batch in self._with_progress(make_loader(look, 0 if few else settings.num_workers), name, stream):
                content.add(batch)
                self.duplicates.add(name, batch)
            content.complete = True
        except KeyboardInterrupt:
            self.interrupted = True
            return
        except StreamError as error:
            self.refusals.append(stream_error_message(error))
            return
        if training is None:
            return
        self._refused(lambda: self._judge(content, guard))
        if training and content.usable:
            self._refused(lambda: self._check_length(sample))

    def _warn(self, line: str) -> None:
        self.warnings.append(line.removeprefix("warning: "))

    def _judge(self, content: SplitContent, guard: LabelGuard) -> None:
        """Raises a ValueError if a training would not take the split."""
        settings, samples = self.settings, content.usable + content.unusable.count
        if content.unusable.count > settings.max_bad_share * max(samples, 100):
            reasons = ", ".join(f"{count}: {reason}" for reason, count in content.reasons.most_common(3))
            self.refusals.append(
                f"{guard.name}: {content.unusable.count} of {samples} samples cannot be used, more than "
                f"--max_bad_share {settings.max_bad_share:g} (of 100 or more): {reasons}"
            )
        if content.usable:
            guard.finish(content.counts)
        elif not samples:
            guard.look()  # raises the error of an empty stream

    def _check_length(self, sample: SampleMaker) -> None:
        """Raises a ValueError if the samples are too few for a step, or their number is not known."""
        settings = self.settings
        batches = training_batches(
            self.task, settings, sample, ONE_PROCESS,
            batch_size=settings.batch_size, seed=settings.seed, shuffle_window=settings.shuffle_window,
        )  # fmt: skip
        EpochLengths(
            batches,
            samples_to_train_on(sample.stream, settings),
            settings.gradient_accumulation_steps,
            settings.num_workers,
            settings.samples_per_epoch,
        )

    def _with_progress(self, batches: Any, name: str, stream: Stream) -> Iterator[dict[str, Any]]:
        """The batches, with a progress bar; without a terminal, with a line now and then."""
        last, read = time.monotonic(), 0
        with tqdm(total=stream.num_samples, desc=name, unit="image", disable=not sys.stderr.isatty()) as bar:
            for batch in batches:
                number = len(batch.get("sample_ids", ())) + len(batch["skipped"])
                read += number
                bar.update(number)
                if bar.disable and time.monotonic() - last > SECONDS_BETWEEN_LINES:
                    last = time.monotonic()
                    print(f"{name}: {read} of {stream.num_samples or 'unknown'} samples read", file=sys.stderr)
                yield batch


def is_built_in(dataset: str) -> bool:
    """Whether a data set is drawn by this package. Its split "validation" is its split "test"."""
    return dataset in ("digits", "digit-scenes")
