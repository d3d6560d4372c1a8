"""
Runs the tests that a change can affect and prints the reason for each.

    python -m tests.support.changed_tests [--base REF] [-- PYTEST ARGUMENT ...]

A test file depends on what it imports, directly or through other modules, and on the files of this repository that it
and its support name. All of this is read from the sources with Python's parser. Names count where there is no import:

- `pvt_hf.RetinaNetConfig` and "RetinaNetConfig" mean the file that defines the class;
- "retinanet" means the configuration and the model of that type;
- "scripts/predict.py" and `REPOSITORY / "scripts" / "recipes"` mean the file or folder, "predict" the script;
- `tracked_files` means every file.

The package's own `__init__.py` is not followed, because it names everything. Whoever imports `pvt_hf` depends on that
file, on `registry.py` and `families.py`, and on the files of the names it uses.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from textwrap import dedent

from .imports import find_modules, module_name, parse_imports, resolve


# Not followed further: every public name is in them
ROOT_MODULES = ("pvt_hf", "pvt_hf.registry", "pvt_hf.families")
# They change the environment or what every test does
EVERYTHING = ("pyproject.toml", "constraints.txt")
# Whoever imports it from `tests/support/distributions.py` looks at every file
WHOLE_TREE = "tracked_files"
# Variables of the tests that hold the path of the repository
REPOSITORY_NAMES = ("ROOT", "REPOSITORY")


class Dependencies:
    """What each file of the repository at `root` depends on. Paths are relative, with slashes."""

    def __init__(self, root: Path):
        self.root = root
        self.modules = find_modules(root, "pvt_hf", "tests", "scripts")
        self.scripts = {file.stem: module for module, file in self.modules.items() if module.startswith("scripts.")}
        self._direct: dict[str, set[str]] = {}

    def path(self, module: str) -> str:
        return self.modules[module].relative_to(self.root).as_posix()

    @cached_property
    def definitions(self) -> dict[str, set[str]]:
        """The files that define each public class and function of the package."""
        found: dict[str, set[str]] = {}
        for module, file in self.modules.items():
            if module.startswith("pvt_hf.") and module not in ROOT_MODULES:
                for node in ast.parse(file.read_text()).body:
                    if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                        found.setdefault(node.name, set()).add(self.path(module))
        return found

    @cached_property
    def words(self) -> dict[str, set[str]]:
        """The files that a word in a text refers to: those of a class or of a model type."""
        found = {name: files for name, files in self.definitions.items() if name[0].isupper()}
        for module, file in self.modules.items():
            kind, _, model_type = file.stem.partition("_")
            if file.parent.name == "models" and kind in ("configuration", "modeling") and model_type != "pvt":
                found.setdefault(model_type, set()).add(self.path(module))
        return found

    def direct(self, path: str) -> set[str]:
        """The files and folders that `path` names or imports itself."""
        if path not in self._direct:
            file = self.root / path
            is_code = path.endswith(".py") and file.is_file()
            self._direct[path] = set(self._read(file)) - {path} if is_code else set()
        return self._direct[path]

    def _read(self, file: Path) -> Iterator[str]:
        module = module_name(file, self.root)
        if module in ROOT_MODULES:
            return
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        yield from self._code(ast.parse(file.read_text()), package, is_test=module.startswith("tests."))
        if module.startswith("tests."):
            for folder in file.relative_to(self.root).parents:
                if (self.root / folder / "conftest.py").is_file():
                    yield (folder / "conftest.py").as_posix()
        if file.parent.name == "models" and file.stem.startswith("configuration_"):
            # an Auto class finds the others by the configuration
            yield from self.words.get(file.stem.removeprefix("configuration_"), ())

    def _code(self, tree: ast.AST, package: str, is_test: bool) -> Iterator[str]:
        for imported in parse_imports(tree, package):
            # importing a module runs the `__init__.py` of its packages
            parts = imported.module.split(".")
            for parent in (".".join(parts[:length]) for length in range(1, len(parts))):
                if parent in self.modules:
                    yield self.path(parent)
            target = resolve(imported, self.modules)
            if target is None and f"scripts.{imported.module}" in self.modules:
                target = f"scripts.{imported.module}"  # scripts import each other by their names alone
            if target is None:
                continue
            yield self.path(target)
            if imported.name == WHOLE_TREE:
                yield "."
            if target == "pvt_hf":
                yield from (self.path(module) for module in ROOT_MODULES if module in self.modules)
                yield from self.definitions.get(imported.name or "", ())
        inner = {id(node.left) for node in ast.walk(tree) if isinstance(node, ast.BinOp)}
        attributes = {id(node.value): node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "pvt_hf":
                if id(node) in attributes:
                    yield from self.definitions.get(attributes[id(node)], ())
                else:  # getattr(pvt_hf, name), vars(pvt_hf): any name
                    yield from (self.path(module) for module in self.modules if module.startswith("pvt_hf.models."))
            elif is_test and isinstance(node, ast.BinOp) and id(node) not in inner:
                yield from self._joined(node)
        docstrings = {id(body[0].value) for node in ast.walk(tree)
                      if (body := getattr(node, "body", None)) and isinstance(body, list)
                      and isinstance(body[0], ast.Expr)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield from self._text(node.value, is_test)

    def _joined(self, node: ast.BinOp) -> Iterator[str]:
        """The file or folder of `REPOSITORY / "scripts" / "recipes"`, also written with `Path(__file__).parents[2]`."""
        parts: list[str] = []
        start: ast.AST = node
        while isinstance(start, ast.BinOp) and isinstance(start.op, ast.Div):
            if not isinstance(start.right, ast.Constant):
                return
            parts.insert(0, str(start.right.value))
            start = start.left
        is_name = isinstance(start, ast.Name) and start.id in REPOSITORY_NAMES
        if is_name or any(isinstance(one, ast.Name) and one.id == "__file__" for one in ast.walk(start)):
            path = Path(*parts)
            if (self.root / path).exists():
                yield path.as_posix()

    def _text(self, text: str, is_test: bool) -> Iterator[str]:
        for word in re.findall(r"\w+", text):
            yield from self.words.get(word, ())
        if not is_test:
            return
        if text in self.scripts:
            yield self.path(self.scripts[text])
        for word in re.findall(r"[\w.-]+(?:/[\w.-]+)+", text):
            if (self.root / word).is_file():
                yield word
        for word in re.findall(r"\btests(?:\.\w+)+", text):
            if word in self.modules:
                yield self.path(word)
        if "import" in text:  # code for another process
            try:
                tree = ast.parse(dedent(text))
            except SyntaxError:
                return
            yield from self._code(tree, "", is_test)

    def reasons(self, test: str) -> dict[str, str]:
        """Maps everything that the test file depends on to the file through which it was found."""
        reached, queue = {test: ""}, [test]
        for path in queue:
            for other in sorted(self.direct(path)):
                if other not in reached:
                    reached[other] = path
                    queue.append(other)
        return reached

    @staticmethod
    def way(reached: dict[str, str], path: str) -> str:
        """Describes the files between a test and `path`."""
        between = []
        while (path := reached[path]) and reached[path]:
            between.insert(0, path)
        return f" through {', '.join(between)}" if between else ""


def affected_tests(root: Path, changed: list[str]) -> dict[str, str]:
    """The test files that a change of the files `changed` can affect, with a reason for each."""
    dependencies, affected = Dependencies(root), {}
    tests = sorted(path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py"))
    for test in tests:
        reached = dependencies.reasons(test)
        for path in changed:
            if path in EVERYTHING:
                affected[test] = f"{path} changed"
            elif path == test:
                affected[test] = "it changed"
            elif found := next((one for one in reached if path == one or path.startswith(f"{one}/")), None):
                affected[test] = f"it uses {path}{dependencies.way(reached, found)}"
            elif "." in reached:
                affected[test] = f"it looks at every file, so at {path}{dependencies.way(reached, '.')}"
            else:
                continue
            break
    return affected


def git(root: Path, *arguments: str) -> list[str]:
    output = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout
    return [line for line in output.split("\0") if line]


def changed_files(root: Path, base: str | None) -> tuple[str, list[str]]:
    """
    Returns the base and the files that differ from it, committed or not. The default is the commit where this branch
    left `origin/main`, or the previous commit if it has not left it or there is no such branch.
    """
    if base is None:
        known = subprocess.run(
            ["git", "merge-base", "origin/main", "HEAD"], cwd=root, capture_output=True, text=True
        ).stdout.strip()
        head = git(root, "rev-parse", "HEAD")[0].strip()
        base = known if known and known != head else "HEAD~1"
    changed = git(root, "diff", "--name-only", "--no-renames", "-z", "--merge-base", base)
    untracked = git(root, "ls-files", "--others", "--exclude-standard", "-z")
    return base, sorted({*changed, *untracked})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--base", type=lambda text: text or None, help="a git revision, such as main or HEAD~3")
    parser.add_argument("pytest_arguments", nargs="*", help="after `--`")
    options = parser.parse_args()
    root = Path(__file__).parents[2]
    base, changed = changed_files(root, options.base)
    affected = affected_tests(root, changed)
    print(f"{len(changed)} files differ from {base}; they can affect {len(affected)} test files:")
    for test, reason in affected.items():
        print(f"  {test}: {reason}")
    if not affected:
        return 0
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "pytest", *options.pytest_arguments, *affected], cwd=root).returncode


if __name__ == "__main__":
    sys.exit(main())
