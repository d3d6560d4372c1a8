"""Reports what a stream lacks: nothing to learn from or to evaluate, classes that never occur, unusable labels."""

from __future__ import annotations

import copy
from collections.abc import Callable

from ..data.label_counts import LabelCounts
from ..data.samples import BadSample, sample_id
from ..weights.opening import shorten
from .task import SampleMaker


# Samples that are counted before training: if counting opens files or reads images, and if it does not
LOOK, LOOK_WITHOUT_FILES = 50, 2000


class LabelGuard:
    """
    Counts the labels of one stream in two steps, because counting all of them can take as long as an epoch. Before the
    first step, [`look`] counts the beginning of the stream (all of a small one). After the first pass, [`finish`] takes
    the counts of that pass. Both print what is wrong, and raise a ValueError if there is nothing to learn from or to
    evaluate.

    Args:
        sample: makes the samples of the stream.
        say: prints a line, once for all processes.
        training: False for a stream that is evaluated.
        keep: chooses samples by name, as in [`pvt_hf.data.batches.BatchStream`].
    """

    def __init__(
        self,
        sample: SampleMaker,
        say: Callable[[str], None],
        *,
        training: bool,
        keep: Callable[[str], bool] | None = None,
    ):
        self.sample, self.say, self.training, self.keep = sample, say, training, keep
        self.name = sample.stream.name + (", held-out share" if keep is not None and not training else "")
        self.finished = False  # whether all of the stream has been counted

    def look(self) -> None:
        """
        Counts the beginning of the stream, up to the first usable label at least. Every process does, so that all of
        them stop.
        """
        counts, self.finished = self._count_beginning()
        if self.finished:
            self._report(counts, self.name, whole=True)
        elif counts.usable:
            self._report(counts, f"{self.name}, first {counts.samples} samples", whole=False)

    def finish(self, counts: LabelCounts, whole: bool = True) -> None:
        """
        Takes the counts of the first pass, over all processes. Does nothing in later passes.

        Args:
            whole: whether the pass covered all of the stream.
        """
        if not counts.samples:  # no batch was full, which is another error
            return
        if not self.finished:
            self._report(counts, self.name if whole else f"{self.name}, first epoch", whole, name_absent=True)
        elif not counts.usable and whole:  # found out when masks were decoded
            raise ValueError(self._nothing_usable(counts))
        self.finished = True

    def _count_beginning(self) -> tuple[LabelCounts, bool]:
        """The counts, and whether they are those of the whole stream."""
        counts, seen, stream = LabelCounts(), 0, self.sample.stream
        examples = iter(copy.deepcopy(stream.dataset))  # reading would leave a state in the stream itself
        while True:
            try:
                example = next(examples, None)
            except Exception:  # the source fails: the loader tries again, and reports it
                return counts, False
            if example is None:
                break
            if self.keep is not None and not self.keep(sample_id(example, stream.image_column)):
                continue
            has_bytes = bool((example[stream.image_column] or {}).get("bytes"))
            if seen >= (LOOK if has_bytes or self.sample.counted.opens_files else LOOK_WITHOUT_FILES):
                if counts.usable or not counts.samples:
                    return counts, False
                if seen == LOOK:
                    self.say(f"The first {seen} samples of {self.name} are of no use: looking at the others.")
            seen += 1
            try:
                counts.add(self.sample.count(example))
            except BadSample:  # named and counted where it is read for a batch
                continue
        if not seen:
            raise ValueError(self._nothing_usable(counts))
        return counts, counts.samples > 0

    def _report(self, counts: LabelCounts, where: str, whole: bool, name_absent: bool = False) -> None:
        """
        Args:
            where: what was counted.
            whole: whether that is all of the stream, so that nothing usable in it is an error.
            name_absent: name the classes that do not occur even if not all of the stream was counted.
        """
        names, counted = self.sample.class_names, self.sample.counted
        if not counts.usable and whole:
            raise ValueError(self._nothing_usable(counts))
        unused = sum(counts.unused.values())
        if unused:
            prefix, reasons = "warning: " if unused >= counts.usable else "", describe(counts.unused)
            total = unused + counts.usable
            self.say(f"{prefix}{where}: {unused:,} of {total:,} {counted.what} are of no use: {reasons}.")
        found = [name for label, name in enumerate(names) if counts.per_class.get(label)]
        absent = [name for label, name in enumerate(names) if not counts.per_class.get(label)]
        counted_enough = whole or name_absent
        if self.training and counted.needs_two_classes and len(found) == 1 and (counted_enough or unused):
            text = f"all {counted.what} that can be used are of one class, {found[0]!r}"
            if whole:
                raise ValueError(f"{self.name} has nothing to learn from: {text}.{self._advice(counts)}")
            self.say(f"warning: {where}: {text}.{self._advice(counts)}")
        elif absent and counted_enough:
            self.say(
                f"warning: {where}: {len(absent)} of {len(names)} classes never occur: {shorten(absent)}."
                f"{self._advice(counts)}"
            )

    def _nothing_usable(self, counts: LabelCounts) -> str:
        what = self.sample.counted.what
        if counts.unused:
            why = f"all its {sum(counts.unused.values()):,} {what} are of no use: {describe(counts.unused)}"
        elif counts.samples:
            why = f"its {counts.samples:,} samples have no {what}"
        else:
            why = "it has no samples, or --eval_share or --no_keep_empty leaves none"
        purpose = "learn from" if self.training else "evaluate"
        return f"{self.name} has nothing to {purpose}: {why}.{self._advice(counts)}"

    def _advice(self, counts: LabelCounts) -> str:
        return f" {self.sample.counted.advice}" if counts.unused and self.sample.counted.advice else ""


def describe(unused: dict[str, int]) -> str:
    """How many labels are of no use for which reasons, the most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(unused.items(), key=lambda item: -item[1]))
