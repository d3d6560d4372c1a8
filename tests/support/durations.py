"""
Writes tests/DURATIONS.md from pytest's output. tests/conftest.py uses it to run long files first.

    make test PYTEST="-q -n 2 --dist loadscope --no-loadscope-reorder --durations 0 -vv" > log
    python -m tests.support.durations "2 cores, nothing else running" < log
"""

import re
import sys
from collections import Counter
from datetime import date
from pathlib import Path


FILE = Path(__file__).parents[1] / "DURATIONS.md"
LINE = re.compile(r"^([\d.]+)s (?:setup|call|teardown) +(tests/\S+?\.py)(::\S.*)$", re.MULTILINE)


def report(output: str, machine: str) -> str:
    """The tables of a run, as Markdown. A shared fixture counts for the first test that used it."""
    tests, files = Counter(), Counter()
    for seconds, file, name in LINE.findall(output):
        tests[file + name.rstrip()] += float(seconds)
        files[file] += float(seconds)
    wall = re.search(r"^=* ?\d.*passed.* in ([\d.]+)s", output, re.MULTILINE)
    lines = [
        "# How long the tests take",
        "",
        f"{date.today()}, `make test`, {machine}: {float(wall[1]) / 60:.1f} minutes on the clock in two processes. "
        "Written by `tests/support/durations.py`.",
        "",
        "| seconds | file |",
        "|--------:|------|",
        *(f"| {seconds:.0f} | {file} |" for file, seconds in files.most_common() if seconds >= 1),
        f"| {sum(files.values()):.0f} | all |",
        "",
        "| seconds | test |",
        "|--------:|------|",
        *(f"| {seconds:.1f} | `{test.removeprefix('tests/')}` |" for test, seconds in tests.most_common(40)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    before = FILE.read_text().partition("\n## Before")[1:] if FILE.exists() else ()
    FILE.write_text(report(sys.stdin.read(), sys.argv[1]) + "".join(before))
