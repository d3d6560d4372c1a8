"""
What a training starts from, in every task: a complete checkpoint with a classifier for other classes, a trained
backbone of any architecture, or nothing; and class names from a list or a file.

    python -m pytest tests/tasks/test_start.py
"""

import dataclasses
import io
import json
import re

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SwinForImageClassification, ViTImageProcessor

from pvt_hf import PvtForImageClassification
from pvt_hf.tasks import TASKS, get_task
from pvt_hf.weights.official_layout import convert_to_official_state_dict

from ..support.common import tiny_pvt_config
from ..support.heads import BACKBONES


SMALL = json.dumps({"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]})
HEAD = {"semantic-segmentation": {"fpn_channels": 8, "head_channels": 8}, "object-detection": {"fpn_channels": 8}}


@pytest.fixture(params=TASKS)
def task(request):
    return get_task(request.param)


def settings(task, **more):
    overrides = {"backbone_overrides": SMALL, "config_overrides": json.dumps(HEAD.get(task.name))}
    if task.name == "image-classification":
        overrides = {"config_overrides": SMALL, "image_size": 32}
    return task.training_settings(**{"output_dir": "unused", "dataset": "unused"} | overrides | more)


def test_the_examples_in_help_are_valid(task):
    """JSON in help texts names fields that the default model has."""
    for option in dataclasses.fields(task.training_settings):
        for example in re.findall(r"e\.g\. '(\{.*\})'", option.metadata.get("help", "")):
            given = task.training_settings(output_dir="unused", dataset="unused", **{option.name: example})
            assert json.loads(getattr(given, option.name))


@pytest.fixture
def checkpoint(task, tmp_path):
    """A model of three classes, saved."""
    torch.manual_seed(0)
    task.build_model(settings(task), ("a", "b", "c")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_other_classes_get_a_new_classifier(task, checkpoint):
    model = task.build_model(settings(task, model=str(checkpoint), drop_path_rate=0.3), ("sky", "sea", "sand", "rock"))
    assert model.config.id2label == {0: "sky", 1: "sea", 2: "sand", 3: "rock"} and model.config.num_labels == 4
    assert getattr(model.config, "backbone_config", model.config).drop_path_rate == 0.3
    saved, opened = load_file(checkpoint / "model.safetensors"), model.state_dict()
    changed = [name for name, tensor in saved.items() if opened[name].shape != tensor.shape]
    assert 1 <= len(changed) <= 2  # weight and bias of the classifier
    for name in saved.keys() - set(changed):
        assert torch.equal(opened[name], saved[name]), name


def test_missing_weights_are_refused(task, checkpoint):
    """Trained on, they would be random. A bare backbone is a start by way of `--backbone` only."""
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    backbone = [name for name in tensors if name.startswith(("pvt.", "backbone."))]
    save_file({name: tensors[name] for name in backbone}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="is not a complete .* it has no weights for .*--backbone"):
        task.build_model(settings(task, model=str(checkpoint)), ("a", "b", "c"))
    if task.name != "image-classification":
        with pytest.raises(ValueError, match="--backbone is for a new model"):
            settings(task, model=str(checkpoint), backbone=str(checkpoint))
        model = task.build_model(settings(task, backbone=str(checkpoint)), ("a", "b", "c"))
        assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in backbone)


def test_class_names_from_a_file_reach_the_model(tmp_path):
    """Of a classifier, whose parquet files have numbers for labels. (Other tasks: see their training.)"""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    row = {"image": {"bytes": buffer.getvalue(), "path": None}, "label": 1}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list([row], features=features).to_parquet(tmp_path / "data" / "train-0.parquet")
    (tmp_path / "names.txt").write_text("sky, blue\n\n sea\n")
    task, names = get_task("image-classification"), {"class_names": str(tmp_path / "names.txt")}
    made = settings(task, dataset=str(tmp_path / "data"), **names)
    processor = task.build_processor(made)
    stream = task.open_stream(made, "train", processor, training=True)
    assert task.training_sample(made, stream, processor).class_names == ("sky, blue", "sea")
    evaluated = task.evaluation_settings(model="m", dataset=str(tmp_path / "data"), **names)
    assert task.open_stream(evaluated, "train", processor).class_names == ("sky, blue", "sea")


@pytest.fixture(params=HEAD)
def head(request):
    """(backbone, fields) to a new head, as a run on that backbone begins without `--variant`, and its processor."""
    task = get_task(request.param)

    def build(backbone, **fields):
        made = task.training_settings(
            output_dir="unused", dataset="unused", variant="", backbone=str(backbone),
            config_overrides=json.dumps(HEAD[task.name]),
            backbone_overrides=json.dumps(fields), drop_path_rate=0.3,
        )  # fmt: skip
        return task.build_model(made, ("a", "b", "c")), task.build_processor(made)

    return build


def assert_holds(backbone, tensors):
    """The weights of the backbone are among `tensors`, of a classifier with the prefix "swin." or "pvt."."""
    found = 0
    for name, tensor in backbone.state_dict().items():
        original = name if name in tensors else f"pvt.{name}"
        if original in tensors:  # not the norms of the feature maps
            assert torch.equal(tensor, tensors[original]), name
            found += 1
    assert found > 20


def test_a_head_on_a_classifier_of_another_architecture(head, tmp_path):
    """A Swin: its architecture, stochastic depth and normalisation, without its labels."""
    classifier = SwinForImageClassification(BACKBONES["swin"](["stage4"]))
    classifier.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    model, processor = head(tmp_path)
    assert_holds(model.backbone, classifier.state_dict())
    assert model.config.backbone_config.drop_path_rate == 0.3 and model.config.num_labels == 3
    assert (*processor.image_mean, *processor.image_std) == (0.5, 0.4, 0.3, 0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match="sets sequence_reduction_ratios, which SwinConfig does not have"):
        head(tmp_path, sequence_reduction_ratios=[1, 1, 1, 1])


def test_a_head_on_a_pvt(head, tmp_path):
    """From an official file, and from another head, neither of which has a normalisation of its own."""
    classifier = PvtForImageClassification(tiny_pvt_config(depths=[1, 1, 1, 1]))
    torch.save(convert_to_official_state_dict(classifier.state_dict()), tmp_path / "pvt.pth")
    model, processor = head(tmp_path / "pvt.pth")
    assert_holds(model.backbone, classifier.state_dict())
    assert model.config.backbone_config.hidden_sizes == [16, 32, 80, 128]
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    model.save_pretrained(tmp_path / "head")
    again, _ = head(tmp_path / "head")
    assert_holds(again.backbone, classifier.state_dict())
    assert again.config.backbone_config.drop_path_rate == 0.3
    with pytest.raises(FileNotFoundError, match="There is no model folder ./nowhere"):
        head("./nowhere")
