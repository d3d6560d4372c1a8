"""
Exports compute what their models do and answer like them; what is wrong is said, and leaves nothing behind.

    pytest tests/export/test_export.py
"""

import copy
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

import pvt_hf
from pvt_hf.commands import main
from pvt_hf.data import streams
from pvt_hf.data.digits import digit_scenes
from pvt_hf.export import folder as export_folder
from pvt_hf.export.accuracy import AccuracyData, calibration_samples
from pvt_hf.export.comparison import Comparison, difference_of, matched
from pvt_hf.export.folder import Disagreement
from pvt_hf.export.source import open_source, preparation
from pvt_hf.families import FAMILIES
from pvt_hf.weights import export_formats
from pvt_hf.weights.export_files import read_manifest
from pvt_hf.weights.exported import open_exported
from pvt_hf.weights.opening import open_complete
from pvt_hf.weights.whole_folder import folder_written_whole

from ..support.common import random_images
from ..support.distributions import CONSTRAINTS, uv
from ..support.exports import export, figures, save_model
from ..support.pages import DOCS, blocks


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model, and its export for any size."""
    folder = tmp_path_factory.mktemp("classifier")
    report = export(save_model("pvt", folder / "model"), folder / "export")
    return folder / "model", folder / "export", report


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((150, 90), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(monkeypatch, capsys, *arguments: object) -> tuple[object, str]:
    """Exit status or message of `pvt-hf ARGUMENTS` in this process, and what it prints."""
    monkeypatch.setattr(sys, "argv", ["pvt-hf", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    return end.value.code, captured.out + captured.err


# What the program computes. The tolerance is that of fp32 sums in another order, see `tests/support/common.py`.


def test_the_program_runs_without_torch_at_sizes_that_were_not_compared(classifier):
    model, folder, _ = classifier
    opened = pvt_hf.PvtForImageClassification.from_pretrained(model).eval()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for batch, height, width in ((1, 33, 47), (4, 128, 32), (2, 75, 203)):
        images = random_images(batch, height, width, seed=height)
        (logits,) = session.run(["logits"], {"pixel_values": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), opened(images).logits, atol=2e-5, rtol=1e-4)


def test_small_images_where_the_program_was_found_equal(classifier):
    model, folder, report = classifier
    opened = pvt_hf.PvtForImageClassification.from_pretrained(model).eval()
    assert report["smallest_side"] == opened.config.minimum_image_size == 32
    images = random_images(2, 32, 61)
    with torch.no_grad():
        torch.testing.assert_close(open_exported(folder)(images).logits, opened(images).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_openvino_refuses_sizes_that_it_gets_wrong_and_compiles_for_one_that_stays(tmp_path):
    """Below 64 pixels, where one row of keys is left, its answers are another model's."""
    model = save_model("pvt", tmp_path / "model")
    report = export(model, tmp_path / "export", "openvino")
    opened = pvt_hf.PvtForImageClassification.from_pretrained(model).eval()
    program = open_exported(tmp_path / "export")
    assert report["smallest_side"] == 64
    with pytest.raises(ValueError, match="48x64 pixels, but this export takes images of at least 64x64"):
        program(random_images(1, 48, 64))
    runner = program.exported._runners["model"]
    for turn, shape in enumerate([(2, 64, 96)] * 10 + [(1, 70, 71)] + [(2, 64, 96)] + [(3, 64, 65)] * 9):
        images = random_images(*shape, seed=turn)
        with torch.no_grad():
            expected = opened(images).logits
        torch.testing.assert_close(program(images).logits, expected, atol=2e-5, rtol=1e-4)
        if turn == 10:
            assert runner.compiled_for[0] == ((2, 3, 64, 96),)
    assert runner.compiled_for[0] == ((3, 3, 64, 65),)


def test_the_folder_holds_what_a_user_needs(classifier):
    model, folder, report = classifier
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md", "config.json", "export.json", "export_report.json", "labels.txt", "model.onnx",
        "model.onnx.data", "preprocessor_config.json",
    ]  # fmt: skip
    assert (folder / "labels.txt").read_text().split() == [str(digit) for digit in range(10)]
    written = json.loads((folder / "export_report.json").read_text())
    assert written == json.loads(json.dumps(report))
    shapes = [(one["batch"], one["height"], one["width"]) for one in written["comparison"]]
    assert {batch for batch, _, _ in shapes} >= {1, 2, 3} and any(height != width for _, height, width in shapes)
    assert any(min(shape[1:]) > 64 for shape in shapes)  # the model is built for 64
    card = (folder / "README.md").read_text()
    assert (
        "onnxruntime" in card
        and "any size from 32x32 pixels:" in card
        and all(f"{b} x {h}x{w}" in card for b, h, w in shapes)
    )
    speed, (lower, upper) = written["speed"], written["speed"]["ratio_quartiles"]
    assert 0 < lower <= speed["ratio"] <= upper and speed["pairs"] >= 3
    assert f"({lower:.2f} to {upper:.2f}; median and quartiles of {speed['pairs']} pairs of calls)" in card
    # PyTorch notes lines of code and their files in each node of the graph
    assert b"modeling_pvt.py" not in (folder / "model.onnx").read_bytes()
    before, after = (AutoImageProcessor.from_pretrained(place).to_dict() for place in (model, folder))
    assert before == after


def test_a_pipeline_and_predict_answer_like_the_model(classifier, photo, monkeypatch, capsys):
    model, folder, _ = classifier
    answers = [pvt_hf.open_pipeline(str(place))[1](Image.open(photo), top_k=10) for place in (model, folder)]
    assert [one["label"] for one in answers[0]] == [one["label"] for one in answers[1]]
    np.testing.assert_allclose(*[[one["score"] for one in answer] for answer in answers], rtol=1e-4)
    lines = []
    for place in (model, folder):
        status, text = run(monkeypatch, capsys, "predict", "--model", place, photo, "--output_dir", photo.parent / "o")
        assert not status and "not supported" not in text
        lines.append(text.partition("->")[0])
    assert lines[0] == lines[1] != ""


def test_the_example_of_the_page_runs_without_torch(classifier, photo):
    model, folder, _ = classifier
    blocked = "import sys\nfor name in ('torch', 'transformers', 'pvt_hf'): sys.modules[name] = None\n"
    printed = run_example("classifier-onnx", folder, photo, sys.executable, blocked)
    (answer,) = pvt_hf.open_pipeline(str(model))[1](Image.open(photo), top_k=1)
    assert printed.strip() == answer["label"]


def run_example(name: str, folder: Path, photo: Path, python: Path | str, before: str = "") -> str:
    """What the block of docs/deployment.md that opens the export `name` in ONNX Runtime prints."""
    (code,) = [one.code for one in blocks(DOCS / "deployment.md") if "onnxruntime.I" in one.code and name in one.code]
    assert "torch" not in code and "pvt_hf" not in code
    code = code.replace(f'"{name}', f'"{folder}')
    code = re.sub(r'"\w+\.(jpg|png)"', lambda _: repr(str(photo)), code)
    return run_alone(python, before + code)


def run_alone(python: Path | str, code: str) -> str:
    """What code prints in a process that sees the packages of its environment only, not this checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_evaluation_gives_the_same_accuracy(classifier):
    model, folder, _ = classifier
    before, after = (figures("pvt", place) for place in (model, folder))
    assert before["eval_loss"] == pytest.approx(after["eval_loss"], rel=1e-5)
    assert {**before, "eval_loss": 0} == {**after, "eval_loss": 0}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A function from a sample's name to its export for one size, which is traced faster. Exports each once."""
    root = tmp_path_factory.mktemp("samples")

    @functools.cache
    def exported(name: str) -> Path:
        export(f"sample:{name}", root / name, fixed_size=(128, 192))
        return root / name

    return exported


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family", "figure"),
    [("digits-segmenter", "semantic_fpn", "mean_iou"), ("digits-detector", "mask_rcnn", "ap")],
)
def test_samples_are_as_accurate_as_their_exports(name, family, figure, samples, monkeypatch):
    """On sixteen held-out scenes of 96x144 pixels, which the models' processors make 128x192, too."""

    def few(split, *size, **options):
        return digit_scenes(split, 96, 144, **{**options, "num_shards": 2, "length": 16})

    monkeypatch.setattr(streams, "digit_scenes", few)
    scenes = {"scene_size": 96, "digit_sizes": [30, 54]}
    before, after = (figures(family, place, **scenes) for place in (f"sample:{name}", samples(name)))
    assert before[figure] > 0.4 and before.keys() == after.keys()
    for key, value in before.items():  # fp32 rounding may change the class of a pixel, or the order of two objects
        if isinstance(value, float) and value == value:
            assert after[key] == pytest.approx(value, abs=2e-3), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trans2seg", "retinanet", "detr"])
def test_heads_without_a_sample_answer_like_their_models(name, tmp_path, photo, monkeypatch, capsys):
    """For one size, whose program takes the next multiples of 32. tests/export/test_export_table.py has any size."""
    model = save_model(name, tmp_path / "model")
    status, text = run(
        monkeypatch, capsys, "export", model, "--format", "onnx", "--output", tmp_path / "export", "--static", "50x90"
    )
    assert not status and "64x96 instead of 50x90: the image processor brings images to multiples of 32" in text
    shutil.copy(tmp_path / "export" / "preprocessor_config.json", model)
    (_, before), (task, after) = (pvt_hf.open_pipeline(str(place)) for place in (model, tmp_path / "export"))
    options = {} if FAMILIES[name].task == "segmentation" else {"threshold": 0.1}
    answers = [one(Image.open(photo), **options) for one in (before, after)]
    assert len(answers[0]) == len(answers[1]) > 0
    for one, other in zip(*answers):
        assert one["label"] == other["label"]
        if "box" in one:
            assert one["box"] == other["box"] and one["score"] == pytest.approx(other["score"], abs=1e-4)
        else:  # a pixel between two classes
            assert np.mean(np.asarray(one["mask"]) != np.asarray(other["mask"])) < 1e-3
    assert type(after.model).__name__ == FAMILIES[name].models[0].name
    if task == "object-detection":
        entries = []
        for place in (model, tmp_path / "export"):
            words = ["--model", place, photo, "--threshold", 0.1, "--output_dir", tmp_path / "predictions"]
            assert not run(monkeypatch, capsys, "predict", *words, "--json", tmp_path / "answers.json")[0]
            entries += json.loads((tmp_path / "answers.json").read_text())
        boxes, others = (np.array([one["box"] for one in entry["objects"]]) for entry in entries)
        assert len(boxes) == len(answers[0])
        np.testing.assert_allclose(boxes, others, atol=0.01)  # in pixels of the photograph


@pytest.mark.slow
def test_the_examples_of_the_page_run_where_there_is_no_torch(classifier, samples, photo, tmp_path):
    """In an environment of its own. The boxes are those of the model, which a pipeline rounds down to whole pixels."""
    uv("venv", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    packages = "onnxruntime", "pillow", "numpy"
    uv("pip", "install", "--python", python, "--constraint", CONSTRAINTS, *packages)
    found = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'pvt_hf') if u.find_spec(n)])"
    assert run_alone(python, found) == "[]\n"

    (answer,) = pvt_hf.open_pipeline(str(classifier[0]))[1](Image.open(photo), top_k=1)
    assert run_example("classifier-onnx", classifier[1], photo, python).strip() == answer["label"]

    folder, scene = samples("digits-detector"), Path(pvt_hf.sample("digits-detector"), "scene.png")
    lines = run_example("detector-onnx", folder, scene, python).splitlines()
    detector = pvt_hf.open_pipeline("sample:digits-detector", "object-detection")[1]
    detector.image_processor = AutoImageProcessor.from_pretrained(folder)
    answers = detector(Image.open(scene), threshold=0.5)
    assert len(lines) == len(answers) > 1
    for line, answer in zip(lines, answers, strict=True):
        label, score, box = line.split(" ", 2)
        assert label == answer["label"] and float(score) == pytest.approx(answer["score"], abs=0.006)
        assert json.loads(box) == pytest.approx([side + 0.5 for side in answer["box"].values()], abs=0.56)


# A static program


@pytest.mark.slow
def test_a_program_for_one_size_takes_batches_and_refuses_other_sizes(tmp_path):
    model = save_model("pvt", tmp_path / "model")
    report = export(model, tmp_path / "export", fixed_size=(96, 64))
    assert report["fixed_size"] == (96, 64) and len(report["comparison"]) == 1
    program = open_exported(tmp_path / "export")
    images = random_images(3, 96, 64)
    with torch.no_grad():
        expected = open_complete(pvt_hf.PvtForImageClassification, model)(images).logits
    torch.testing.assert_close(program(images).logits, expected, atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="images of 96x64 pixels only, got 64x96.*without --static"):
        program(random_images(1, 64, 96))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "export")
    assert processor(Image.new("RGB", (300, 40)), return_tensors="pt")["pixel_values"].shape == (1, 3, 96, 64)


# Mistakes


def test_a_disagreement_stops_with_the_figures_and_writes_nothing(classifier, tmp_path, monkeypatch):
    model, _, _ = classifier
    traced = export_folder.trace

    def wrong(model, options):
        """The program of a model whose position table of the first stage is upside down."""
        other = copy.deepcopy(model)
        with torch.no_grad():
            table = other.pvt.encoder.patch_embeddings[0].position_embeddings
            table.copy_(table.flip(1))
        return traced(other, options)

    monkeypatch.setattr(export_folder, "trace", wrong)
    with pytest.raises(Disagreement, match=r"nothing was written.*1 x 64x64: largest difference [0-9.]+"):
        export(model, tmp_path / "export", fixed_size=(64, 64))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(classifier, tmp_path, monkeypatch, capsys, number):
    def interrupt(*arguments, **options):
        assert [*tmp_path.rglob("config.json")]  # it is being written
        signal.raise_signal(number)

    exported = [file for file in classifier[1].iterdir() if file.suffix != ".md"]
    monkeypatch.setattr(export_folder, "trace", lambda *_: Copied(exported))
    monkeypatch.setattr(export_folder, "open_exported", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    try:
        status, text = run(
            monkeypatch, capsys, "export", classifier[0], "--format", "onnx", "--output", tmp_path / "new" / "export"
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status == 128 + number and "interrupted: nothing was written." in text
    assert [*tmp_path.rglob("*")] == []


class Copied:
    """Stands for a program: saving it copies these files."""

    def __init__(self, files: list[Path]):
        self.files = files

    def save_pretrained(self, folder: Path) -> None:
        for file in self.files:
            shutil.copy(file, folder)


def test_mistakes_are_named(classifier, tmp_path, monkeypatch, capsys):
    model, folder, _ = classifier
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "README.md").touch()
    broken = shutil.copytree(model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    unprepared = shutil.copytree(model, tmp_path / "unprepared", ignore=shutil.ignore_patterns("preprocessor*"))
    to = ["--format", "onnx", "--output"]
    for words, expected in (
        ([model, "--format", "onyx", "--output", tmp_path / "x"], "invalid choice: 'onyx' (choose from"),
        ([model, *to, tmp_path / "full"], "is not empty: choose another output, or pass --overwrite"),
        ([model, *to, tmp_path / "full" / "file"], "is a file"),
        ([model, *to, tmp_path / "x", "--static", "1x"], "'1x' is not a size"),
        ([model, *to, tmp_path / "x", "--static", "16"], "--static 16x16: this model takes images of at least 32x32"),
        ([model, *to, tmp_path / "link"], "is a link to nowhere: give a folder"),
        ([model, *to, tmp_path / "link" / "x"], "is a link to nowhere: give a folder"),
        ([model, *to, tmp_path / "x", "--int8"], "--int8 is calibrated on images: give a --dataset"),
        ([model, *to, tmp_path / "x", "--bf16"], "--bf16: ONNX has fp32, fp16."),
        (
            [model, "--format", "torch", "--output", tmp_path / "x", "--int8"],
            "is not quantised here; onnx and openvino",
        ),
        ([tmp_path / "absent", *to, tmp_path / "x"], "There is no model folder"),
        (
            [broken, *to, tmp_path / "x"],
            "it has no weights for 'classifier.weight'",
        ),
        ([unprepared, *to, tmp_path / "x"], "has no image processor, which an export needs"),
        ([folder, *to, tmp_path / "x"], "is an export already"),
        ([model, *to, model.parent, "--overwrite"], "has export, model, which no earlier run wrote, and is not replac"),
        ([model, *to, tmp_path / "full", "--overwrite"], "has file, which no earlier run wrote"),
        ([model, *to, model, "--overwrite"], "has model.safetensors, which no earlier run wrote"),
        ([model, *to, tmp_path / "thesis", "--overwrite"], "has no export.json, so no earlier run wrote it"),
    ):
        status, text = run(monkeypatch, capsys, "export", *words)
        assert expected in f"{status} {text}", (words, status, text)
    assert not (tmp_path / "x").exists() and [*(tmp_path / "full").iterdir()] == [tmp_path / "full" / "file"]


def test_a_missing_package_is_named_with_its_extra(classifier, tmp_path, monkeypatch, capsys):
    model, folder, _ = classifier
    find = export_formats.find_spec
    monkeypatch.setattr(export_formats, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    line = 'ONNX needs onnxruntime, which is not installed: pip install "pvt-hf[export]"'
    status, _ = run(monkeypatch, capsys, "export", model, "--format", "onnx", "--output", tmp_path / "x")
    assert status == f"error: {line}"
    with pytest.raises(ValueError, match="onnxruntime, which is not installed"):
        pvt_hf.open_pipeline(str(folder))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda manifest: "{", "export.json cannot be read: it is damaged"),
        (lambda manifest: "[1]", "export.json cannot be read: it is damaged"),
        (lambda manifest: manifest.replace('"model.onnx"', "5"), "export.json cannot be read: it is damaged"),
        (lambda manifest: json.dumps({"export_format": "tflite", "components": {}}), "the format 'tflite', which this"),
        (lambda manifest: manifest.replace('"model.onnx"', '"../model.onnx"'), "has no ../model.onnx"),
        (lambda manifest: manifest.replace('"model.onnx"', '"other.onnx"'), "has no other.onnx"),
    ],
)
def test_damaged_exports_are_refused(classifier, tmp_path, change, expected):
    folder = shutil.copytree(classifier[1], tmp_path / "export")
    shutil.copy(folder / "model.onnx", tmp_path)
    (folder / "export.json").write_text(change((folder / "export.json").read_text()))
    with pytest.raises(ValueError) as error:
        pvt_hf.open_pipeline(str(folder))
    assert expected in str(error.value)


def zeroed(folder):
    """Another program of the same size."""
    path = folder / "model.onnx.data"
    path.write_bytes(bytes(1000) + path.read_bytes()[1000:])


def with_labels(number):
    """A change of the number of names in `config.json`."""

    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {str(label): f"class {label}" for label in range(number)}
        config["num_labels"], config["label2id"] = number, {f"class {label}": label for label in range(number)}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def cut_short(folder):
    data = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(data[:-100])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "model.onnx.data").unlink(), "has no model.onnx.data, which belongs to the export"),
        (cut_short, "bytes, and had"),
        (zeroed, "model.onnx.data is damaged: its SHA-256 is .*: copy it again"),
        (lambda folder: (folder / "export.json").unlink(), "has no export.json, which belongs to the export"),
        (with_labels(12), "has 10 classes, config.json names 12: copy it again"),
        (lambda folder: (folder / "labels.txt").write_text("a\nb\n"), "has 10 classes, labels.txt names 2: copy it"),
        (lambda folder: (folder / "labels.txt").unlink(), "has no labels.txt, which belongs to the export"),
        (lambda folder: (folder / "export_report.json").write_text("[]"), "export_report.json cannot be read"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
    ],
)
def test_half_exports_are_refused(classifier, tmp_path, change, expected):
    change(shutil.copytree(classifier[1], tmp_path / "export"))
    with pytest.raises(ValueError, match=expected):
        pvt_hf.open_pipeline(str(tmp_path / "export"))


def test_images_that_the_model_does_not_take_are_refused(classifier):
    program = open_exported(classifier[1])
    for shape in ((1, 3, 31, 64), (1, 3, 64, 31)):
        with pytest.raises(ValueError, match="takes images of at least 32x32"):
            program(torch.zeros(shape))
    for shape in ((0, 3, 64, 64), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\)"):
            program(torch.zeros(shape))


def test_programs_that_pickle_opens_need_trust(tmp_path):
    export(save_model("pvt", tmp_path / "model"), tmp_path / "export", "torch", fixed_size=(64, 64))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pvt_hf.open_pipeline(str(tmp_path / "export"), trust_remote_code=False)
    assert pvt_hf.open_pipeline(str(tmp_path / "export"), trust_remote_code=True)[0] == "image-classification"


def test_data_that_do_not_fit_are_refused_before_the_calibration(tmp_path, monkeypatch):
    monkeypatch.setattr(export_folder, "calibration_samples", lambda *_: pytest.fail("calibrated"))
    model = save_model("pvt", tmp_path / "model")
    for name in ("cat", "dog"):
        (tmp_path / "photos" / "validation" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "validation" / name / "1.png")
    shutil.copytree(tmp_path / "photos" / "validation", tmp_path / "photos" / "train")
    for dataset, splits, expected in (
        (tmp_path / "photos", {}, "has 2 classes and the model 10.*id2label in the model's config.json"),
        ("digits", {"split": "dev"}, "--split dev: The built-in digits have the splits train, validation"),
        ("digits", {"calibration_split": "dev"}, "--calibration_split dev: The built-in digits have"),
    ):
        with pytest.raises(ValueError, match=expected):
            export(model, tmp_path / "out", precision="int8", accuracy=AccuracyData(str(dataset), **splits))


@pytest.mark.parametrize("kind", ["openvino", "executorch"])
def test_mask_rcnn_is_refused_at_once_where_operators_are_missing(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(export_formats, "find_spec", lambda name: True)
    monkeypatch.setattr(export_folder, "trace", lambda *_: pytest.fail("traced"))
    with pytest.raises(ValueError, match="MaskRcnnForInstanceSegmentation cannot be exported .* NMS. Export to onnx"):
        export("sample:digits-detector", tmp_path / "export", kind, fixed_size=(64, 64))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pvt", "until the shorter side has 106 pixels, then cropped to 33x93"),
        ("trans2seg", "resized to 64x96 pixels, whatever their shape"),
        ("detr", "resized to fit into 33x93 pixels, then padded at the right and bottom to 64x96"),
    ],
)
def test_the_preparation_for_one_size_is_described(name, expected, tmp_path):
    source = open_source(str(save_model(name, tmp_path)), fixed_size=(33, 93))
    assert expected in preparation(source.processor, *source.fixed_size)


def test_the_versions_of_an_export_name_what_quantised_it():
    kind = export_formats.EXPORT_FORMATS["openvino"]
    assert kind.needed() == ["openvino"] and kind.needed(quantize=True) == ["openvino", "nncf"]


def test_long_names_of_folders(tmp_path):
    output = tmp_path / ("x" * 255)
    with folder_written_whole(output) as folder:
        (folder / "file").touch()
    with folder_written_whole(output) as folder:
        (folder / "other").touch()
    assert [*tmp_path.rglob("*")] == [output, output / "other"]


def test_what_needs_weights_refuses_an_export(classifier, tmp_path):
    _, folder, _ = classifier
    with pytest.raises(ValueError, match="is an exported program, which has no weights to train"):
        open_complete(pvt_hf.PvtForImageClassification, folder)
    with pytest.raises(ValueError, match="mixed_precision bf16: .* is an export"):
        figures("pvt", folder, mixed_precision="bf16")


# The comparison can fail


def test_differences_of_outputs():
    boxes = torch.rand(1, 40, 4, generator=torch.Generator().manual_seed(0))
    logits = torch.linspace(-3, 3, 40 * 5).view(1, 40, 5)
    one = {"logits": logits, "pred_boxes": boxes}
    assert difference_of(one, one) == (0.0, 40, 1.0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    swapped = {name: value[:, order] for name, value in one.items()}
    assert difference_of(one, swapped) == (0.0, 40, 1.0)
    moved = {"logits": logits, "pred_boxes": boxes.clone()}
    moved["pred_boxes"][0, :4] += 0.5
    difference, count, share = difference_of(one, moved)
    assert count == 40 and share == pytest.approx(0.9)
    assert not Comparison(1, 64, 64, difference, count, share).agrees()
    assert difference_of({"logits": logits}, {"logits": logits + 0.03})[0] == pytest.approx(0.01, rel=1e-4)
    assert difference_of({"logits": logits}, {"logits": logits * torch.nan})[0] == float("inf")
    nothing = {name: value * torch.nan for name, value in one.items()}
    for precision in ("fp32", "fp16", "int8"):
        assert not Comparison(1, 64, 64, *difference_of(one, nothing)).agrees(precision)
    whole = {**one, "last_hidden_state": logits}
    assert difference_of(whole, {**swapped, "last_hidden_state": logits + 0.03})[0] == pytest.approx(0.01, rel=1e-4)


def test_differences_of_masks_and_labels():
    generator = torch.Generator().manual_seed(0)
    count, labels = torch.tensor([30]), torch.randint(1203, (1, 40), generator=generator)
    one = {
        "pred_boxes": torch.rand(1, 40, 4, generator=generator), "pred_scores": torch.rand(1, 40, generator=generator),
        "pred_labels": labels, "pred_masks": torch.randn(1, 40, 28, 28, generator=generator), "num_detections": count,
    }  # fmt: skip
    order = torch.cat([torch.randperm(30, generator=generator), torch.arange(30, 40)])
    swapped = {name: value if name == "num_detections" else value[:, order] for name, value in one.items()}
    assert difference_of(one, swapped) == (0.0, 30, 1.0)
    for name, change in (("pred_masks", -one["pred_masks"]), ("pred_labels", labels + 1)):
        assert difference_of(one, {**one, name: change})[2] == 0
    with pytest.raises(ValueError, match="The export returns"):
        difference_of(one, {"pred_boxes": one["pred_boxes"]})


def test_outputs_with_other_parts():
    logits = torch.zeros(1, 4, 5)
    one = {"logits": logits, "pred_boxes": torch.zeros(1, 4, 4)}
    with pytest.raises(ValueError, match="The export returns"):
        difference_of(one, {"logits": logits})
    assert matched([torch.zeros(0, 5)], [torch.zeros(2, 5)])[1] == 0


# Other formats


def test_calibration_holds_one_processed_image_at_a_time(tmp_path, monkeypatch):
    model = save_model("pvt", tmp_path / "model")
    source = open_source(model)
    processed, process = [], type(source.processor).__call__

    def counted(processor, *arguments, **options):
        processed.append(None)
        return process(processor, *arguments, **options)

    monkeypatch.setattr(type(source.processor), "__call__", counted)
    samples = calibration_samples(source, model, AccuracyData("digits", calibration_images=3))
    assert len(samples) == 3
    processed.clear()  # the size of the digits depends on it
    first, again = list(samples), list(samples)  # quantisers read them more than once
    assert len(first) == 3 and len(processed) == 6
    for one, other in zip(first, again):
        assert one["pixel_values"].shape[:2] == (1, 3) and torch.equal(one["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize(("model_class", "part"), [("PvtModel", "last_hidden_state"), ("PvtBackbone", "feature_maps")])
def test_a_classifier_is_exported_as_another_class(classifier, tmp_path, model_class, part):
    export(classifier[0], tmp_path / "export", "torch", model_class=model_class, fixed_size=(64, 96))
    images = random_images(1, 64, 96)
    found = open_exported(tmp_path / "export", trust_remote_code=True)(images)[part]
    with torch.no_grad():
        expected = getattr(pvt_hf, model_class).from_pretrained(classifier[0]).eval()(images)[part]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "dtype"),
    [("onnx", "fp16", "float16"), ("openvino", "fp16", "float16"), ("openvino", "bf16", "bfloat16")],
)
def test_half_precision(kind, precision, dtype, classifier, tmp_path):
    report = export(classifier[0], tmp_path / "export", kind, precision=precision, fixed_size=(64, 96))
    assert report["precision"] == precision
    assert read_manifest(tmp_path / "export")[2] == {dtype}
    images = random_images(1, 64, 96)
    logits = open_exported(tmp_path / "export")(images).logits
    with torch.no_grad():
        expected = pvt_hf.PvtForImageClassification.from_pretrained(classifier[0]).eval()(images).logits
    difference = (logits - expected).abs().max() / expected.abs().max()
    # Each value is rounded to 11 or 8 bits
    assert logits.dtype == torch.float32 and torch.finfo(getattr(torch, dtype)).eps / 16 < difference < 0.1


@pytest.mark.slow
def test_a_compiled_package_needs_trust_and_answers_like_the_model(classifier, tmp_path):
    export(classifier[0], tmp_path / "export", "aotinductor", fixed_size=(64, 96))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        open_exported(tmp_path / "export", trust_remote_code=False)
    images = random_images(2, 64, 96)
    logits = open_exported(tmp_path / "export", trust_remote_code=True)(images).logits
    with torch.no_grad():
        expected = pvt_hf.PvtForImageClassification.from_pretrained(classifier[0]).eval()(images).logits
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision"), [("torch", "fp32"), ("openvino", "fp32"), ("openvino", "int8"), ("onnx", "int8")]
)
def test_other_formats_and_precisions(kind, precision, tmp_path):
    """8 bits move the logits of a random model, which has no large ones, by a quarter or more."""
    model = save_model("pvt", tmp_path / "model")
    data = AccuracyData("digits", calibration_images=20) if precision == "int8" else None
    request = {} if precision == "int8" else {"fixed_size": (64, 64)}
    report = export(model, tmp_path / "export", kind, precision=precision, accuracy=data, **request)
    if data is None:
        after = figures("pvt", tmp_path / "export", trust_remote_code=True)
        assert after["accuracy@1"] == figures("pvt", model)["accuracy@1"]
        return
    before, after = report["accuracy"]["figures"]["accuracy@1"]
    assert before == figures("pvt", model)["accuracy@1"] and abs(before - after) < 0.1
    assert any(1e-3 < one["difference"] < 1 for one in report["comparison"])
    assert f"| accuracy@1 | {before:.4f} | {after:.4f} |" in (tmp_path / "export" / "README.md").read_text()
