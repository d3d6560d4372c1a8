"""`pvt-hf reproduce ablations`: the paper's questions at a small scale, in parts that can be interrupted."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from ..metrics.reports import versions, write_json
from .ablation_parts import BUDGETS, MEMORY_LIMIT, PILOT_SEED, STARTS_FROM, Budget, Part, run_part
from .ablation_report import QUESTIONS, write_report
from .benchmark_report import describe_environment


INCOMPLETE = 3  # exit status if --max_minutes or Ctrl-C left parts


def all_parts(budget: Budget) -> list[list[Part]]:
    """All parts, in phases: a part needs only results of earlier phases."""
    trainings = dict.fromkeys(training for question in QUESTIONS for training in question.trainings())
    speeds = [
        Part("speed", *key) for key in dict.fromkeys((head, model) for head, model, _, equal in trainings if not equal)
    ]
    made = [Part("train", head, model, start, seed, equal_steps)
            for seed in budget.seeds for head, model, start, equal_steps in trainings]  # fmt: skip
    return [
        speeds if budget.seconds else [],
        *_in_order(made),
        [Part("sizes", "pvt", "PVT", seed=seed) for seed in budget.seeds],
        [Part("memory", "backbone", model, seed=size)
         for model in ("PVT", "ViT/16", "ViT/4") for size in budget.memory_sizes],
    ]  # fmt: skip


def pilot_parts() -> list[list[Part]]:
    """Plain PVT on every task with one more seed, to see whether a setting is neither at chance nor at the ceiling."""
    heads = ("pvt", "semantic_fpn", "trans2seg", "retinanet", "detr")
    trainings = [Part("train", head, "PVT", "scratch" if head == "pvt" else "pretrained", PILOT_SEED) for head in heads]
    return [[Part("speed", head, "PVT") for head in heads], *_in_order(trainings)]


def _in_order(trainings: list[Part]) -> list[list[Part]]:
    """Trainings in phases, each after those that it starts from."""
    phases = [[part for part in trainings if part.head == "pvt"]]
    while heads := [head for head, start in STARTS_FROM.items() if start in {part.head for part in phases[-1]}]:
        phases.append([part for part in trainings if part.head in heads])
    return phases


def reproduce_ablations(arguments: Any) -> int:
    """
    Runs the parts that have no result yet, and writes the report when all have.

    Args:
        arguments: `budget`, `pilot`, `jobs`, `max_minutes`, `output_dir` and `report_dir`.

    Returns:
        The exit status: 0, or 3 if parts are left.
    """
    started = time.monotonic()
    budget = BUDGETS[arguments.budget]
    work = arguments.output_dir / arguments.budget
    (work / "parts").mkdir(parents=True, exist_ok=True)
    phases = pilot_parts() if arguments.pilot else all_parts(budget)
    parts = [part for phase in phases for part in phase]
    total, done = len(parts), sum(part.file(work).exists() for part in parts)
    print(f"{total} parts, {done} of them done before. Results: {work / 'parts'}", flush=True)
    _note_session(work, arguments)
    deadline = started + 60 * arguments.max_minutes if arguments.max_minutes else float("inf")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: it ends the processes, too
    try:
        complete = all(_run_phase(phase, work, budget, arguments.jobs, deadline, total, parts) for phase in phases)
    except KeyboardInterrupt:
        complete = False
    finally:
        signal.signal(signal.SIGTERM, before)
    done = sum(part.file(work).exists() for part in parts)
    if not complete or done < total:
        print(f"{done} of {total} parts are done. The same command continues; finished parts are not run again.")
        return INCOMPLETE
    if arguments.pilot:
        _print_pilot(parts, work)
    else:
        arguments.report_dir.mkdir(parents=True, exist_ok=True)
        write_report(parts, work, arguments.budget, arguments.report_dir)
        print(f"Written: ablations.md, ablations.json and charts in {arguments.report_dir}")
    return 0


def _run_phase(
    phase: list[Part], work: Path, budget: Budget, jobs: int, deadline: float, total: int, parts: list[Part]
) -> bool:
    """Runs the parts of a phase that have no result, `jobs` at a time. False: no time was left for some of them."""
    waiting = [part for part in phase if not part.file(work).exists() and not _beyond_limit(part, work)]
    if not waiting:
        return True
    if any(part.kind == "memory" for part in waiting):
        return _measure_memory(waiting, work, budget, deadline)
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the processes start
    longest = 0.0
    running: dict[Future[None], tuple[Part, float]] = {}
    # Transformers would draw a bar for every model that is saved
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), disable_progress_bar) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < jobs and time.monotonic() + longest < deadline:
                    part = waiting.pop(0)
                    running[pool.submit(run_part, part, work, budget)] = (part, time.monotonic())
                if not running:
                    return False
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    part, begin = running.pop(future)
                    future.result()
                    longest = max(longest, time.monotonic() - begin)
                    count = sum(one.file(work).exists() for one in parts)
                    print(f"{count}/{total} {part.name}: {time.monotonic() - begin:.0f} s", flush=True)
        except BaseException:  # Ctrl-C reaches the processes too, which then end their training
            for process in list((pool._processes or {}).values()):
                process.kill()  # a training would answer SIGTERM with a checkpoint, and the pool wait for it
            pool.shutdown(cancel_futures=True)
            raise
    return True


def _beyond_limit(part: Part, work: Path) -> bool:
    """Whether a smaller image already exceeded the memory limit. Writes a result that says so."""
    if part.kind != "memory":
        return False
    for file in (work / "parts").glob(f"{Part('memory', part.head, part.model).name.rpartition('--')[0]}--*.json"):
        result = json.loads(file.read_text())
        if result["seed"] < part.seed and (result["memory_bytes"] or MEMORY_LIMIT + 1) > MEMORY_LIMIT:
            write_json(part.file(work), {"kind": "memory", "model": part.model, "seed": part.seed,
                                         "memory_bytes": None, "seconds": 0, "processor_seconds": 0})  # fmt: skip
            return True
    return False


def _measure_memory(waiting: list[Part], work: Path, budget: Budget, deadline: float) -> bool:
    from .separate_process import ProcessEndedError, call_apart

    for part in waiting:
        if _beyond_limit(part, work):
            continue
        if time.monotonic() > deadline:
            return False
        try:
            call_apart(run_part, part, work, budget)
        except ProcessEndedError as error:
            if error.exit_code != -signal.SIGKILL:
                raise
            write_json(part.file(work), {"kind": "memory", "model": part.model, "seed": part.seed,
                                         "memory_bytes": None, "seconds": 0, "processor_seconds": 0})  # fmt: skip
        print(f"{part.name}", flush=True)
    return True


def _note_session(work: Path, arguments: Any) -> None:
    """Keeps command, machine and versions of every call in `sessions.json`."""
    file = work / "sessions.json"
    sessions = json.loads(file.read_text()) if file.exists() else []
    sessions.append({
        "command": ["pvt-hf", "reproduce", *sys.argv[1:]], "jobs": arguments.jobs,
        "environment": describe_environment("cpu", 1),
        "versions": versions(("transformers", "accelerate", "datasets")),
    })  # fmt: skip
    write_json(file, sessions)


def _print_pilot(parts: list[Part], work: Path) -> None:
    results = {part.head: json.loads(part.file(work).read_text()) for part in parts if part.kind == "train"}
    figures = {head: {"metric": one["metric"], "value": one["value"], "steps": one["steps"],
                      "processor_seconds": one["processor_seconds"]} for head, one in results.items()}  # fmt: skip
    write_json(work / "pilot.json", {"seed": PILOT_SEED, "results": figures})
    for head, one in figures.items():
        print(f"{head}: {one['metric']} {one['value']:.1%} after {one['steps']} steps")
