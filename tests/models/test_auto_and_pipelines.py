"""
After `import pvt_hf`, Transformers' Auto classes and pipelines serve PVT folders, quietly, and the import stays small.

Pipelines run in a clean process, where everything on stdout and stderr counts; their answers are compared with the
processor and the model called by hand. Native classes go on working with native configurations.

    python -m pytest tests/models/test_auto_and_pipelines.py
"""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
)
from transformers.models.auto import auto_factory

from pvt_hf import (
    PvtBackbone,
    PvtConfig,
    PvtForImageClassification,
    PvtImageProcessor,
    PvtImageProcessorPil,
    PvtModel,
)

from ..support.clean_process import run_python, without_progress_bars
from ..support.common import FP32_TOLERANCE, TINY, random_images, randomize, tiny_pvt_config


ANIMALS = {0: "cat", 1: "dog", 2: "cow", 3: "hen", 4: "pig"}
# (width, height) as in PIL: smaller and larger than the crop, elongated, not divisible by 32
PIL_SIZES = [(64, 64), (40, 50), (300, 200), (91, 333)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved classifier with its processor, and a few images."""
    path = tmp_path_factory.mktemp("animals")
    randomize(PvtForImageClassification(PvtConfig(**TINY, id2label=ANIMALS))).save_pretrained(path)
    PvtImageProcessor(size=73, crop_size=64).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    """PNG files with smooth random colours, so that resizing means something."""
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    files = []
    for index, size in enumerate(PIL_SIZES):
        pixels = random.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        files.append(path / f"{index}.png")
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(files[-1])
    return files


# Auto classes


def assert_same_weights(model, other, prefix=""):
    expected = {
        name.removeprefix(prefix): tensor for name, tensor in other.state_dict().items() if name.startswith(prefix)
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_auto_classes_open_a_folder(folder):
    classifier = PvtForImageClassification.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is PvtConfig and config.id2label == ANIMALS
    for auto_class, model_class, prefix in (
        (AutoModel, PvtModel, "pvt."),
        (AutoModelForImageClassification, PvtForImageClassification, ""),
    ):
        model, info = auto_class.from_pretrained(folder, output_loading_info=True)
        assert type(model) is model_class
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_same_weights(model, classifier, prefix)
        assert type(auto_class.from_config(config)) is model_class


def test_auto_image_processor_opens_a_folder(folder):
    for backend, processor_class in (("torchvision", PvtImageProcessor), ("pil", PvtImageProcessorPil)):
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
        assert type(processor) is processor_class
        assert processor(Image.new("RGB", (90, 120)), return_tensors="pt").pixel_values.shape == (1, 3, 64, 64)
    assert type(AutoImageProcessor.from_pretrained(folder)) is PvtImageProcessor


def test_auto_image_processor_finds_the_class_by_the_model_type(tmp_path):
    """The processor's file names no class; config.json has the model type."""
    tiny_pvt_config().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 73, "crop_size": 64}))
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is PvtImageProcessor


def test_auto_backbone(folder, monkeypatch):
    config = AutoConfig.from_pretrained(folder, out_features=["stage2", "stage4"])
    backbone = AutoBackbone.from_config(config)
    assert type(backbone) is PvtBackbone
    assert [tuple(m.shape) for m in backbone(random_images(1, 64, 96)).feature_maps] == [(1, 32, 8, 12), (1, 128, 2, 3)]

    expected = PvtForImageClassification.from_pretrained(folder)
    local, info = PvtBackbone.from_pretrained(folder, out_features=["stage2", "stage4"], output_loading_info=True)
    assert local.out_features == ["stage2", "stage4"] and not any(map(len, info.values()))
    assert_same_weights(local, expected, "pvt.")

    # AutoBackbone.from_pretrained of Transformers 5.23 asks the Hub first; here, a Hub that has the repository.
    hub = type("Hub", (), {"repo_exists": staticmethod(lambda name: True)})
    monkeypatch.setattr(auto_factory, "hf_api", lambda: hub)
    backbone = AutoBackbone.from_pretrained(folder, out_indices=[1, 3])
    assert type(backbone) is PvtBackbone and backbone.out_features == ["stage2", "stage4"]
    assert_same_weights(backbone, expected, "pvt.")


def test_native_classes_work_after_the_import(folder, tmp_path):
    native_config = transformers.PvtConfig(**TINY, num_labels=5)
    assert not isinstance(native_config, PvtConfig)
    model = transformers.PvtForImageClassification(native_config)
    assert type(AutoModelForImageClassification.from_config(native_config)) is transformers.PvtForImageClassification
    assert type(AutoModel.from_config(native_config)) is transformers.PvtModel
    images = random_images(2, 64, 64)
    expected = model.eval()(images).logits

    model.save_pretrained(tmp_path)
    reloaded = transformers.PvtForImageClassification.from_pretrained(tmp_path)
    assert type(reloaded.config) is transformers.PvtConfig
    assert torch.equal(reloaded.eval()(images).logits, expected)

    ours = transformers.PvtForImageClassification.from_pretrained(folder).eval()
    assert type(ours).__module__ == "transformers.models.pvt.modeling_pvt"
    # both with random weights: only the epsilons differ
    actual = PvtForImageClassification.from_pretrained(folder).eval()(images).logits
    assert (ours(images).logits - actual).abs().max() < 1e-3 * actual.abs().max()


# Pipelines


PIPELINES = """
import json, sys
from PIL import Image
import pvt_hf
from transformers import pipeline

folder, *files = sys.argv[1:]
classify = pipeline("image-classification", model=folder)
extract = pipeline("image-feature-extraction", model=folder)
images = [Image.open(file) for file in files]
answers = {
    "classes": [type(part).__module__ for part in (classify.model, classify.image_processor, extract.model)],
    "file": classify(files[0]),
    "images": [classify(image, top_k=5) for image in images],
    "list": classify(images, top_k=5),
    "batches": classify(images, top_k=5, batch_size=3),
    "file features": extract(files[0]),
    "features": [extract(image) for image in images],
    "feature batches": extract(images, batch_size=2),
    "shape": extract(images[0], return_tensors=True).shape,
}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def pipeline_process(folder, image_files):
    return run_python(PIPELINES, folder, *image_files, warm=True)


def test_pipelines_are_quiet(pipeline_process):
    """Prints the answers and progress bars only: no warning, no "not supported", no load report."""
    assert without_progress_bars(pipeline_process.stderr) == ""
    assert len(pipeline_process.stdout.splitlines()) == 1


def test_pipelines_answer_as_the_model_does(pipeline_process, folder, image_files):
    answers = json.loads(pipeline_process.stdout)
    assert answers["classes"] == [
        "pvt_hf.models.modeling_pvt",
        "pvt_hf.models.image_processing_pvt",
        "pvt_hf.models.modeling_pvt",
    ]
    processor = PvtImageProcessor.from_pretrained(folder)
    model = PvtForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        pixel_values = [processor(Image.open(file), return_tensors="pt").pixel_values for file in image_files]
        probabilities = [model(pixels).logits[0].softmax(0) for pixels in pixel_values]
        features = [model.pvt(pixels).last_hidden_state for pixels in pixel_values]
    assert len({int(row.argmax()) for row in probabilities}) > 1  # the images are told apart

    for kind in ("images", "list", "batches"):
        assert len(answers[kind]) == len(image_files)
        for answer, expected in zip(answers[kind], probabilities):
            order = expected.argsort(descending=True).tolist()
            assert [row["label"] for row in answer] == [ANIMALS[index] for index in order]
            scores = torch.tensor([row["score"] for row in answer])
            torch.testing.assert_close(scores, expected[order], **FP32_TOLERANCE)
    assert [row["label"] for row in answers["file"]] == [row["label"] for row in answers["images"][0]]
    for kind in ("features", "feature batches"):
        for answer, expected in zip(answers[kind], features):
            torch.testing.assert_close(torch.tensor(answer), expected, **FP32_TOLERANCE)
    torch.testing.assert_close(torch.tensor(answers["file features"]), features[0], **FP32_TOLERANCE)
    assert answers["shape"] == [1, 5, 128]


# The import


IMPORT = """
import json, sys
import transformers
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

before = set(sys.modules)
import pvt_hf
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""


def test_the_import_is_small_and_quiet():
    process = run_python(IMPORT)
    assert process.stderr == ""
    before, added = map(set, json.loads(process.stdout))
    assert "transformers.models.auto.modeling_auto" in before and "pvt_hf.models.configuration_pvt" in added
    for name in ("datasets", "evaluate", "timm", "sklearn", "matplotlib", "peft", "pandas"):
        assert not any(module == name or module.startswith(f"{name}.") for module in added), name
    for name in ("pvt_hf.data", "pvt_hf.engine", "pvt_hf.tasks", "pvt_hf.metrics", "pvt_hf.inference", "pvt_hf.hub"):
        assert name not in added
    # The Auto classes import some 3,000 modules. A model needs a few more of Transformers, its processor some backends.
    foreign = {module for module in added if module.split(".")[0] != "pvt_hf"}
    assert len(foreign) <= 20, foreign
    assert {module.split(".")[0] for module in foreign} <= {"transformers", "huggingface_hub"}
