"""The questions of `pvt-hf reproduce ablations`, and its report: Markdown, charts and JSON from the parts' results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics.reports import write_json
from .ablation_charts import Panel, chart_costs, chart_curves, chart_models, chart_sizes
from .ablation_models import DIGIT_SIZE
from .ablation_parts import MEMORY_LIMIT, METRICS, STARTS_FROM, TEST_SIZES, Part


HEADS = {"pvt": "classification", "semantic_fpn": "Semantic FPN", "trans2seg": "Trans2Seg head",
         "retinanet": "RetinaNet", "detr": "DETR head"}  # fmt: skip
ANSWERS = ("as in the paper", "contrary to the paper", "no answer at this scale")
Rows = tuple[str, list[dict[str, Any]]]  # label of a model, and its trainings
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
        not_in_paper: those of `models` for which the paper has no figure.
        names: for readers, of models whose own name says too little here.
    """

    number: int
    title: str
    paper: str
    heads: tuple[str, ...]
    models: tuple[str, ...]
    starts: tuple[str, ...] = ("pretrained",)
    equal_steps: bool = False
    not_in_paper: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    def variants(self, head: str) -> list[tuple[str, str, str]]:
        """(label, model, start) of what is compared."""
        starts = self.starts if len(self.starts) > 1 else self.starts * len(self.models)
        models = self.models if len(self.models) > 1 else self.models * len(starts)
        labels = [dict(self.names).get(model, model) for model in models] if len(self.models) > 1 else starts
        return [(label, model, "scratch" if head == "pvt" else start)
                for label, model, start in zip(labels, models, starts)]  # fmt: skip

    def trainings(self) -> Iterator[tuple[str, str, str, bool]]:
        """(head, model, start, equal_steps), with the trainings that others start from."""
        for head in self.heads:
            for _, model, start in self.variants(head):
                equal_steps = self.equal_steps and model != "PVT"
                before = head
                while start == "pretrained" and before in STARTS_FROM:
                    before = STARTS_FROM[before]
                    yield before, model, "pretrained" if before in STARTS_FROM else "scratch", equal_steps
                yield head, model, start, equal_steps


QUESTIONS = (
    Question(1, "A pyramid or a columnar transformer?", "Table 8: the pyramid, by 8.7 AP of RetinaNet over a ViT with "
             "large patches; one with small patches needs too much memory.",
             ("pvt", "semantic_fpn", "retinanet"), ("PVT", "ViT/16", "ViT/4"), not_in_paper=("ViT/4",)),
    Question(2, "Deeper or wider?", "Table 9: deeper, by 0.5 points of top-1 and 1.1 AP.",
             ("pvt", "semantic_fpn"), ("PVT, deeper", "PVT, wider")),
    Question(3, "Pretrained on digit images or from scratch?", "Figure 5: pretrained, by 13.8 AP (1x) and 8.4 AP (3x) "
             "of RetinaNet.", ("semantic_fpn", "retinanet"), ("PVT",), ("pretrained", "scratch")),
    Question(4, "PVT or a ResNet with global context blocks?", "Table 10: PVT, by 1.6 mask AP of Mask R-CNN.",
             ("semantic_fpn", "retinanet"), ("PVT", "ResNet + GC")),
    Question(5, "PVT or a ResNet of equal size?", "Tables 2 to 7: PVT, on all tasks.",
             ("pvt", "semantic_fpn", "retinanet", "detr", "trans2seg"), ("PVT", "ResNet")),
    Question(6, "Which spatial reduction ratios? (ours)", "",
             ("semantic_fpn",), ("PVT", "PVT, R 8 4 2 1", "PVT, R 2 1 1 1", "PVT, R 1 1 1 1"), equal_steps=True,
             names=(("PVT", "PVT, R 4 2 1 1"),)),
)  # fmt: skip
SETTING = """
Images are built in: single digits of 64 pixels, and scenes of 96 pixels with three to eight digits of 36 to 44 pixels,
drawn from scikit-learn's handwritten digits. A fifth of the digits is held out for testing, in 355 images of digits and
400 scenes. Segmentation models see scenes enlarged to 144 pixels, in training crops of 96. Classifiers start from
random weights. Semantic FPN and RetinaNet start from the classifier of the same backbone and seed, as the paper's start
from ImageNet, unless "scratch" is said; Trans2Seg and DETR, which learn slowly, from the trained backbone of Semantic
FPN and of RetinaNet, as their digit recipes do. All models of a task have the same recipe (AdamW, with the schedule of
the task's digit recipe) and the same seeds. The recipes were made for PVT, and the learning rates were not tuned for
any other model, which may favour PVT: those of Semantic FPN and Trans2Seg, 0.003 and for the backbone 0.0005, were
chosen with the pilot below, the others are those of the digit recipes. Widths are chosen so that the backbones have
about as many parameters as PVT (the nearest width in steps of 4 channels). With Trans2Seg and DETR, which read no map
of the last stage, ResNet keeps that stage and PVT leaves it out. Figures are those of the last step.

Each training of a task gets the steps that fit into the same time, by a speed test of 16 steps of each model before,
which ran beside another part; in question 6, all get the same number of steps. The column of processor time is what a
training took as a whole, with building and evaluating the model. It differs between models of a task: speed tests of 16
steps are coarse, and plain PVT is evaluated four times, for the curves of question 3, and the others once.

Three seeds are few. "Clear" means that the ranges of the seeds do not overlap; everything else is "within the spread".
Two equally good models have ranges that do not overlap in one comparison of ten, so some clear answers are expected by
chance. The spread does not include that of another set of test images. Where neither model has learned more than chance
(an accuracy of 15 %, an mIoU of 10 %, which is little more than background alone, or an AP50 of 1 %), that is said.

The sizes of digits, the starts, the learning rates and the time of each task were set before any comparison, for plain
PVT to be neither at chance nor at the ceiling: `pvt-hf reproduce ablations --pilot` trains plain PVT alone, on a seed
that is not among those compared. DETR did not leave chance in it, and trials with learning rates from 0.0002 to 0.001
and up to 2,400 steps ended at an AP50 of at most 1.2 %; its digit recipe sees 32,000 scenes before its AP50 is 35 %. It
is here for completeness.
"""
# Up to here, a model has not learned more than chance
CHANCE = {"accuracy@1": 0.15, "mean_iou": 0.10, "ap50": 0.01}


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
             "", *_in_short(results), "", "## Setting", SETTING.rstrip(), *_pilot_lines(content["pilot"])]  # fmt: skip
    if budget == "smoke":
        lines.insert(3, "\n**This is the quick form, with two steps for each training: its figures mean nothing.**")
    for question in QUESTIONS:
        lines += ["", *_answer(question, results, folder)]
        if question.number == 1:
            lines += _memory_lines(results)
    lines += ["", *_sizes(results, folder)]
    (folder / "ablations.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _comparisons(question: Question, results: dict[str, Any]) -> Iterator[tuple[str, Rows, Rows]]:
    """(head, first model, other model), the models with their trainings."""
    for head in question.heads:
        first, *others = [
            (label, _runs(results, head, model, start)) for label, model, start in question.variants(head)
        ]
        for other in others:
            yield head, first, other


def _in_short(results: dict[str, Any]) -> list[str]:
    """How many comparisons came out as in the paper, the other way round, or undecided."""
    lines = ["## In short", "", "Comparisons of the paper, some of them on other tasks, by what came out here:", "",
             f"| question | {' | '.join(ANSWERS)} |", "|---" * (len(ANSWERS) + 1) + "|"]  # fmt: skip
    for question in QUESTIONS:
        found = [_verdict(first, other)[1] for _, first, other in _comparisons(question, results)
                 if _is_in_paper(question, other)]  # fmt: skip
        if found:
            counts = " | ".join(str(found.count(answer)) for answer in ANSWERS)
            lines.append(f"| {question.number}. {question.title} | {counts} |")
    return lines


def _facts(content: dict[str, Any]) -> list[str]:
    session = content["sessions"][-1]
    environment, seeds = session["environment"], sorted(
        {part["seed"] for part in content["parts"].values() if part["kind"] == "train"}
    )  # fmt: skip
    minutes = sum(part["processor_seconds"] for part in content["parts"].values()) / 60
    calls = sum("--pilot" not in one["command"] for one in content["sessions"])
    cpus = {one["environment"]["cpu"] for one in content["sessions"]}
    return [
        "",
        f"- Command: `pvt-hf reproduce ablations --budget {content['budget']} --jobs {session['jobs']}`, in "
        f"{calls} call(s)",
        f"- Hardware: {'; '.join(sorted(cpus))}; one thread for each of {session['jobs']} process(es)",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in session['versions'].items())}; "
        f"{environment['platform']}",
        f"- Seeds: {', '.join(map(str, seeds))}",
        f"- Duration: {minutes:.0f} minutes of processor time, {session['jobs']} part(s) at a time: "
        f"{minutes / session['jobs']:.0f} minutes on a machine that does nothing else",
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
               "metric (%)", "mean", "deviation", "each seed")  # fmt: skip
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for head in question.heads:
        for label, model, start in question.variants(head):
            lines.append(_row(head, label, _runs(results, head, model, start)))
    findings = [f"- {HEADS[head]}: {_finding(question, first, other)}"
                for head, first, other in _comparisons(question, results)]  # fmt: skip
    if question.number == 3:
        findings.append("- The time of the classifier's training comes on top of that of the pretrained models.")
    panels = [
        Panel(
            HEADS[head],
            METRIC_NAMES[METRICS[head]],
            {label: _runs(results, head, model, start) for label, model, start in question.variants(head)},
        )
        for head in question.heads
    ]
    chart = {3: chart_curves, 6: chart_costs}.get(question.number, chart_models)
    chart(panels, folder / f"ablations_{question.number}.png")
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


def _finding(question: Question, first: Rows, other: Rows) -> str:
    ours, theirs = ([one["value"] for one in runs] for _, runs in (first, other))
    difference = 100 * (statistics.mean(ours) - statistics.mean(theirs))
    verdict, answer = _verdict(first, other)
    paper = f"; {answer}" if _is_in_paper(question, other) else ""
    limit = CHANCE[first[1][0]["metric"]]
    at_chance = [name for (name, _), values in ((first, ours), (other, theirs)) if max(values) <= limit]
    chance = f" {at_chance[0]} did not leave chance." if len(at_chance) == 1 else ""
    return f"{first[0]} {difference:+.1f} points against {other[0]}, {verdict}{paper}.{chance}"


def _is_in_paper(question: Question, other: Rows) -> bool:
    return bool(question.paper) and other[0] not in question.not_in_paper


def _verdict(first: Rows, other: Rows) -> tuple[str, str]:
    """What the seeds of two models say, and which of `ANSWERS` that is, if the paper says that the first is better."""
    ours, theirs = ([one["value"] for one in runs] for _, runs in (first, other))
    if len(ours) < 2:
        return "one seed only", ANSWERS[2]
    if max(*ours, *theirs) <= CHANCE[first[1][0]["metric"]]:
        return "neither above chance", ANSWERS[2]
    if min(ours) > max(theirs):
        return "clear", ANSWERS[0]
    if max(ours) < min(theirs):
        return "clear", ANSWERS[1]
    return "within the spread of the seeds", ANSWERS[2]


def _memory_lines(results: dict[str, Any]) -> list[str]:
    measured = [one for one in results.values() if one["kind"] == "memory"]
    sizes = sorted({one["seed"] for one in measured})
    fits: list[str] = []
    lines = ["", "Peak memory (MiB) of a forward and backward pass of the backbone with one image, beyond what was in "
             "use before. All attention weights are kept, as in the paper's time. 4 GB are 4,096 MiB; sizes above the "
             "first one that needs more are not tried:", "",
             f"| model | {' | '.join(f'{size} px' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]  # fmt: skip
    for model in dict.fromkeys(one["model"] for one in measured):
        by_size = {one["seed"]: one["memory_bytes"] for one in measured if one["model"] == model}
        cells = [f"{by_size[size] / 2**20:.0f}" if by_size.get(size) else "over 4 GB" for size in sizes]
        lines.append(f"| {model} | {' | '.join(cells)} |")
        over = [size for size in sizes if (by_size.get(size) or MEMORY_LIMIT + 1) > MEMORY_LIMIT]
        fits.append(f"{model} no longer fits into 4 GB at {over[0]} pixels." if over else
                    f"{model} fits into 4 GB up to {sizes[-1]} pixels, the largest size tried.")  # fmt: skip
    return [*lines, "", *fits]


def _sizes(results: dict[str, Any], folder: Path) -> list[str]:
    runs = [one for one in results.values() if one["kind"] == "sizes"]
    lines = ["## 7. Other test sizes than the training size (ours)", "",
             "Plain PVT, trained on digits of 64 pixels, with position tables resized. Transformers' own class, with "
             f"the same weights, {_native_answer(runs[0]['native'])}. The last stage has patches of 32 pixels; what "
             "does not fill one is left out, such as a fifth of each side at 80 pixels.", "",
             "| pixels | times 64 | accuracy (%), mean | deviation | Transformers' own class |",
             "|---|---|---|---|---|"]  # fmt: skip
    for size in TEST_SIZES:
        values = [100 * one["accuracy"][str(size)] for one in runs]
        deviation = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "-"
        native = runs[0]["native"][str(size)].replace("|", "/")
        lines.append(f"| {size} | {size / DIGIT_SIZE:g} | {statistics.mean(values):.1f} | {deviation} | {native} |")
    chart_sizes(runs, TEST_SIZES, DIGIT_SIZE, folder / "ablations_7.png")
    return [*lines, "", "![Accuracy against test size](ablations_7.png)"]


def _native_answer(answers: dict[str, str]) -> str:
    """At which sizes Transformers' own class refuses."""
    runs = [size for size, answer in answers.items() if answer == "runs"]
    refused = ", ".join(size for size in answers if size not in runs)
    return f"refuses {refused or 'none'} and takes {', '.join(runs) or 'none'} (pixels)"


__all__ = ["QUESTIONS", "Question", "write_report"]
