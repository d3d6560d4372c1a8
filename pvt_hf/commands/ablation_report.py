"""The questions of `pvt-hf reproduce ablations`, and its report: Markdown, charts and JSON from the parts' results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics.reports import write_json
from .ablation_parts import MEMORY_LIMIT, TEST_SIZES, Part


HEADS = {"pvt": "classification", "semantic_fpn": "Semantic FPN", "trans2seg": "Trans2Seg head",
         "retinanet": "RetinaNet", "detr": "DETR head"}  # fmt: skip
METRIC_NAMES = {"accuracy@1": "accuracy", "mean_iou": "mIoU", "ap50": "AP50"}


@dataclass(frozen=True)
class Question:
    """
    Attributes:
        number: in the report.
        title: the question.
        paper: what the paper finds; "" if it does not ask.
        heads: tasks that it is asked on.
        models: backbones; the paper expects the first to be better than each other.
        starts: "scratch" or "pretrained" (on digit images), for each of `models` or one for all. Classifiers always
            start from scratch.
        equal_steps: equally many steps, and not equal processor time.
    """

    number: int
    title: str
    paper: str
    heads: tuple[str, ...]
    models: tuple[str, ...]
    starts: tuple[str, ...] = ("pretrained",)
    equal_steps: bool = False

    def variants(self, head: str) -> list[tuple[str, str, str]]:
        """(label, model, start) of what is compared."""
        starts = self.starts if len(self.starts) > 1 else self.starts * len(self.models)
        models = self.models if len(self.models) > 1 else self.models * len(starts)
        return [(model if len(self.models) > 1 else start, model, "scratch" if head == "pvt" else start)
                for model, start in zip(models, starts)]  # fmt: skip

    def trainings(self) -> Iterator[tuple[str, str, str, bool]]:
        """(head, model, start, equal_steps), with the classifiers that others start from."""
        for head in self.heads:
            for _, model, start in self.variants(head):
                equal_steps = self.equal_steps and model != "PVT"
                if start == "pretrained":
                    yield "pvt", model, "scratch", equal_steps
                yield head, model, start, equal_steps


QUESTIONS = (
    Question(1, "A pyramid or a columnar transformer?", "Table 8: the pyramid, by 8.7 AP of RetinaNet over a ViT with "
             "large patches; one with small patches needs too much memory.",
             ("pvt", "semantic_fpn", "retinanet"), ("PVT", "ViT/16", "ViT/4")),
    Question(2, "Deeper or wider?", "Table 9: deeper, by 0.5 points of top-1 and 1.1 AP.",
             ("pvt", "semantic_fpn"), ("PVT, deeper", "PVT, wider")),
    Question(3, "Pretrained on digit images or from scratch?", "Figure 5: pretrained, by 13.8 AP (1x) and 8.4 AP (3x) "
             "of RetinaNet.", ("semantic_fpn", "retinanet"), ("PVT",), ("pretrained", "scratch")),
    Question(4, "PVT or a ResNet with global context blocks?", "Table 10: PVT, by 1.6 mask AP of Mask R-CNN.",
             ("semantic_fpn", "retinanet"), ("PVT", "ResNet + GC")),
    Question(5, "PVT or a ResNet of equal size?", "Tables 2 to 7: PVT, on all tasks.",
             ("pvt", "semantic_fpn", "retinanet", "detr", "trans2seg"), ("PVT", "ResNet")),
    Question(6, "Which spatial reduction ratios? (ours)", "",
             ("semantic_fpn",), ("PVT", "PVT, R 8 4 2 1", "PVT, R 2 1 1 1", "PVT, R 1 1 1 1"), equal_steps=True),
)  # fmt: skip
SETTING = """
Images are built-in: single digits of 64 pixels, and scenes of 96 pixels with three to eight digits of 36 to 44 pixels,
drawn from scikit-learn's handwritten digits, with a held-out fifth of the digits for testing. Segmentation models see
scenes enlarged to 144 pixels, in training crops of 96. Classifiers start from random
weights. Models of scenes start from the classifier of the same backbone and seed, as the paper's start from ImageNet,
unless "scratch" is said. All models of a task have the same recipe (AdamW, with learning rate and schedule of the
task's digit recipe) and the same seeds. Learning rates were not tuned for any of them. Widths are chosen so that the
backbones have equally many parameters as PVT (the nearest width in steps of 4 channels). Trainings of one task have the
same processor time, except in question 6, where they have the same number of steps. The steps that fit into that time
were measured on each model before. "Clear" means that the ranges of the seeds do not overlap; everything else is
"within the spread".

The time of each task was set before any comparison. `pvt-hf reproduce ablations --pilot` checks it with plain PVT
alone, on a seed that is not among those compared.
"""


def write_report(parts: list[Part], work: Path, budget: str, folder: Path) -> None:
    """Writes `ablations.md`, `ablations.json` and the charts to `folder`."""
    results = {part.name: json.loads(part.file(work).read_text()) for part in parts}
    pilot = work / "pilot.json"
    sessions = json.loads((work / "sessions.json").read_text())
    content = {
        "budget": budget, "sessions": sessions, "pilot": json.loads(pilot.read_text()) if pilot.exists() else None,
        "parts": results,
    }  # fmt: skip
    write_json(folder / "ablations.json", content)
    lines = ["# The paper's questions at a small scale", "",
             "Generated by `pvt-hf reproduce ablations`. It claims nothing beyond this setting.", *_facts(content),
             "", "## Setting", SETTING.strip(), *_pilot_lines(content["pilot"])]  # fmt: skip
    if budget == "smoke":
        lines.insert(3, "\n**This is the quick form, with two steps for each training: its figures mean nothing.**")
    for question in QUESTIONS:
        lines += ["", *_answer(question, results, folder)]
        if question.number == 1:
            lines += _memory_lines(results)
    lines += ["", *_sizes(results, folder)]
    (folder / "ablations.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _facts(content: dict[str, Any]) -> list[str]:
    session = content["sessions"][-1]
    environment, seeds = session["environment"], sorted(
        {part["seed"] for part in content["parts"].values() if part["kind"] == "train"}
    )  # fmt: skip
    minutes = sum(part["seconds"] for part in content["parts"].values()) / 60
    cpus = {one["environment"]["cpu"] for one in content["sessions"]}
    return [
        "",
        f"- Command: `pvt-hf reproduce ablations --budget {content['budget']} --jobs {session['jobs']}`, in "
        f"{len(content['sessions'])} call(s)",
        f"- Hardware: {'; '.join(sorted(cpus))}; one thread for each of {session['jobs']} process(es)",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in session['versions'].items())}; "
        f"{environment['platform']}",
        f"- Seeds: {', '.join(map(str, seeds))}",
        f"- Duration: {minutes:.0f} minutes over all parts, of which {session['jobs']} ran at a time",
    ]


def _pilot_lines(pilot: dict[str, Any] | None) -> list[str]:
    if not pilot:
        return ["", "No pilot was run with this report."]
    lines = ["", f"Pilot, plain PVT, seed {pilot['seed']}:", "", "| task | figure | steps |", "|---|---|---|"]
    for head, one in pilot["results"].items():
        lines.append(f"| {HEADS[head]} | {METRIC_NAMES[one['metric']]} {one['value']:.1%} | {one['steps']} |")
    return lines


def _runs(results: dict[str, Any], head: str, model: str, start: str) -> list[dict[str, Any]]:
    key = ("train", head, model, start)
    return [
        one for one in results.values() if tuple(one.get(name) for name in ("kind", "head", "model", "start")) == key
    ]


def _answer(question: Question, results: dict[str, Any], folder: Path) -> list[str]:
    lines = [f"## {question.number}. {question.title}", ""]
    if question.paper:
        lines += [f"The paper: {question.paper}", ""]
    columns = ("task", "model", "parameters (M)", "multiply-adds (M)", "steps", "processor time with evaluation (s)",
               "figure", "mean", "deviation", "each seed")  # fmt: skip
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    findings = []
    for head in question.heads:
        rows = [(label, _runs(results, head, model, start)) for label, model, start in question.variants(head)]
        for label, runs in rows:
            lines.append(_row(head, label, runs))
        for label, runs in rows[1:]:
            findings.append(f"- {HEADS[head]}: {_finding(question, rows[0], (label, runs))}")
    _chart(question, results, folder / f"ablations_{question.number}.png")
    return [
        *lines,
        "",
        "What came out:",
        "",
        *findings,
        "",
        f"![Figures of every seed](ablations_{question.number}.png)",
    ]


def _row(head: str, label: str, runs: list[dict[str, Any]]) -> str:
    values = [one["value"] for one in runs]
    first = runs[0]
    seconds = statistics.mean(one["training_seconds"] for one in runs)
    cells = (
        HEADS[head], label, f"{first['parameters'] / 1e6:.3f}", f"{first['multiply_adds'] / 1e6:.1f}",
        str(first["steps"]), f"{seconds:.0f}", METRIC_NAMES[first["metric"]], f"{100 * statistics.mean(values):.1f}",
        f"{100 * statistics.stdev(values):.1f}" if len(values) > 1 else "-",
        ", ".join(f"{100 * value:.1f}" for value in values),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _finding(question: Question, first: tuple[str, list], other: tuple[str, list]) -> str:
    ours, theirs = ([one["value"] for one in runs] for _, runs in (first, other))
    difference = 100 * (statistics.mean(ours) - statistics.mean(theirs))
    if len(ours) < 2:
        verdict, agrees = "one seed only", "no answer"
    elif min(ours) > max(theirs):
        verdict, agrees = "clear", "as in the paper"
    elif max(ours) < min(theirs):
        verdict, agrees = "clear", "contrary to the paper"
    else:
        verdict, agrees = "within the spread of the seeds", "no answer at this scale"
    paper = f"; {agrees}" if question.paper else ""
    return f"{first[0]} {difference:+.1f} points against {other[0]}, {verdict}{paper}."


def _memory_lines(results: dict[str, Any]) -> list[str]:
    measured = [one for one in results.values() if one["kind"] == "memory"]
    sizes = sorted({one["seed"] for one in measured})
    lines = ["", "Peak memory (MiB) of a forward and backward pass of the backbone with one image. All attention "
             "weights are kept, as in the paper's time:", "",
             f"| model | {' | '.join(f'{size} px' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]  # fmt: skip
    for model in dict.fromkeys(one["model"] for one in measured):
        by_size = {one["seed"]: one["memory_bytes"] for one in measured if one["model"] == model}
        cells = [f"{by_size[size] / 2**20:.0f}" if by_size.get(size) else "over the limit" for size in sizes]
        lines.append(f"| {model} | {' | '.join(cells)} |")
        over = [size for size in sizes if (by_size.get(size) or MEMORY_LIMIT + 1) > MEMORY_LIMIT]
        fits = f"no longer fits into 4 GB at {over[0]} pixels" if over else f"fits into 4 GB up to {sizes[-1]} pixels"
        lines += [] if model != "ViT/4" else ["", f"ViT/4 {fits}."]
    return lines


def _sizes(results: dict[str, Any], folder: Path) -> list[str]:
    runs = [one for one in results.values() if one["kind"] == "sizes"]
    figure, axes = _figure(1)
    lines = ["## 7. Other test sizes than the training size (ours)", "",
             "Plain PVT, trained on digits of 64 pixels, with position tables resized; beside it what Transformers' "
             "own class does with the same weights.", "",
             "| pixels | times 64 | accuracy, mean | deviation | Transformers' own class |",
             "|---|---|---|---|---|"]  # fmt: skip
    for size in TEST_SIZES:
        values = [100 * one["accuracy"][str(size)] for one in runs]
        deviation = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "-"
        native = runs[0]["native"][str(size)].replace("|", "/")
        lines.append(f"| {size} | {size / 64:g} | {statistics.mean(values):.1f} | {deviation} | {native} |")
    for one in runs:
        axes[0].plot(TEST_SIZES, [100 * one["accuracy"][str(size)] for size in TEST_SIZES], marker=".",
                     label=f"seed {one['seed']}")  # fmt: skip
    axes[0].set(xlabel="side of the image in pixels", ylabel="accuracy (%)", title="trained at 64 pixels")
    axes[0].legend()
    figure.savefig(folder / "ablations_7.png", dpi=110)
    return [*lines, "", "![Accuracy against test size](ablations_7.png)"]


def _figure(panels: int) -> tuple[Any, list[Any]]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(max(5.0, 3.8 * panels), 4.0), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _chart(question: Question, results: dict[str, Any], path: Path) -> None:
    """A panel for each task: every seed and the mean; for question 3, curves over steps; for 6, against the cost."""
    figure, axes = _figure(len(question.heads))
    for panel, head in zip(axes, question.heads):
        metric = ""
        for index, (label, model, start) in enumerate(question.variants(head)):
            runs = _runs(results, head, model, start)
            metric = METRIC_NAMES[runs[0]["metric"]]
            values = [100 * one["value"] for one in runs]
            if question.number == 3:
                for one in runs:
                    panel.plot(*zip(*((step, 100 * value) for step, value in one["curve"])), color=f"C{index}",
                               marker=".", label=label if one is runs[0] else None)  # fmt: skip
                continue
            at = runs[0]["multiply_adds"] / 1e6 if question.number == 6 else index
            panel.plot([at] * len(values), values, "o", color=f"C{index}", alpha=0.5)
            panel.plot([at], [statistics.mean(values)], "_", color=f"C{index}", markersize=28, label=label)
        panel.set(title=HEADS[head], ylabel=f"{metric} (%)")
        panel.set_xlabel({3: "steps", 6: "multiply-adds (M)"}.get(question.number, ""))
        if question.number not in (3, 6):
            names = [one[0] for one in question.variants(head)]
            panel.set_xticks(range(len(names)), names, rotation=20)
            panel.margins(x=0.3)
        else:
            panel.legend()
    figure.savefig(path, dpi=110)


__all__ = ["QUESTIONS", "Question", "write_report"]
