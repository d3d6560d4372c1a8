"""How often each class occurs in a data set, and what cannot be used: counted by sample, added up by batch and run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LabelCounts:
    """
    Labels of a number of samples. What is counted depends on the task: samples, objects or pixels.

    Attributes:
        samples: number of samples.
        per_class: usable labels by class number; classes that do not occur may be missing.
        unused: number of unusable labels, by reason.
    """

    samples: int = 0
    per_class: dict[int, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelCounts:
        """Reverses `dataclasses.asdict`, also after a round trip through JSON, which turns integer keys into text."""
        per_class = {int(label): count for label, count in values["per_class"].items()}
        return cls(values["samples"], per_class, dict(values["unused"]))

    @classmethod
    def total(cls, parts: Iterable[LabelCounts]) -> LabelCounts:
        result = cls()
        for part in parts:
            result.add(part)
        return result

    def add(self, other: LabelCounts) -> None:
        self.samples += other.samples
        for label, count in other.per_class.items():
            self.per_class[label] = self.per_class.get(label, 0) + count
        for reason, count in other.unused.items():
            self.unused[reason] = self.unused.get(reason, 0) + count

    def renumbered(self, labels: Sequence[int]) -> LabelCounts:
        """The same counts under other class numbers: n becomes `labels[n]`."""
        renumbered = LabelCounts(self.samples, {}, dict(self.unused))
        for label, count in self.per_class.items():
            renumbered.add(LabelCounts(per_class={labels[label]: count}))
        return renumbered

    @property
    def usable(self) -> int:
        """Number of usable labels."""
        return sum(self.per_class.values())
