"""
`open_pipeline` reads the weights once, keeps its options, and says in one line why a checkpoint does not open. Answers
that are NaN or infinite are errors.

    python -m pytest tests/inference/test_prediction.py
"""

import json
import math
import shutil

import pytest
import torch
import transformers.modeling_utils
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    DetrImageProcessor,
    PreTrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
)

from pvt_hf import PvtModel
from pvt_hf.families import FAMILIES
from pvt_hf.inference.prediction import TASKS, find_objects, label_map, open_pipeline, task_of, top_classes

from ..support.common import tiny_pvt_config
from ..support.hub_kinds import KINDS


OWN_CODE = """
from pathlib import Path

from transformers import ResNetConfig, ResNetForImageClassification

Path({flag!r}).touch()


class OwnConfig(ResNetConfig):
    model_type = "of_its_own"


class OwnForImageClassification(ResNetForImageClassification):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A complete checkpoint of each kind, and some that lack something."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in ("classifier", "semantic_fpn", "retinanet", "mask_rcnn", "detr", "backbone"):
        KINDS[name].model().save_pretrained(root / name)
        KINDS[name].make_processor().save_pretrained(root / name)
    PvtModel(tiny_pvt_config()).save_pretrained(root / "headless")
    KINDS["classifier"].make_processor().save_pretrained(root / "headless")
    for name in ("broken", "unprepared", "pickled", "unreadable"):
        shutil.copytree(root / "classifier", root / name)
    (root / "broken" / "model.safetensors").write_bytes(b"\xff" * 1000)
    (root / "unprepared" / "preprocessor_config.json").unlink()
    (root / "pickled" / "model.safetensors").unlink()
    torch.save(KINDS["classifier"].model().state_dict(), root / "pickled" / "pytorch_model.bin")
    (root / "unreadable" / "config.json").write_text('{"depths": ')
    shutil.copytree(root / "detr", root / "other_processor")
    DetrImageProcessor().save_pretrained(root / "other_processor")  # it has methods for masks, too
    return root


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("classifier", "image-classification"),
        ("semantic_fpn", "semantic-segmentation"),
        ("retinanet", "object-detection"),
        ("mask_rcnn", "instance-segmentation"),
        ("detr", "object-detection"),
    ],
)
def test_the_task_is_the_checkpoints_own(folders, name, task):
    opened, pipeline = open_pipeline(str(folders / name), use_safetensors=True)
    assert opened == task and pipeline.task == TASKS[task].pipeline
    assert not pipeline.model.training and type(pipeline.model) is type(KINDS[name].model())
    assert type(pipeline.image_processor) is type(KINDS[name].make_processor())


def test_boxes_of_a_model_with_masks(folders):
    task, pipeline = open_pipeline(str(folders / "mask_rcnn"), "object-detection")
    assert (task, pipeline.task) == ("object-detection", "object-detection")


def test_weights_are_read_once(folders, monkeypatch):
    """As often as Transformers itself opens the file for one model."""
    opened, open_file = [], transformers.modeling_utils.safe_open

    def count(path, *arguments, **options):
        opened.append(path)
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(transformers.modeling_utils, "safe_open", count)
    AutoModelForImageClassification.from_pretrained(folders / "classifier")
    alone = len(opened)
    open_pipeline(str(folders / "classifier"))
    assert len(opened) == 2 * alone > 0


def test_device_and_dtype(folders):
    _, pipeline = open_pipeline(str(folders / "classifier"), device="meta", dtype=torch.bfloat16)
    assert pipeline.device.type == pipeline.model.device.type == "meta" and pipeline.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("absent", None, "There is no model folder "),
        ("headless", None, "holds a PvtModel: give a classifier, a segmenter or a detector."),
        ("backbone", None, "holds a PvtBackbone: give a classifier, a segmenter or a detector."),
        ("headless", "image-classification", "no weights for 'classifier.bias', 'classifier.weight'"),
        ("broken", None, "cannot be read: Error while deserializing"),
        ("unprepared", None, "has no preprocessor_config.json"),
        ("pickled", None, "no file named model.safetensors"),
        ("unreadable", None, "is not a valid JSON file"),
        ("classifier", "semantic-segmentation", "holds a PvtForImageClassification, which cannot do semantic-seg"),
        ("retinanet", "instance-segmentation", "holds a RetinaNetForObjectDetection, which cannot do instance-seg"),
        ("mask_rcnn", "semantic-segmentation", "which cannot do semantic-segmentation"),
        ("other_processor", "instance-segmentation", "which cannot do instance-segmentation"),
    ],
)
def test_errors_are_one_line_with_the_model(folders, name, task, words):
    with pytest.raises(ValueError) as error:
        open_pipeline(str(folders / name), task, use_safetensors=True)
    message = str(error.value)
    assert words in message and str(folders / name) in message and "\n" not in message, message


def test_weights_in_a_pickle_open_unless_safetensors_are_asked_for(folders):
    assert open_pipeline(str(folders / "pickled"))[0] == "image-classification"


def test_code_of_a_checkpoint_runs_only_if_allowed(tmp_path):
    folder, flag = tmp_path / "own", tmp_path / "code_was_run"
    ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    (folder / "own.py").write_text(OWN_CODE.format(flag=str(flag)))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnForImageClassification"}
    config |= {"model_type": "of_its_own", "architectures": ["OwnForImageClassification"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="own brings code of its own, which runs only with trust_remote_code=True"):
        open_pipeline(str(folder), trust_remote_code=False)
    assert not flag.exists()
    task, pipeline = open_pipeline(str(folder), trust_remote_code=True)
    assert flag.exists() and task == "image-classification"
    assert type(pipeline.model).__name__ == "OwnForImageClassification"


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("Mask2FormerForUniversalSegmentation", "semantic-segmentation"),
        ("MaskFormerForInstanceSegmentation", "instance-segmentation"),
        ("ViTModel", None),
        (None, "image-classification"),  # as timm writes it
    ],
)
def test_tasks_by_class_name(name, task):
    assert task_of(PreTrainedConfig(architectures=name and [name])) == task


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_is_predicted_by_its_pipeline(family):
    model = family.models[0]
    task = task_of(PreTrainedConfig(architectures=[model.name]))
    assert TASKS[task].pipeline in model.pipelines
    assert {auto_class.__name__ for auto_class in TASKS[task].auto_classes} & set(model.auto_classes)
    assert (task == "instance-segmentation") == family.masks


def run_task(task: str, pipeline, image: Image.Image) -> None:
    if task == "image-classification":
        top_classes(pipeline, image, top_k=5)
    elif task == "semantic-segmentation":
        label_map(pipeline, image)
    else:
        find_objects(pipeline, image, 0.5, with_masks=task == "instance-segmentation")


@pytest.mark.parametrize("name", ["classifier", "semantic_fpn", "retinanet", "mask_rcnn", "detr"])
def test_answers_that_are_not_finite(folders, name):
    """Else they were "cat nan%", class 0 everywhere, or no objects."""
    task, pipeline = open_pipeline(str(folders / name))
    image = Image.new("RGB", (64, 64), "red")
    run_task(task, pipeline, image)
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.mul_(1e30)  # finite, but what they compute is not
    with pytest.raises(ValueError, match="^The model's .* are NaN.*: its weights"):
        run_task(task, pipeline, image)
    pipeline.image_processor.image_mean = [math.nan] * 3  # as a processor of Transformers takes it from its file
    pipeline.image_processor._validate_preprocess_kwargs = lambda **settings: None
    with pytest.raises(ValueError, match="gives pixels that are NaN or infinite: check its image_mean"):
        run_task(task, pipeline, image)


@pytest.mark.parametrize("device", ["cuda:99", "xpu"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=rf"PyTorch finds no device {device} on this machine\. There is: cpu"):
        open_pipeline("org/model", device=device)
