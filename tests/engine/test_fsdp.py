"""
FSDP2: the training script's `run`, with Accelerate's FSDP2 path and torch's `fully_shard`, on two processes with gloo.

Accelerate leaves its FSDP plugin aside on CPUs. The children set one value of its state, which then says that the
process group is one of GPUs (`pretend_gpus`); all else is what runs on GPUs: layers are cut in two, gathered, clipped,
saved as shards and resumed. A sharded run ends as one with DistributedDataParallel does; a resumed one with the bits of
the straight one, also after a SIGKILL inside of a sharded save; and the gathered folder opens in a clean process.

    pytest tests/engine/test_fsdp.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pvt_hf import PvtBackbone, PvtForImageClassification
from pvt_hf.engine import run as engine_run
from pvt_hf.engine.checkpoints import list_checkpoints
from pvt_hf.engine.fsdp import check_fsdp, layers_to_shard
from pvt_hf.engine.optimizer import parameter_groups
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks.classification import task as classification
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.tasks.classification.task import ClassificationTask, MixedLoss

from ..support.clean_process import run_python
from ..support.common import FP32_TOLERANCE, random_images, tiny_pvt_config
from ..support.warm_processes import run


pytestmark = pytest.mark.slow  # two processes train and evaluate a dozen times


RUN = {
    "dataset": "digits",
    "eval_split": "test",
    "image_size": 32,
    "crop_ratio": 1.0,
    # Built for 64x64: the position tables are resized.
    "config_overrides": json.dumps(
        {"image_size": 64, "hidden_sizes": [8, 16, 20, 32], "depths": [1, 2, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
    ),
    "auto_augment": "rand-m3-n1",
    "horizontal_flip": 0.0,
    "drop_path_rate": 0.3,
    "batch_size": 8,
    "gradient_accumulation_steps": 2,
    "samples_per_epoch": 192,  # 6 steps
    "epochs": 2,
    "warmup_epochs": 0.5,
    "shuffle_window": 64,
    "num_workers": 0,
    "learning_rate": 1e-3,
    "max_grad_norm": 1.0,
    "skip_nonfinite": True,
    "eval_every_epochs": 2,
    "save_every_steps": 4,  # 4, 6 (the epoch), 8, 12
    "save_total_limit": 0,
    "log_every_steps": 1,
    "cpu": True,
}


# What the children do


def pretend_gpus() -> None:
    """Accelerate believes that the process group is one of GPUs; device and backend stay CPU and gloo."""
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def child_run(output_dir: Path, pretend: bool = True, **overrides) -> None:
    """A training as in a new process, but for the process group, which stays."""
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if overrides.get("fsdp") and pretend:
        pretend_gpus()
    values = {**RUN, **overrides, "output_dir": output_dir}
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    PoisonedLoss.calls = 100 if "resume_from_checkpoint" in overrides else 0
    engine_run.train(ClassificationTask(), parse_arguments(ClassificationSettings, flags))


class PoisonedLoss(MixedLoss):
    """The loss of the second batch of step 3 is not a number on the second process: all drop the step whole."""

    calls = 0

    def __call__(self, model: nn.Module, batch: dict) -> torch.Tensor:
        PoisonedLoss.calls += 1
        loss = super().__call__(model, batch)
        return loss * torch.nan if PoisonedLoss.calls == 6 and os.environ["RANK"] == "1" else loss


def uneven_evaluation(accelerator, model, batches, num_workers, evaluation, **keywords):
    """Twice the number of forward passes on the second process: in each, all processes have to gather the weights."""
    batches.batch_size = 64 // (1 + accelerator.process_index)
    return evaluate(accelerator, model, batches, num_workers, evaluation, **keywords)


def observed_train(accelerator, settings, *arguments, **keywords):
    """`loop.train`, and a look at the model and the optimiser that it leaves."""
    model, report = train(accelerator, settings, *arguments, **keywords)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = {
        "processes": accelerator.num_processes,
        "units": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "held": sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters()),
        "groups": [
            [group["weight_decay"], sorted(names[id(parameter)] for parameter in group["params"])]
            for group in accelerator._optimizers[0].param_groups
        ],
    }
    with torch.no_grad():
        seen["logits"] = model(random_images(3, 64, 64).to(accelerator.device)).logits.float().tolist()
    (Path(settings.output_dir) / f"seen_{accelerator.process_index}.json").write_text(json.dumps(seen))
    return model, report


def before_optimizer_shards(step: int, action) -> None:
    """Calls `action` when the optimiser's shards of `step` are about to be written and the model's have been."""

    def interrupted_write(self, plan, planner):
        folder = Path(self.path)
        if folder.name == "optimizer_0" and f"checkpoint-{step:08d}" in folder.parent.name:
            assert (folder.parent / "pytorch_model_fsdp_0" / ".metadata").is_file()
            action()
        return write_data(self, plan, planner)

    FileSystemWriter.write_data = interrupted_write


def fill_disk_of_second_process() -> None:
    if os.environ["RANK"] == "1":
        raise OSError(28, "No space left on device")


def expect_error(root: Path, error: type, name: str, **overrides) -> None:
    with pytest.raises(error) as caught:
        child_run(root / name, **overrides)
    (root / f"{name}_error_{os.environ['RANK']}.txt").write_text(str(caught.value))


def straight(root: Path) -> None:
    expect_error(root, ValueError, "cpu", fsdp=True, pretend=False)
    child_run(root / "ddp")
    child_run(root / "straight", fsdp=True)
    before_optimizer_shards(8, fill_disk_of_second_process)
    expect_error(root, OSError, "full", fsdp=True)
    before_optimizer_shards(12, lambda: os.kill(os.getpid(), signal.SIGKILL))
    child_run(root / "killed", fsdp=True)


def resumed(root: Path) -> None:
    child_run(root / "killed", fsdp=True, resume_from_checkpoint="latest")
    child_run(root / "recomputed", fsdp=True, gradient_checkpointing=True, epochs=1)
    child_run(root / "low", fsdp=True, mixed_precision="bf16", epochs=1)
    expect_error(root, ValueError, "straight", resume_from_checkpoint="latest")
    expect_error(root, ValueError, "ddp", fsdp=True, resume_from_checkpoint="latest")


def on_gpus(root: Path) -> None:
    gpu = {"fsdp": True, "pretend": False, "cpu": False, "mixed_precision": "bf16"}
    child_run(root / "straight", **gpu)
    for path in list_checkpoints(root / "straight")[:3]:
        shutil.copytree(path, root / "resumed" / path.name)
    child_run(root / "resumed", **gpu, resume_from_checkpoint="latest")


if __name__ == "__main__":
    train, engine_run.train_loop = engine_run.train_loop, observed_train
    evaluate, engine_run.evaluate = engine_run.evaluate, uneven_evaluation
    classification.MixedLoss = PoisonedLoss
    write_data = FileSystemWriter.write_data
    # A run ends with it; here several follow each other.
    PartialState.destroy_process_group = lambda self, group=None: None
    {"straight": straight, "resumed": resumed, "on_gpus": on_gpus}[sys.argv[1]](Path(sys.argv[2]))
    sys.exit()


# What the test process does


def launch(action: str, root: Path, processes: int = 2, warm: bool = True) -> subprocess.CompletedProcess:
    return run(["-m", "tests.engine.test_fsdp", action, str(root)], processes, check=False, warm=warm)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """The folders of all runs; the first launch ends with the SIGKILL that it gives itself."""
    root = tmp_path_factory.mktemp("fsdp")
    first = launch("straight", root)
    assert first.returncode != 0 and "Signal 9 (SIGKILL)" in first.stderr, first.stdout[-2000:] + first.stderr[-4000:]
    # What the kill leaves: a folder under a hidden name, and the checkpoints before it.
    assert sorted(path.name for path in (root / "killed").iterdir()) == [
        ".checkpoint-00000012.partial", ".training.lock",
        "checkpoint-00000004", "checkpoint-00000006", "checkpoint-00000008",
    ]  # fmt: skip
    second = launch("resumed", root)
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr[-4000:]
    assert "checkpoint-00000008 (epoch 1, step 8)" in second.stdout
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def report(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def seen(folder: Path) -> list[dict]:
    return [json.loads((folder / f"seen_{rank}.json").read_text()) for rank in (0, 1)]


def losses(folder: Path) -> torch.Tensor:
    values = [entry["loss"] for entry in report(folder)["history"] if "loss" in entry]
    return torch.tensor([float("nan") if value is None else value for value in values])


def test_model_and_optimiser_are_cut_in_two(runs):
    total = sum(tensor.numel() for tensor in weights(runs / "straight").values())
    for name in ("straight", "killed", "recomputed", "low"):
        ranks = seen(runs / name)
        assert [rank["processes"] for rank in ranks] == [2, 2]
        assert sum(rank["held"] for rank in ranks) == total
        # Halves, but for the position tables, whose first dimension is 1: 9,080 of 40,022 values.
        assert max(rank["held"] for rank in ranks) < 0.65 * total
        blocks = [f"pvt.encoder.block.{stage}.{block}" for stage, block in ((0, 0), (1, 0), (1, 1), (2, 0), (3, 0))]
        assert set(ranks[0]["units"]) == {"", "pvt.encoder.patch_embeddings.0.projection", *blocks}
    assert [rank["held"] for rank in seen(runs / "ddp")] == [total, total] and not seen(runs / "ddp")[0]["units"]


def test_weight_decay_groups_survive_sharding_and_resuming(runs):
    model = PvtForImageClassification.from_pretrained(runs / "straight")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = [
        [group["weight_decay"], sorted(names[id(parameter)] for parameter in group["params"])]
        for group in parameter_groups(model, 0.05)
    ]
    for name in ("straight", "killed"):
        assert [rank["groups"] for rank in seen(runs / name)] == [expected, expected]


def test_learning_curve_and_weights_are_those_of_data_parallel_training(runs):
    """With mixing, drop path, clipping, accumulation and a dropped step, whose finished half must leave no trace."""
    assert report(runs / "ddp")["nonfinite_steps"] == report(runs / "straight")["nonfinite_steps"] == 1
    expected, actual = losses(runs / "ddp"), losses(runs / "straight")
    assert expected.isnan().tolist() == actual.isnan().tolist() == [step == 2 for step in range(12)]
    # Sums in another order; twelve steps of Adam at up to 1e-3 amplify them.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0, equal_nan=True)
    for name, tensor in weights(runs / "straight").items():
        torch.testing.assert_close(tensor, weights(runs / "ddp")[name], rtol=0, atol=2e-5, msg=name)


def test_evaluation_counts_every_sample_once_with_unequal_batches(runs):
    expected, actual = report(runs / "ddp")["metrics"], report(runs / "straight")["metrics"]
    assert actual["eval_samples"] == expected["eval_samples"] == 355
    assert abs(actual["eval_loss"] - expected["eval_loss"]) < 1e-5
    # A near-tie may fall either way: one sample of 355.
    assert abs(actual["accuracy@1"] - expected["accuracy@1"]) < 1.5 / 355


def test_killed_inside_a_sharded_save_and_resumed_ends_with_the_same_bits(runs):
    expected = weights(runs / "straight")
    for name, tensor in weights(runs / "killed").items():
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(losses(runs / "killed").nan_to_num(), losses(runs / "straight").nan_to_num())
    assert not list((runs / "killed").glob(".checkpoint*"))


def test_a_full_disk_on_one_process_stops_all_with_a_plain_message(runs):
    assert [path.name for path in list_checkpoints(runs / "full")] == ["checkpoint-00000004", "checkpoint-00000006"]
    assert not list((runs / "full").glob(".checkpoint*"))
    for rank in (0, 1):
        message = (runs / f"full_error_{rank}.txt").read_text()
        assert "No space left on device" in message and "Last good checkpoint" in message, message
        assert "checkpoint-00000006" in message and "Traceback" not in message, message


def test_checkpoints_say_whether_they_are_sharded(runs):
    assert "was written with --fsdp" in (runs / "straight_error_1.txt").read_text()
    assert "was written without --fsdp" in (runs / "ddp_error_1.txt").read_text()


def test_gradient_checkpointing_changes_nothing(runs):
    """Blocks run twice on gathered weights. Up to the fourth loss, the schedules of 1 and 2 epochs are the same."""
    actual, expected = losses(runs / "recomputed")[:4], losses(runs / "straight")[:4]
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_bf16_keeps_weights_in_fp32(runs):
    assert {tensor.dtype for tensor in weights(runs / "low").values()} == {torch.float32}
    difference = (losses(runs / "low") - losses(runs / "recomputed")).nan_to_num()
    # bf16 keeps 8 bits: losses of 2.3 differ, by less than a hundredth
    assert 0 < difference.abs().max() < 0.02


def test_the_gathered_folder_opens_in_a_clean_process(runs):
    """With Transformers' own class first, then with this package's; the logits are those of the sharded model."""
    folder = runs / "straight"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["PvtForImageClassification"]
    torch.save(random_images(3, 64, 64), runs / "images.pt")
    run_python(
        """
        import sys

        import torch
        from transformers import AutoModel, AutoModelForImageClassification

        folder, images, output = sys.argv[1:]
        images = torch.load(images)

        def open_and_run(auto_class, **kwargs):
            model, info = auto_class.from_pretrained(folder, output_loading_info=True)
            assert not info["missing_keys"] and not info["mismatched_keys"], info
            with torch.no_grad():
                return model, model(images)

        native, native_outputs = open_and_run(AutoModelForImageClassification)
        assert type(native).__module__ == "transformers.models.pvt.modeling_pvt"
        import pvt_hf

        ours, outputs = open_and_run(AutoModelForImageClassification)
        assert type(ours) is pvt_hf.PvtForImageClassification
        base, base_outputs = open_and_run(AutoModel)
        assert type(base) is pvt_hf.PvtModel
        head = ours.classifier(base_outputs.last_hidden_state[:, 0])
        torch.save([native_outputs.logits, outputs.logits, head.detach()], output)
        """,
        folder, runs / "images.pt", runs / "logits.pt",
    )  # fmt: skip
    expected = [torch.tensor(rank["logits"]) for rank in seen(folder)]
    assert torch.equal(*expected) and expected[0].std() > 0.01
    for logits in torch.load(runs / "logits.pt"):
        torch.testing.assert_close(logits, expected[0], **FP32_TOLERANCE)


def test_layers_to_shard():
    """Without the patch embeddings: the first holds the input embedding, which Accelerate shards by itself."""
    assert PvtForImageClassification._no_split_modules == ["PvtPatchEmbeddings", "PvtLayer"]
    for model_class in (PvtForImageClassification, PvtBackbone):
        assert layers_to_shard(model_class(tiny_pvt_config())) == ["PvtLayer"]


def test_fsdp_on_a_cpu_is_an_error(runs):
    """Accelerate itself says nothing."""
    for rank in (0, 1):
        message = (runs / f"cpu_error_{rank}.txt").read_text()
        assert "--fsdp needs accelerator devices" in message and "Drop --fsdp" in message
    alone = SimpleNamespace(is_fsdp2=False, device=torch.device("cuda", 0))
    with pytest.raises(ValueError, match="accelerate launch"):
        check_fsdp(alone)


@pytest.mark.parametrize(
    "other",
    (["--ema_decay", "0.9"], ["--channels_last", "True"], ["--compile_backend", "eager"]),
    ids=lambda flags: flags[0],
)
def test_what_does_not_go_with_fsdp(other, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(
            ClassificationSettings, ["--fsdp", "True", *other, "--dataset", "digits", "--output_dir", "unused"]
        )
    assert "--fsdp cannot be combined with" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_gpus(tmp_path):
    """Without pretending: bf16 on every GPU there is; the resumed run ends where the straight one does."""
    result = launch("on_gpus", tmp_path, torch.cuda.device_count(), warm=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "pvt.encoder.block.0.0" in json.loads((tmp_path / "straight" / "seen_0.json").read_text())["units"]
    for name, tensor in weights(tmp_path / "resumed").items():
        # Some CUDA kernels add in an order of their own.
        torch.testing.assert_close(tensor, weights(tmp_path / "straight")[name], rtol=0, atol=2e-3, msg=name)
