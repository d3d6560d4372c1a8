"""
Parsers of command lines. They name an unknown argument, and the known ones that it may stand for, before they miss a
required one. What they need to know about classes that take seconds to import is read from the source of these.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import sys
from collections.abc import Collection, Sequence
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any, NoReturn


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """
    Marks required arguments, and shows defaults that are not empty. The help of `--no_NAME` refers to `--NAME`, whose
    help it would otherwise repeat.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action, argparse._StoreFalseAction):
            return f"Switch --{action.dest} off."
        if action.required:
            return f"{action.help} (required)"
        return action.help if action.default in (None, "", []) else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """
    `argparse.ArgumentParser` that suggests arguments for unknown ones.

    Attributes:
        other_names: arguments, without the dashes, that another parser takes. They are left alone.
        missing_advice: a sentence for the error about arguments that are missing.
    """

    other_names: Collection[str] = ()
    missing_advice = ""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        if self._subparsers is None:  # otherwise the parser of the subcommand looks at its arguments
            self._check_names(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exits with the usage and the message."""
        if self.missing_advice and message.startswith("the following arguments are required"):
            message = f"{message}. {self.missing_advice}"
        super().error(message)

    def _check_names(self, words: Sequence[str]) -> None:
        """Exits if a word is the name of no argument, or the beginning of the names of several."""
        spellings = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        names = {*spellings, *self.other_names}
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0].removeprefix("--")
            if not word.startswith("--") or name in names:
                continue
            meant = {one.replace("-", "_") for one in names if one.startswith(name)}
            if len(meant) != 1:
                self.error(describe_unknown(f"--{name}", names))


def describe_unknown(word: str, names: Collection[str]) -> str:
    """The error for a word of the command line that is no argument; `names` are those of the arguments."""
    similar = similar_names(word, names)
    *others, last = [f"--{name}" for name in similar] or [""]
    meant = f"{', '.join(others)} or {last}" if others else last
    return f"unknown argument {word}{f'; did you mean {meant}?' if similar else ': see --help.'}"


def similar_names(word: str, names: Collection[str]) -> list[str]:
    """
    At most three names that `word` may stand for: those with these initials (`lr`, learning_rate), or else the most
    similar one, and longer ones that have it in them.
    """
    text = word.lstrip("-").replace("-", "_")
    known = sorted({name for name in names if "-" not in name and name.startswith("no_") == text.startswith("no_")})
    initials = [name for name in known if "_" in name and text == "".join(part[:1] for part in name.split("_"))]
    longer = [name for name in known if len(text) > 2 and text in name]
    return (initials or [*dict.fromkeys([*difflib.get_close_matches(text, known, n=1), *longer])])[:3]


def read_fields(module: str, name: str) -> list[str]:
    """
    The names of a dataclass' fields, read from the source of its module and of the modules of its base classes, because
    importing a configuration or `TrainingArguments` imports PyTorch. Base classes of other packages have none.

    Args:
        module: of `pvt_hf` or `transformers`, such as "transformers.training_args".
        name: of the class.
    """
    package, *parts = module.split(".")
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None  # `pvt_hf` or `transformers`
    file = Path(spec.origin).parent.joinpath(*parts).with_suffix(".py")
    if not file.is_file():
        return []
    imported: dict[str, tuple[str, str]] = {}
    classes: dict[str, ast.ClassDef] = {}
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ClassDef):
            classes[statement.name] = statement
        elif isinstance(statement, ast.ImportFrom):
            source = resolve_name("." * statement.level + (statement.module or ""), module.rpartition(".")[0])
            imported |= {alias.asname or alias.name: (source, alias.name) for alias in statement.names}
    if name not in classes:
        return []
    found: dict[str, None] = {}
    for base in reversed(classes[name].bases):
        place = (module, base.id) if isinstance(base, ast.Name) and base.id in classes else None
        if isinstance(base, ast.Name) and base.id in imported:
            place = imported[base.id]
        if place is not None and place[0].partition(".")[0] in ("pvt_hf", "transformers"):
            found |= dict.fromkeys(read_fields(*place))
    for statement in classes[name].body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if not ast.unparse(statement.annotation).startswith("ClassVar"):
                found[statement.target.id] = None
    return list(found)
