"""
What the options of training do: EMA, drop path, clipping, precision, compilation, memory, trackers, and what resuming
refuses.

    pytest tests/engine/test_training_options.py
"""

import pytest
import torch

from pvt_hf.engine.optimizer import DropPathSchedule
from pvt_hf.engine.processes import make_accelerator
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.tasks.classification.task import ClassificationTask

from ..support.training_runs import make_photos, train_here


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos") / "photos", 16)


def difference(one, other) -> float:
    others = dict(other.named_parameters())
    return max((parameter - others[name]).abs().max().item() for name, parameter in one.named_parameters())


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    return train_here(photos, tmp_path_factory.mktemp("plain"))


def test_the_best_and_the_last_evaluation_are_reported(plain):
    report = plain[1]
    assert report["best_metrics"] == {"accuracy@1": 0.75, "epoch": 0}
    assert report["metrics"] == {"accuracy@1": 0.5, "epoch": 1}
    assert (report["steps"], report["trained"], report["skipped"], report["dropped"]) == (8, 64, 0, 0)


def test_ema_is_the_running_average(photos, plain, tmp_path):
    """timm's warm-up of the decay: step n has 1 - n^(-2/3), at most the given decay; the first step copies."""
    path = []
    averaged, _ = train_here(
        photos,
        tmp_path,
        ema_decay=0.7,
        watch=lambda model, batch: path.append(model.classifier.weight.detach().clone()),
    )
    path = [*path[1:], plain[0].classifier.weight.detach()]  # after each step; the training itself is not changed
    expected = path[0].clone()
    for step, weight in enumerate(path[1:], start=2):
        decay = min(1 - (1 + (step - 1)) ** (-2 / 3), 0.7)
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(averaged.classifier.weight.detach(), expected, atol=1e-7, rtol=1e-5)
    assert difference(averaged, plain[0]) > 1e-4


def test_drop_path_is_held_at_zero_and_then_rises_with_depth(photos, tmp_path):
    seen = []

    def watch(model, batch):
        seen.append([m.drop_prob for m in model.modules() if type(m).__name__ == "PvtDropPath"])

    train_here(photos, tmp_path / "held", watch, {"drop_path_rate": 0.2}, drop_path_zero_epochs=1)
    rates = torch.linspace(0, 0.2, 5).tolist()  # one per layer
    assert seen[:4] == [[0.0] * len(seen[0])] * 4 and seen[4:] == seen[4:5] * 4
    assert sorted(set(seen[4])) == pytest.approx(rates)
    with pytest.raises(ValueError, match="--drop_path_zero_epochs: the model has no drop path"):
        train_here(photos, tmp_path / "none", drop_path_zero_epochs=1)


def test_a_model_without_drop_path_cannot_have_a_schedule():
    model = ClassificationTask().build_model(
        ClassificationSettings(dataset="digits", output_dir="unused", drop_path_rate=0.0, image_size=32), ("a", "b")
    )
    with pytest.raises(ValueError, match="above 0"):
        DropPathSchedule(model, 1)


@pytest.mark.parametrize(
    "flags",
    [{"compile_backend": "eager"}, {"channels_last": True}, {"gradient_checkpointing": True}],
    ids=lambda flags: next(iter(flags)),
)
def test_flags_that_change_speed_or_memory_only(photos, plain, tmp_path, flags):
    """Sums in another order, which AdamW enlarges (tests/engine/test_many_processes.py); losses to 1e-4 of 0.7."""
    model, report = train_here(photos, tmp_path, **flags)
    assert difference(model, plain[0]) < 3e-4
    for entry, reference in zip(report["history"], plain[1]["history"]):
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(reference["loss"], abs=1e-4)
    assert not any("_orig_mod" in name for name in model.state_dict())


def test_the_flags_do_what_they_say(photos, tmp_path):
    from torch._dynamo.utils import counters

    seen = {}

    def watch(model, batch):
        seen["stride"] = batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)
        seen["checkpointing"] = model.is_activation_checkpointing

    counters.clear()
    train_here(
        photos, tmp_path, watch, epochs=1, compile_backend="eager", channels_last=True, gradient_checkpointing=True
    )
    assert seen == {"stride": True, "checkpointing": True} and counters["frames"]["ok"] > 0


def test_bf16_trains_with_weights_in_fp32(photos, plain, tmp_path):
    dtypes = set()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: dtypes.add(output.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    try:
        model, report = train_here(photos, tmp_path, mixed_precision="bf16")
    finally:
        hook.remove()
    assert dtypes == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    losses = [[entry["loss"] for entry in r["history"] if "loss" in entry] for r in (report, plain[1])]
    assert losses[0] == pytest.approx(losses[1], abs=0.03) and losses[0] != losses[1]  # 8 bits of mantissa


def test_clipping_bounds_the_gradient(photos, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched(optimizer, *args, **kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train_here(photos, tmp_path / "free", epochs=1)
    train_here(photos, tmp_path / "clipped", epochs=1, max_grad_norm=0.01)
    assert min(norms[:4]) > 0.1 and norms[4:] == pytest.approx([0.01] * 4, rel=1e-3)


def test_what_a_cpu_or_this_environment_does_not_have(tmp_path):
    for flags, words in (
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        ({"report_to": "tensorboard,clearml"}, "clearml is not installed"),
    ):
        with pytest.raises(ValueError, match=words):
            make_accelerator(ClassificationSettings(dataset="digits", output_dir=str(tmp_path), cpu=True, **flags))
    with pytest.raises(ValueError, match="needs a --shuffle_window"):
        ClassificationSettings(dataset="digits", output_dir="unused", repeated_augmentation=3, shuffle_window=0)


def test_tensorboard_gets_the_curves(photos, plain, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_here(photos, tmp_path, report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "test"))
    events.Reload()
    losses = [entry for entry in plain[1]["history"] if "loss" in entry]
    read = events.Scalars("loss")
    assert [event.step for event in read] == [entry["step"] for entry in losses]
    assert [event.value for event in read] == pytest.approx([entry["loss"] for entry in losses], abs=1e-6)
    assert [event.value for event in events.Scalars("accuracy@1")] == [0.75, 0.5]
    assert {"learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])


def test_resuming_with_other_data_or_settings_is_refused(photos, tmp_path):
    train_here(photos, tmp_path / "run", epochs=1)
    (tmp_path / "other" / "apple").mkdir(parents=True)
    (tmp_path / "other" / "leaf").mkdir()
    for index, file in enumerate(sorted(photos.rglob("*.jpg"))):
        (tmp_path / "other" / file.parent.name / f"x{index}.jpg").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="was trained on other data"):
        train_here(tmp_path / "other", tmp_path / "run", resume_from_checkpoint="latest")
    words = "cannot be resumed exactly with other settings: --batch_size was 8, is 4; --ema_decay was 0.0, is 0.5"
    with pytest.raises(ValueError, match=words):
        train_here(photos, tmp_path / "run", resume_from_checkpoint="latest", batch_size=4, ema_decay=0.5)
