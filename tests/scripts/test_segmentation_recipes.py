"""
The recipes for semantic segmentation against PAPER_FACTS section 5.2, and that their flags lead to the other column.

    pytest tests/scripts/test_segmentation_recipes.py
"""

import json

import pytest

from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks.labels import read_class_names
from pvt_hf.tasks.segmentation.settings import SegmentationSettings
from pvt_hf.tasks.segmentation.task import SegmentationTask

from ..support.training_runs import ROOT


RECIPES = ROOT / "scripts" / "recipes"
SHARED = {
    "train_split": "train", "eval_split": "validation", "class_names": "ade20k", "reduce_labels": True,
    "drop_path_rate": 0.1, "shortest_edge": 512, "longest_edge": 2048, "min_scale": 0.5, "max_scale": 2.0,
    "crop_size": 512, "max_class_share": 0.75, "horizontal_flip": 0.5, "photometric": True, "schedule": "poly",
    "poly_power": 0.9, "learning_rate": 1e-4, "min_learning_rate": 0.0, "warmup_epochs": 0, "weight_decay": 1e-4,
    "decay_all": True, "max_grad_norm": 0.0, "mixed_precision": "no", "ema_decay": 0.0, "repeated_augmentation": 1,
    "gradient_accumulation_steps": 1, "samples_per_epoch": 0, "drop_path_zero_epochs": 0,
}  # fmt: skip
# Head, variant, steps, the paper's mIoU, and that of the released code (sections 5.3 and 5.4)
FILES = {
    "ade20k_semantic_fpn_pvt_tiny": ("semantic_fpn", "pvt-tiny", 80_000, 35.7, 36.6),
    "ade20k_semantic_fpn_pvt_small": ("semantic_fpn", "pvt-small", 80_000, 39.8, 41.9),
    "ade20k_semantic_fpn_pvt_medium": ("semantic_fpn", "pvt-medium", 80_000, 41.6, 43.5),
    "ade20k_semantic_fpn_pvt_large": ("semantic_fpn", "pvt-large", 80_000, 42.1, 43.5),
    "ade20k_trans2seg_pvt_small": ("trans2seg", "pvt-small", 40_000, 42.6, None),
}


@pytest.mark.parametrize("name", FILES)
def test_ade20k_recipes_are_the_papers(name):
    file = RECIPES / f"{name}.yaml"
    settings = parse_arguments(SegmentationSettings, [str(file), "--output_dir", "out"])
    assert {field: getattr(settings, field) for field in SHARED} == SHARED
    architecture, variant, steps, paper, released = FILES[name]
    assert (settings.architecture, settings.variant, settings.max_steps) == (architecture, variant, steps)
    assert settings.backbone == f"./{variant.replace('-', '_')}.pth"
    text = file.read_text()
    assert f"--num_processes 4 scripts/train_semantic_segmentation.py \\\n#       scripts/recipes/{name}.yaml" in text
    assert f"The paper's figure: mIoU {paper} %" in text and "4 V100, 4 images each" in text
    assert settings.batch_size * 4 == 16
    assert released is None or f"their figure is {released} %" in text
    other = "--num_processes 8 ... --max_steps 40000 --learning_rate 2e-4"
    assert other in text and settings.batch_size * 8 == 32
    changed = parse_arguments(SegmentationSettings, [str(file), "--output_dir", "out", *other.split()[3:]])
    assert (changed.max_steps, changed.learning_rate) == (40_000, 2e-4)


def test_ade20k_processor_is_the_papers():
    file = RECIPES / "ade20k_semantic_fpn_pvt_tiny.yaml"
    processor = SegmentationTask().build_processor(
        parse_arguments(SegmentationSettings, [str(file), "--output_dir", "out"])
    )
    assert (processor.size.shortest_edge, processor.size.longest_edge, processor.do_reduce_labels) == (512, 2048, True)
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406) and tuple(processor.image_std) == (0.229, 0.224, 0.225)


def test_ade20k_model_is_the_papers():
    """17.0 M parameters (section 5.1), and the position tables of the classifier that it starts from."""
    file = RECIPES / "ade20k_semantic_fpn_pvt_tiny.yaml"
    settings = parse_arguments(SegmentationSettings, [str(file), "--output_dir", "out"])
    model = SegmentationTask().build_model(settings, read_class_names(settings.class_names))
    assert round(model.num_parameters() / 1e6, 1) == 17.0
    assert model.config.backbone_config.image_size == 224 and model.config.num_labels == 150


@pytest.mark.parametrize("head", ["semantic_fpn", "trans2seg"])
def test_digit_recipes_train_on_scenes(head):
    file = RECIPES / f"digits_{head}.yaml"
    settings = parse_arguments(SegmentationSettings, [str(file), "--output_dir", "out"])
    assert settings.dataset == "digit-scenes" and settings.eval_split == "test" and settings.architecture == head
    assert settings.horizontal_flip == 0.0, "digits have a left and a right"
    assert settings.cpu and not settings.reduce_labels
    model = SegmentationTask().build_model(settings, tuple(map(str, range(11))))
    assert json.loads(settings.backbone_overrides)["image_size"] == model.config.backbone_config.image_size
