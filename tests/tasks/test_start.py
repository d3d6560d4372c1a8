"""
What a training starts from, in every task: a complete checkpoint with a classifier for other classes, or nothing; and
class names from a list or a file.

    python -m pytest tests/tasks/test_start.py
"""

import io
import json

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pvt_hf.tasks import TASKS, get_task


SMALL = json.dumps({"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]})
HEAD = {"semantic-segmentation": {"fpn_channels": 8, "head_channels": 8}, "object-detection": {"fpn_channels": 8}}


@pytest.fixture(params=TASKS)
def task(request):
    return get_task(request.param)


def settings(task, **more):
    overrides = {"backbone_overrides": SMALL, "config_overrides": json.dumps(HEAD.get(task.name))}
    if task.name == "image-classification":
        overrides = {"config_overrides": SMALL, "image_size": 32}
    return task.training_settings(output_dir="unused", **overrides, **more)


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
        with pytest.raises(ValueError, match="--backbone goes with a new model"):
            settings(task, model=str(checkpoint), backbone=str(checkpoint))
        model = task.build_model(settings(task, backbone=str(checkpoint)), ("a", "b", "c"))
        assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in backbone)


def test_class_names_from_a_file_reach_the_model(tmp_path):
    """Of a classifier, whose parquet files have numbers for labels. (The other tasks: in the tests of their training.)"""
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
