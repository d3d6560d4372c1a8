"""
Transformers' `Trainer`, without anything of this package's, loads every tensor of DETR on PVT: the best checkpoint's at
the end, and those of the checkpoint that it resumes from. What from_pretrained opens is the reference.

    python -m pytest tests/models/test_trainer_weights.py
"""

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import load_sharded_checkpoint

from pvt_hf import PvtDetrForObjectDetection

from ..support.common import random_images, tiny_pvt_config
from ..support.heads import BACKBONES, SMALL, boxes_only, random_objects, tiny_head


class Scenes(Dataset):
    """Four images with objects."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        labels = boxes_only(random_objects(1, 64, 64, seed=index))[0]
        return {"pixel_values": random_images(1, 64, 64, seed=index)[0], "labels": labels}


def collate(samples):
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": [sample["labels"] for sample in samples],
    }


class EarlierIsBetter(Trainer):
    """Only the evaluation is replaced, so that the best checkpoint is the first one."""

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_score": -self.state.global_step}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class KeepFirstWeights(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def collate_masks(samples):
    """For MaskFormer: two masks per image."""
    masks = [(images > 0).float()[:2] for images in (sample["pixel_values"] for sample in samples)]
    classes = [torch.tensor([1, 2])] * len(samples)
    return {"pixel_values": collate(samples)["pixel_values"], "mask_labels": masks, "class_labels": classes}


def trainer_of(model, folder, *callbacks) -> Trainer:
    arguments = TrainingArguments(
        folder, use_cpu=True, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, eval_strategy="steps",
        eval_steps=1, save_steps=1, load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
        remove_unused_columns=False, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    return EarlierIsBetter(
        model,
        arguments,
        data_collator=COLLATE.get(type(model), collate),
        train_dataset=Scenes(),
        eval_dataset=Scenes(),
        callbacks=[*callbacks],
    )


COLLATE = {MaskFormerForInstanceSegmentation: collate_masks}
SMALL_DECODER = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "num_queries": 6,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
}  # fmt: skip


def of_transformers(name: str) -> PreTrainedModel:
    """A small model of Transformers on a PVT."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if name == "maskformer":
        config = MaskFormerConfig(
            backbone_config=tiny_pvt_config(out_features=stages), fpn_feature_size=32, mask_feature_size=32,
            decoder_config={"model_type": "detr", **SMALL_DECODER}, num_labels=6,
        )  # fmt: skip
        return MaskFormerForInstanceSegmentation(config)
    if name == "deformable_detr":
        backbone = tiny_pvt_config(out_features=stages[1:])
        config = DeformableDetrConfig(backbone_config=backbone, num_labels=6, **SMALL_DECODER)
        return DeformableDetrForObjectDetection(config)
    backbone = tiny_pvt_config(out_features=stages[3:])
    config = ConditionalDetrConfig(
        backbone_config=backbone, backbone=None, use_timm_backbone=False, use_pretrained_backbone=False, num_labels=6,
        **SMALL_DECODER,
    )  # fmt: skip
    return ConditionalDetrForObjectDetection(config)


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_vanilla_trainer_loads_every_tensor(tmp_path):
    trainer = trainer_of(tiny_head("detr"), tmp_path)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    first, last = (
        PvtDetrForObjectDetection.from_pretrained(tmp_path / f"checkpoint-{step}").state_dict() for step in (1, 3)
    )
    assert_equal(trainer.model.state_dict(), first)
    assert sum(not torch.equal(tensor, last[name]) for name, tensor in first.items()) > 150  # training changed them

    begin = KeepFirstWeights()
    trainer_of(tiny_head("detr", num_queries=12), tmp_path / "again", begin).train(str(tmp_path / "checkpoint-3"))
    assert_equal(begin.weights, last)


@pytest.mark.parametrize("name", ["conditional_detr", "deformable_detr", "maskformer"])
def test_what_the_pages_say_of_transformers_own_models(name, tmp_path):
    """Trainer mixes the weights of two checkpoints. If this fails, docs/questions.md can be shorter."""
    model = of_transformers(name)
    trainer = trainer_of(model, tmp_path)
    trainer.train()
    first, last = (type(model).from_pretrained(tmp_path / f"checkpoint-{step}").state_dict() for step in (1, 3))
    changed = [key for key in first if not torch.equal(first[key], last[key])]
    mixed = trainer.model.state_dict()
    assert sum(torch.equal(mixed[key], last[key]) for key in changed) > 10
    assert sum(torch.equal(mixed[key], first[key]) for key in changed) > 10
    # What helps: Trainer leaves alone what `from_pretrained` has loaded.
    begin, reopened = KeepFirstWeights(), type(model).from_pretrained(tmp_path / "checkpoint-3")
    trainer_of(reopened, tmp_path / "again", begin).train(str(tmp_path / "checkpoint-3"))
    assert_equal(begin.weights, last)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_files_keep_the_names_of_transformers(backbone, tmp_path):
    """Plain DETR opens ours and we open its; `load_state_dict` takes both forms of names, also in shards."""
    model = tiny_head("detr", backbone=backbone)
    theirs = DetrForObjectDetection(
        DetrConfig(backbone_config=model.config.backbone_config, auxiliary_loss=True, num_labels=6, **SMALL["detr"])
    )
    theirs.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    assert_equal(saved, load_file(tmp_path / "theirs" / "model.safetensors"))
    assert saved.keys() != model.state_dict().keys()  # there are older names
    plain = DetrForObjectDetection.from_pretrained(tmp_path / "ours", config=theirs.config)
    assert_equal(plain.state_dict(), model.state_dict())
    ours = PvtDetrForObjectDetection.from_pretrained(tmp_path / "theirs", config=model.config)
    assert_equal(ours.state_dict(), model.state_dict())

    def fresh():
        torch.manual_seed(1)
        return PvtDetrForObjectDetection(model.config)

    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for load in (
        lambda one: one.load_state_dict(saved),
        lambda one: one.load_state_dict(model.state_dict()),
        lambda one: torch.nn.ModuleDict({"module": one}).load_state_dict(
            {f"module.{name}": tensor for name, tensor in saved.items()}
        ),
        lambda one: load_sharded_checkpoint(one, str(tmp_path / "shards"), strict=False),
    ):
        loaded = fresh()
        load(loaded)
        assert_equal(loaded.state_dict(), model.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key.*nonsense"):
        fresh().load_state_dict({**saved, "nonsense": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key.*input_projection"):
        fresh().load_state_dict({name: one for name, one in saved.items() if "input_projection" not in name})


def test_names_of_a_copy_and_of_another_size():
    model = tiny_head("detr", backbone_config=tiny_pvt_config(out_features=["stage3"]))
    state = model.state_dict()
    assert model.load_state_dict(state, strict=False) == ([], [])
    assert list(state) == list(model.state_dict())  # the caller's dict is left as it was
