"""`pvt-hf reproduce cost`: parameters and GFLOPs beside the paper's."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..hub.published_costs import TITLES, CountedCost, count_row, published_costs
from ..metrics.reports import versions, write_json


COLUMNS = (
    "table", "model", "height", "width", "params_m_paper", "params_m_ours", "params_m_difference", "parameters",
    "gflops_paper", "gflops_ours", "gflops_difference", "multiply_adds", "torch_flops", "explanation",
)  # fmt: skip


def reproduce_cost(tables: Sequence[int], folder: Path) -> None:
    """Counts the rows of `tables`, prints them table by table, and writes `cost.csv` and `cost.json` to `folder`."""
    rows = []
    for table in sorted(set(tables)):
        counted = [count_row(row) for row in published_costs() if row.table == table]
        print("\n".join(table_lines(counted)), flush=True)
        rows += counted
    differing = [row for row in rows if row.differs]
    figures = sum(bool(row.published.params_m) + bool(row.published.gflops) for row in rows)
    entries = [entry(row) for row in rows]
    write_csv(folder / "cost.csv", COLUMNS, entries)
    write_json(folder / "cost.json", {"versions": versions(("transformers", "timm")), "rows": entries})
    print(f"{figures} printed figures in {len(rows)} rows; {len(differing)} rows differ by more than rounding.")
    print(f"Written: {folder / 'cost.csv'} and {folder / 'cost.json'}")


def table_lines(rows: Sequence[CountedCost]) -> list[str]:
    """The lines of one table for the terminal."""
    table = rows[0].published.table
    width = max(len(row.published.model) for row in rows)
    lines = [
        f"Table {table}: {TITLES[table]}",
        f"{'':{width}}   parameters (M)           GFLOPs (multiply-adds)    PyTorch",
        f"{'':{width}}   paper    ours    diff     paper     ours    diff    GFLOP",
    ]
    for row in rows:
        published, gflop = row.published, row.costs.torch_flops / 1e9
        lines.append(
            f"{published.model:{width}} {_three(published.params_m, row.params_m, 7)}  "
            f"{_three(published.gflops, row.gflops, 8)} {gflop:9.1f}"
        )
    lines += [f"  {row.published.model}: {row.published.explanation}" for row in rows if row.differs]
    return [*lines, ""]


def _three(paper: str, ours: str, width: int) -> str:
    change = difference(paper, ours)
    shown = "" if change is None else "=" if change == 0 else f"{change:+}"
    return f"{paper or '-':>{width}} {ours:>{width}} {shown:>7}"


def difference(paper: str, ours: str) -> Decimal | None:
    """Ours less the paper's, both with one decimal; None where the paper has no figure."""
    return Decimal(ours) - Decimal(paper) if paper else None


def entry(row: CountedCost) -> dict[str, Any]:
    """A row for the files, by [`COLUMNS`]; None where the paper has no figure."""
    published, costs = row.published, row.costs

    def number(text: str) -> float | None:
        return float(text) if text else None

    changes = difference(published.params_m, row.params_m), difference(published.gflops, row.gflops)
    params_change, gflops_change = (None if change is None else float(change) for change in changes)
    values = (
        published.table, published.model, costs.height, costs.width,
        number(published.params_m), float(row.params_m), params_change, row.parameters,
        number(published.gflops), float(row.gflops), gflops_change, costs.multiply_adds, costs.torch_flops,
        published.explanation,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Writes a CSV file with a header; None becomes an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
