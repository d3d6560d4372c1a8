"""
Fine-tuning with Transformers' Trainer: in every task, on one process and two, the figures are those of the evaluation
scripts, the best checkpoint is kept, each image is used once, and resuming gives the same bits.

    python -m pytest tests/scripts/test_finetune.py
"""

import contextlib
import io
import json
import re
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    ConvNextImageProcessor,
    PreTrainedModel,
    ResNetForImageClassification,
)

from pvt_hf import PvtDetrImageProcessor, PvtForImageClassification, PvtImageProcessor
from pvt_hf.commands.finetune import main, parse_arguments
from pvt_hf.data.streams import StreamError
from pvt_hf.engine import finetuning
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.tasks import TASKS, get_task

from ..support.common import random_images, tiny_pvt_config
from ..support.heads import BACKBONES
from ..support.warm_processes import ROOT
from ..support.warm_processes import run as launch


SCRIPT = ROOT / "scripts" / "finetune.py"
COLORS = {"sky": (60, 90, 220), "sand": (200, 180, 60), "grass": (40, 160, 60)}


def parse(words: list[str]) -> tuple:
    """Task, settings, fine-tuning settings and Trainer's, from `TASK --argument value ...`."""
    return parse_arguments(words[0], words[1:])


# Data: three classes that a colour tells apart, an unusable sample in each split, sizes that differ


def noisy(color: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return np.clip(color + rng.normal(0, 30, shape), 0, 255).astype(np.uint8)


def write_photos(root: Path) -> None:
    """A folder for each class: 29 images and a damaged one."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for (name, color), count in zip(COLORS.items(), (9, 13, 7)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(noisy(color, (36, 44, 3), rng)).save(root / split / name / f"{index}.png")
        (root / split / "sand" / "broken.png").write_bytes(b"no image")


def write_masks(root: Path) -> None:
    """Sky above land of two kinds; the last mask has labels that are no classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("validation", 5)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count + 1):
            height, width = rng.integers(50, 90, 2)
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[height // 2 :, : width // 2], mask[height // 2 :, width // 2 :] = rng.permutation([1, 2])
            image = noisy(np.array(list(COLORS.values()))[mask], (height, width, 3), rng)
            Image.fromarray(image).save(root / "images" / split / f"{index:02}.png")
            Image.fromarray(mask + 7 * (index == count)).save(root / "annotations" / split / f"{index:02}.png")


def write_boxes(root: Path, names: tuple[str, ...], val_objects: tuple[int, ...] = (1, 2, 3)) -> None:
    """Rectangles on grey, in COCO's layout; as many on each image as `val_objects` says, in turn; a damaged image."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count, objects in (("train2017", 16, (1, 2, 3)), ("val2017", 6, val_objects)):
        images, annotations = [], []
        (root / split).mkdir()
        for index in range(count + 1):
            height, width = (64, 80) if index % 2 else (80, 64)
            pixels = noisy((128, 128, 128), (height, width, 3), rng)
            images.append({"id": 10 + index, "file_name": f"{index:02}.png", "height": height, "width": width})
            for _ in range(objects[index % len(objects)]):
                (y, x), (box_height, box_width) = rng.integers(0, 32, 2).tolist(), rng.integers(20, 32, 2).tolist()
                label = int(rng.integers(len(names)))
                color = list(COLORS.values())[label]
                pixels[y : y + box_height, x : x + box_width] = noisy(color, (box_height, box_width, 3), rng)
                box = {"bbox": [x, y, box_width, box_height], "area": box_height * box_width, "iscrowd": 0}
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": 10 + index, "category_id": label + 1, **box}
                )
            Image.fromarray(pixels).save(root / split / f"{index:02}.png")
        (root / split / f"{count:02}.png").write_bytes(b"no image")
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@dataclass
class Case:
    """A task, its data, and what a run starts from."""

    name: str
    dataset: Path
    start: list[str]
    sizes: list[str]
    eval_samples: int
    other_data: list[str]  # of other classes
    data: dict[str, str]  # arguments of training and evaluation

    def arguments(self, output: Path, *more: object, start: list[str] | None = None) -> list[str]:
        data = [part for name, value in self.data.items() for part in (f"--{name}", value)]
        given = [self.name, *(self.start if start is None else start), "--dataset", str(self.dataset)]
        fixed = ["--output_dir", str(output), "--use_cpu", "--horizontal_flip", "0"]
        return [*given, *data, *self.sizes, *fixed, *map(str, more)]

    def run(self, output: Path, *more: object, start: list[str] | None = None) -> dict:
        return finetuning.finetune(*parse(self.arguments(output, *more, start=start)))

    def evaluate(self, model: Path) -> dict:
        """The results of the evaluation script."""
        task = get_task(self.name)
        given = {"model": str(model), "dataset": str(self.dataset), "cpu": True, "num_workers": 0, **self.data}
        results = evaluate_checkpoint(task, task.evaluation_settings(**given))["results"]
        return results[0] if isinstance(results, list) else results


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Case]:
    """
    A PVT of five classes to fine-tune; a head on a ResNet whose processor has an unusual mean; a head on that PVT.
    """
    root = tmp_path_factory.mktemp("cases")
    torch.manual_seed(0)
    PvtForImageClassification(tiny_pvt_config(image_size=32, depths=[1, 1, 1, 1])).save_pretrained(root / "pvt")
    PvtImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(root / "pvt")
    ResNetForImageClassification(BACKBONES["resnet"](["stage4"])).save_pretrained(root / "resnet")
    ConvNextImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.2, 0.1]).save_pretrained(root / "resnet")
    write_photos(root / "photos")
    write_masks(root / "masks")
    write_boxes(root / "boxes", tuple(COLORS))
    write_boxes(root / "two_kinds", ("left", "right"))
    crops = ["--shortest_edge", "64", "--longest_edge", "96", "--crop_size", "64", "--min_scale", "1", "--max_scale"]
    edges = ["--shortest_edges", "64", "--eval_shortest_edge", "64", "--longest_edge", "96", "--config_overrides"]
    segmenter = json.dumps({"fpn_channels": 16, "head_channels": 8})
    detector = json.dumps({"fpn_channels": 16, "num_head_convs": 1, "prior_probability": 0.2})  # boxes from the start
    found = (
        Case("image-classification", root / "photos", ["--model", str(root / "pvt")], ["--min_scale", "1"],
             eval_samples=29, other_data=["--dataset", "digits"], data={}),
        Case("semantic-segmentation", root / "masks", ["--backbone", str(root / "resnet")],
             [*crops, "1", "--config_overrides", segmenter], eval_samples=5,
             other_data=["--class_names", "a,b,c,d"], data={"class_names": ",".join(COLORS)}),
        Case("object-detection", root / "boxes", ["--backbone", str(root / "pvt")], [*edges, detector],
             eval_samples=6, other_data=["--dataset", str(root / "two_kinds")], data={}),
    )  # fmt: skip
    return {case.name: case for case in found}


@pytest.fixture(scope="module", params=TASKS)
def case(request, cases) -> Case:
    return cases[request.param]


@dataclass
class Run:
    folder: Path
    metrics: dict
    printed: str


@pytest.fixture(scope="module")
def finetuned(case, tmp_path_factory) -> Run:
    """24 steps with an evaluation and a checkpoint after each eight."""
    folder = tmp_path_factory.mktemp("finetuned")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        metrics = case.run(
            folder, "--max_steps", 24, "--per_device_train_batch_size", 4, "--learning_rate", 3e-3,
            "--eval_steps", 8, "--save_steps", 8, "--save_total_limit", 3,
        )  # fmt: skip
    return Run(folder, metrics, printed.getvalue())


def weights(folder: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / file)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def logged(folder: Path, name: str) -> dict[int, float]:
    """A metric by step, as it was in training: after the last step follows the best checkpoint's."""
    found: dict[int, float] = {}
    for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]:
        if name in entry:
            found.setdefault(entry["step"], entry[name])
    return found


def assert_figures_of_the_evaluation(metrics: dict, evaluated: dict) -> None:
    figures = {f"eval_{name.removeprefix('eval_')}": value for name, value in evaluated.items()}
    shared = figures.keys() & metrics.keys()
    assert len(shared) >= 4
    for name in shared:  # counts are equal; a loss in fp32 is rounded otherwise in batches of another size
        assert metrics[name] == pytest.approx(figures[name], abs=1e-6 if name == "eval_loss" else 1e-9), name


# One process


def test_the_figures_are_those_of_the_evaluation(case, finetuned):
    evaluated = case.evaluate(finetuned.folder)
    assert_figures_of_the_evaluation(finetuned.metrics, evaluated)
    assert finetuned.metrics["eval_samples"] == case.eval_samples
    figure = {"image-classification": "accuracy@1", "semantic-segmentation": "mean_iou", "object-detection": "ar100"}
    assert finetuned.metrics[f"eval_{figure[case.name]}"] > 0.1  # there is something to compare
    written = json.loads((finetuned.folder / "all_results.json").read_text())
    assert written.items() >= finetuned.metrics.items()
    if case.name == "semantic-segmentation":
        assert finetuned.metrics["eval_per_category_iou"] == [row["iou"] for row in evaluated["classes"]]


def test_the_best_checkpoint_is_kept(case, finetuned):
    name = f"eval_{get_task(case.name).best_metric}"
    figures = logged(finetuned.folder, name)
    assert figures.keys() == {8, 16, 24}
    state = json.loads((finetuned.folder / "trainer_state.json").read_text())
    assert finetuned.metrics[name] == state["best_metric"] == max(figures.values())
    best = max(figures, key=figures.get)
    assert Path(state["best_model_checkpoint"]).name == f"checkpoint-{best}"
    assert equal(weights(finetuned.folder), weights(finetuned.folder / f"checkpoint-{best}"))


def test_unusable_samples_are_named_and_counted(case, finetuned):
    """In each split there is one. How often that of the training split is read depends on the passes."""
    reason = "labels 7, 8, 9" if case.name == "semantic-segmentation" else "no image that Pillow reads"
    lines = [line for line in finetuned.printed.splitlines() if line.startswith("skipped ")]
    assert all(reason in line for line in lines)
    assert len([line for line in lines if "/val" in line]) == 1  # named once, in three evaluations
    assert finetuned.metrics["eval_skipped"] == 1
    skipped = json.loads((finetuned.folder / "all_results.json").read_text())["train_skipped"]
    assert skipped == len(lines) - 1 >= 3


def test_the_model_opens_with_its_classes_and_processor(case, finetuned):
    model = get_task(case.name).auto_class.from_pretrained(finetuned.folder)
    names = sorted(COLORS) if case.name == "image-classification" else COLORS
    assert model.config.id2label == dict(enumerate(names))
    processor = AutoImageProcessor.from_pretrained(finetuned.folder)
    if case.name == "image-classification":
        assert processor.size["height"] == 32  # the checkpoint's
    elif case.name == "semantic-segmentation":
        assert model.config.backbone_config.model_type == "resnet" and "tensors loaded" in finetuned.printed
        assert (*processor.image_mean, *processor.image_std) == (0.4, 0.5, 0.6, 0.3, 0.2, 0.1)  # the ResNet's
    else:
        assert model.config.backbone_config.depths == [1, 1, 1, 1] and processor.size["shortest_edge"] == 64


def test_a_model_of_other_classes(case, finetuned, tmp_path):
    few = ("--max_steps", 1, "--per_device_train_batch_size", 2, "--eval_steps", 1, "--save_steps", 1)
    case.run(tmp_path, *few, *case.other_data, start=["--model", str(finetuned.folder)])
    config = get_task(case.name).auto_class.from_pretrained(tmp_path).config
    names = {"image-classification": "0123456789", "semantic-segmentation": "abcd"}.get(case.name, ("left", "right"))
    assert config.id2label == dict(enumerate(names))


def test_a_checkpoint_without_all_weights_is_refused(case, finetuned, tmp_path):
    AutoImageProcessor.from_pretrained(finetuned.folder).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((finetuned.folder / "config.json").read_text())
    tensors = weights(finetuned.folder)
    del tensors[max(name for name in tensors if name.endswith(".bias"))]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is not a complete .* it has no weights for "):
        case.run(tmp_path / "out", start=["--model", str(tmp_path)])


def test_too_many_unusable_samples_end_the_run(case, tmp_path):
    with pytest.raises(StreamError, match=r"1 of \d+ samples of .* more than the allowed share of 0.50%"):
        case.run(tmp_path, "--max_steps", 20, "--per_device_train_batch_size", 4, "--max_bad_share", 0.005)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("image-classification", ("--mixup", 0.8, "--drop_path_rate", 0.5, "--dataloader_num_workers", 2)),
        ("image-classification", ("--lora_rank", 2)),
        ("semantic-segmentation", ("--gradient_accumulation_steps", 2)),
        ("object-detection", ()),
    ],
)
def test_resuming_gives_the_same_bits(cases, name, more, tmp_path):
    """From the middle of a pass and from its end; with random numbers in the model and, mixing, in the loss."""
    case = cases[name]
    file = "adapter_model.safetensors" if "--lora_rank" in more else "model.safetensors"
    fixed = (
        "--max_steps", 9, "--per_device_train_batch_size", 4, "--learning_rate", 3e-3, "--shuffle_window", 8,
        "--eval_strategy", "no", "--load_best_model_at_end", False, "--save_steps", 1, "--save_total_limit", 20, *more,
    )  # fmt: skip
    case.run(tmp_path / "straight", *fixed)
    epochs = {}
    for step in range(1, 10):
        position = torch.load(tmp_path / "straight" / f"checkpoint-{step}" / "stream_0.pt", weights_only=True)
        epochs.setdefault(position["epoch"], step)
    middle, end = 1, epochs[1] - 1
    assert end - middle >= 1
    for step in (middle, end):
        checkpoint = tmp_path / "straight" / f"checkpoint-{step}"
        case.run(tmp_path / f"from_{step}", *fixed, "--resume_from_checkpoint", checkpoint)
        assert equal(weights(tmp_path / f"from_{step}", file), weights(tmp_path / "straight", file)), step
    assert not equal(weights(tmp_path / "straight", file), weights(tmp_path / "straight" / "checkpoint-8", file))


def detr_like(name: str, stages: list[str]) -> PreTrainedModel:
    """A small detector of Transformers, on a PVT, whose files have other names than the model."""
    small = {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "num_queries": 12,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "id2label": dict(enumerate(COLORS)),
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        backbone_config=tiny_pvt_config(out_features=stages, depths=[1, 1, 1, 1]), **small
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForObjectDetection")(config)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("Detr", ["stage4"]),
        ("ConditionalDetr", ["stage4"]),
        ("DeformableDetr", ["stage1", "stage2", "stage3", "stage4"]),
    ],
)
@pytest.mark.slow
def test_every_tensor_of_a_renamed_model_is_loaded(cases, name, stages, tmp_path):
    """The best checkpoint's at the end, and those of the checkpoint that a run resumes from."""
    model = detr_like(name, stages)
    model.save_pretrained(tmp_path / "start")
    PvtDetrImageProcessor().save_pretrained(tmp_path / "start")
    case, start = cases["object-detection"], ["--model", str(tmp_path / "start")]
    fixed = (
        "--config_overrides", "{}", "--per_device_train_batch_size", 2, "--learning_rate", 1e-3, "--eval_steps", 1,
        "--save_steps", 1, "--save_total_limit", 5, "--max_steps",
    )  # fmt: skip
    out, again = tmp_path / "out", tmp_path / "again"
    case.run(out, *fixed, 3, start=start)
    best = Path(json.loads((out / "trainer_state.json").read_text())["best_model_checkpoint"])

    def opened(folder: Path) -> dict[str, torch.Tensor]:
        return type(model).from_pretrained(folder).state_dict()

    assert equal(opened(out), opened(best))
    if best.name != "checkpoint-3":
        assert not equal(opened(out), opened(out / "checkpoint-3"))
    assert weights(best).keys() != opened(best).keys()
    case.run(again, *fixed, 3, "--resume_from_checkpoint", out / "checkpoint-2", start=start)
    assert equal(opened(again / "checkpoint-3"), opened(out / "checkpoint-3"))


def test_undefined_figures_are_null(cases, tmp_path):
    """No object is large, so the AP of large ones is undefined: null in the file of results, and not in the log."""
    case = cases["object-detection"]
    metrics = case.run(tmp_path / "out", "--max_steps", 1, "--per_device_train_batch_size", 2)
    assert metrics["eval_ap"] is not None and metrics["eval_ap_large"] is None
    assert json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_ap_large"] is None
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "eval_ap" in entry]
    assert logged and not any("eval_ap_large" in entry for entry in logged)


def test_lora_and_the_choice_of_the_best(cases, tmp_path):
    """Called "best" is here what has the highest loss: the first of three, and not the last."""
    case, out, file = cases["image-classification"], tmp_path / "out", "adapter_model.safetensors"
    metrics = case.run(
        out, "--num_train_epochs", 3, "--per_device_train_batch_size", 5, "--learning_rate", 1e-2, "--lora_rank", 4,
        "--eval_steps", 6, "--save_steps", 6, "--save_total_limit", 3, "--metric_for_best_model", "loss",
        "--greater_is_better", "True",
    )  # fmt: skip
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["max_steps"] == state["global_step"] == 18  # 30 files, in batches of 5, three times
    losses = logged(out, "eval_loss")
    best = max((6, 12, 18), key=losses.get)
    assert best != 18 and Path(state["best_model_checkpoint"]).name == f"checkpoint-{best}"
    assert equal(weights(out, file), weights(out / f"checkpoint-{best}", file))
    assert not equal(weights(out, file), weights(out / "checkpoint-18", file))
    assert not (out / "model.safetensors").exists()

    assert_figures_of_the_evaluation(metrics, case.evaluate(out / "merged"))
    merged = PvtForImageClassification.from_pretrained(out / "merged").eval()
    fresh = PvtForImageClassification.from_pretrained(case.start[1], num_labels=3, ignore_mismatched_sizes=True)
    adapted = PeftModel.from_pretrained(fresh, out).eval()
    with torch.no_grad():  # W x + B (A x) and (W + B A) x, rounded apart
        images = random_images(2, 32, 32)
        torch.testing.assert_close(adapted(images).logits, merged(images).logits, atol=1e-4, rtol=1e-4)


def test_lora_is_for_classifiers(cases, tmp_path):
    with pytest.raises(ValueError, match="SemanticFpnForSemanticSegmentation has no layer `classifier`"):
        cases["semantic-segmentation"].run(tmp_path, "--max_steps", 1, "--lora_rank", 4)


def test_models_of_other_channels_are_refused(cases, tmp_path):
    PvtForImageClassification(tiny_pvt_config(num_channels=6)).save_pretrained(tmp_path)
    PvtImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"images of 6 channels \(num_channels\), but images are read as RGB here"):
        cases["image-classification"].run(tmp_path / "out", "--max_steps", 1, start=["--model", str(tmp_path)])


def test_a_stream_of_unknown_length_needs_max_steps(cases, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        with tarfile.open(tmp_path / split / "00.tar", "w") as tar:
            for index in range(6):
                picture = io.BytesIO()
                Image.new("RGB", (40, 40), (40 * index, 0, 0)).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("cls", str(index % 2).encode())):
                    entry = tarfile.TarInfo(f"{index:03d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    case, few = cases["image-classification"], ("--dataset", tmp_path, "--per_device_train_batch_size")
    names = ("--class_names", "even,odd")
    with pytest.raises(ValueError, match="does not say how many samples it has: give --max_steps"):
        case.run(tmp_path / "out", *few, 2, *names)
    with pytest.raises(StreamError, match=r"does not fill 1 batch\(es\) of 7 on each of 1 process"):
        case.run(tmp_path / "out", *few, 7, *names, "--max_steps", 5)
    metrics = case.run(tmp_path / "out", *few, 2, *names, "--max_steps", 5, "--eval_steps", 5, "--save_steps", 5)
    assert metrics["eval_samples"] == 6 and "eval_accuracy@2" not in metrics  # after more than one pass


def test_nothing_to_learn_is_refused(cases, tmp_path):
    """In training or in evaluation, before anything is written."""
    case, data = cases["object-detection"], tmp_path / "crowds"
    for split in ("val2017", "train2017"):
        shutil.copytree(case.dataset, data, dirs_exist_ok=True)
        file = data / "annotations" / f"instances_{split}.json"
        file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
        purpose = "learn from" if split == "train2017" else "evaluate"
        with pytest.raises(ValueError, match=rf"has nothing to {purpose}: all its \d+ objects .* crowds"):
            case.run(tmp_path / "out", "--dataset", data, "--max_steps", 2)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_share_can_be_held_out(cases, tmp_path):
    """Of 30 training files, and no file is both trained on and evaluated on."""
    case = cases["image-classification"]
    task, settings, options, training = parse(
        case.arguments(tmp_path, "--eval_share", 0.3, "--max_steps", 1, "--eval_split", "nowhere")
    )
    trainer = finetuning.make_trainer(task, settings, options, training)
    trained, evaluated = (
        {name for batch in batches for name in batch.get("sample_ids", ())}
        for batches in (trainer.train_dataset.batches, trainer.eval_dataset)
    )
    assert 3 <= len(evaluated) <= 15 and not trained & evaluated
    assert all("/train/" in name for name in evaluated)


def test_classes_that_differ_between_the_splits(cases, tmp_path):
    for split, name in (("train", "apple"), ("train", "leaf"), ("validation", "apple"), ("validation", "pear")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / split / name / "0.png")
    with pytest.raises(ValueError, match=r"other classes than the training split.*: only in .* \['pear'\], only"):
        cases["image-classification"].run(tmp_path / "out", "--dataset", tmp_path, "--max_steps", 1)


def test_one_process_with_several_gpus_is_refused(cases, tmp_path):
    task, settings, options, training = parse(cases["image-classification"].arguments(tmp_path))
    training._n_gpu = 2
    with pytest.raises(ValueError, match="One process sees 2 GPUs: start one process for each, .*-m pvt_hf finetune"):
        finetuning.finetune(task, settings, options, training)


# Arguments


def test_defaults_can_be_overridden(case, tmp_path):
    task, _, options, training = parse(case.arguments(tmp_path))
    assert training.load_best_model_at_end and training.greater_is_better and training.report_to == []
    assert training.metric_for_best_model == task.best_metric
    assert training.per_device_eval_batch_size == (64 if case.name == "image-classification" else 1)
    assert options.shuffle_window == 1000 and options.lora_rank == 0
    given = ("--load_best_model_at_end", "False", "--eval_strategy", "no", "--metric_for_best_model", "loss")
    training = parse(case.arguments(tmp_path, *given))[-1]
    assert not training.load_best_model_at_end and training.eval_strategy == "no" and not training.greater_is_better


def test_help_begins_with_the_arguments_of_the_task(capsys):
    for name in TASKS:
        with pytest.raises(SystemExit):
            parse_arguments(name, ["--help"])
        text = capsys.readouterr().out
        places = [text.index(f"\n  --{word}") for word in ("dataset", "shuffle_window", "per_device_train_batch_size")]
        assert places == sorted(places) and text.index("\n  --model") < places[1]


def test_the_task_is_the_first_argument(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pvt-hf finetune"])
    with pytest.raises(SystemExit) as exit:
        main()
    text = capsys.readouterr().out
    assert exit.value.code == 0 and all(name in text for name in TASKS) and "torchrun" in text
    monkeypatch.setattr(sys, "argv", ["pvt-hf finetune", "--model", "a"])
    with pytest.raises(SystemExit):
        main()
    assert re.search("one of image-classification, .*; got --model", capsys.readouterr().err)


def test_there_has_to_be_something_to_finetune(case, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(case.arguments(tmp_path, start=[]))
    message = "required: --model" if case.name == "image-classification" else "nothing to fine-tune: give --model, or"
    assert message in capsys.readouterr().err


# Two processes


@dataclass
class TwoProcesses:
    """What both processes recorded, by run, and where each run wrote."""

    first: dict[str, dict]
    second: dict[str, dict]
    folder: Path


@pytest.fixture(scope="module")
def two(cases, tmp_path_factory) -> TwoProcesses:
    """Four steps of every task, the last two again after a resume; and data that one of the processes cannot read."""
    root, runs = tmp_path_factory.mktemp("two"), {}
    fixed = (
        "--max_steps", 4, "--per_device_train_batch_size", 2, "--learning_rate", 3e-3, "--shuffle_window", 8,
        "--eval_steps", 2, "--save_steps", 2, "--load_best_model_at_end", False,
    )  # fmt: skip
    for name, case in cases.items():
        runs[name] = case.arguments(root / name, *fixed)
        checkpoint = root / name / "checkpoint-2"
        runs[f"{name}/resumed"] = case.arguments(
            root / f"{name}-resumed", *fixed, "--resume_from_checkpoint", checkpoint
        )
    for label in ("left", "right"):
        (root / "damaged" / label).mkdir(parents=True)
    for index in range(8):  # every other one goes to the second process
        for label in ("left", "right"):
            file = root / "damaged" / label / f"{index}.png"
            Image.new("RGB", (32, 32)).save(file)
            if index % 2:
                file.write_bytes(b"no image")
    classifier = cases["image-classification"]
    damaged = ("--dataset", root / "damaged", "--eval_share", 0.5, "--shuffle_window", 0)
    runs["damaged"] = classifier.arguments(root / "out", *fixed, *damaged)
    for name, batch_size, accumulation in (("halves", 4, 1), ("quarters", 2, 2)):
        runs[name] = classifier.arguments(root / name, *SUMS, *per_step(batch_size, accumulation))
    (root / "runs.json").write_text(json.dumps(runs))
    launch(["-m", "tests.support.finetune_processes", root / "runs.json", root], processes=2, timeout=120)
    return TwoProcesses(*(json.loads((root / f"rank{rank}.json").read_text()) for rank in (0, 1)), root)


def test_two_processes_use_each_image_once(case, two):
    """In whole batches, which Accelerate has neither cut nor sent from one process to the other."""
    runs = two.first[case.name], two.second[case.name]
    assert [run["world_size"] for run in runs] == [2, 2]
    batches = [batch for run in runs for batch in run["batches"]]
    assert [batch["images"] for batch in batches] == [2] * 8
    first_pass = [name for run in runs for batch in run["batches"][:3] for name in batch["names"]]
    assert len(set(first_pass)) == 12  # a process may have no more than seven usable ones
    if case.name == "object-detection":  # image 10 + i has 1 + i % 3 objects
        assert [batch["objects"] for batch in batches] == [
            [1 + (int(name) - 10) % 3 for name in batch["names"]] for batch in batches
        ]


def test_two_processes_evaluate_each_image_once_and_the_model_that_is_saved(case, two):
    """
    The numbers of evaluation images do not divide by two. In the segmenter each process has BatchNorm's statistics of
    its own images.
    """
    metrics = two.first[case.name]["metrics"]
    assert metrics == two.second[case.name]["metrics"]
    assert (metrics["eval_samples"], metrics["eval_skipped"]) == (case.eval_samples, 1)
    assert_figures_of_the_evaluation(metrics, case.evaluate(two.folder / case.name))
    best = get_task(case.name).best_metric
    figures = logged(two.folder / case.name, f"eval_{best}")
    assert figures.keys() == {2, 4}
    for step, figure in figures.items():
        assert case.evaluate(two.folder / case.name / f"checkpoint-{step}")[best] == pytest.approx(figure, abs=1e-9)


def test_two_processes_resume_with_the_same_bits(case, two):
    straight, resumed = two.folder / case.name, two.folder / f"{case.name}-resumed"
    for part in (two.first, two.second):
        assert part[f"{case.name}/resumed"]["batches"] == part[case.name]["batches"][2:]
    assert equal(weights(resumed), weights(straight))
    assert not equal(weights(straight), weights(straight / "checkpoint-2"))


def test_a_checkpoint_of_another_number_of_processes_is_refused(cases, two, tmp_path):
    checkpoint = two.folder / "image-classification" / "checkpoint-2"
    few = ("--per_device_train_batch_size", 2, "--shuffle_window", 8, "--max_steps", 4)
    with pytest.raises(FileNotFoundError, match="it has no rng_state.pth: it was saved by another number"):
        cases["image-classification"].run(tmp_path, *few, "--resume_from_checkpoint", checkpoint)
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(FileNotFoundError, match="it has no stream_0.pt: it was saved by another number"):
        cases["image-classification"].run(tmp_path, *few, "--resume_from_checkpoint", tmp_path / "checkpoint-2")


def test_an_error_of_one_process_ends_both(two):
    assert "another process could not read its part" in two.first["damaged"]["error"]
    assert "cannot be used, more than the allowed share of 1.00%" in two.second["damaged"]["error"]


SUMS = (
    "--max_steps", 2, "--shuffle_window", 0, "--optim", "sgd", "--learning_rate", 0.1, "--max_grad_norm", 0,
    "--drop_path_rate", 0, "--eval_strategy", "no", "--load_best_model_at_end", False, "--save_steps", 2,
)  # fmt: skip


def per_step(batch_size: int, accumulation: int) -> tuple[object, ...]:
    return "--per_device_train_batch_size", batch_size, "--gradient_accumulation_steps", accumulation


def test_a_step_is_the_mean_over_all_its_images(cases, two, tmp_path):
    """One batch of 8, two on two processes, and four on two processes, accumulated."""
    cases["image-classification"].run(tmp_path, *SUMS, *per_step(8, 1))
    for name in ("halves", "quarters"):
        for key, tensor in weights(two.folder / name).items():  # sums in other orders
            torch.testing.assert_close(tensor, weights(tmp_path)[key], atol=1e-6, rtol=1e-4)
