"""
`open_complete` opens a checkpoint only if it has every weight; `weights_digest` changes with every bit and name.

    python -m pytest tests/weights/test_opening.py
"""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from pvt_hf import PvtForImageClassification
from pvt_hf.tasks.classification.task import ClassificationTask
from pvt_hf.weights.opening import (
    check_task,
    open_complete,
    open_config,
    open_processor,
    parts_of,
    shorten,
    weights_digest,
)
from pvt_hf.weights.paths import check_model_path

from ..support.common import randomize, tiny_pvt_config


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = randomize(PvtForImageClassification(tiny_pvt_config()))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


def change_weights(folder, change) -> None:
    """Rewrites the saved weights after `change` has edited them in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_complete_checkpoint(saved):
    folder, model = saved
    opened = open_complete(AutoModelForImageClassification, folder, dtype=torch.float64)
    assert type(opened) is PvtForImageClassification and not opened.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor.double()), name


@pytest.mark.parametrize("count", [1, 6])
def test_missing_weights_are_named(saved, count):
    folder, model = saved
    missing = sorted(model.state_dict())[:count]

    def drop(weights):
        for name in missing:
            del weights[name]

    change_weights(folder, drop)
    with pytest.raises(ValueError) as error:
        open_complete(AutoModelForImageClassification, folder)
    message = str(error.value)
    assert message.startswith(f"{folder} is not a complete PvtForImageClassification: it has no weights for ")
    assert all(repr(name) in message for name in missing[:4]) and ("and 2 more" in message) == (count == 6)


def test_a_classifier_for_other_classes(saved):
    folder, model = saved
    names = {index: f"class {index}" for index in range(3)}
    with pytest.raises(ValueError, match="weights of other shapes .*'classifier.bias', 'classifier.weight'"):
        open_complete(PvtForImageClassification, folder, id2label=names)
    opened = open_complete(PvtForImageClassification, folder, id2label=names, new_classifier=True)
    assert opened.classifier.weight.shape == (3, 128) and torch.isfinite(opened.classifier.weight).all()
    assert torch.equal(opened.pvt.encoder.layer_norm.weight, model.pvt.encoder.layer_norm.weight)


def test_damaged_weights_and_absent_folders(saved):
    folder, _ = saved
    with pytest.raises(FileNotFoundError, match="There is no model folder .*/absent"):
        open_complete(PvtForImageClassification, folder.with_name("absent"))
    check_model_path("org/name")  # may be on the Hub
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(ValueError, match="The weights of .* cannot be read"):
        open_complete(PvtForImageClassification, folder)


def test_a_model_for_another_task(saved):
    folder, _ = saved
    with pytest.raises(
        ValueError, match="has a PvtConfig, which is no model for AutoModelForSemanticSegmentation: ch"
    ) as e:
        open_complete(AutoModelForSemanticSegmentation, folder)
    assert "Beit" not in str(e.value)


def test_folders_and_files_without_a_model(saved, tmp_path):
    folder, _ = saved
    check_model_path(folder)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    check_model_path(tmp_path / "adapter")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no config.json, so it is no model folder"):
        check_model_path(tmp_path / "empty")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="weights.pth is a file: .*pvt-hf convert"):
        check_model_path(tmp_path / "weights.pth")


def test_the_digest_covers_names_and_bytes():
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]])), layer.bias.fill_(0.5)
    little_endian = bytes.fromhex("0000803f00000040")
    expected = hashlib.sha256(b"bias" + bytes.fromhex("0000003f") + b"weight" + little_endian).hexdigest()
    assert weights_digest(layer) == expected
    assert weights_digest(nn.Sequential(layer)) != expected  # other names
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(2.0))
    assert weights_digest(layer) != expected


def test_long_lists_of_names_are_cut():
    assert shorten(["a", "b"], limit=2) == "'a', 'b'"
    assert shorten(["a", "b", "c"], limit=2) == "'a', 'b' and 1 more"
    assert shorten([]) == "none"


def test_paths_that_are_not_there_are_not_looked_up_on_the_hub(saved, tmp_path, monkeypatch):
    folder, _ = saved
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "checkpoint-40")
    for name in ("checkpoint-48", "./checkpoint-48", "checkpoint-48/", str(tmp_path / "checkpoint-48")):
        with pytest.raises(FileNotFoundError, match=f"There is no model folder {name} .there are .*checkpoint-40"):
            check_model_path(name)
    (tmp_path / "runs").mkdir()
    for name in ("runs/checkpoint-48", "a/b/checkpoint-48", "a/b/c", "a\\b"):
        with pytest.raises(FileNotFoundError, match="There is no model folder"):
            check_model_path(name)
    for name in ("org/checkpoint-48", "gpt2", "org/pvt-tiny", str(tmp_path / "checkpoint-40")):
        check_model_path(name)
    (tmp_path / "runs" / "loop_state.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="runs is a checkpoint to resume a training from"):
        check_model_path("runs")


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_are_not_finite_are_named(saved, value):
    folder, _ = saved
    change_weights(folder, lambda weights: weights["classifier.bias"].__setitem__(0, value))
    with pytest.raises(ValueError, match=r"have values that are NaN or infinite: 'classifier.bias'\. Give a"):
        open_complete(AutoModelForImageClassification, folder)


def test_the_parts_of_a_weight_that_is_stored_as_several_tensors():
    one, other = torch.ones(2), torch.zeros(2)
    assert [part.tolist() for part in parts_of(TwoTensor(one, other))] == [one.tolist(), other.tolist()]
    assert parts_of(one)[0] is one


def test_a_model_that_is_neither_here_nor_on_a_hub_that_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def offline(name, **options):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nCheck your connection.")

    for auto_class in (AutoConfig, AutoImageProcessor, AutoModelForImageClassification):
        monkeypatch.setattr(auto_class, "from_pretrained", offline)
    for open_one in (open_config, open_processor, lambda name: open_complete(AutoModelForImageClassification, name)):
        with pytest.raises(OSError, match="There is no model folder outputs/fruti here, .* the Hub cannot be asked"):
            open_one("outputs/fruti")


def test_another_task_is_refused_before_its_processor_is_read():
    check_task(AutoModelForSemanticSegmentation, "sample:digits-segmenter")
    settings = SimpleNamespace(model="sample:digits-segmenter", image_size=32, crop_ratio=0.875)
    with pytest.raises(ValueError, match="has a SemanticFpnConfig, which is no model for AutoModelForImageClassifi"):
        ClassificationTask().build_processor(settings)
