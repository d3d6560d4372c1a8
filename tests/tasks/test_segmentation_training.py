"""
Training for semantic segmentation on a folder of images and masks: what a run leaves behind and its figures against a
count over the reloaded model, exact resume after it breaks off, both heads, steps instead of epochs, synchronised
BatchNorm, and the arguments.

    pytest tests/tasks/test_segmentation_training.py
    pytest tests/tasks/test_segmentation_training.py -m slow    # two processes
"""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from pvt_hf import PvtForImageClassification
from pvt_hf.engine import run as engine_run
from pvt_hf.engine.optimizer import make_schedule, parameter_groups
from pvt_hf.engine.processes import synchronize_batch_norm
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.models.image_processing_semantic import PvtSemanticImageProcessor
from pvt_hf.tasks.ade20k import ADE20K_CLASS_NAMES
from pvt_hf.tasks.labels import read_class_names
from pvt_hf.tasks.segmentation import task as segmentation
from pvt_hf.tasks.segmentation.settings import ARCHITECTURES, SegmentationSettings
from pvt_hf.tasks.segmentation.task import SegmentationTask

from ..support.common import TINY, tiny_pvt_config
from ..support.training_runs import assert_equal_weights, forget_accelerate, weights
from ..support.warm_processes import ROOT
from ..support.warm_processes import run as run_script


SMALL_HEAD = {"semantic_fpn": {"fpn_channels": 16, "head_channels": 16}}
SMALL_HEAD["trans2seg"] = {
    "hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 2, "head_channels": 8,
}  # fmt: skip
TRAIN, EVAL = 26, 5


TASK = SegmentationTask()


def write_images(folder, masks, count: int, seed: int) -> None:
    """A rectangle of red or of blue on a grey ground: labels 2, 3 and 1; a frame of 0."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    masks.mkdir(parents=True)
    for index in range(count):
        height, width = (int(side) for side in rng.integers(34, 60, 2))
        labels = np.ones((height, width), dtype=np.uint8)
        top, left, label = int(rng.integers(2, 10)), int(rng.integers(2, 10)), 2 + index % 2
        labels[top : top + 20, left : left + 20] = label
        labels[:2], labels[:, :2] = 0, 0
        pixels = np.array([[20, 20, 20], [128, 128, 128], [220, 30, 30], [30, 30, 220]])[labels]
        pixels = np.clip(pixels + rng.normal(0, 10, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.jpg")
        Image.fromarray(labels).save(masks / f"{index:02d}.png")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_images(root / "images" / "training", root / "annotations" / "training", TRAIN, 0)
    write_images(root / "images" / "validation", root / "annotations" / "validation", EVAL, 1)
    (root / "annotations" / "validation" / "04.png").unlink()
    return root


def settings_for(scenes, output_dir, architecture="semantic_fpn", **overrides) -> dict:
    """Three epochs of three steps, of which max_steps cuts the last; every random part is on."""
    return {
        "output_dir": str(output_dir), "dataset": str(scenes), "class_names": "ground,red,blue", "reduce_labels": True,
        "architecture": architecture, "config_overrides": json.dumps(SMALL_HEAD[architecture]),
        "backbone_overrides": json.dumps(TINY), "crop_size": 64, "shortest_edge": 64, "longest_edge": 256,
        "drop_path_rate": 0.2, "max_steps": 8, "batch_size": 8, "schedule": "poly", "learning_rate": 2e-3,
        "min_learning_rate": 0.0, "warmup_epochs": 0, "decay_all": True, "num_workers": 0, "shuffle_window": 8,
        "log_every_steps": 1, "eval_every_epochs": 2, "max_bad_share": 0.5, "cpu": True, **overrides,
    }  # fmt: skip


def train_here(*args, **overrides) -> tuple[dict, str]:
    """The run's report, and what it printed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            report = train(TASK, SegmentationSettings(**settings_for(*args, **overrides)))
    finally:
        forget_accelerate()
    return report, printed.getvalue()


@pytest.fixture(scope="module")
def straight(scenes, tmp_path_factory):
    """An uninterrupted run from a classifier's weights: its folder, report and printed lines."""
    folder = tmp_path_factory.mktemp("straight")
    torch.manual_seed(3)
    PvtForImageClassification(tiny_pvt_config(num_labels=7)).save_pretrained(folder / "classifier")
    return folder, *train_here(scenes, folder / "run", backbone=str(folder / "classifier"), save_every_steps=1)


def test_what_a_run_leaves_behind(straight):
    folder, report, printed = straight
    assert {path.name for path in (folder / "run").iterdir() if path.is_file()} == {
        ".training.lock", "config.json", "model.safetensors", "preprocessor_config.json", "run.json", "curves.png",
        "confusion_matrix.json", "confusion_matrix.png", "worst_images.json",
    }  # fmt: skip
    confusion = json.loads((folder / "run" / "confusion_matrix.json").read_text())["matrix"]
    assert [sum(row) for row in confusion] == report["metrics"]["per_category_pixels"]
    assert json.loads((folder / "run" / "run.json").read_text(), parse_constant=pytest.fail) == report
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["id2label"] == {"0": "ground", "1": "red", "2": "blue"} and config["model_type"] == "semantic_fpn"
    processor = AutoImageProcessor.from_pretrained(folder / "run")
    assert isinstance(processor, PvtSemanticImageProcessor) and processor.do_reduce_labels
    assert (processor.size.shortest_edge, processor.size.longest_edge) == (64, 256)
    assert f"Backbone from {folder / 'classifier'}: " in printed and " 0 missing" in printed


def test_figures_are_those_of_the_reloaded_model(straight, scenes):
    """Per image through the processor's own post-processing, counted class by class."""
    folder, report, _ = straight
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "run").eval()
    processor = AutoImageProcessor.from_pretrained(folder / "run")
    hits, unions = np.zeros(3), np.zeros(3)
    for file in sorted((scenes / "annotations" / "validation").glob("*.png")):
        labels = np.array(Image.open(file)).astype(int) - 1
        image = Image.open(scenes / "images" / "validation" / f"{file.stem}.jpg")
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        (predicted,) = processor.post_process_semantic_segmentation(outputs, [labels.shape])
        predicted, known = predicted.numpy(), labels >= 0
        for label in range(3):
            hits[label] += np.sum(known & (labels == label) & (predicted == label))
            unions[label] += np.sum(known & ((labels == label) | (predicted == label)))
    metrics = report["metrics"]
    assert metrics["per_category_iou"] == pytest.approx((hits / unions).tolist(), abs=1e-9)
    assert metrics["mean_iou"] == pytest.approx((hits / unions).mean(), abs=1e-9)
    assert (metrics["eval_samples"], metrics["eval_skipped"]) == (EVAL - 1, 1)


def test_steps_end_the_training_and_follow_poly(straight):
    report = straight[1]
    assert report["steps"] == 8 and report["trained"] == 64
    losses = [entry for entry in report["history"] if "loss" in entry]
    assert [entry["step"] for entry in losses] == list(range(1, 9))
    assert [entry["epoch"] for entry in losses] == [0, 0, 0, 1, 1, 1, 2, 2]
    rates = [entry["learning_rate"] for entry in losses]
    assert rates == pytest.approx([2e-3 * (1 - step / 8) ** 0.9 for step in range(8)], rel=1e-9)
    assert [entry["epoch"] for entry in report["history"] if "loss" not in entry] == [1, 2]
    assert losses[-1]["loss"] < losses[0]["loss"]


@pytest.mark.parametrize("broken_at", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_broken_off_and_resumed_ends_with_the_same_bits(straight, scenes, tmp_path, monkeypatch, broken_at):
    """In the middle of an epoch; and after the last step, when only the evaluation is missing."""
    folder, report, _ = straight
    classifier = str(folder / "classifier")
    calls = []

    def break_off(*args, **kwargs):
        calls.append(None)
        if len(calls) == broken_at + 1:
            raise RuntimeError("power cut")
        return segmentation_loss(*args, **kwargs)

    segmentation_loss, evaluate = segmentation.segmentation_loss, engine_run.evaluate
    monkeypatch.setattr(segmentation, "segmentation_loss", break_off)
    if broken_at == 8:
        monkeypatch.setattr(
            engine_run,
            "evaluate",
            lambda *args, **keywords: evaluate(*args, **keywords) if len(calls) < 8 else break_off(),
        )
    with pytest.raises(RuntimeError, match="power cut"):
        train_here(scenes, tmp_path / "run", backbone=classifier, save_every_steps=1)
    monkeypatch.undo()
    resumed, printed = train_here(
        scenes, tmp_path / "run", backbone=classifier, save_every_steps=1, resume_from_checkpoint="latest"
    )
    assert f"step {broken_at})" in printed
    assert_equal_weights(tmp_path / "run", folder / "run")
    assert resumed["history"] == report["history"] and resumed["metrics"] == report["metrics"]


def test_trans2seg_trains_and_goes_on_with_other_classes(scenes, tmp_path):
    report, _ = train_here(scenes, tmp_path / "first", "trans2seg", max_steps=2, eval_every_epochs=9)
    assert report["steps"] == 2 and 0 <= report["metrics"]["mean_iou"] <= 1
    settings = SegmentationSettings(
        dataset="digit-scenes", output_dir="unused", model=str(tmp_path / "first"), drop_path_rate=0.3
    )
    model = TASK.build_model(settings, ("a", "b", "c", "d", "e"))
    assert type(model).__name__ == "Trans2SegForSemanticSegmentation" and model.config.num_labels == 5
    assert model.config.backbone_config.drop_path_rate == 0.3
    kept, trained = model.state_dict(), weights(tmp_path / "first")
    assert all(torch.equal(kept[name], tensor) for name, tensor in trained.items() if name.startswith("backbone."))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_norm_is_synchronised_on_cuda_with_processes(architecture, capsys):
    settings = SegmentationSettings(**settings_for("unused", "unused", architecture))
    said = []

    def converted(processes, device):
        accelerator = SimpleNamespace(
            num_processes=processes, device=torch.device(device), print=lambda text: said.append(text)
        )
        model = TASK.build_model(settings, ("a", "b"))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model = synchronize_batch_norm(accelerator, model)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        kinds = {type(m) for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
        return kinds

    assert converted(2, "cuda") == {torch.nn.SyncBatchNorm} and not said
    assert converted(1, "cuda") == converted(1, "cpu") == {torch.nn.BatchNorm2d} and not said
    assert converted(2, "cpu") == {torch.nn.BatchNorm2d} and "not synchronised" in said[0] and len(said) == 1


def test_everything_is_decayed_if_asked_for():
    model = TASK.build_model(SegmentationSettings(**settings_for("unused", "unused")), ("a", "b"))
    decayed, plain = (group["params"] for group in parameter_groups(model, 1e-4, decay_all=True))
    assert len(decayed) == len(list(model.parameters())) and not plain
    assert [group["weight_decay"] for group in parameter_groups(model, 1e-4, decay_all=True)] == [1e-4, 0.0]


def test_poly_schedule_equals_mmcvs_formula():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2e-4)
    schedule = make_schedule(optimizer, "poly", 40_000, 0, 0.0, 1e-6)
    for step in (0, 1, 5_000, 39_999):
        schedule.step_update(step)
        expected = (2e-4 - 1e-6) * (1 - step / 40_000) ** 0.9 + 1e-6
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9)


def test_class_names(tmp_path):
    assert read_class_names("") is None and read_class_names("ade20k") == ADE20K_CLASS_NAMES
    assert read_class_names("a, b,c") == ("a", "b", "c")
    file = tmp_path / "names.txt"
    file.write_text("building, edifice\n\nciel bleuâtre\n", encoding="utf-8")
    assert read_class_names(str(file)) == ("building, edifice", "ciel bleuâtre")
    for text, words in (("one", "1 name"), ("a,b,a", "'a'. more than once")):
        with pytest.raises(ValueError, match=words):
            read_class_names(text)
    with pytest.raises(FileNotFoundError, match=r"--class_names .*other\.txt: there is no such file"):
        read_class_names(str(tmp_path / "other.txt"))


def test_bad_arguments(scenes, tmp_path, capsys):
    for flags, words in (
        (["--crop_size", "16"], "--crop_size must be at least 32, got 16"),
        (["--crop_size", "1000000"], "--crop_size must be at most 16,384 pixels, got 1000000"),
        (["--mask_values", "0", "0"], "--mask_values must be two or more different numbers, none negative, got [0, 0]"),
        (["--backbone_overrides", '{"depths": [1, 1, 1000000, 1]}'], "depths of stage 3 must be from 1 to 1,000"),
        (["--config_overrides", '{"fpn_channels": 1000000000}'], "fpn_channels must be at most 1,000,000"),
        (["--shortest_edge", "512", "--longest_edge", "256"], "--longest_edge 256 is below"),
        (["--min_scale", "2", "--max_scale", "1"], "--min_scale 2.0 must be"),
        (["--max_class_share", "75"], "--max_class_share must be between 0 and 1, got 75.0"),
        (["--architecture", "unet"], "invalid choice: 'unet'"),
        (["--model", "a", "--backbone", "b"], "Give one of them"),
        (["--max_steps", "-1"], "--max_steps must not be negative"),
        (["--config_overrides", '{"hidden_size": 8}'], "hidden_size, which SemanticFpnConfig does not have"),
        (["--backbone_overrides", '{"depth": [1]}'], "depth, which PvtConfig does not have; did you mean depths?"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(SegmentationSettings, ["--output_dir", "unused", "--dataset", "digit-scenes", *flags])
        assert words in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="./pvt_none.pth: there is no such file"):
        train_here(scenes, tmp_path / "a", backbone="./pvt_none.pth")
    with pytest.raises(ValueError, match="have no names"):
        train_here(scenes, tmp_path / "b", class_names="")


@pytest.mark.slow
def test_two_processes_share_the_samples(scenes, tmp_path):
    values = {**settings_for(scenes, tmp_path), "batch_size": 4, "max_steps": 4}
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    result = run_script([str(ROOT / "scripts" / "train_semantic_segmentation.py"), *flags], processes=2)
    assert "2 x cpu" in result.stdout
    assert result.stdout.count("BatchNorm is not synchronised") == 1
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["world_size"] == 2 and report["steps"] == 4 and report["trained"] == 32
    assert (report["metrics"]["eval_samples"], report["metrics"]["eval_skipped"]) == (EVAL - 1, 1)
