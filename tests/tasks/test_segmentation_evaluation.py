"""
Evaluation of segmenters: against Pillow, NumPy and one image at a time; each image once over two processes, in every
way of inference and under sharding, with the figures of one process; labels matched by name; skipped samples.

    pytest tests/tasks/test_segmentation_evaluation.py
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from pvt_hf import PvtForImageClassification, SemanticFpnConfig, SemanticFpnForSemanticSegmentation
from pvt_hf.data.streams import StreamError
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.models.image_processing_semantic import PvtSemanticImageProcessor, PvtSemanticImageProcessorPil
from pvt_hf.tasks.segmentation.settings import SegmentationEvaluationSettings
from pvt_hf.tasks.segmentation.task import SegmentationTask

from ..support.common import randomize, tiny_pvt_config
from ..support.training_runs import forget_accelerate
from ..support.warm_processes import ROOT
from ..support.warm_processes import run as launch


SCRIPT = ROOT / "scripts" / "evaluate_semantic_segmentation.py"
NAMES = ("sand", "water", "grass", "road", "unicorn")  # of the labels 1 to 5; there is no unicorn
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: label for label, name in enumerate(NAMES)}}
SIZES = ((40, 64), (70, 50), (33, 33), (90, 120), (64, 64), (20, 48), (55, 81))  # divides by neither 2 nor 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven images of different sizes in ADE20K's layout: 0 in a mask is no class, nor is 255."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    for folder in ("images", "annotations"):
        (root / folder / "validation").mkdir(parents=True)
    colors = np.array([(0, 0, 0), (220, 200, 120), (40, 80, 220), (40, 180, 60), (120, 120, 120)])
    for index, (height, width) in enumerate(SIZES):
        blocks = rng.integers(0, 5, (3, 4), dtype=np.uint8)
        mask = np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
        image = np.clip(colors[mask] + rng.normal(0, 30, (height, width, 3)), 0, 255).astype(np.uint8)
        mask[:2] = 255
        Image.fromarray(image).save(root / "images" / "validation" / f"{index}.png")
        Image.fromarray(mask).save(root / "annotations" / "validation" / f"{index}.png")
    return root


def files(pictures: Path) -> list[tuple[Path, Path]]:
    images = sorted((pictures / "images" / "validation").glob("*.png"))
    return [(image, pictures / "annotations" / "validation" / image.name) for image in images]


@torch.no_grad()
def save(folder: Path, pictures: Path, **config) -> Path:
    """With random weights, but logits that are centred: otherwise one class would win everywhere."""
    fields = {"fpn_channels": 16, "head_channels": 16, **LABELS, **config}
    backbone = tiny_pvt_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    model = randomize(SemanticFpnForSemanticSegmentation(SemanticFpnConfig(backbone_config=backbone, **fields)), seed=1)
    # On Pillow, as `by_hand` below
    processor = PvtSemanticImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}, do_reduce_labels=True)
    image = Image.open(files(pictures)[3][0])
    logits = model.eval()(processor(image, return_tensors="pt")["pixel_values"]).logits
    model.head.classifier.bias -= logits.mean(dim=(0, 2, 3))
    model.head.classifier.bias[4:] = -100
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fpn(tmp_path_factory, pictures):
    return save(tmp_path_factory.mktemp("fpn"), pictures)


def settings(model: Path, dataset: object, **more) -> SegmentationEvaluationSettings:
    given = {"cpu": True, "num_workers": 0, **more}
    return SegmentationEvaluationSettings(model=str(model), dataset=str(dataset), **given)


def prepare_by_hand(image: Image.Image) -> torch.Tensor:
    """Shorter side 64, longer at most 96, both up to multiples of 32, in two steps; ImageNet's normalisation."""
    factor = min(64 / min(image.size), 96 / max(image.size))
    image = image.resize(tuple(int(side * factor + 0.5) for side in image.size), Image.Resampling.BILINEAR)
    image = image.resize(tuple(-(-side // 32) * 32 for side in image.size), Image.Resampling.BILINEAR)
    pixels = (np.asarray(image) / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float()[None]


@torch.no_grad()
def by_hand(pictures: Path, model: torch.nn.Module, prepare) -> dict:
    """Figures from counts of pixels, one class and one image at a time."""
    both, either, labelled, right, total = np.zeros(5), np.zeros(5), np.zeros(5), 0, 0
    found = set()
    for image_file, mask_file in files(pictures):
        image, mask = Image.open(image_file), np.asarray(Image.open(mask_file))
        logits = model.eval()(prepare(image)).logits
        predicted = F.interpolate(logits, size=mask.shape, mode="bilinear")[0].argmax(0).numpy()
        counts = (mask > 0) & (mask < 255)
        for label in range(5):
            is_label, is_predicted = counts & (mask == label + 1), counts & (predicted == label)
            both[label] += (is_label & is_predicted).sum()
            either[label] += (is_label | is_predicted).sum()
            labelled[label] += is_label.sum()
        right, total = right + (counts & (predicted + 1 == mask)).sum(), total + counts.sum()
        found |= set(np.unique(predicted[counts]))
    assert len(found) >= 3  # otherwise a wrong map would not show
    iou = [float(b / e) if e else None for b, e in zip(both, either)]
    return {
        "iou": iou,
        "pixels": labelled.tolist(),
        "mean_iou": float(np.mean([value for value in iou if value is not None])),
        "overall_accuracy": float(right / total),
    }


def assert_figures(results: dict, expected: dict, tolerance: float = 2e-4) -> None:
    """fp32 in another order moves a pixel or two of some 20,000 from one class to the other."""
    assert results["eval_samples"] == len(SIZES) and results["eval_skipped"] == 0
    assert [row["name"] for row in results["classes"]] == list(NAMES)
    assert [row["pixels"] for row in results["classes"]] == expected["pixels"]
    for row, iou in zip(results["classes"], expected["iou"]):
        assert row["iou"] == (iou if iou is None else pytest.approx(iou, abs=tolerance))
    for name in ("mean_iou", "overall_accuracy"):
        assert results[name] == pytest.approx(expected[name], abs=tolerance)


def test_semantic_fpn(fpn, pictures, tmp_path, capsys):
    report = evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures, output=str(tmp_path / "new" / "out.json")))
    model = SemanticFpnForSemanticSegmentation.from_pretrained(fpn)
    assert_figures(report["results"], by_hand(pictures, model, prepare_by_hand), tolerance=0.03)
    assert report["reduce_labels"] is True  # the processor's
    assert report["results"]["images_per_second"] > 0
    # Absent: null in JSON, a minus sign on the terminal, and left out of the mean
    assert report["results"]["classes"][4] == {"name": "unicorn", "iou": None, "accuracy": None, "pixels": 0}
    printed = capsys.readouterr().out
    assert "unicorn       -         -              0" in printed and "single: mean_iou" in printed
    text = (tmp_path / "new" / "out.json").read_text()
    assert "NaN" not in text and json.loads(text) == json.loads(json.dumps(report))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out.json"]


def test_another_model_class_with_its_own_processor(pictures, tmp_path):
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        **LABELS,
    )  # fmt: skip
    torch.manual_seed(3)
    model = randomize(SegformerForSemanticSegmentation(config), seed=3).eval()
    processor = SegformerImageProcessor(size={"height": 64, "width": 96}, do_reduce_labels=True)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    def prepare(image):
        return processor(image, return_tensors="pt")["pixel_values"]

    report = evaluate_checkpoint(SegmentationTask(), settings(tmp_path, pictures))
    assert report["model_class"] == "SegformerForSemanticSegmentation"
    assert_figures(report["results"], by_hand(pictures, model, prepare))
    for mode in ("multi_scale", "sliding"):
        assert evaluate_checkpoint(SegmentationTask(), settings(tmp_path, pictures, mode=mode))["results"][
            "eval_samples"
        ] == len(SIZES)


MODES = [
    {"mode": "single"},
    {"mode": "multi_scale", "ratios": [0.5, 1.0, 1.5]},
    {"mode": "sliding", "window": 32, "stride": 20},
]

IN_TWO_PROCESSES = """
import json, sys
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from pvt_hf import SemanticFpnForSemanticSegmentation
from pvt_hf.data.batches import BatchStream
from pvt_hf.tasks.segmentation.samples import SegmentationEvaluationSample, collate_lists
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream
from pvt_hf.models.image_processing_semantic import PvtSemanticImageProcessorPil
from accelerate.utils import gather_object
from pvt_hf.engine.evaluation import evaluate, evaluate_checkpoint
from pvt_hf.tasks.segmentation.evaluation import SegmentationEvaluation
from pvt_hf.tasks.segmentation.settings import SegmentationEvaluationSettings
from pvt_hf.tasks.segmentation.task import SegmentationTask
from pvt_hf.tasks.segmentation.inference import SlidingWindow

class Sharded(Accelerator):
    is_fsdp2 = True  # Accelerate has no FSDP on a CPU

end_training, Accelerator.end_training = Accelerator.end_training, lambda self: None  # no more processes after that

def main(folder, pictures, modes, output):
    accelerator = Sharded(cpu=True)
    assert accelerator.num_processes == 2
    reports = [
        evaluate_checkpoint(SegmentationTask(), SegmentationEvaluationSettings(
            model=folder, dataset=pictures, cpu=True, batch_size=2, num_workers=1 if index == 0 else 0,
            max_bad_share=0.05, **mode,
        ))
        for index, mode in enumerate(json.loads(modes))
    ]
    model = SemanticFpnForSemanticSegmentation.from_pretrained(folder).eval()
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.backbone, mesh=mesh)
    fully_shard(model, mesh=mesh)
    calls = []
    model.register_forward_pre_hook(
        lambda module, args, inputs: calls.append(tuple(inputs["pixel_values"].shape)), with_kwargs=True
    )
    stream = open_segmentation_stream(pictures, "validation")
    inference = SlidingWindow(PvtSemanticImageProcessorPil.from_pretrained(folder), 32, 20)
    sample = SegmentationEvaluationSample(stream, inference, tuple(model.config.id2label.values()), True)
    batches = BatchStream(stream, sample, 1, rank=accelerator.process_index, world_size=2, collate=collate_lists)
    sharded = evaluate(accelerator, model, batches, 0, SegmentationEvaluation(inference, 5))
    calls = gather_object([list(calls)])
    if accelerator.is_main_process:
        with open(output, "w") as file:
            json.dump({"reports": reports, "sharded": sharded, "calls": calls}, file)
    end_training(accelerator)

main(*sys.argv[1:])
"""


def test_two_processes_give_the_figures_of_one(fpn, pictures, tmp_path):
    (tmp_path / "two.py").write_text(IN_TWO_PROCESSES)
    launch([tmp_path / "two.py", fpn, pictures, json.dumps(MODES), tmp_path / "two.json"], processes=2)
    two = json.loads((tmp_path / "two.json").read_text())
    figures = []
    for mode, report in zip(MODES, two["reports"], strict=True):
        one = evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures, **mode))
        assert (one["world_size"], report["world_size"]) == (1, 2)
        for each in (one, report):
            del each["results"]["images_per_second"]
        assert report["results"] == one["results"]  # integers were added up: equal to the last bit
        assert one["results"]["eval_samples"] == len(SIZES)
        figures.append(one["results"]["mean_iou"])
    assert len(set(figures)) == 3  # otherwise a mode that is not taken would not show

    # Sharded: one process has four images and the other three, each with another number of windows.
    assert two["sharded"]["mean_iou"] == pytest.approx(figures[2], abs=2e-4)
    assert two["sharded"]["eval_samples"] == len(SIZES)
    assert two["sharded"]["per_category_iou"][4] is None
    first, second = two["calls"]
    assert len(first) == len(second)
    windows = [sum(1 for shape in calls if shape != [1, 3, 64, 64]) for calls in (first, second)]
    assert windows[0] != windows[1] and max(windows) == len(first)
    starts = [[max(-(-(side - 32) // 20), 0) + 1 for side in size] for size in SIZES]
    assert sum(windows) == sum(rows * columns for rows, columns in starts)


def test_labels_are_matched_by_name(fpn, pictures, tmp_path):
    expected = evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures))["results"]
    same = evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures, class_names=",".join(NAMES)))
    assert same["results"]["mean_iou"] == expected["mean_iou"] and same["warning"] is None
    # The model's classes in another order
    order = [3, 0, 4, 1, 2]
    model = SemanticFpnForSemanticSegmentation.from_pretrained(fpn)
    for tensor in (model.head.classifier.weight, model.head.classifier.bias):
        tensor.data = tensor.data[order]
    model.config.id2label = {label: NAMES[old] for label, old in enumerate(order)}
    model.config.label2id = {name: label for label, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path)
    PvtSemanticImageProcessorPil.from_pretrained(fpn).save_pretrained(tmp_path)
    moved = evaluate_checkpoint(SegmentationTask(), settings(tmp_path, pictures, class_names=",".join(NAMES)))[
        "results"
    ]
    assert [row["name"] for row in moved["classes"]] == [NAMES[old] for old in order]
    assert moved["mean_iou"] == pytest.approx(expected["mean_iou"], abs=1e-6)
    by_number = evaluate_checkpoint(SegmentationTask(), settings(tmp_path, pictures))
    assert "have no names" in by_number["note"] and by_number["warning"] is None
    assert abs(by_number["results"]["mean_iou"] - expected["mean_iou"]) > 0.01
    with pytest.raises(ValueError, match="has 2 classes and the model 5"):
        evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures, class_names="sand,water"))


def test_unusable_samples_are_named(fpn, pictures, tmp_path, capsys):
    root = tmp_path / "pictures"
    for image, mask in files(pictures):
        for file in (image, mask):
            copy = root / file.relative_to(pictures)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    images, masks = root / "images" / "validation", root / "annotations" / "validation"
    (images / "cut.png").write_bytes(image.read_bytes()[:90])
    for name in ("cut", "alone", "small", "seven"):
        side, label = 30 if name == "small" else 40, 7 if name == "seven" else 1
        Image.new("L", (side, side), label).save(masks / f"{name}.png")
    for name in ("unmasked", "small", "seven"):
        Image.new("RGB", (40, 40)).save(images / f"{name}.png")
    with pytest.raises(StreamError, match="allowed share of 1.00%"):
        evaluate_checkpoint(SegmentationTask(), settings(fpn, root))
    report = evaluate_checkpoint(SegmentationTask(), settings(fpn, root, max_bad_share=0.05))
    expected = evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures))["results"]
    assert report["results"]["eval_samples"] == len(SIZES) and report["results"]["eval_skipped"] == 4
    assert report["results"]["mean_iou"] == expected["mean_iou"]
    reasons = {Path(name).stem: reason for name, reason in report["skipped"].items()}
    assert reasons.keys() == {"cut", "unmasked", "small", "seven"}
    assert "30x30" in reasons["small"] and "7" in reasons["seven"]
    assert "skipped " in capsys.readouterr().out


def test_the_script(fpn, pictures, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.json"
    given = ["--model", fpn, "--dataset", pictures, "--cpu", "--num_workers", 0, "--output", output]
    given += ["--mode", "multi_scale", "--no_flip", "--ratios", 0.5, 1]
    monkeypatch.setattr(sys, "argv", list(map(str, [SCRIPT, *given])))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    report = json.loads(output.read_text())
    assert report["settings"]["ratios"] == [0.5, 1.0] and report["settings"]["flip"] is False
    expected = evaluate_checkpoint(
        SegmentationTask(), settings(fpn, pictures, mode="multi_scale", ratios=[0.5, 1.0], flip=False)
    )
    assert report["results"]["mean_iou"] == expected["results"]["mean_iou"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--model", str(tmp_path / "nowhere"), "--dataset", "d", "--cpu"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "error: There is no model folder" in capsys.readouterr().err


def test_arguments_and_what_is_no_segmenter(pictures, fpn, tmp_path, capsys):
    given = ["--model", "m", "--dataset", "d"]
    for bad in (["--batch_size", "0"], ["--ratios", "0"], ["--stride", "600"], ["--num_workers", "-1"]):
        with pytest.raises(SystemExit):
            parse_arguments(SegmentationEvaluationSettings, [*given, *bad])
        assert bad[0] in capsys.readouterr().err
    assert parse_arguments(SegmentationEvaluationSettings, [*given, "--reduce_labels", "no"]).reduce_labels is False
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures, output=str(tmp_path)))
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures, mixed_precision="fp16"))
    PvtForImageClassification(tiny_pvt_config()).save_pretrained(tmp_path)
    PvtSemanticImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="PvtConfig"):
        evaluate_checkpoint(SegmentationTask(), settings(tmp_path, pictures))
    # Half-precision autocast is really on: other figures than fp32, nearly the same.
    forget_accelerate()  # which keeps the precision for the whole process
    half = evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures, mixed_precision="bf16"))["results"]
    forget_accelerate()
    whole = evaluate_checkpoint(SegmentationTask(), settings(fpn, pictures))["results"]
    assert 0 < abs(half["mean_iou"] - whole["mean_iou"]) < 0.05
