"""
LoRA through PEFT attaches to query and value, trains them and the classifier alone, and reloads onto a fresh model.

    python -m pytest tests/models/test_peft.py
"""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from pvt_hf import PvtForImageClassification

from ..support.common import FP32_TOLERANCE, random_images, randomize, tiny_pvt_config


STEPS = 8


def base_model() -> PvtForImageClassification:
    """The same pretrained weights every time."""
    return randomize(PvtForImageClassification(tiny_pvt_config()), seed=7)


def attach(model) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["classifier"])
    return get_peft_model(model, config)


def train(model) -> list[float]:
    """The loss before each of a few steps on one batch."""
    images, labels = random_images(4, 64, 64), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model.train()
    losses = []
    for _ in range(STEPS):
        loss = model(pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model.eval()(pixel_values=random_images(3, 64, 96, seed=1)).logits


def is_adapter(name: str) -> bool:
    return "lora_" in name or "classifier.modules_to_save" in name


def test_attaches_to_query_and_value_of_every_block():
    model = attach(base_model())
    adapted = {name.rpartition(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    # depths are 1, 2, 1, 1
    blocks = [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    assert {name.partition("encoder.")[2] for name in adapted} == {
        f"block.{stage}.{block}.attention.self.{part}" for stage, block in blocks for part in ("query", "value")
    }
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if is_adapter(name)}
    # B starts at zero: attaching changes nothing yet
    assert torch.equal(logits_of(model), logits_of(base_model()))


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_trains_the_adapter_alone_and_reloads(checkpointing, tmp_path):
    model = attach(base_model())
    if checkpointing is not None:
        model.enable_input_require_grads()  # the reentrant form has no gradient to pass on otherwise
        model.activation_checkpointing_enable(checkpointing)
        recomputing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
        assert len(recomputing) == 5
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    losses = train(model)
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != is_adapter(name), name

    model.save_pretrained(tmp_path)
    expected = logits_of(model)
    assert (expected - logits_of(base_model())).abs().max() > 0.1
    reloaded = PeftModel.from_pretrained(base_model(), tmp_path)
    # A hook for checkpointing keeps the modules where the reloaded model takes its fast path
    torch.testing.assert_close(logits_of(reloaded), expected, **FP32_TOLERANCE)

    merged = reloaded.merge_and_unload()
    assert type(merged) is PvtForImageClassification
    # W x + B (A x) and (W + B A) x, rounded apart
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_trains_the_same():
    plain, checkpointed = attach(base_model()), attach(base_model())
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(train(checkpointed), train(plain), atol=1e-4, rtol=1e-4)


def test_base_model_and_adapter_from_folders(tmp_path):
    """The base model comes from a folder, whose path the adapter stores."""
    base_model().save_pretrained(tmp_path / "base")
    model = attach(PvtForImageClassification.from_pretrained(tmp_path / "base"))
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    fresh = PvtForImageClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(logits_of(PeftModel.from_pretrained(fresh, tmp_path / "adapter")), logits_of(model))
