"""
Parquet files as a stream of examples, with one shard per row group, so that shuffled shards mix well.

`datasets` reads such files too. This reader also knows the row of each example, for messages, finds images that are
given as paths, and notices columns without a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .samples import ROW_COLUMN


# Rows that are turned into Python objects at a time
ROWS_PER_BATCH = 16


def open_parquet(files: Sequence[Path], folder: Path) -> tuple[datasets.IterableDataset, tuple[int, ...]]:
    """
    The rows of some files, one shard per row group, and the number of rows in each shard. A column that is null in
    every row has the feature `Value("null")`.

    Args:
        folder: images that are given as paths are looked for beside their file, and then here.

    Raises:
        ValueError: there are no rows.
        pyarrow.ArrowException, OSError: a file cannot be read.
    """
    schemas, shards, null_columns = [], [], []
    sizes: list[int] = []
    for file in files:
        with pq.ParquetFile(file) as opened:
            schemas.append(opened.schema_arrow)
            start = 0
            for group in range(opened.metadata.num_row_groups):
                row_group = opened.metadata.row_group(group)
                if row_group.num_rows:
                    shards.append((str(file), group, start))
                    sizes.append(row_group.num_rows)
                    null_columns.append(_null_columns(row_group))
                start += row_group.num_rows
    if not sizes:
        raise ValueError(f"they have no rows ({len(files)} file(s)).")
    features = datasets.Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))
    for column in set.intersection(*null_columns):
        features[column] = datasets.Value("null")
    columns = list(features)
    paths = [name for name in columns if _holds_paths(features[name], shards, name)]
    structs = [name for name in columns if isinstance(features[name], datasets.Image) or _has_path(features[name])]
    dataset = datasets.IterableDataset.from_generator(
        _read_rows,
        features=datasets.Features({**features, ROW_COLUMN: datasets.Value("string")}),
        gen_kwargs={
            **dict(zip(("files", "groups", "starts"), (list(part) for part in zip(*shards)))),
            "columns": tuple(columns),
            "path_columns": tuple(paths),
            "struct_columns": tuple(structs),
            "folder": str(folder),
        },
    )
    for name in paths:
        dataset = dataset.cast_column(name, datasets.Image())
    return dataset, tuple(sizes)


def _read_rows(
    files: list[str],
    groups: list[int],
    starts: list[int],
    columns: tuple[str, ...],
    path_columns: tuple[str, ...],
    struct_columns: tuple[str, ...],
    folder: str,
) -> Iterator[dict[str, Any]]:
    for file, group, start in zip(files, groups, starts):
        row = start
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(ROWS_PER_BATCH, row_groups=[group]):
                for example in batch.to_pylist():
                    example = {**dict.fromkeys(columns), **example, ROW_COLUMN: f"{Path(file).name}, row {row}"}
                    for name in path_columns:
                        example[name] = _find_path(example[name], Path(file).parent, Path(folder))
                    for name in struct_columns:
                        image = example[name]
                        if image and not image.get("bytes") and image.get("path"):
                            image["path"] = _find_path(image["path"], Path(file).parent, Path(folder))
                    yield example
                    row += 1


def _null_columns(row_group: Any) -> set[str]:
    """The columns, without lists, that are null in all rows of a row group, as far as its statistics say so."""
    is_null: dict[str, bool] = {}
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        name, *inner = column.path_in_schema.split(".")
        statistics = column.statistics
        known = statistics is not None and statistics.has_null_count and "list" not in inner
        is_null[name] = is_null.get(name, True) and known and statistics.null_count == row_group.num_rows
    return {name for name, null in is_null.items() if null}


def _holds_paths(feature: Any, shards: list[tuple[str, int, int]], column: str) -> bool:
    """Whether a column of text has the paths of images: its first value that is not null ends like one."""
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        return False
    for file, group, _ in shards:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=[column]):
                for value in batch.column(0).drop_null().to_pylist():
                    return Path(value.split("?")[0]).suffix.lower() in Image.registered_extensions()
    return False


def _has_path(feature: Any) -> bool:
    """Whether a column is laid out as `datasets` stores images: with bytes or a path."""
    return isinstance(feature, dict) and feature.keys() >= {"bytes", "path"}


def _find_path(value: str | None, *folders: Path) -> str | None:
    """The path of an image: URLs and absolute paths unchanged, others below the first folder that has the file."""
    if not value or "://" in value:
        return value or None
    candidates = [folder / value.replace("\\", "/") for folder in folders]
    return str(next((path for path in candidates if path.is_file()), candidates[0]))
