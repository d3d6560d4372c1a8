"""Runs code in a Python process of its own, and reads what it wrote to stderr."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from textwrap import dedent


# One state of a tqdm bar of Transformers, such as "Loading weights: 100%|####| 121/121 [00:00<00:00, 8036.21it/s]"
_PROGRESS = re.compile(r"(Loading weights|Writing model shards): +\d+%\|[^|]*\| \d+/\d+ \[[^\]]*\]")


REPOSITORY = Path(__file__).parents[1]


def run_python(
    code: str,
    *arguments: object,
    python: str | Path = sys.executable,
    cwd: str | Path = REPOSITORY,
    environment: dict[str, str] | None = None,
    installed: bool = True,
) -> subprocess.CompletedProcess:
    """
    Runs `code` with `sys.argv[1:] == arguments`, offline and with Transformers' own log level.

    Args:
        code: what `python -c` gets, indented as it may be.
        arguments: passed as text.
        python: the interpreter.
        cwd: the working directory, which is also where modules are looked for first.
        environment: variables to set.
        installed: whether packages in development, which are installed by reference, are there: pvt_hf is one. The
            working directory is then no place for modules either.

    Returns:
        The process with `stdout` and `stderr` as text.

    Raises:
        AssertionError: it failed; the message holds what it wrote.
    """
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for name in ("TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "PYTHONWARNINGS", "PYTHONPATH"):
        variables.pop(name, None)
    variables.update(environment or {})
    options = []
    if not installed:
        # Without Python's module `site`, nobody reads the files that refer to packages elsewhere
        options, variables["PYTHONPATH"] = ["-S", "-P"], sysconfig.get_path("purelib")
    process = subprocess.run(
        [str(python), *options, "-c", dedent(code), *map(str, arguments)],
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, f"exit status {process.returncode}\n{process.stdout}\n{process.stderr}"
    return process


def without_progress_bars(stderr: str) -> str:
    """`stderr` without the bars that Transformers draws while it reads and writes weights; nothing else is removed."""
    return _PROGRESS.sub("", stderr).replace("\r", "").strip()
