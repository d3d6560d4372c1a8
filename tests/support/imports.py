"""Reads which modules Python files import, with Python's own parser and without running them."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple


class Import(NamedTuple):
    """One imported module, or one name imported `from` it."""

    module: str  # absolute: `from ..data import digits` in `pvt_hf.engine.loop` has the module `pvt_hf.data`
    name: str | None  # "digits" there, None for `import module`
    level: int  # number of leading dots
    in_function: bool
    line: int


def module_name(file: Path, root: Path) -> str:
    """`root/pvt_hf/data/digits.py` is `pvt_hf.data.digits`, `root/pvt_hf/data/__init__.py` is `pvt_hf.data`."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_modules(root: Path, *folders: str) -> dict[str, Path]:
    """Every module below `root/folder`, by its name."""
    files = sorted(file for folder in folders for file in (root / folder).rglob("*.py"))
    return {module_name(file, root): file for file in files}


def parse_imports(tree: ast.AST, package: str = "") -> Iterator[Import]:
    """The imports anywhere in `tree`. `package` is what relative ones start from: "pvt_hf.data" in its files."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, 0, in_function, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(module, alias.name, node.level, in_function, node.lineno)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, in_function)

    yield from visit(tree, False)


def read_imports(file: Path, root: Path) -> list[Import]:
    name = module_name(file, root)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return list(parse_imports(ast.parse(file.read_text()), package))


def resolve(imported: Import, modules: dict[str, Path]) -> str | None:
    """The module of `modules` that an import loads: `from package import name` may mean the module `package.name`."""
    if imported.name and f"{imported.module}.{imported.name}" in modules:
        return f"{imported.module}.{imported.name}"
    return imported.module if imported.module in modules else None


def find_circle(graph: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a ring, the first repeated at the end; None if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def travelling_files(root: Path) -> list[Path]:
    """The files of the package that are copied into a Hub repository, flat and by name."""
    kinds = ("configuration_", "modeling_", "image_processing_")
    return [path for kind in kinds for path in sorted((root / "pvt_hf" / "models").glob(f"{kind}*.py"))]
