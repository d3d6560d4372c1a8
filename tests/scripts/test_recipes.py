"""
The recipe files against the paper's recipes (PAPER_FACTS sections 3.1, 4.1 and 5.2), and what their headers say.

    pytest tests/scripts/test_recipes.py
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pvt_hf.engine.recipes import read_recipe
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.families import load
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.tasks.classification.task import ClassificationTask, MixedLoss
from pvt_hf.tasks.detection.settings import ARCHITECTURES, DetectionSettings
from pvt_hf.tasks.detection.task import DetectionTask
from pvt_hf.tasks.labels import read_class_names
from pvt_hf.tasks.segmentation.settings import SegmentationSettings
from pvt_hf.tasks.segmentation.task import SegmentationTask


FOLDER = Path(__file__).parents[2] / "scripts" / "recipes"
RECIPES = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
SETTINGS = {
    "train_image_classification.py": ClassificationSettings,
    "train_semantic_segmentation.py": SegmentationSettings,
    "train_object_detection.py": DetectionSettings,
}
SIZES = ("tiny", "small", "medium", "large")

# What all sizes share, then drop path, clipping (branch v2) and top-1 error (Table 2)
IMAGENET = {
    "dataset": "ILSVRC/imagenet-1k", "image_size": 224, "epochs": 300, "batch_size": 128,
    "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "min_learning_rate": 1e-5, "warmup_epochs": 5,
    "warmup_learning_rate": 1e-6, "weight_decay": 0.05, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0,
    "auto_augment": "rand-m9-mstd0.5-inc1", "min_scale": 0.08, "horizontal_flip": 0.5, "random_erasing": 0.25,
    "repeated_augmentation": 3, "ema_decay": 0.0, "mixed_precision": "fp16", "crop_ratio": 0.875, "seed": 0,
    "drop_path_zero_epochs": 0,
}  # fmt: skip
IMAGENET_SIZES = {
    "tiny": (0.1, 0.0, 24.9), "small": (0.1, 0.0, 20.2), "medium": (0.3, 1.0, 18.8), "large": (0.3, 1.0, 18.3),
}  # fmt: skip

ADE20K = {
    "train_split": "train", "eval_split": "validation", "class_names": "ade20k", "reduce_labels": True,
    "drop_path_rate": 0.1, "shortest_edge": 512, "longest_edge": 2048, "min_scale": 0.5, "max_scale": 2.0,
    "crop_size": 512, "max_class_share": 0.75, "horizontal_flip": 0.5, "photometric": True, "schedule": "poly",
    "poly_power": 0.9, "learning_rate": 1e-4, "min_learning_rate": 0.0, "warmup_epochs": 0, "weight_decay": 1e-4,
    "decay_all": True, "max_grad_norm": 0.0, "mixed_precision": "no", "ema_decay": 0.0, "repeated_augmentation": 1,
    "gradient_accumulation_steps": 1, "samples_per_epoch": 0, "drop_path_zero_epochs": 0,
}  # fmt: skip
# Head, variant, steps, the paper's mIoU, and that of the released code (sections 5.3 and 5.4)
ADE20K_FILES = {
    "ade20k_semantic_fpn_pvt_tiny": ("semantic_fpn", "pvt-tiny", 80_000, 35.7, 36.6),
    "ade20k_semantic_fpn_pvt_small": ("semantic_fpn", "pvt-small", 80_000, 39.8, 41.9),
    "ade20k_semantic_fpn_pvt_medium": ("semantic_fpn", "pvt-medium", 80_000, 41.6, 43.5),
    "ade20k_semantic_fpn_pvt_large": ("semantic_fpn", "pvt-large", 80_000, 42.1, 43.5),
    "ade20k_trans2seg_pvt_small": ("trans2seg", "pvt-small", 40_000, 42.6, None),
}

# Learning rate, images per process, drop path, and the published box AP and mask AP in percent, if any
COCO_FILES = {
    "coco_retinanet_pvt_tiny_1x": (1e-4, 2, 0.1, 36.7, None),
    "coco_retinanet_pvt_small_1x": (1e-4, 2, 0.1, 40.4, None),
    "coco_retinanet_pvt_medium_1x": (1e-4, 2, 0.0, 41.9, None),
    "coco_retinanet_pvt_large_1x": (1e-4, 2, 0.0, 42.6, None),
    "coco_retinanet_pvt_small_3x": (1e-4, 2, 0.1, 42.2, None),
    "coco_retinanet_pvt_small_640_1x": (1e-4, 2, 0.1, 38.7, None),
    "coco_mask_rcnn_pvt_tiny_1x": (2e-4, 2, 0.1, 36.7, 35.1),
    "coco_mask_rcnn_pvt_small_1x": (2e-4, 2, 0.1, 40.4, 37.8),
    "coco_mask_rcnn_pvt_medium_1x": (2e-4, 2, 0.0, 42.0, 39.0),
    "coco_mask_rcnn_pvt_large_1x": (1.429e-4, 1, 0.0, 42.9, 39.5),
    "coco_mask_rcnn_pvt_small_3x": (2e-4, 2, 0.1, 43.0, 39.9),
    "coco_detr_pvt_small_50e": (1e-4, 2, 0.1, 34.7, None),
}


def header(name: str) -> str:
    """The comment at the top of a recipe as running text."""
    lines = RECIPES[name].read_text().splitlines()
    return " ".join(" ".join(line.lstrip("#") for line in lines if line.startswith("#")).split())


@pytest.fixture(autouse=True)
def data_sets(tmp_path, monkeypatch):
    """The data sets and official weights that the recipes name: what does not exist is refused."""
    for name in ("tiny", "small", "medium", "large"):
        (tmp_path / f"pvt_{name}.pth").touch()
    for folder in ("coco", "ADEChallengeData2016"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)


def parse(name: str, *flags: str):
    """The settings of the script that the recipe's header calls."""
    (settings_class,) = (SETTINGS[script] for script in SETTINGS if f"scripts/{script}" in header(name))
    return parse_arguments(settings_class, [str(RECIPES[name]), "--output_dir", "out", *flags])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_parses_and_says_how_to_run_it(name):
    settings, text = parse(name), header(name)
    assert f"scripts/recipes/{name}.yaml" in text and "--output_dir outputs/" in text
    assert "ardware: " in text and (("Not trained by us." in text) == (not name.startswith("digits")))
    head = getattr(settings, "architecture", "")
    assert head in name and settings.variant.replace("-", "_") in name or name.startswith("digits")


def test_sizes_share_one_file():
    """What a size does not set is its base's: no recipe repeats a line of its base."""
    for file in RECIPES.values():
        own = {line.split(":")[0]: line for line in file.read_text().splitlines() if line[:1].isalpha()}
        if "base" in own:
            base = read_recipe(file.parent / own.pop("base").split()[1])
            values = read_recipe(file)
            assert not [key for key in own if key in base and base[key] == values[key]], file.name
    complete = [name for name, file in RECIPES.items() if "\nbase:" not in file.read_text()]
    assert complete == [
        "ade20k_semantic_fpn_pvt_tiny", "coco_retinanet_pvt_tiny_1x", "digits_pvt", "digits_retinanet",
        "digits_semantic_fpn", "imagenet_pvt_tiny",
    ]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_imagenet_recipes_are_the_papers(size):
    name = f"imagenet_pvt_{size}"
    settings, text = parse(name), header(name)
    assert {field: getattr(settings, field) for field in IMAGENET} == IMAGENET
    drop_path, clipping, error = IMAGENET_SIZES[size]
    assert (settings.variant, settings.drop_path_rate, settings.max_grad_norm) == (f"pvt-{size}", drop_path, clipping)
    assert "accelerate launch --multi_gpu --num_processes 8 scripts/train_image_classification.py" in text
    assert f"The paper's figure: top-1 error {error} %" in text and "8 V100, 128 images each" in text
    first = ["--drop_path_rate", "0.1", "--drop_path_zero_epochs", "100", "--max_grad_norm", "0"]
    assert parse(name, *first).drop_path_zero_epochs == 100


def test_mixing_is_the_papers():
    mixup = MixedLoss(parse("imagenet_pvt_tiny"), 1000).mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert mixup.mode == "batch" and mixup.label_smoothing == 0.1 and mixup.correct_lam


def test_evaluation_protocol_is_the_papers():
    processor = ClassificationTask().build_processor(parse("imagenet_pvt_tiny"))
    assert processor.size["shortest_edge"] == 256 and processor.resample == Image.Resampling.BICUBIC
    assert (processor.crop_size["height"], processor.crop_size["width"]) == (224, 224)
    larger = ClassificationTask().build_processor(parse("imagenet_pvt_tiny", "--image_size", "384"))
    assert larger.size["shortest_edge"] == 438


@pytest.mark.parametrize("name", ADE20K_FILES)
def test_ade20k_recipes_are_the_papers(name):
    settings, text = parse(name), header(name)
    assert {field: getattr(settings, field) for field in ADE20K} == ADE20K
    architecture, variant, steps, paper, released = ADE20K_FILES[name]
    assert (settings.architecture, settings.variant, settings.max_steps) == (architecture, variant, steps)
    assert settings.backbone == f"./{variant.replace('-', '_')}.pth"
    assert "--num_processes 4 scripts/train_semantic_segmentation.py" in text
    assert f"The paper's figure: mIoU {paper} %" in text and "4 V100, 4 images each" in text
    assert settings.batch_size * 4 == 16
    assert released is None or f"their figure is {released} %" in text
    other = "--num_processes 8 ... --max_steps 40000 --learning_rate 2e-4"
    assert other in text and settings.batch_size * 8 == 32
    changed = parse(name, *other.split()[3:])
    assert (changed.max_steps, changed.learning_rate) == (40_000, 2e-4)


def test_ade20k_processor_is_the_papers():
    processor = SegmentationTask().build_processor(parse("ade20k_semantic_fpn_pvt_tiny"))
    assert (processor.size.shortest_edge, processor.size.longest_edge, processor.do_reduce_labels) == (512, 2048, True)
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406) and tuple(processor.image_std) == (0.229, 0.224, 0.225)


def test_ade20k_model_is_the_papers():
    """17.0 M parameters (section 5.1), and the position tables of the classifier that it starts from."""
    settings = parse("ade20k_semantic_fpn_pvt_tiny", "--backbone", "")
    model = SegmentationTask().build_model(settings, read_class_names(settings.class_names))
    assert round(model.num_parameters() / 1e6, 1) == 17.0
    assert model.config.backbone_config.image_size == 224 and model.config.num_labels == 150


@pytest.mark.parametrize("name", COCO_FILES)
def test_coco_recipes_are_the_papers(name):
    settings, text = parse(name), header(name)
    rate, batch, drop_path, box_ap, mask_ap = COCO_FILES[name]
    assert (settings.learning_rate, settings.batch_size, settings.drop_path_rate) == (rate, batch, drop_path)
    assert settings.backbone == f"./{settings.variant.replace('-', '_')}.pth"
    assert settings.weight_decay == 1e-4 and settings.decay_all and settings.horizontal_flip == 0.5
    assert settings.schedule == "step" and not settings.keep_empty and settings.group_by_aspect
    assert settings.mixed_precision == ("fp16" if name == "coco_retinanet_pvt_large_1x" else "no")
    is_detr, three, small = settings.architecture == "detr", name.endswith("3x"), "640" in name
    assert settings.epochs == (50 if is_detr else 36 if three else 12)
    assert settings.decay_epochs == ([33] if is_detr else [27, 33] if three else [8, 11])
    assert settings.max_grad_norm == (0.1 if is_detr else 0.0)
    if is_detr:
        assert settings.backbone_learning_rate == 1e-5 and settings.warmup_steps == settings.warmup_epochs == 0
        assert settings.shortest_edges == [640, 672, 704, 736, 768, 800]
    else:
        assert settings.backbone_learning_rate == 0 and settings.warmup_steps == 500
        assert settings.warmup_learning_rate == pytest.approx(rate * 1e-3)
        assert settings.shortest_edges == ([640, 800] if three else [640] if small else [800])
        assert settings.shortest_edge_range == three
    assert (settings.eval_shortest_edge, settings.longest_edge) == ((640, 1066) if small else (800, 1333))
    assert f"8 V100, {batch} image{'s' * (batch > 1)} each" in text
    assert f"The published figure: AP {box_ap} " in text and (mask_ap is None or f"{mask_ap} (masks) %" in text)
    with torch.device("meta"):
        model = DetectionTask().build_model(parse(name, "--backbone", ""), tuple(map(str, range(80))))
    assert type(model.config) is load(ARCHITECTURES[settings.architecture].config)


def test_no_recipe_is_missing_or_untested():
    tested = {*ADE20K_FILES, *COCO_FILES, *(f"imagenet_pvt_{size}" for size in SIZES)}
    assert {name for name in RECIPES if not name.startswith("digits")} == tested


@pytest.mark.parametrize("head", ["semantic_fpn", "trans2seg"])
def test_digit_recipes_train_on_scenes(head):
    settings = parse(f"digits_{head}")
    assert settings.dataset == "digit-scenes" and settings.eval_split == "test" and settings.architecture == head
    assert settings.horizontal_flip == 0.0, "mirrored digits are other signs"
    assert settings.cpu and not settings.reduce_labels
    model = SegmentationTask().build_model(settings, tuple(map(str, range(11))))
    assert json.loads(settings.backbone_overrides)["image_size"] == model.config.backbone_config.image_size
