"""Random numbers of a single sample, independent of what was drawn before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


# Swapped in for the global generator, because saving and restoring the state of that costs more than decoding a digit
_NUMPY_GENERATOR = np.random.MT19937(0)


@contextlib.contextmanager
def seeded(key: tuple[int, ...]) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's global generators from `key`, and restores their states afterwards."""
    seeds = np.random.SeedSequence(key).generate_state(3)
    numpy_generator = np.random.get_bit_generator()  # type: ignore[attr-defined]  # missing in NumPy's stubs
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    np.random.set_bit_generator(_NUMPY_GENERATOR)  # type: ignore[attr-defined]
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_bit_generator(numpy_generator)  # type: ignore[attr-defined]
        torch.set_rng_state(torch_state)
