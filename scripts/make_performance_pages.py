"""
Writes the measured sections of README.md and docs/performance.md from a report of `pvt-hf benchmark`.

    pvt-hf benchmark                                            # on an idle machine: outputs/benchmark.json
    python scripts/make_performance_pages.py outputs/benchmark.json
    python scripts/make_performance_pages.py --check            # writes nothing; exit code 1 if a page is out of date

The report is kept as docs/benchmark.json, and its chart as docs/benchmark.png.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from pvt_hf.commands.benchmark_arguments import PEERS, RELATIVES
from pvt_hf.commands.benchmark_chart import draw_chart
from pvt_hf.commands.benchmark_relatives import PUBLISHED


REPOSITORY = Path(__file__).parents[1]
START, END = "<!-- benchmark: made by scripts/make_performance_pages.py -->", "<!-- /benchmark -->"
TITLES = {
    "native": "native class",
    "native-compiled": "native class, `torch.compile`",
    "onnxruntime": "onnxruntime, native graph",
    "openvino": "OpenVINO, native graph",
    "ours": "**this package**",
    "ours-compiled": "**this package, `torch.compile`**",
}
FEW_PAIRS = 6  # a row with fewer makes a short run


def describe_run(report: dict[str, Any]) -> str:
    """Model, size, machine, versions and number of pairs, as a sentence or two."""
    environment, arguments = report["environment"], report["arguments"]
    versions = {"PyTorch": "torch", "Transformers": "transformers", "onnxruntime": "onnxruntime",
                "OpenVINO": "openvino", "timm": "timm"}  # fmt: skip
    machine = environment["device"] if environment["device"] != "CPU" else environment["cpu"]
    pairs = [row["pairs"] for row in report["rows"] if "pairs" in row]
    text = (
        f"{PUBLISHED[arguments['variant']].title} at {arguments['image_size']}x{arguments['image_size']}, "
        f"{arguments['dtype']}, {machine}, threads: {environment['threads']}; "
        + ", ".join(f"{title} {environment[name]}" for title, name in versions.items() if name in environment)
        + f"; at least {min(pairs)} pairs of calls for a row."
    )
    if min(pairs) < FEW_PAIRS or not report["complete"]:
        text += " **A short run: the figures are rough.**"
    if (load := environment.get("load_average") or 0) > 1:
        text += f" **The machine was busy: load average {load:.1f}.**"
    return text


def figure(row: dict[str, Any] | None) -> str:
    """The speed of a row with quartiles, for a table."""
    if row is None or "speed" not in row:
        return "not measured"
    lower, upper = row["speed_quartiles"]
    return f"{row['speed']:.2f} ({lower:.2f} to {upper:.2f})"


def mebibytes(row: dict[str, Any]) -> str:
    memory = row["side"]["peak_memory_bytes"]
    return "not measured" if memory is None else f"{memory / 2**20:.0f} MiB"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def speed_table(report: dict[str, Any]) -> str:
    """A row for each way to run the model, with the speeds at all batch sizes."""
    found = {(row["row"], row["batch_size"]): row for row in report["rows"]}
    batches = sorted({batch for _, batch in found})
    names = [name for name in PEERS if name not in RELATIVES and any(row == name for row, _ in found)]
    return table(
        ["", *(f"batch {batch}" for batch in batches)],
        [[TITLES[name], *(figure(found.get((name, batch))) for batch in batches)] for name in names],
    )


def detail_table(report: dict[str, Any]) -> str:
    """Time, images per second, memory and share of every row that was measured."""
    rows = [row for row in report["rows"] if "speed" in row]
    rows.sort(key=lambda row: (row["batch_size"], PEERS.index(row["row"])))
    return table(
        ["", "batch", "ms a call", "images/s", "memory", "share"],
        [
            [
                TITLES.get(row["row"]) or PUBLISHED[row["row"]].title,
                str(row["batch_size"]),
                f"{1e3 * row['side']['median']:.0f}",
                f"{row['side']['images_per_second']:.1f}",
                mebibytes(row),
                f"{row['side']['matmul_share']:.0%}",
            ]
            for row in rows
        ],
    )


def relatives_table(report: dict[str, Any]) -> str:
    """Related models and ours at the largest batch size: published figures, and what was measured."""
    largest = max(row["batch_size"] for row in report["rows"])
    cells = []
    for row in report["rows"]:
        if row["batch_size"] == largest and row["row"] in ("ours", *RELATIVES):
            published = PUBLISHED[report["arguments"]["variant"] if row["row"] == "ours" else row["row"]]
            measured = ["not measured"] * 2
            if "speed" in row:
                measured = [f"{row['side']['images_per_second']:.1f}", mebibytes(row)]
            cells.append(
                [
                    f"[{published.title}]({published.source})",
                    f"{published.top1} %",
                    f"{published.parameters} M",
                    f"{published.multiply_adds} G",
                    *measured,
                ]
            )
    head = ["", "top-1, published", "parameters, published", "multiply-adds, published"]
    return table([*head, f"images/s, batch {largest}", "memory"], cells)


def sections(report: dict[str, Any]) -> dict[str, str]:
    """The text between the markers of each page."""
    unmeasured = [f"{row['row']} (batch {row['batch_size']})" for row in report["rows"] if "error" in row]
    page = [
        f"{describe_run(report)} The report of this run is `docs/benchmark.json`.",
        "Speed relative to the native class, median and quartiles; above 1 is faster. The native class against itself "
        "shows how much the machine varies.",
        speed_table(report),
        "![Speeds, and accuracy against speed](benchmark.png)",
        "Memory is the peak of a call beyond the weights. The share is that of the rate of a large matrix product, "
        f"{report['matmul']['gflop_per_second']:.0f} GFLOP/s.",
        detail_table(report),
    ]
    if any(row["row"] in RELATIVES for row in report["rows"]):
        page += [
            "Related models, for orientation. Accuracy, parameters and multiply-adds are published figures, linked to "
            "their source; images per second and memory are from this run, with random weights.",
            relatives_table(report),
        ]
    if unmeasured:
        page.append(f"Not measured: {', '.join(unmeasured)}.")
    readme = [
        "Speed relative to Transformers' native class, median and quartiles; above 1 is faster. "
        + describe_run(report),
        speed_table(report),
        "Memory, related models and how it is measured: [Performance](docs/performance.md). Not measured on a GPU."
        if report["arguments"]["device"] == "cpu"
        else "Memory, related models and how it is measured: [Performance](docs/performance.md).",
    ]
    return {"README.md": "\n\n".join(readme), "docs/performance.md": "\n\n".join(page)}


def replace_section(text: str, section: str) -> str:
    """
    The page with `section` between its markers.

    Raises:
        ValueError: the page does not have the two markers once each.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"expected the lines {START} and {END} once each")
    return re.sub(
        f"{re.escape(START)}.*{re.escape(END)}", lambda _: f"{START}\n\n{section}\n\n{END}", text, flags=re.DOTALL
    )


def read_report(file: Path) -> dict[str, Any]:
    """
    Reads a report of task "peers".

    Raises:
        ValueError: not such a report, or no row was measured.
    """
    report = json.loads(file.read_text(encoding="utf-8"))
    rows = report.get("rows") if isinstance(report, dict) else None
    if not rows or any(row.get("row") not in PEERS for row in rows) or not any("speed" in row for row in rows):
        raise ValueError(f"{file} is no report of `pvt-hf benchmark` with a measured row")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "report", nargs="?", type=Path, help="JSON file of pvt-hf benchmark; default: docs/benchmark.json."
    )
    parser.add_argument("--check", action="store_true", help="Compare the pages with what would be written.")
    arguments = parser.parse_args()
    kept = REPOSITORY / "docs" / "benchmark.json"
    try:
        report = read_report(arguments.report or kept)
        texts = {REPOSITORY / name: section for name, section in sections(report).items()}
        new = {page: replace_section(page.read_text(encoding="utf-8"), section) for page, section in texts.items()}
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    outdated = [page for page, text in new.items() if page.read_text(encoding="utf-8") != text]
    if arguments.check:
        if outdated:
            names = ", ".join(str(page.relative_to(REPOSITORY)) for page in outdated)
            print(f"error: out of date: {names}. Run scripts/make_performance_pages.py.", file=sys.stderr)
        return int(bool(outdated))
    for page in outdated:
        page.write_text(new[page], encoding="utf-8")
    if arguments.report is not None:
        kept.write_text(json.dumps(report, indent=1), encoding="utf-8")
    draw_chart(kept, kept.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
