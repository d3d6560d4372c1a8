"""
The training engine: groups and schedule of the recipe, real runs of the script in one and two processes, a kill and an
exact resume, fine-tuning a checkpoint on a folder of images, Transformers' Trainer, and prediction from the shell.

    pytest tests/test_training.py
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pvt_hf import PvtConfig, PvtForImageClassification, PvtImageProcessor
from pvt_hf.data.batches import BatchStream
from pvt_hf.data.samples import ClassificationSample
from pvt_hf.data.streams import open_stream
from pvt_hf.data.transforms import ProcessorTransform
from pvt_hf.metrics.accuracy_at_k import AccuracyAtK
from pvt_hf.training import launch, loop
from pvt_hf.training.arguments import parse_arguments
from pvt_hf.training.classification import ClassificationSettings, MixedLoss, build_model
from pvt_hf.training.optimizer import cosine_schedule, parameter_groups
from pvt_hf.variants import get_config

from .common import tiny_pvt_config


ROOT = Path(__file__).parent.parent
TRAIN = str(ROOT / "scripts" / "train_image_classification.py")
TINY_RUN = {
    "dataset": "digits",
    "eval_split": "test",
    "image_size": 32,
    "crop_ratio": 1.0,
    "config_overrides": json.dumps(
        {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
    ),
    "auto_augment": "rand-m3-n1",
    "horizontal_flip": 0.0,
    "batch_size": 32,
    "samples_per_epoch": 256,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "shuffle_window": 64,
    "num_workers": 0,
    "learning_rate": 1e-3,
    "cpu": True,
}


def flags(**overrides) -> list[str]:
    return [part for name, value in {**TINY_RUN, **overrides}.items() for part in (f"--{name}", str(value))]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(arguments: list[str], processes: int = 1, check: bool = True) -> subprocess.CompletedProcess:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    result = subprocess.run([*launcher, *arguments], env=environment(), capture_output=True, text=True, timeout=500)
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one: Path, other: Path) -> None:
    expected = weights(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, expected[name]), name


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
    schedule = cosine_schedule(optimizer, 300, 5, 1e-6, 1e-5)
    for step in (0, 1, 4, 5, 100, 299):
        schedule.step_update(step)
        if step < 5:
            expected = 1e-6 + step * (1e-3 - 1e-6) / 5
        else:
            expected = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 300))
        assert math.isclose(optimizer.param_groups[0]["lr"], expected, rel_tol=1e-9)


def test_mixing_gives_soft_targets():
    settings = ClassificationSettings(output_dir="unused", batch_size=8)
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
    settings = parse_arguments(ClassificationSettings, [str(recipe), "--output_dir", "out", "--epochs", "7"])
    assert (settings.epochs, settings.learning_rate, settings.auto_augment) == (7, 2e-3, "")
    assert json.loads(settings.config_overrides) == {"depths": [1, 1, 1, 1]}
    for content, words in (("epoch: 3", "sets epoch"), ("- 1", "argument: value"), ("a: [", "not valid YAML")):
        recipe.write_text(content)
        with pytest.raises(SystemExit):
            parse_arguments(ClassificationSettings, [str(recipe), "--output_dir", "out"])
        assert words in capsys.readouterr().err
    for bad in (["--batch_size", "3"], ["--epochs", "0"], ["--eval_share", "1.5"], [str(tmp_path / "no.yaml")]):
        with pytest.raises(SystemExit):
            parse_arguments(ClassificationSettings, [*bad, "--output_dir", "out"])


@pytest.mark.parametrize("recipe", sorted((ROOT / "scripts" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_parses(recipe):
    parse_arguments(ClassificationSettings, [str(recipe), "--output_dir", "out"])


def test_a_run_leaves_a_model_a_processor_and_a_report(straight_run):
    report = json.loads((straight_run / "run.json").read_text())
    assert report["steps"] == 16 and report["world_size"] == 1 and report["interrupted"] is None
    assert report["metrics"]["eval_samples"] == 355
    model = PvtForImageClassification.from_pretrained(straight_run)
    assert model.config.id2label == {i: str(i) for i in range(10)} and model.config.image_size == 32
    processor = PvtImageProcessor.from_pretrained(straight_run)
    assert processor(Image.new("RGB", (50, 40)), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert Image.open(straight_run / "curves.png").size[0] > 500
    assert not list(straight_run.glob(".checkpoint*")) and (straight_run / "checkpoint-00000016").is_dir()


def kill_at_step(folder: Path, wanted: int, signal_number: int, processes: int, **overrides) -> int:
    """Starts a run that saves after every step, and kills it when the checkpoint of step `wanted` is there."""
    arguments = [TRAIN, *flags(output_dir=folder, save_every_steps=1, save_total_limit=3, **overrides)]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    child = subprocess.Popen([*launcher, *arguments], env=environment(), stdout=-1, stderr=-1, start_new_session=True)
    deadline = time.monotonic() + 300
    while not (folder / f"checkpoint-{wanted:08d}").exists():
        assert child.poll() is None, child.communicate()[1].decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(child.pid, signal_number)
    child.communicate(timeout=120)
    return child.returncode


def test_killed_and_resumed_ends_with_the_same_bits(straight_run, tmp_path):
    """SIGKILL in the second epoch; shuffling, mixing, RandAugment, erasing and drop path are all on."""
    kill_at_step(tmp_path, 11, signal.SIGKILL, processes=1)
    result = run([TRAIN, *flags(output_dir=tmp_path, save_every_steps=1, resume_from_checkpoint="latest")])
    assert re.search(r"Resumed from .*checkpoint-000000(1[1-6])", result.stdout)
    assert_equal_weights(tmp_path, straight_run)


def test_sigterm_saves_and_exits_cleanly(straight_run, tmp_path):
    assert kill_at_step(tmp_path, 3, signal.SIGTERM, processes=1) == 0
    assert not (tmp_path / "model.safetensors").exists()
    refused = run([TRAIN, *flags(output_dir=tmp_path)], check=False)
    assert refused.returncode != 0 and "--resume_from_checkpoint latest" in refused.stderr
    run([TRAIN, *flags(output_dir=tmp_path, resume_from_checkpoint="latest")])
    assert_equal_weights(tmp_path, straight_run)


def test_two_processes(tmp_path):
    """Two processes with half the batch see the same samples, and evaluate each held-out digit once between them."""
    plain = {"mixup": 0, "cutmix": 0, "auto_augment": "", "random_erasing": 0, "drop_path_rate": 0, "min_scale": 1.0}
    plain |= {"shuffle_window": 0, "learning_rate": 1e-4, "samples_per_epoch": 128, "epochs": 1}
    run([TRAIN, *flags(output_dir=tmp_path / "one", **plain)])
    run([TRAIN, *flags(output_dir=tmp_path / "two", **plain | {"batch_size": 16})], processes=2)
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["steps"] == two["steps"] == 4
    assert one["metrics"]["eval_samples"] == two["metrics"]["eval_samples"] == 355


def test_processes_that_would_not_know_of_each_other(monkeypatch):
    """What `accelerate launch --cpu` can do: several processes, each of which believes to be alone."""
    monkeypatch.setattr(launch, "Accelerator", lambda **kwargs: type("Alone", (), {"num_processes": 1}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="WORLD_SIZE is 2, but Accelerate runs 1"):
        launch.make_accelerator(ClassificationSettings(output_dir="unused"))


def make_photos(root: Path, count: int) -> Path:
    """A folder of JPEGs in two classes that a colour tells apart."""
    rng = np.random.default_rng(0)
    for name, color in (("apple", (200, 40, 40)), ("leaf", (40, 180, 60))):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(rng.normal(color, 40, (48, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.jpg")
    return root


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
    assert result.returncode == 1 and "1 of 3 images could not be read" in result.stderr
    lines = result.stdout.splitlines()
    assert re.match(r".*leaf/3.jpg: leaf \d", lines[0]) and re.match(r".*apple/3.jpg: apple \d", lines[1])
    annotated = [Image.open(tmp_path / "out" / name) for name in ("3.classes.png", "3-2.classes.png")]
    assert all(image.size[0] >= 480 for image in annotated)


def test_transformers_trainer_on_a_stream(tmp_path):
    """The official example's way: a streamed data set, another head, the best model kept and reloaded."""
    from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

    from pvt_hf.data.digits import digit_images

    PvtForImageClassification(PvtConfig(**tiny_pvt_config().to_dict() | {"image_size": 32})).save_pretrained(
        tmp_path / "base"
    )
    names = {i: f"digit {i}" for i in range(10)}
    model = AutoModelForImageClassification.from_pretrained(
        tmp_path / "base",
        num_labels=10,
        id2label=names,
        label2id={name: i for i, name in names.items()},
        ignore_mismatched_sizes=True,
    )
    processor = PvtImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)

    def encode(batch):
        return {**processor(batch["image"], return_tensors="pt"), "labels": batch["label"]}

    columns = ["image", "label", "sample_id"]
    train = digit_images("train", image_size=32, length=10_000).map(
        encode, batched=True, batch_size=16, remove_columns=columns
    )
    test = digit_images("test", image_size=32).map(encode, batched=True, batch_size=16, remove_columns=columns)

    def compute_metrics(prediction):
        ranked = np.argsort(-prediction.predictions, axis=1)[:, :1]
        return AccuracyAtK(keep_in_memory=True).compute(
            predictions=ranked.tolist(), references=prediction.label_ids.tolist(), k=(1,)
        )

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=60, per_device_train_batch_size=16, learning_rate=2e-3,
        use_cpu=True,
        eval_strategy="steps", eval_steps=20, save_steps=20, load_best_model_at_end=True, report_to=[],
        metric_for_best_model="accuracy@1", greater_is_better=True, logging_steps=20, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=test, compute_metrics=compute_metrics)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy@1"] > 0.3  # chance is 0.1
    trainer.save_model(tmp_path / "best")
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "best")
    assert reloaded.config.id2label == names
    again = Trainer(reloaded, arguments, eval_dataset=test, compute_metrics=compute_metrics).evaluate()
    assert again["eval_accuracy@1"] == metrics["eval_accuracy@1"]


def train_in_process(tmp_path, name, photos, compute_loss=None, **overrides):
    """Two epochs of `loop.train` without a script: (weights, report)."""
    settings = ClassificationSettings(
        output_dir=str(tmp_path / name), cpu=True, num_workers=0, shuffle_window=0, epochs=2, warmup_epochs=0.5,
        learning_rate=1e-3, mixup=0, cutmix=0, **overrides,
    )  # fmt: skip
    accelerator = launch.make_accelerator(settings)
    stream = open_stream(str(photos))
    transform = ProcessorTransform(PvtImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False))
    batches = BatchStream(stream, ClassificationSample(stream, transform), settings.batch_size, drop_last=True)
    torch.manual_seed(0)
    model = PvtForImageClassification(tiny_pvt_config(num_labels=2, image_size=32))
    compute_loss = compute_loss or (lambda model, batch: model(**batch).loss)
    model, report = loop.train(
        accelerator, settings, model, batches, stream.num_samples, compute_loss, lambda model: {"accuracy@1": 0.0},
        "accuracy@1",
    )
    return model.state_dict(), report


def test_accumulated_gradients_equal_those_of_the_large_batch(tmp_path):
    photos = make_photos(tmp_path / "photos", 16)
    large, one = train_in_process(tmp_path, "large", photos, batch_size=8)
    small, two = train_in_process(tmp_path, "small", photos, batch_size=4, gradient_accumulation_steps=2)
    assert one["steps"] == two["steps"] == 8
    # AdamW does not feel a factor on the loss, so the loss itself is compared too.
    torch.testing.assert_close(one["history"][0]["loss"], two["history"][0]["loss"], atol=1e-5, rtol=0)
    start = PvtForImageClassification(tiny_pvt_config(num_labels=2, image_size=32)).state_dict()
    for name, tensor in large.items():
        # AdamW divides by the gradient's own size: where that is rounding, so is the step. Steps are up to 1e-3 each.
        torch.testing.assert_close(small[name], tensor, atol=2e-4, rtol=1e-3)
    assert any((large[name] - start[name]).abs().max() > 2e-3 for name in large)


def test_a_loss_that_is_not_finite(tmp_path):
    photos = make_photos(tmp_path / "photos", 16)
    calls = []

    def compute_loss(model, batch):
        calls.append(1)
        return model(**batch).loss * (float("nan") if len(calls) == 6 else 1.0)

    with pytest.raises(FloatingPointError, match=r"step 5 is not finite. Samples: .*\.jpg.*checkpoint-00000004"):
        train_in_process(tmp_path, "stops", photos, compute_loss, batch_size=8)
    calls.clear()
    weights_after, report = train_in_process(tmp_path, "skips", photos, compute_loss, batch_size=8, skip_nonfinite=True)
    assert report["nonfinite_steps"] == 1 and report["steps"] == 8
    assert all(torch.isfinite(tensor).all() for tensor in weights_after.values())


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="only the class 'apple'"):
        build_model(ClassificationSettings(output_dir="unused"), ("apple",))
