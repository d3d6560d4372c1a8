"""
Training on photographs, from files to answers: a classifier and a segmenter learn a handful of them by heart, and the
saved models, reloaded, and their exports answer at three sizes.

    pytest tests/tasks/test_photographs.py -m slow
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.tasks.segmentation.settings import SegmentationSettings
from pvt_hf.weights.exported import open_exported

from ..support.exports import export
from ..support.photographs import coins_and_mask, photographs


pytestmark = pytest.mark.slow

SMALL = {
    "hidden_sizes": [16, 32, 48, 64],
    "num_attention_heads": [1, 2, 3, 4],
    "depths": [1, 1, 1, 1],
    "mlp_ratios": [2, 2, 2, 2],
}
TRAINING = {
    "eval_split": "train", "num_workers": 0, "cpu": "true", "warmup_epochs": 1, "drop_path_rate": 0.0,
    "max_grad_norm": 1.0, "weight_decay": 0.0, "eval_every_epochs": 100, "min_learning_rate": 0.0,
}  # fmt: skip


def learn(task, settings, dataset, output_dir, **arguments):
    """Trains as the command does; gives the content of run.json."""
    values = {**TRAINING, **arguments, "dataset": dataset, "output_dir": output_dir}
    words = [word for name, value in values.items() for word in (f"--{name}", *map(str, np.atleast_1d(value)))]
    return train(get_task(task), parse_arguments(settings, words))


def test_a_classifier_knows_six_photographs(tmp_path):
    photos = photographs()
    for name, photo in photos.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(4):  # of one epoch
            photo.save(tmp_path / "photos" / name / f"{index}.png")
    report = learn(
        "image-classification", ClassificationSettings, tmp_path / "photos", tmp_path / "out",
        config_overrides=json.dumps(SMALL), image_size=64, crop_ratio=1.0, min_scale=0.5, horizontal_flip=0.5,
        auto_augment="", random_erasing=0, mixup=0, cutmix=0, label_smoothing=0, epochs=40, batch_size=12,
        learning_rate=2e-3,
    )  # fmt: skip
    assert report["metrics"]["accuracy@1"] == 1.0
    export(tmp_path / "out", tmp_path / "program", "onnx")
    models = [AutoModelForImageClassification.from_pretrained(tmp_path / "out"), open_exported(tmp_path / "program")]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    for height, width in ((64, 64), (80, 80), (64, 80)):
        pixels = processor(list(photos.values()), size={"height": height, "width": width}, do_center_crop=False,
                           return_tensors="pt").pixel_values  # fmt: skip
        assert pixels.shape[2:] == (height, width)
        for model in models:
            with torch.no_grad():
                labels = model(pixels).logits.argmax(-1).tolist()
            answers = [model.config.id2label[label] for label in labels]
            assert answers == list(photos), (height, width)


def test_a_segmenter_knows_the_coins(tmp_path):
    image, mask = coins_and_mask()
    for folder in ("images", "masks"):
        (tmp_path / "coins" / folder).mkdir(parents=True)
    boxes = [(left, top, left + 128, top + 128) for left in (0, 128, 256) for top in (0, 128)]
    for index, box in enumerate(boxes):
        image.crop(box).save(tmp_path / "coins" / "images" / f"{index}.png")
        mask.crop(box).save(tmp_path / "coins" / "masks" / f"{index}.png")
    learn(
        "semantic-segmentation", SegmentationSettings, tmp_path / "coins", tmp_path / "out",
        class_names="ground,coin", backbone_overrides=json.dumps({**SMALL, "image_size": 128}),
        config_overrides=json.dumps({"fpn_channels": 32, "head_channels": 32, "classifier_dropout_prob": 0.0}),
        shortest_edge=128, longest_edge=512, crop_size=96, min_scale=0.75, max_scale=1.5, max_class_share=1,
        photometric="false", epochs=60, batch_size=6, learning_rate=2e-3, schedule="poly",
    )  # fmt: skip
    export(tmp_path / "out", tmp_path / "program", "torch")
    program = open_exported(tmp_path / "program", trust_remote_code=True)  # PyTorch reads it with pickle
    models = [AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out"), program]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    whole = np.asarray(mask.crop((0, 0, 384, 256)))
    for height, width in ((256, 384), (192, 288), (320, 480)):
        pixels = processor(image.crop((0, 0, 384, 256)).resize((width, height), Image.Resampling.BICUBIC),
                           do_resize=False, return_tensors="pt").pixel_values  # fmt: skip
        assert pixels.shape[2:] == (height, width)
        for model in models:
            with torch.no_grad():
                outputs = model(pixel_values=pixels)
            (answer,) = processor.post_process_semantic_segmentation(outputs, [whole.shape])
            ground, coin = ((answer.numpy() == label, whole == label) for label in (0, 1))
            for found, true in (ground, coin):
                assert (found & true).sum() / (found | true).sum() > 0.85, (height, width)
