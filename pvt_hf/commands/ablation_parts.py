"""
The parts of `pvt-hf reproduce ablations`. A part is one training or measurement; its result is one JSON file, and a
part with a file is not run again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, set_seed
from transformers.backbone_utils import BackboneMixin

from ..engine.evaluation import evaluate_checkpoint
from ..engine.recipes import find_recipe, read_recipe
from ..engine.run import train
from ..families import FAMILIES, load
from ..metrics.reports import write_json
from ..tasks import evaluation_settings, get_task, training_settings
from .ablation_models import DIGIT_SIZE, RECIPES, SCENE_SIZE, backbone_config, builder, sizes
from .benchmark_models import peak_resident_bytes


TASKS = {"classification": "image-classification", "segmentation": "semantic-segmentation",
         "detection": "object-detection"}  # fmt: skip
METRICS = {"pvt": "accuracy@1", "semantic_fpn": "mean_iou", "trans2seg": "mean_iou", "retinanet": "ap50",
           "detr": "ap50"}  # fmt: skip
# (of neck and head, of the backbone): others than those of the digit recipes, whose trainings are longer
LEARNING_RATES = {"semantic_fpn": (3e-3, 5e-4), "trans2seg": (3e-3, 5e-4)}
STARTS_FROM = {"semantic_fpn": "pvt", "retinanet": "pvt", "trans2seg": "semantic_fpn", "detr": "retinanet"}
TEST_SIZES = (32, 48, 64, 80, 96, 128)  # of classifiers that were trained at 64 pixels
SEGMENTED_SIZE = 144  # of scenes in pixels, as segmentation models see them
MEMORY_LIMIT = 4 * 2**30
PILOT_SEED = 1000  # not one of those that are compared


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        kind: "speed" (a few steps, to count how many fit into the budget), "train", "sizes" or "memory".
        head: "pvt" for a classifier, or a family with a head.
        model: the backbone's name in `ablation_models.py`.
        start: "scratch" or "pretrained" (the backbone of a model of the same backbone and seed, see `STARTS_FROM`).
        seed: of weights, order and augmentation; of "memory" the image's side in pixels.
        equal_steps: train for as many steps as plain PVT, and not for the same time.
    """

    kind: str
    head: str
    model: str
    start: str = "scratch"
    seed: int = 0
    equal_steps: bool = False

    @property
    def name(self) -> str:
        words = (self.kind, self.head, self.model, self.start, str(self.seed))
        return "--".join(words).replace(", ", "-").replace(" ", "-").replace("/", "-")

    def file(self, work: Path) -> Path:
        return work / "parts" / f"{self.name}.json"


@dataclass(frozen=True)
class Budget:
    """
    Attributes:
        seconds: processor time of one training by head; empty: `steps` steps.
        seeds: of each training.
        steps: see `seconds`.
        memory_sizes: sides of images in pixels.
    """

    seconds: dict[str, float]
    seeds: tuple[int, ...]
    steps: int
    memory_sizes: tuple[int, ...]


BUDGETS = {
    "small": Budget(
        {"pvt": 20, "semantic_fpn": 75, "trans2seg": 75, "retinanet": 40, "detr": 100}, (0, 1, 2), 0,
        (64, 128, 192, 224, 256, 288, 320, 352, 384),
    ),
    "smoke": Budget({}, (0,), 2, (64,)),
}  # fmt: skip


def run_part(part: Part, work: Path, budget: Budget) -> None:
    """
    Runs a part and writes its file.

    Raises:
        InterruptedError: a signal stopped the training. Nothing was written.
    """
    torch.set_num_threads(1)
    start, processor_start = time.perf_counter(), time.process_time()
    runners = {"speed": _speed, "train": _train, "sizes": _test_sizes, "memory": _memory}
    result = runners[part.kind](part, work, budget)
    result |= {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor_start}
    write_json(part.file(work), {**asdict(part), **result})


def steps_for(part: Part, work: Path, budget: Budget) -> int:
    """Steps of a training: those that fit into the budget by the speed that was measured before."""
    if not budget.seconds:
        return budget.steps
    model = "PVT" if part.equal_steps else part.model
    speed = json.loads(Part("speed", part.head, model).file(work).read_text())["steps_per_second"]
    return max(20, round(budget.seconds[part.head] * speed))


def _speed(part: Part, work: Path, budget: Budget) -> dict[str, Any]:
    report = _run_training(part, work, steps=16)
    return {"steps_per_second": report["images_per_second"] / report["settings"]["batch_size"]}


def _train(part: Part, work: Path, budget: Budget) -> dict[str, Any]:
    steps = steps_for(part, work, budget)
    start = time.process_time()
    evaluations = 4 if part.model == "PVT" and budget.seconds else 1  # curves for question 3
    report = _run_training(part, work, steps, evaluations)
    curve = [(one["step"], one[METRICS[part.head]]) for one in report["history"] if METRICS[part.head] in one]
    return {
        "metric": METRICS[part.head], "value": report["metrics"][METRICS[part.head]], "metrics": report["metrics"],
        "curve": curve, "steps": steps, "batch_size": report["settings"]["batch_size"],
        "training_seconds": time.process_time() - start, **sizes(part.head, part.model),
    }  # fmt: skip


def _run_training(part: Part, work: Path, steps: int, evaluations: int = 1) -> dict[str, Any]:
    """One training with the engine; the model is kept where another part needs it. Returns its report."""
    folder = work / "models" / part.name
    shutil.rmtree(folder, ignore_errors=True)
    family = FAMILIES[part.head]
    set_seed(part.seed)
    model: Any = builder(part.head, part.model)()
    if part.start == "pretrained":
        _copy_backbone(part, work, model)
    model.save_pretrained(folder / "initial")
    _processor(part.head).save_pretrained(folder / "initial")
    fields = read_recipe(find_recipe(RECIPES[part.head]))
    for name in ("config_overrides", "backbone_overrides", "out_features", "backbone_learning_rate", "base"):
        fields.pop(name, None)
    batch = int(fields["batch_size"])
    fields |= {
        "model": str(folder / "initial"), "output_dir": str(folder / "run"), "seed": part.seed, "cpu": True,
        "max_steps": steps, "samples_per_epoch": batch * max(1, -(-steps // evaluations)), "eval_every_epochs": 1,
        "warmup_steps": max(1, steps // 10), "num_workers": 0, "save_total_limit": 1, "channels_last": False,
        "shuffle_window": 200, "drop_path_rate": 0.0,
        **_image_fields(part.head),
    }  # fmt: skip
    if part.head in LEARNING_RATES:
        fields["learning_rate"], fields["backbone_learning_rate"] = LEARNING_RATES[part.head]
    settings: Any = training_settings(TASKS[family.task])(**fields)
    with (folder / "log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        report = train(get_task(TASKS[family.task]), settings)
    if report["interrupted"]:
        raise InterruptedError(f"{part.name} was interrupted by {report['interrupted']}")
    for checkpoint in (folder / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if part.kind != "train" or part.head not in STARTS_FROM.values():
        shutil.rmtree(folder)
    return report


def _copy_backbone(part: Part, work: Path, model: nn.Module) -> None:
    """
    Copies the weights of the backbone that `part` starts from. It is of another class with the same names, or has more
    stages. Blocks of global context, which the classifier does not have, keep their initial weights.
    """
    head = STARTS_FROM[part.head]
    before = Part("train", head, part.model, "scratch" if head == "pvt" else "pretrained", part.seed)
    folder = work / "models" / before.name / "run"
    trained: Any = builder(head, part.model)()
    trained = type(trained).from_pretrained(folder)
    weights = (trained.base_model if head == "pvt" else _backbone_of(trained)).state_dict()
    found = _backbone_of(model).load_state_dict(weights, strict=False)
    if any(".layer.2." not in name for name in found.missing_keys):
        raise ValueError(f"{folder} has no weights for {', '.join(found.missing_keys)}.")


def _backbone_of(model: nn.Module) -> nn.Module:
    (backbone,) = (module for module in model.modules() if isinstance(module, BackboneMixin))
    return backbone


def _image_fields(head: str) -> dict[str, Any]:
    if head == "pvt":
        return {"image_size": DIGIT_SIZE}
    scenes: dict[str, Any] = {"scene_size": SCENE_SIZE, "digit_sizes": [36, 44], "longest_edge": 512}
    if FAMILIES[head].task == "segmentation":  # crops of scenes that are enlarged, for the cells of the logits
        return {**scenes, "shortest_edge": SEGMENTED_SIZE, "crop_size": SCENE_SIZE, "min_scale": 1.0, "max_scale": 1.0}
    return {**scenes, "shortest_edges": [SCENE_SIZE], "eval_shortest_edge": SCENE_SIZE}


def _processor(head: str) -> Any:
    processor_class: Any = load(FAMILIES[head].processor)
    if head == "pvt":
        side = DIGIT_SIZE
        return processor_class(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    side = SEGMENTED_SIZE if FAMILIES[head].task == "segmentation" else SCENE_SIZE
    return processor_class(size={"shortest_edge": side, "longest_edge": 512})


def _test_sizes(part: Part, work: Path, budget: Budget) -> dict[str, Any]:
    """Accuracy of a trained classifier at other sizes; and what Transformers' own class does at each."""
    from transformers.models.pvt.modeling_pvt import PvtForImageClassification as NativePvt

    folder = work / "models" / Part("train", "pvt", part.model, seed=part.seed).name / "run"
    settings: Any = evaluation_settings("image-classification")(
        model=str(folder), dataset="digits", split="test", image_sizes=list(TEST_SIZES), crop_ratio=1.0, cpu=True,
        num_workers=0,
    )  # fmt: skip
    with (work / "sizes.log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        results = evaluate_checkpoint(get_task("image-classification"), settings)["results"]
        native = NativePvt.from_pretrained(folder).eval()
    answers = {}
    for size in TEST_SIZES:
        try:
            with torch.no_grad():
                native(torch.zeros(1, 3, size, size))
            answers[str(size)] = "runs"
        except (RuntimeError, ValueError) as error:
            answers[str(size)] = f"refuses: {str(error).splitlines()[0]}"
    return {"accuracy": {str(one["height"]): one["accuracy@1"] for one in results}, "native": answers}


def _memory(part: Part, work: Path, budget: Budget) -> dict[str, Any]:
    """Peak memory of one forward and backward pass of a backbone with one image, with eager attention."""
    size = part.seed
    config = backbone_config(part.model)
    config._attn_implementation = "eager"
    model: Any = AutoBackbone.from_config(config, attn_implementation="eager").train()

    def step(side: int) -> None:
        maps = model(torch.zeros(1, 3, side, side)).feature_maps
        sum(one.mean() for one in maps).backward()

    step(64)  # gradients are there, and libraries loaded
    return {"memory_bytes": peak_resident_bytes(lambda: step(size))}
