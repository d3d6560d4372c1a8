"""The pages of the documentation in their order, and the blocks of code and commands in them."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .clean_process import REPOSITORY


DOCS = REPOSITORY / "docs"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A command in a table, such as "| evaluate | `pvt-hf evaluate ...` |"
_IN_TABLE = re.compile(r"^\|.*\| `((?:pvt-hf|accelerate|torchrun) [^`]*)` \|$", re.MULTILINE)


class Block(NamedTuple):
    """
    A block of code.

    Attributes:
        place: file and line, for messages.
        language: "python", "bash" ...; "" for a listing of files.
        code: its lines.
    """

    place: str
    language: str
    code: str


def pages() -> list[Path]:
    """README.md, then the pages in the order of the site's navigation."""

    def files(entry: Any) -> Iterator[str]:
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from [value] if isinstance(value, str) else files(value)

    navigation = tomllib.loads((REPOSITORY / "zensical.toml").read_text())["project"]["nav"]
    return [REPOSITORY / "README.md", *(DOCS / name for name in files(navigation))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = [
        Block(f"{page.relative_to(REPOSITORY)}:{text.count(chr(10), 0, one.start()) + 1}", one[1], one[2])
        for one in _FENCE.finditer(text)
    ]
    assert text.count("\n```") == 2 * len(found), f"{page.name} has a block that is not seen"
    return found


def commands(code: str) -> list[list[str]]:
    """The words of every command in a block of bash, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands_in_tables(page: Path) -> list[list[str]]:
    return [shlex.split(command) for command in _IN_TABLE.findall(page.read_text())]


def block_with(word: str, page: str, language: str = "python") -> str:
    """The only block of docs/PAGE in that language that contains `word`."""
    (code,) = [one.code for one in blocks(DOCS / page) if one.language == language and word in one.code]
    return code
