"""What a long prediction prints: how far it is (a bar on a terminal, a line now and then elsewhere), and its lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm


# Seconds between lines where there is no terminal
INTERVAL = 30.0


class Progress:
    """
    Reports on standard error.

    Args:
        total: number of steps; None if it is not known.
        what: what a step is, in the plural: "files".
        title: what is worked on.
    """

    def __init__(self, total: int | None, what: str, title: str):
        self.total, self.what, self.title = total, what, title
        self.bar = tqdm(total=total, unit=f" {what}", desc=title, disable=not sys.stderr.isatty(), leave=False)
        self.done, self.start = 0, time.monotonic()
        self.last = self.start

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, steps: int = 1) -> None:
        self.bar.update(steps)
        self.done += steps
        now = time.monotonic()
        if self.bar.disable and now - self.last >= INTERVAL:
            self.last = now
            total = f" of {self.total}" if self.total else ""
            rate = self.done / (now - self.start)
            print(f"{self.title}: {self.done}{total} {self.what}, {rate:.2g} a second", file=sys.stderr, flush=True)


def say(text: str, to_errors: bool = False) -> None:
    """Prints a line without breaking the bars. Names that the terminal cannot show are escaped."""
    file = sys.stderr if to_errors else sys.stdout
    encoding = file.encoding or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=file)
    file.flush()


class StandardOutput:
    """
    Attributes:
        closed: whether the program that read it has ended, such as `| head`.
    """

    def __init__(self) -> None:
        self.closed = False

    @contextmanager
    def until_closed(self) -> Iterator[None]:
        """Around printing. That it was closed is said once on standard error; later lines go nowhere."""
        try:
            yield
        except BrokenPipeError:
            self.closed = True
            discard(sys.stdout)
            try:
                say("Standard output was closed: nothing more is printed there.", to_errors=True)
            except BrokenPipeError:  # `2>&1 | head`
                discard(sys.stderr)


def discard(file: TextIO) -> None:
    """Sends what is and will be written to a file nowhere, so that Python does not fail again when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)
