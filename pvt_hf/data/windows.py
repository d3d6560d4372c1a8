"""Windows of a stream: examples that are read ahead together, and the order in which they are used."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np

from .streams import StreamError


# Seconds to wait before each new attempt to read from a source that failed, such as a network share
RETRY_SECONDS = (1.0, 4.0, 10.0)


class WindowReader:
    """
    Reads a stream in windows. If the source fails, it is opened again at the window's start.

    Args:
        name: of the stream, for messages.
        open_source: returns the stream, positioned at a state (None: at the beginning).
        state: where to start.
        size: examples per window.

    Attributes:
        state: where the next window starts.
    """

    def __init__(
        self,
        name: str,
        open_source: Callable[[dict[str, Any] | None], datasets.IterableDataset],
        state: dict[str, Any] | None,
        size: int,
    ):
        self.name, self.open_source, self.state, self.size = name, open_source, state, size
        self._source: Any = None
        self._examples: Iterator[dict[str, Any]] | None = None

    def read(self) -> list[dict[str, Any]]:
        """
        The examples of the next window: fewer at the end of the stream, and then none.

        Raises:
            StreamError: every attempt failed.
        """
        for wait in (*RETRY_SECONDS, None):
            try:
                if self._examples is None:
                    self._source = self.open_source(self.state)
                    self._examples = iter(self._source)
                examples = list(islice(self._examples, self.size))
                break
            except Exception as error:  # whatever a file system, a network or a damaged archive may raise
                self._examples = None  # an iterator that has raised cannot continue
                if wait is None:
                    raise StreamError(
                        f"{self.name} could not be read, also after {len(RETRY_SECONDS)} new attempts: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                time.sleep(wait)
        self.state = self._source.state_dict()
        return examples


def in_groups(
    order: Sequence[int] | np.ndarray,
    groups: Sequence[Hashable | None],
    batch_size: int,
    pending: int,
    generator: np.random.Generator,
) -> list[int]:
    """
    Rearranges a window so that most batches have samples of one group.

    First come samples that complete the batch that was begun in the window before, then batches of one group each, in
    random order, then the rest of each group, and at the end the samples without a group.

    Args:
        order: indices of the window's examples, shuffled. Within a group this order is kept.
        groups: each example's group, by index; None for no group.
        pending: samples that the unfinished batch has already.
    """
    members: dict[Hashable | None, list[int]] = {None: []}
    for index in order:
        members.setdefault(groups[index], []).append(int(index))
    without_group = members.pop(None)
    largest = max(members.values(), key=len, default=[])
    missing = -pending % batch_size
    first = largest[:missing]
    del largest[:missing]
    batches, rest = [], []
    for indices in members.values():
        whole = len(indices) - len(indices) % batch_size
        batches += [indices[start : start + batch_size] for start in range(0, whole, batch_size)]
        rest += indices[whole:]
    mixed = [index for place in generator.permutation(len(batches)) for index in batches[place]]
    return first + mixed + rest + without_group
