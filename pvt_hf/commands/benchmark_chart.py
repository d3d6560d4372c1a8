"""The chart of `pvt-hf benchmark`: speeds against the native class, and published accuracy against speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .benchmark_arguments import PEERS, RELATIVES
from .benchmark_relatives import PUBLISHED


# Okabe and Ito's palette, for colour-blind readers
OURS, OTHER, NATIVE = "#D55E00", "#0072B2", "#999999"


def draw_chart(results: Path, output: Path) -> Path | None:
    """
    Draws the results of task "peers", a JSON file, as PNG.

    Returns:
        `output`, or None if no row was measured.
    """
    import matplotlib.figure

    content = json.loads(results.read_text())
    rows = [row for row in content["rows"] if "speed" in row]
    peers = [row for row in rows if row["row"] not in RELATIVES]
    largest = max((row["batch_size"] for row in rows), default=0)
    models = [row for row in rows if row["batch_size"] == largest and row["row"] in (*RELATIVES, "ours")]
    if not rows:
        return None
    panels = [(_draw_speeds, peers)] if peers else []
    panels += [(_draw_accuracies, models)] if any(row["row"] in RELATIVES for row in models) else []
    figure = matplotlib.figure.Figure(figsize=(6.4 * max(1, len(panels)), 4.6), layout="constrained")
    for axes, (draw, chosen) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw(axes, chosen, content["arguments"]["variant"])
        axes.spines[["top", "right"]].set_visible(False)
    environment = content["environment"]
    machine = environment["device"] if environment["device"] != "CPU" else environment["cpu"]
    figure.supxlabel(
        f"{machine}, threads: {environment['threads']}, {content['arguments']['dtype']}, "
        f"{content['arguments']['image_size']}x{content['arguments']['image_size']} pixels, "
        f"PyTorch {environment['torch']}",
        fontsize=8, color="#555555",
    )  # fmt: skip
    figure.savefig(output, dpi=150)
    return output


def _draw_speeds(axes: Any, rows: list[dict[str, Any]], variant: str) -> None:
    """Bars for every way to run the model, one for each batch size, with quartiles."""
    names = [name for name in PEERS if any(row["row"] == name for row in rows)]
    batches = sorted({row["batch_size"] for row in rows})
    height = 0.8 / len(batches)
    for row in rows:
        batch = batches.index(row["batch_size"])
        place = names.index(row["row"]) + (batch - (len(batches) - 1) / 2) * height
        name, speed, (lower, upper) = row["row"], row["speed"], row["speed_quartiles"]
        color = OURS if name.startswith("ours") else NATIVE if name.startswith("native") else OTHER
        axes.barh(place, speed, height * 0.92, color=color, alpha=1 - 0.45 * batch / max(1, len(batches) - 1))
        axes.plot([lower, upper], [place, place], color="black", linewidth=1)
        axes.text(max(speed, upper) + 0.02, place, f"{speed:.2f}x  batch {row['batch_size']}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(max(row["speed"], row["speed_quartiles"][1]) for row in rows))
    axes.set_xlabel("speed relative to the native class, with quartiles: more is faster")
    axes.set_title(f"{PUBLISHED[variant].title if variant in PUBLISHED else variant}: ways to run it", loc="left")


def _draw_accuracies(axes: Any, rows: list[dict[str, Any]], variant: str) -> None:
    """Published accuracy against measured images per second; the area of a point is the measured memory."""
    rows = [row for row in rows if row["row"] in PUBLISHED or variant in PUBLISHED]
    rows.sort(key=lambda row: row["side"]["images_per_second"])
    known = [row["side"]["peak_memory_bytes"] for row in rows if row["side"]["peak_memory_bytes"]]
    for number, row in enumerate(rows):
        ours, memory = row["row"] == "ours", row["side"]["peak_memory_bytes"]
        published = PUBLISHED[variant if ours else row["row"]]
        rate = row["side"]["images_per_second"]
        area = 500 * memory / max(known) if memory else 60
        axes.scatter(rate, published.top1, s=area, color=OURS if ours else OTHER, alpha=0.65, linewidths=0)
        text = published.title + (f"\n{memory / 2**20:.0f} MiB" if memory else "")
        left = number < len(rows) // 2  # neighbours of about the same accuracy keep their labels apart
        place = (-1 if left else 1) * (area**0.5 / 2 + 3)
        axes.annotate(text, (rate, published.top1), xytext=(place, 0), textcoords="offset points",
                      ha="right" if left else "left", va="center", fontsize=8)  # fmt: skip
    axes.margins(0.4, 0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel("images per second, measured here")
    axes.set_ylabel("ImageNet top-1 accuracy in %, published")
    batch = rows[0]["batch_size"] if rows else 0
    axes.set_title(f"Related models, batch {batch}; area: memory beyond the weights", loc="left")
