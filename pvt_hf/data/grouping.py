"""Batches of like samples within a window of a stream."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def in_groups(
    order: Sequence[int] | np.ndarray,
    groups: Sequence[Hashable | None],
    batch_size: int,
    pending: int,
    generator: np.random.Generator,
) -> list[int]:
    """
    The indices of `order` rearranged: first what completes a batch that has `pending` samples already, then batches of
    one group each, in random order, then the rest of each group, and at the end those that are in no group.

    Args:
        order: indices of a window's examples, shuffled; their order within a group stays.
        groups: by index, the group or None.
    """
    members: dict[Hashable | None, list[int]] = {None: []}
    for index in order:
        members.setdefault(groups[index], []).append(int(index))
    in_none = members.pop(None)
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
    return first + mixed + rest + in_none
