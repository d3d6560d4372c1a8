"""
`scripts/predict.py --task semantic-segmentation`: label maps of the largest resized logit at every pixel, overlays that
are the blend, legends of the classes that are there, and files that get in nobody's way.

    python -m pytest tests/inference/test_predict.py
"""

import copy
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Mask2FormerImageProcessor, pipeline

from pvt_hf import (
    PvtForImageClassification,
    PvtImageProcessor,
    PvtSemanticImageProcessor,
    SemanticFpnConfig,
    SemanticFpnForSemanticSegmentation,
)
from pvt_hf.inference.pictures import class_colors

from ..support.common import randomize, tiny_pvt_config
from ..support.frameworks import make_mask2former


SCRIPT = Path(__file__).parents[2] / "scripts" / "predict.py"
NAMES = dict(enumerate(["sky", "road", "car", "tree", "dog", "dog"]))  # two classes with one name
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def save_segmenter(folder: Path, **labels) -> SemanticFpnForSemanticSegmentation:
    torch.manual_seed(0)
    config = SemanticFpnConfig(
        backbone_config=tiny_pvt_config(out_features=STAGES), fpn_channels=16, head_channels=8, **labels
    )
    model = randomize(SemanticFpnForSemanticSegmentation(config)).eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(20)  # so that several classes win somewhere
    model.save_pretrained(folder)
    PvtSemanticImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter")
    return folder, save_segmenter(folder, id2label=NAMES)


def predict(monkeypatch, *arguments: object) -> object:
    """Runs the script in this process; its exit status or message, None for success."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return end.code


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@torch.no_grad()
def by_hand(model, image: Image.Image) -> np.ndarray:
    processor = PvtSemanticImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    logits = model(processor(image, return_tensors="pt").pixel_values).logits
    resized = F.interpolate(logits, size=(image.height, image.width), mode="bilinear", align_corners=False)
    return resized[0].argmax(0).numpy()


def assert_same_labels(file: Path, expected: np.ndarray) -> np.ndarray:
    with Image.open(file) as image:
        assert image.mode == "L" and image.size == expected.shape[::-1]
        labels = np.asarray(image)
    # Of two classes as good as equal, rounding decides
    assert (labels != expected).mean() < 1e-3, file
    return labels


def test_images_of_many_kinds(segmenter, tmp_path, monkeypatch, capsys):
    folder, model = segmenter
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    grey, color = picture(90, 70, seed=1).convert("L"), picture(64, 96, seed=2)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    alpha = Image.new("L", (33, 200), 255)
    alpha.paste(0, (0, 100, 33, 200))
    clear = picture(33, 200, seed=3)
    clear.putalpha(alpha)
    on_white = Image.new("RGB", clear.size, "white")
    on_white.paste(clear, mask=alpha)
    images = {  # file: image, how to save it, what it shows, its name in the output
        "one/photo.png": (picture(40, 40), {}, picture(40, 40), "photo"),
        "two/photo.png": (color.transpose(Image.Transpose.ROTATE_90), {"exif": exif}, color, "photo-2"),
        "one/deep.png": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), {}, grey.convert("RGB"), "deep"),
        "one/clear.png": (clear, {}, on_white, "clear"),
        "one/bits.png": (grey.convert("1"), {}, grey.convert("1").convert("RGB"), "bits"),
    }
    for file, (image, options, _, _) in images.items():
        image.save(tmp_path / file, **options)
    assert Image.open(tmp_path / "one/deep.png").mode == "I;16"
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    files = [tmp_path / "broken.jpg", *(tmp_path / file for file in images), tmp_path / "absent.png"]

    end = predict(
        monkeypatch, *files, "--model", folder, "--task", "semantic-segmentation", "--output_dir", tmp_path / "out"
    )
    assert end == "2 of 7 images could not be predicted."  # which Python prints, and exits with status 1
    printed = capsys.readouterr()
    assert f"{tmp_path / 'broken.jpg'}: " in printed.err and f"{tmp_path / 'absent.png'}: " in printed.err
    assert "broken.jpg'. It is no image that Pillow reads, or it is damaged: repair or remove it." in printed.err
    names = [f"{name}.{ending}.png" for *_, name in images.values() for ending in ("overlay", "labels")]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*names, "predictions.jsonl"}

    lines = printed.out.splitlines()
    several = 0
    for line, (file, (_, _, shown, name)) in zip(lines, images.items(), strict=True):
        labels = assert_same_labels(tmp_path / "out" / f"{name}.labels.png", by_hand(model, shown))
        several += len(np.unique(labels)) > 1
        counts = sorted(((labels == label).sum(), NAMES[label]) for label in np.unique(labels))[::-1]
        text = re.fullmatch(rf"{re.escape(str(tmp_path / file))}: (.*)  -> .*", line).group(1)
        assert [part.rsplit(" ", 1)[1] for part in text.split(", ")] == [f"{n / labels.size:.1%}" for n, _ in counts]
        assert sorted(part.rsplit(" ", 1)[0] for part in text.split(", ")) == sorted(name for _, name in counts)
        overlay = np.asarray(Image.open(tmp_path / "out" / f"{name}.overlay.png"))
        blend = 0.4 * np.asarray(shown) + 0.6 * class_colors(6)[labels]
        assert np.abs(overlay[: shown.height, : shown.width] - blend).max() <= 1  # rounding
    assert several >= 3


def test_more_than_255_classes(tmp_path, monkeypatch):
    model = save_segmenter(tmp_path / "model", num_labels=300, semantic_loss_ignore_index=-100)
    with torch.no_grad():
        for parameter in model.head.classifier.parameters():
            parameter.copy_(parameter.flip(0))  # so that one beyond 255 is among the winners
    model.save_pretrained(tmp_path / "model")
    image = picture(75, 50)
    image.save(tmp_path / "image.png")
    arguments = ("--model", tmp_path / "model", "--output_dir", tmp_path / "out")
    assert predict(monkeypatch, tmp_path / "image.png", *arguments) is None
    with Image.open(tmp_path / "out" / "image.labels.png") as file:
        assert file.mode == "I;16"
        labels = np.asarray(file)
    assert labels.max() > 255 and (labels != by_hand(model, image)).mean() < 1e-3


def test_mask2former(tmp_path, monkeypatch):
    torch.manual_seed(0)
    randomize(make_mask2former()).save_pretrained(tmp_path / "model")
    Mask2FormerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(tmp_path / "model")
    image = picture(75, 50)
    image.save(tmp_path / "image.png")
    arguments = ("--model", tmp_path / "model", "--output_dir", tmp_path / "out")
    assert predict(monkeypatch, tmp_path / "image.png", *arguments) is None
    expected = np.zeros((50, 75), dtype=int)
    for segment in pipeline("image-segmentation", model=str(tmp_path / "model"))(image, subtask="semantic"):
        expected[np.asarray(segment["mask"]) > 0] = int(segment["label"].removeprefix("LABEL_"))
    assert_same_labels(tmp_path / "out" / "image.labels.png", expected)


def test_inputs_are_not_written_over(segmenter, tmp_path, monkeypatch):
    picture(40, 40, seed=5).save(tmp_path / "a.png")
    picture(50, 60, seed=6).save(tmp_path / "a.labels.png")
    before = (tmp_path / "a.labels.png").read_bytes()
    files = [tmp_path / "a.png", tmp_path / "a.labels.png"]
    arguments = ("--model", segmenter[0], "--task", "semantic-segmentation", "--output_dir", tmp_path)
    assert predict(monkeypatch, *files, *arguments) is None
    assert (tmp_path / "a.labels.png").read_bytes() == before
    made = {"a-2.overlay.png", "a-2.labels.png", "a.labels.overlay.png", "a.labels.labels.png"}
    inputs = {"a.png", "a.labels.png"}
    assert {file.name for file in tmp_path.iterdir()} == {*inputs, *made, "predictions.jsonl"}


def test_a_classifier_and_the_default_task(tmp_path, monkeypatch, capsys):
    PvtForImageClassification(tiny_pvt_config()).save_pretrained(tmp_path / "model")
    PvtImageProcessor(size=64, crop_size=64).save_pretrained(tmp_path / "model")
    picture(40, 40).save(tmp_path / "a.png")
    arguments = (tmp_path / "a.png", "--model", tmp_path / "model", "--output_dir", tmp_path / "out")
    end = predict(monkeypatch, *arguments, "--task", "semantic-segmentation")
    assert end == f"{tmp_path / 'model'} holds a PvtForImageClassification, which cannot do semantic-segmentation."
    end = predict(monkeypatch, tmp_path / "a.png", "--model", tmp_path / "none", "--output_dir", tmp_path / "out")
    assert end.startswith(f"error: There is no model folder {tmp_path / 'none'}") and "\n" not in end
    assert not (tmp_path / "out").exists()
    end = predict(monkeypatch, *arguments[:-1], tmp_path / "a.png")
    assert end == f"error: --output_dir {tmp_path / 'a.png'} is a file: give a folder."
    assert predict(monkeypatch, *arguments) is None
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a.classes.png", "predictions.jsonl"}


@pytest.mark.parametrize(
    ("option", "value"), [("threshold", "nan"), ("threshold", -0.1), ("threshold", 30), ("top_k", 0)]
)
def test_arguments_that_would_hide_every_answer(monkeypatch, capsys, option, value):
    assert predict(monkeypatch, "photo.png", "--model", "absent", f"--{option}={value}") == 2
    assert f"--{option} must be " in capsys.readouterr().err


def test_answers_that_are_not_finite_write_nothing(segmenter, tmp_path, monkeypatch, capsys):
    folder, model = segmenter
    shutil.copytree(folder, tmp_path / "model")
    picture(40, 40).save(tmp_path / "photo.png")
    arguments = (tmp_path / "photo.png", "--model", tmp_path / "model", "--output_dir", tmp_path / "out")
    damaged = copy.deepcopy(model)
    damaged.head.classifier.weight.data.fill_(3e38)  # finite, but what it computes is not
    damaged.save_pretrained(tmp_path / "model")
    assert predict(monkeypatch, *arguments) == "1 of 1 images could not be predicted."
    assert "photo.png: The model's logits are NaN or infinite" in capsys.readouterr().err
    damaged.head.classifier.weight.data[0] = torch.nan
    damaged.save_pretrained(tmp_path / "model")
    assert "have values that are NaN or infinite: 'head.classifier.weight'" in predict(monkeypatch, *arguments)
    config = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({**config, "rescale_factor": float("nan")}))
    assert "rescale_factor must be a finite number, got nan" in predict(monkeypatch, *arguments)
    assert list((tmp_path / "out").iterdir()) == []
