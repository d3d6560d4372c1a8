"""
`pvt-hf info` says what a model is, counts it, and finds what is missing or wrong in a checkpoint.

    python -m pytest tests/commands/test_info.py
"""

import json
import re
import shutil
import sys
import time
from functools import partial
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetForImageClassification, UperNetConfig, UperNetForSemanticSegmentation

from pvt_hf import PvtBackbone, PvtForImageClassification, PvtImageProcessor
from pvt_hf.commands import info
from pvt_hf.families import FAMILIES, load
from pvt_hf.metrics import costs
from pvt_hf.weights.exported import ExportedForInference
from pvt_hf.weights.variants import VARIANTS

from ..support.common import tiny_pvt_config
from ..support.exports import export, save_model
from ..support.golden import GOLDEN_WEIGHTS
from ..support.heads import HEADS, tiny_head


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; returns its exit status and what it printed."""

    def call(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pvt-hf info", *map(str, arguments)])
        status = info.main()
        return status, capsys.readouterr().out

    return call


@pytest.fixture
def classifier(tmp_path):
    """A folder with a classifier of two named classes and its image processor."""
    config = tiny_pvt_config(num_labels=2, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    PvtForImageClassification(config).save_pretrained(tmp_path / "model")
    PvtImageProcessor(crop_size={"height": 64, "width": 64}, size={"shortest_edge": 73}).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def number_of(text: str, part: str) -> int:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{part} "))
    return int(line.split()[1].replace(",", ""))


def test_a_classifier(run, classifier):
    status, text = run(classifier)
    model = PvtForImageClassification.from_pretrained(classifier)
    assert status == 0 and text.startswith(f"{classifier}\n")
    for words in (
        "An image classifier: a Pyramid Vision Transformer with stages of 1, 2, 1, 1 blocks", "2: cat, dog",
        "weights  complete", "shorter side to 73 pixels", "crops the centre to 64x64", "For one image of 64x64 pixels",
        "pipelines of Transformers: image-classification", "plain Transformers",
    ):  # fmt: skip
        assert words in text, words
    assert number_of(text, "total") == model.num_parameters()
    assert number_of(text, "stage1") == sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith(("pvt.encoder.patch_embeddings.0.", "pvt.encoder.block.0."))
    )
    mebibytes = 4 * model.num_parameters() / 2**20
    assert f"{mebibytes:.1f} MiB as stored; {mebibytes:.1f} MiB in float32, {mebibytes / 2:.1f} in 16 bits" in text


def test_size(run, classifier):
    _, square = run(classifier, "--size", 128)
    _, wide = run(classifier, "--size", "96x160")
    assert "128x128 pixels" in square and "96x160 pixels (height x width)" in wide
    with pytest.raises(SystemExit, match="error: .*16x16.*32x32"):
        run(classifier, "--size", 16)


def test_time(run, classifier, monkeypatch):
    calls = []

    def slow(model, pixel_values):
        assert not model.training and not torch.is_grad_enabled()
        calls.append(pixel_values.shape)
        time.sleep(0.02)

    counted = costs.Costs(96, 160, 1, 2, 4, (costs.Part("stage1", 1, 2, 4),))
    monkeypatch.setattr(costs, "time_passes", partial(costs.time_passes, seconds=0))  # no longer than three passes
    monkeypatch.setattr(PvtForImageClassification, "forward", slow)
    monkeypatch.setattr("pvt_hf.hub.model_info.count_costs", lambda *arguments: counted)
    _, text = run(classifier, "--size", "96x160", "--time")
    found = re.search(r"A forward pass takes (\d+) ms \(\d+ to \d+; median and quartiles of 3\), one image", text)
    assert calls == [(1, 3, 96, 160)] * 4 and int(found[1]) >= 20  # the first one is not counted
    assert f"PyTorch {torch.__version__}" in text and "threads: " in text
    assert "A forward pass" not in run(classifier, "--size", "96x160")[1] and len(calls) == 4


def test_half_precision_weights_are_stored_in_half_the_bytes(run, classifier):
    model = PvtForImageClassification.from_pretrained(classifier)
    model.to(torch.bfloat16).save_pretrained(classifier)
    assert f"{2 * model.num_parameters() / 2**20:.1f} MiB as stored" in run(classifier)[1]


def test_weights_that_are_missing_or_of_another_shape(run, classifier):
    file = classifier / "model.safetensors"
    weights = load_file(file)
    weights["classifier.bias"] = torch.zeros(3)
    del weights["pvt.encoder.layer_norm.bias"]
    save_file({**weights, "extra": torch.zeros(1)}, file, metadata={"format": "pt"})
    status, text = run(classifier)
    assert status == 1 and "weights  incomplete" in text
    for words in (
        "1 missing: 'pvt.encoder.layer_norm.bias'", "1 of another shape than the configuration says: 'classifier.bias'",
        "1 left over: 'extra'",
    ):  # fmt: skip
        assert words in text, words


def test_weights_that_cannot_be_read(run, classifier):
    file = classifier / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    status, text = run(classifier)
    assert status == 1 and "weights  cannot be read: " in text and "total" in text
    file.unlink()
    status, text = run(classifier)
    assert status == 1 and "cannot be read" in text and "model.safetensors" in text


def test_without_an_image_processor(run, classifier):
    (classifier / "preprocessor_config.json").unlink()
    status, text = run(classifier)
    assert status == 0 and "no image processor" in text and "For one image of 64x64" in text


@pytest.mark.parametrize("name", HEADS)
def test_heads(run, tmp_path, name):
    model, family = tiny_head(name), HEADS[name]
    model.save_pretrained(tmp_path)
    load(family.processors["pil"])().save_pretrained(tmp_path)
    status, text = run(tmp_path)
    assert status == 0 and family.title in text and number_of(text, "total") == model.num_parameters()
    shown = "800x1280" if family.task == "detection" else "512x512"
    assert f"For one image of {shown}" in text and f"Transformers: {', '.join(family.models[0].pipelines)}\n" in text
    if family.masks:
        assert "predict, evaluate: object-detection, instance-segmentation" in text


def test_a_backbone(run, tmp_path):
    PvtBackbone(tiny_pvt_config(out_features=["stage1", "stage2"])).save_pretrained(tmp_path)
    status, text = run(tmp_path)
    assert status == 0 and "none; it is a backbone" in text and "stage3" not in text


def test_models_of_transformers(run, tmp_path):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    resnet = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=3))
    resnet.save_pretrained(tmp_path / "resnet")
    status, text = run(tmp_path / "resnet", "--size", 64)
    assert status == 0 and "ResNetForImageClassification of Transformers" in text and "stage4" in text
    assert number_of(text, "total") == resnet.num_parameters()
    config = UperNetConfig(
        backbone_config=tiny_pvt_config(out_features=["stage1", "stage2", "stage3", "stage4"]), hidden_size=16,
        auxiliary_channels=8, num_labels=4,
    )  # fmt: skip
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "upernet")
    status, text = run(tmp_path / "upernet", "--size", 64)
    assert status == 0 and "pipelines of Transformers: image-segmentation" in text and "stage4" in text


@pytest.fixture(scope="module")
def classifier_export(tmp_path_factory):
    """The folder of a classifier's export for any size, and its report."""
    folder = tmp_path_factory.mktemp("exports")
    return folder / "export", export(save_model("pvt", folder / "model"), folder / "export")


@pytest.fixture
def exported(classifier_export, tmp_path):
    """A copy of that export."""
    return shutil.copytree(classifier_export[0], tmp_path / "export")


def change_report(folder, **values):
    report = folder / "export_report.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), **values}))


def test_an_export(run, classifier_export):
    folder, report = classifier_export
    status, text = run(folder)
    size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
    for words in (
        f"complete: model.onnx, model.onnx.data; {size / 2**20:.1f} MiB on disk", "any size from 32x32 pixels",
        f"ONNX, fp32, exported from {folder.parent / 'model'} with {report['parameters']:,} parameters",
        "pvt-hf predict, evaluate, app; pvt_hf.open_pipeline: image-classification", "onnxruntime",
        "For one image of 64x64",
    ):  # fmt: skip
        assert words in text, words
    for words in ("plain Transformers", "pipelines of Transformers", "in float32", "in 16 bits"):
        assert words not in text, words
    assert status == 0 and number_of(text, "total") == report["parameters"]


def test_sizes_that_an_export_does_not_take(run, exported):
    change_report(exported, smallest_side=48)
    with pytest.raises(SystemExit, match="error: 32x32 pixels: .* at least 48x48 pixels: give a larger --size"):
        run(exported, "--size", 32)
    change_report(exported, fixed_size=[64, 96])
    with pytest.raises(SystemExit, match="error: 128x128 pixels: .* 64x96 pixels only: leave out --size"):
        run(exported, "--size", 128)


def test_an_export_for_one_size(run, exported):
    """Its processor may make images of another size, which are rounded up or padded afterwards."""
    change_report(exported, fixed_size=[64, 96])
    load(FAMILIES["semantic_fpn"].processors["pil"])(size={"height": 60, "width": 90}).save_pretrained(exported)
    _, text = run(exported)
    assert "For one image of 64x96 pixels" in text and "takes images of 64x96 pixels (height x width)" in text


def test_the_precision_of_an_export(run, exported):
    change_report(exported, precision="int8")
    assert "ONNX, int8" in run(exported)[1]
    (exported / "export_report.json").unlink()
    status, text = run(exported)
    assert status == 0 and "no export_report.json" in text and "ONNX, float32" in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.onnx", None, "has no model.onnx, which belongs to the export"),
        ("model.onnx.data", None, "has no model.onnx.data, which belongs to the export"),
        ("model.onnx", b"another program", "has 15 bytes, and had"),
        ("model.onnx.data", b"cut", "has 3 bytes, and had"),
        ("labels.txt", b"0\n1\n", "has 10 classes, labels.txt names 2"),
        ("export.json", b"[1]", "export.json cannot be read"),
        ("export_report.json", b"{", "export_report.json cannot be read"),
    ],
)
def test_damaged_exports(run, exported, name, content, words):
    (exported / name).unlink() if content is None else (exported / name).write_bytes(content)
    with pytest.raises(SystemExit, match=f"error: .*{exported}.*{words}"):
        run(exported)


def test_the_time_of_an_export_is_that_of_its_program(run, exported, monkeypatch):
    calls = []
    forward = ExportedForInference.forward

    def recorded(program, pixel_values):
        calls.append(pixel_values.shape)
        return forward(program, pixel_values)

    monkeypatch.setattr(costs, "time_passes", partial(costs.time_passes, seconds=0))
    monkeypatch.setattr(ExportedForInference, "forward", recorded)
    _, text = run(exported, "--time")
    assert calls == [(1, 3, 64, 64)] * 4 and "one image, fp32, the exported program" in text
    assert f"onnxruntime {version('onnxruntime')}" in text and "random weights" not in text


def test_programs_with_code_are_timed_only_if_trusted(run, exported):
    manifest = exported / "export.json"
    manifest.write_text(manifest.read_text().replace('"onnx"', '"aotinductor"', 1))
    assert "native code: opens only with --trust_remote_code" in run(exported)[1]
    with pytest.raises(SystemExit, match="error: .*export holds native code.*--trust_remote_code"):
        run(exported, "--time")


def test_a_processor_that_fits_images_into_a_size(run, tmp_path):
    tiny_head("retinanet").save_pretrained(tmp_path)
    processor = load(FAMILIES["retinanet"].processors["pil"])
    processor(size={"max_height": 128, "max_width": 192}).save_pretrained(tmp_path)
    assert "- resizes to fit 128x192 pixels, height x width (bilinear)" in run(tmp_path)[1]


def test_an_official_file(run):
    status, text = run(GOLDEN_WEIGHTS)
    assert status == 0 and "complete; an official checkpoint" in text and "PvtForImageClassification" in text


@pytest.mark.parametrize("architecture", FAMILIES)
def test_variants(run, architecture):
    status, text = run("--variant", "pvt-tiny", "--architecture", architecture, "--size", 224)
    assert status == 0 and "none: an architecture" in text and "224x224" in text
    totals = {"pvt": 13_229_288, "semantic_fpn": 16_981_398, "retinanet": 22_964_724, "mask_rcnn": 32_882_160}
    if architecture in totals:  # PAPER_FACTS
        assert number_of(text, "total") == totals[architecture]


def test_the_names_in_the_help_are_those_of_the_package():
    assert info.VARIANTS == tuple(VARIANTS) and info.ARCHITECTURES == tuple(FAMILIES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["MODEL", "--variant"]),
        (["model", "--variant", "pvt-tiny"], ["MODEL", "--variant"]),
        (["model", "--architecture", "detr"], ["--architecture", "config.json"]),
        (["model", "--size", "big"], ["--size", "'big'", "800x1280"]),
        (["model", "--size", "0"], ["--size", "'0'"]),
        (["--variant", "pvt-huge"], ["pvt-huge", "pvt-large"]),
    ],
)
def test_arguments_that_cannot_work(run, capsys, arguments, words):
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and all(word in error for word in words), error


def test_models_that_are_not_there_or_not_known(run, tmp_path, classifier):
    with pytest.raises(SystemExit, match="error: There is no model folder"):
        run(tmp_path / "nothing")
    config = json.loads((classifier / "config.json").read_text())
    (classifier / "config.json").write_text(json.dumps({**config, "architectures": ["MyModel"]}))
    with pytest.raises(SystemExit, match="error: .*MyModel.*architectures"):
        run(classifier)
