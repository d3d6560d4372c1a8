"""
Writes the measured sections of README.md and docs/performance.md from a report of `pvt-hf benchmark`, and that of
docs/deployment.md from one of `pvt-hf benchmark export`.

    pvt-hf benchmark                                            # on an idle machine: outputs/benchmark.json
    python scripts/make_performance_pages.py outputs/benchmark.json
    pvt-hf benchmark export                                     # outputs/benchmark_export.json
    python scripts/make_performance_pages.py outputs/benchmark_export.json    # or several, with some of the rows each
    python scripts/make_performance_pages.py --check            # writes nothing; exit code 1 if a page is out of date

The reports are kept as docs/benchmark.json, with a chart docs/benchmark.png, and docs/benchmark_export.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from pvt_hf.commands.benchmark_arguments import EXPORT_ROWS, EXPORTED, PEERS, RELATIVES
from pvt_hf.commands.benchmark_chart import draw_chart
from pvt_hf.commands.benchmark_relatives import PUBLISHED


REPOSITORY = Path(__file__).parents[1]
# Of the task "peers", and of the task "export"
MARKERS = {
    name: (f"<!-- {name}: made by scripts/make_performance_pages.py -->", f"<!-- /{name} -->")
    for name in ("benchmark", "benchmark export")
}
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "aotinductor": "AOTInductor"}
TITLES = {
    "native": "native class",
    "native-compiled": "native class, `torch.compile`",
    "onnxruntime": "onnxruntime, native graph",
    "openvino": "OpenVINO, native graph",
    "ours": "**this package**",
    "ours-compiled": "**this package, `torch.compile`**",
    "native-onnxruntime": "ONNX Runtime, native graph",
    "native-openvino": "OpenVINO, native graph",
    **{
        name: f"**{RUNTIMES[row.format]}, this package{', one size' * row.static}"
        f"{'' if row.precision == 'fp32' else f', {row.precision}'}**"
        for name, row in EXPORTED.items()
    },
}
FEW_PAIRS = 6  # a row with fewer makes a short run


def is_export(report: dict[str, Any]) -> bool:
    """Whether it is a report of `pvt-hf benchmark export`."""
    return "programs" in report["arguments"]


def describe_run(report: dict[str, Any]) -> str:
    """Model, size, machine, versions and number of pairs, as a sentence or two."""
    environment, arguments = report["environment"], report["arguments"]
    versions = {"PyTorch": "torch", "Transformers": "transformers", "onnxruntime": "onnxruntime",
                "OpenVINO": "openvino", **({"NNCF": "nncf"} if is_export(report) else {"timm": "timm"})}  # fmt: skip
    machine = environment["device"] if environment["device"] != "CPU" else environment["cpu"]
    pairs = [row["pairs"] for row in report["rows"] if "pairs" in row]
    text = (
        f"{PUBLISHED[arguments['variant']].title} at {arguments['image_size']}x{arguments['image_size']}, "
        f"{arguments.get('dtype', 'float32')}, {machine}, threads: {environment['threads']}; "
        + ", ".join(f"{title} {environment[name]}" for title, name in versions.items() if name in environment)
        + f"; at least {min(pairs)} pairs of calls for a row."
    )
    if (runs := report.get("runs", 1)) > 1:
        text += f" The rows are from {runs} runs, one after the other."
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
    order = EXPORT_ROWS if is_export(report) else PEERS
    names = [name for name in order if name not in RELATIVES and any(row == name for row, _ in found)]

    def cell(name: str, batch: int) -> str:
        one_image = name in EXPORTED and EXPORTED[name].static and batch > 1
        return "-" if one_image else figure(found.get((name, batch)))

    return table(
        ["", *(f"batch {batch}" for batch in batches)],
        [[TITLES[name], *(cell(name, batch) for batch in batches)] for name in names],
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


def export_sections(report: dict[str, Any]) -> dict[str, str]:
    """The text between the markers of each page, of the task "export"."""
    reasons = {row["row"]: row["error"] for row in report["rows"] if "error" in row}
    page = [
        "Speed relative to the native class in PyTorch, median and quartiles; above 1 is faster. The native class "
        f"against itself shows how much the machine varies. {describe_run(report)} "
        "The report of this run is `docs/benchmark_export.json`.",
        speed_table(report),
    ]
    if reasons:
        page.append(f"Not measured: {'; '.join(f'{name}: {reason}' for name, reason in reasons.items())}.")
    return {"docs/deployment.md": "\n\n".join(page)}


def sections(report: dict[str, Any]) -> dict[str, str]:
    """The text between the markers of each page."""
    if is_export(report):
        return export_sections(report)
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


def replace_section(text: str, section: str, name: str) -> str:
    """
    The page with `section` between its markers.

    Raises:
        ValueError: the page does not have the two markers once each.
    """
    start, end = MARKERS[name]
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"expected the lines {start} and {end} once each")
    return re.sub(
        f"{re.escape(start)}.*{re.escape(end)}", lambda _: f"{start}\n\n{section}\n\n{end}", text, flags=re.DOTALL
    )


def read_report(file: Path) -> dict[str, Any]:
    """
    Reads a report of task "peers" or "export".

    Raises:
        ValueError: not such a report, or no row was measured.
    """
    report = json.loads(file.read_text(encoding="utf-8"))
    rows = report.get("rows") if isinstance(report, dict) else None
    known = {*PEERS, *EXPORT_ROWS}
    if not rows or any(row.get("row") not in known for row in rows) or not any("speed" in row for row in rows):
        raise ValueError(f"{file} is no report of `pvt-hf benchmark` with a measured row")
    return report


def joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """
    The rows of several reports of one task, measured one after the other, in one. Of a row that was measured again, the
    last one counts.

    Raises:
        ValueError: they are of other tasks, models or machines.
    """
    first = reports[0]
    for other in reports[1:]:
        for name in ("variant", "image_size", "threads"):
            if first["arguments"].get(name) != other["arguments"].get(name):
                raise ValueError(f"the reports have several values of {name}: give reports of one model and machine")
        if is_export(first) != is_export(other) or first["environment"]["cpu"] != other["environment"]["cpu"]:
            raise ValueError("the reports are of several tasks or machines: give reports of one")
    loads = [report["environment"].get("load_average") or 0 for report in reports]
    return {
        **first,
        "complete": all(report["complete"] for report in reports),
        "environment": {**first["environment"], "load_average": max(loads)},
        "runs": len(reports),
        "rows": [*{(row["row"], row["batch_size"]): row for report in reports for row in report["rows"]}.values()],
    }


def new_pages(report: dict[str, Any]) -> dict[Path, str]:
    """The pages with the sections of a report. Raises an OSError or a ValueError for a page that lacks them."""
    name = "benchmark export" if is_export(report) else "benchmark"
    texts = {REPOSITORY / page: section for page, section in sections(report).items()}
    return {page: replace_section(page.read_text(encoding="utf-8"), text, name) for page, text in texts.items()}


def outdated(report: dict[str, Any]) -> dict[Path, str]:
    """Those of [`new_pages`] that differ from what is there."""
    return {page: text for page, text in new_pages(report).items() if page.read_text(encoding="utf-8") != text}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "reports", nargs="*", type=Path, help="JSON files of pvt-hf benchmark [export]; default: those that are kept."
    )
    parser.add_argument("--check", action="store_true", help="Compare the pages with what would be written.")
    arguments = parser.parse_args()
    kept = [REPOSITORY / "docs" / name for name in ("benchmark.json", "benchmark_export.json")]
    try:
        reports = [read_report(file) for file in arguments.reports or kept if arguments.reports or file.is_file()]
        reports = [joined(reports)] if arguments.reports else reports
        new = {page: text for report in reports for page, text in outdated(report).items()}
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.check:
        if new:
            names = ", ".join(str(page.relative_to(REPOSITORY)) for page in new)
            print(f"error: out of date: {names}. Run scripts/make_performance_pages.py.", file=sys.stderr)
        return int(bool(new))
    for page, text in new.items():
        page.write_text(text, encoding="utf-8")
    for report in reports:
        file = kept[is_export(report)]
        if arguments.reports:
            file.write_text(json.dumps(report, indent=1), encoding="utf-8")
        if not is_export(report):
            draw_chart(file, file.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
