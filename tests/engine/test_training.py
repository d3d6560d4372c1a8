"""
The training engine: groups and schedule of the recipe, real runs of the script in one and two processes, a kill and an
exact resume, fine-tuning a checkpoint on a folder of images, and prediction from the shell.

    pytest tests/engine/test_training.py
"""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from pvt_hf import PvtForImageClassification, PvtImageProcessor
from pvt_hf.engine import loop
from pvt_hf.engine import processes as launch
from pvt_hf.engine.checkpoints import list_checkpoints
from pvt_hf.engine.finite import FiniteSteps, Flags
from pvt_hf.engine.optimizer import make_schedule, parameter_groups
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.metrics.accuracy_at_k import AccuracyAtK
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.tasks.classification.task import ClassificationTask, MixedLoss
from pvt_hf.tasks.segmentation.settings import SegmentationSettings
from pvt_hf.weights.variants import get_config

from ..support.common import tiny_pvt_config
from ..support.training_runs import TRAIN, flags, make_photos, train_here
from ..support.warm_processes import ROOT, run


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """An uninterrupted run of 16 steps in one process."""
    folder = tmp_path_factory.mktemp("straight")
    run([TRAIN, *flags(output_dir=folder)])
    return folder


def test_parameter_groups_are_the_papers():
    """PAPER_FACTS section 3.1: 55 decayed and 106 plain tensors in PVT-Tiny, where key and value are one tensor."""
    with torch.device("meta"):
        model = PvtForImageClassification(get_config("pvt-tiny"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = (
        {names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(model, 0.05)
    )
    assert len(decayed) == 55 + 8 and len(plain) == 106 + 8  # eight blocks have two tensors instead of one, twice
    assert {name for name in decayed if "position" in name} and not any("cls_token" in name for name in decayed)
    assert {name for name in plain if name.endswith("weight")} == {
        name for name in names.values() if name.endswith("weight") and "layer_norm" in name
    }
    assert [group["weight_decay"] for group in parameter_groups(model, 0.05)] == [0.05, 0.0]


def test_schedule_equals_the_formula():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = make_schedule(optimizer, "cosine", 300, 5, 1e-6, 1e-5)
    for step in (0, 1, 4, 5, 100, 299):
        schedule.step_update(step)
        if step < 5:
            expected = 1e-6 + step * (1e-3 - 1e-6) / 5
        else:
            expected = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 300))
        assert math.isclose(optimizer.param_groups[0]["lr"], expected, rel_tol=1e-9)


def test_mixing_gives_soft_targets():
    settings = ClassificationSettings(dataset="digits", output_dir="unused", batch_size=8)
    seen = []

    class Model(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return type("Output", (), {"logits": torch.zeros(8, 5)})

    images = torch.rand(8, 3, 32, 32)
    loss = MixedLoss(settings, 5)(Model(), {"pixel_values": images.clone(), "labels": torch.arange(8) % 5})
    # Uniform logits cost log(5) whatever targets of sum 1 they meet.
    torch.testing.assert_close(loss, torch.tensor(math.log(5)))
    assert not torch.equal(seen[0], images)


def test_accuracy_metric_against_counting():
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(7)[:5] for _ in range(50)])
    labels = rng.integers(0, 7, 50)
    result = AccuracyAtK(keep_in_memory=True).compute(predictions=ranked.tolist(), references=labels.tolist(), k=(1, 3))
    assert result["accuracy@1"] == sum(row[0] == label for row, label in zip(ranked, labels)) / 50
    assert result["accuracy@3"] == sum(label in row[:3] for row, label in zip(ranked, labels)) / 50
    with pytest.raises(ValueError, match="accuracy@5 needs 5 predictions per sample, got 1"):
        AccuracyAtK(keep_in_memory=True).compute(predictions=[[1]], references=[1])


def test_recipes_and_flags(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 3\nlearning_rate: 2.0e-3\nconfig_overrides: {depths: [1, 1, 1, 1]}\nauto_augment: ''\n")
    given = ["--output_dir", "out", "--dataset", "digits"]
    settings = parse_arguments(ClassificationSettings, [str(recipe), *given, "--epochs", "7"])
    assert (settings.epochs, settings.learning_rate, settings.auto_augment) == (7, 2e-3, "")
    assert json.loads(settings.config_overrides) == {"depths": [1, 1, 1, 1]}
    for content, words in (("epoch: 3", "sets epoch"), ("- 1", "argument: value"), ("a: [", "not valid YAML")):
        recipe.write_text(content)
        with pytest.raises(SystemExit):
            parse_arguments(ClassificationSettings, [str(recipe), "--output_dir", "out"])
        assert words in capsys.readouterr().err
    for bad, words in (
        (["--batch_size", "3"], "--batch_size must be even, got 3"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--eval_share", "1.5"], "--eval_share must be at least 0 and below 1, got 1.5"),
        (["--warmup_epochs", "-1"], "--warmup_epochs must not be negative, got -1.0"),
        (["--max_bad_share", "5"], "--max_bad_share must be between 0 and 1, got 5.0"),
        (["--min_scale", "2"], "--min_scale must be above 0 and at most 1, got 2.0"),
        (["--mixup", "-0.8"], "--mixup must not be negative, got -0.8"),
        (["--learning_rate", "nan"], "--learning_rate must be finite, got nan"),
        (["--learning_rate", "inf"], "--learning_rate must be finite, got inf"),
        (["--weight_decay", "nan"], "--weight_decay must be finite, got nan"),
        (["--schedule", "step", "--decay_epochs", "1", "nan"], "--decay_epochs must be finite, got"),
        ([str(tmp_path / "no.yaml")], "there is no recipe"),
        (
            ["--learning_rat", "1", "--epochs", "2", "--lerning_rate", "3"],
            "--lerning_rate; did you mean --learning_rate?",
        ),
        (["--cpu", "yes", str(recipe)], f"the recipe has to come first, before all arguments: {recipe}"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(ClassificationSettings, [*bad, *given])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(ClassificationSettings, ["--output_dir", "out", str(recipe)])
    assert f"required: --dataset. If {recipe} is a recipe, it has to come first." in capsys.readouterr().err


def test_fields_of_the_backbone_and_of_the_head(capsys):
    for flag, fields, words in (
        ("config_overrides", '{"depths": [1, 1, 1, 1]}', "PvtConfig has it: give it to --backbone_overrides"),
        ("backbone_overrides", '{"fpn_channels": 8}', "SemanticFpnConfig has it: give it to --config_overrides"),
        ("config_overrides", '{"fpn_chanels": 8}', "did you mean fpn_channels?"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(SegmentationSettings, [f"--{flag}", fields, "--output_dir", "o", "--dataset", "d"])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(SegmentationSettings, ["--model", "a/b/checkpoint-48", "--output_dir", "o", "--dataset", "d"])
    assert "There is no model folder a/b/checkpoint-48" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(SegmentationSettings, ["--help"], description="Trains.\n    indented")
    text = capsys.readouterr().out
    assert "\nTrains.\n    indented\n" in text and "(default: 300)" in text and "Switch --photometric off." in text
    assert text.count("(required)") == 2  # --output_dir and --dataset
    assert "(default: )" not in text and "(default: [])" not in text


def test_a_warm_up_as_long_as_the_training_is_reported(tmp_path, capsys):
    photos = make_photos(tmp_path / "photos", 16)
    train_here(photos, tmp_path / "long", warmup_epochs=5.0)
    assert "warning: the warm-up of 20 steps is not shorter than the training of 8" in capsys.readouterr().out
    train_here(photos, tmp_path / "short", warmup_epochs=1.0)
    assert "warning" not in capsys.readouterr().out


def test_a_run_leaves_a_model_a_processor_and_a_report(straight_run):
    report = json.loads((straight_run / "run.json").read_text())
    assert report["steps"] == 16 and report["world_size"] == 1 and report["interrupted"] is None
    assert report["metrics"]["eval_samples"] == 355
    assert report["command"][0] == TRAIN and report["recipe"] is None and report["seed"] == 0
    assert report["best_metrics"]["accuracy@1"] >= report["metrics"]["accuracy@1"]
    assert re.fullmatch("[0-9a-f]{16}", report["data_fingerprint"]) and report["images_per_second"] > 0
    assert report["versions"]["torch"] == torch.__version__ and report["settings"]["learning_rate"] == 1e-3
    assert (report["trained"], report["skipped"], report["skipped_samples"]) == (512, 0, [])
    model = PvtForImageClassification.from_pretrained(straight_run)
    assert model.config.id2label == {i: str(i) for i in range(10)} and model.config.image_size == 32
    processor = PvtImageProcessor.from_pretrained(straight_run)
    assert processor(Image.new("RGB", (50, 40)), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert Image.open(straight_run / "curves.png").size[0] > 500
    assert not list(straight_run.glob(".checkpoint*")) and (straight_run / "checkpoint-00000016").is_dir()


def test_processes_that_would_not_know_of_each_other(monkeypatch):
    """What `accelerate launch --cpu` can do: several processes, each of which believes to be alone."""
    monkeypatch.setattr(launch, "Accelerator", lambda **kwargs: type("Alone", (), {"num_processes": 1}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but Accelerate runs 1"):
        launch.make_accelerator(ClassificationSettings(dataset="digits", output_dir="unused"))


def test_fine_tuning_a_checkpoint_on_a_folder_and_predicting(tmp_path):
    """What a newcomer does: own folder of images, a checkpoint with another head, and then `predict.py`."""
    photos = make_photos(tmp_path / "photos", 40)
    base = PvtForImageClassification(tiny_pvt_config(num_labels=7))
    base.save_pretrained(tmp_path / "base")
    PvtImageProcessor(image_mean=[0.4, 0.4, 0.4]).save_pretrained(tmp_path / "base")
    arguments = flags(
        dataset=photos, model=tmp_path / "base", output_dir=tmp_path / "tuned", eval_share=0.25, image_size=64,
        samples_per_epoch=0, batch_size=10, epochs=3, mixup=0, cutmix=0, auto_augment="", learning_rate=2e-3,
    )  # fmt: skip
    run([TRAIN, *arguments])
    report = json.loads((tmp_path / "tuned" / "run.json").read_text())
    held_out = report["metrics"]["eval_samples"]
    assert 8 <= held_out <= 35 and report["steps"] == 3 * ((80 - held_out) // 10)
    assert report["metrics"]["accuracy@1"] > 0.9
    assert PvtImageProcessor.from_pretrained(tmp_path / "tuned").image_mean == (0.4, 0.4, 0.4)

    (tmp_path / "broken.png").write_bytes(b"no image")
    result = run(
        [str(ROOT / "scripts" / "predict.py"), "--model", str(tmp_path / "tuned"), "--task", "image-classification",
         str(photos / "leaf" / "3.jpg"), str(tmp_path / "broken.png"), str(photos / "apple" / "3.jpg"),
         "--output_dir", str(tmp_path / "out")],
        check=False,
    )  # fmt: skip
    assert result.returncode == 1 and "1 of 3 images could not be predicted" in result.stderr
    lines = result.stdout.splitlines()
    assert re.match(r".*leaf/3.jpg: leaf \d", lines[0]) and re.match(r".*apple/3.jpg: apple \d", lines[1])
    annotated = [Image.open(tmp_path / "out" / name) for name in ("3.classes.png", "3-2.classes.png")]
    assert all(image.size[0] >= 480 for image in annotated)


def test_accumulated_gradients_equal_those_of_the_large_batch(tmp_path):
    photos = make_photos(tmp_path / "photos", 16)
    large, one = train_here(photos, tmp_path / "large", batch_size=8)
    small, two = train_here(photos, tmp_path / "small", batch_size=4, gradient_accumulation_steps=2)
    large, small = large.state_dict(), small.state_dict()
    assert one["steps"] == two["steps"] == 8
    # AdamW does not feel a factor on the loss, so the loss itself is compared too.
    torch.testing.assert_close(one["history"][0]["loss"], two["history"][0]["loss"], atol=1e-5, rtol=0)
    start = PvtForImageClassification(tiny_pvt_config(num_labels=2, image_size=32)).state_dict()
    for name, tensor in large.items():
        # AdamW divides by the gradient's own size: where that is rounding, so is the step. Steps are up to 1e-3 each.
        torch.testing.assert_close(small[name], tensor, atol=2e-4, rtol=1e-3)
    assert any((large[name] - start[name]).abs().max() > 2e-3 for name in large)


def test_a_loss_that_is_not_finite(tmp_path, capsys, monkeypatch):
    photos = make_photos(tmp_path / "photos", 16)
    calls = []

    def compute_loss(model, batch):
        calls.append(1)
        return model(**batch).loss * (float("nan") if len(calls) == 6 else 1.0)

    with pytest.raises(FloatingPointError, match=r"step 6 is not finite. Samples: .*\.jpg.*checkpoint-00000004"):
        train_here(photos, tmp_path / "stops", compute_loss=compute_loss)
    calls.clear()
    model, report = train_here(photos, tmp_path / "skips", compute_loss=compute_loss, skip_nonfinite=True)
    assert report["nonfinite_steps"] == 1 and report["steps"] == 8
    assert all(torch.isfinite(tensor).all() for tensor in model.parameters())
    assert "1 steps skipped because of a loss that is not finite" in capsys.readouterr().out
    # A training that diverges does not push out the checkpoints from before.
    calls.clear()
    monkeypatch.setattr(loop, "MAX_NONFINITE_IN_A_ROW", 4)

    def diverging_loss(model, batch):
        calls.append(1)
        return model(**batch).loss * (1.0 if len(calls) < 4 else float("nan"))

    with pytest.raises(FloatingPointError, match=r"step 7 is not finite, like the 3 before it.*checkpoint-00000003\."):
        train_here(
            photos, tmp_path / "late", skip_nonfinite=True, save_every_steps=1, save_total_limit=1,
            compute_loss=diverging_loss,
        )  # fmt: skip
    assert [path.name for path in list_checkpoints(tmp_path / "late")] == ["checkpoint-00000003"]
    monkeypatch.setattr(loop, "MAX_NONFINITE_IN_A_ROW", 3)
    with pytest.raises(FloatingPointError, match="step 3 is not finite, like the 2 before it"):
        train_here(
            photos, tmp_path / "diverges", compute_loss=lambda model, batch: model(**batch).loss * torch.nan,
            skip_nonfinite=True,
        )  # fmt: skip


class HostReads(TorchDispatchMode):
    """Counts scalars that the CPU reads from tensors (`.item()`, `float()`, `if tensor`). On a GPU each one waits."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def test_steps_are_numbered_alike_in_the_log_and_in_errors(tmp_path):
    """The first step is step 1 in the history, so a fault in the second one is a fault of step 2."""
    steps = []

    def compute_loss(model, batch):
        steps.append(1)
        return model(**batch).loss * (float("nan") if len(steps) == 2 else 1.0)

    photos = make_photos(tmp_path / "photos", 16)
    with pytest.raises(FloatingPointError, match="loss of step 2 is not finite"):
        train_here(photos, tmp_path / "stops", compute_loss=compute_loss)
    steps.clear()
    _, report = train_here(photos, tmp_path / "skips", compute_loss=compute_loss, skip_nonfinite=True)
    losses = {entry["step"]: entry["loss"] for entry in report["history"] if "loss" in entry}
    assert [step for step, loss in losses.items() if math.isnan(loss)] == [2]


def test_the_device_is_waited_for_at_log_steps_only(tmp_path):
    photos, counts = make_photos(tmp_path / "photos", 32), []
    with HostReads() as reads:
        train_here(
            photos, tmp_path / "run", lambda model, batch: counts.append(reads.count), epochs=1, log_every_steps=4,
            max_grad_norm=1.0, ema_decay=0.9,
        )  # fmt: skip
    waits = [after - before for before, after in itertools.pairwise(counts)]
    assert [index + 1 for index, count in enumerate(waits) if count] == [1, 4]  # the first step is logged, too


def test_flags_of_steps_arrive_late_and_in_order():
    """As on a GPU: a step's flag is read when its event has passed, and every process learns of it after all have."""

    class Event:
        passed = False

        def query(self):
            return self.passed

        def synchronize(self):
            self.passed = True

    ranks = [FiniteSteps(checked=10) for _ in range(2)]
    events = [[Event() for _ in range(3)] for _ in ranks]
    for rank, steps in enumerate(ranks):
        for step, event in enumerate(events[rank]):
            finite = torch.tensor([not (rank == 1 and step == 1), True])
            steps.pending.append(Flags(finite, event, [[f"{rank}-{step}a"], [f"{rank}-{step}b"]]))
    for event in (events[0][0], events[0][1], events[1][0]):
        event.passed = True

    def exchange():
        for steps in ranks:
            steps.resolve()
        parts = [list(steps.encode()) for steps in ranks]
        return [steps.merge(parts) for steps in ranks]

    assert exchange() == [[(11, True)]] * 2  # rank 0 knows of step 12 already, rank 1 does not
    assert exchange() == [[]] * 2
    for steps in ranks:
        steps.resolve(wait=True)
    assert exchange() == [[(12, False), (13, True)]] * 2
    assert [steps.sample_ids for steps in ranks] == [{}, {12: ["1-1a"]}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_no_weight(tmp_path, value):
    """An infinite loss whose gradients are finite among them: the loss is a sum with a constant."""
    photos, states = make_photos(tmp_path / "photos", 16), []

    def compute_loss(model, batch):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model(**batch).loss + (value if len(states) == 3 else 0.0)

    train_here(photos, tmp_path / "run", compute_loss=compute_loss, skip_nonfinite=True, epochs=1)
    changed = [
        any(not torch.equal(before[name], after[name]) for name in before)
        for before, after in itertools.pairwise(states)
    ]
    assert changed == [True, True, False]


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="only the class 'apple'"):
        ClassificationTask().build_model(ClassificationSettings(dataset="digits", output_dir="unused"), ("apple",))


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("config_overrides", '{"hidden_size": [8]}', "sets hidden_size, which PvtConfig .*did you mean hidden"),
        ("config_overrides", "[1]", "must be a JSON object such as"),
        ("config_overrides", "{foo", "is not valid JSON"),
        ("compile_backend", "foo", "choose one of no, eager"),
        ("auto_augment", "foo", "timm has no auto_augment policy"),
        ("variant", "pvt-huge", "choose one of pvt-tiny"),
        ("report_to", "foo", "--report_to foo is unknown"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_anything_is_trained(tmp_path, flag, value, message):
    with pytest.raises(ValueError, match=message):
        train(
            ClassificationTask(),
            ClassificationSettings(dataset="digits", output_dir=str(tmp_path), cpu=True, **{flag: value}),
        )
