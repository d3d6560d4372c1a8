"""
Cards of models that users push: they say what the files of a real training, evaluation and conversion hold, and nothing
about the machine. Hostile and wrong input is refused.

    python -m pytest tests/hub/test_build_card.py
"""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from transformers import SegformerImageProcessor, ViTConfig, ViTModel
from transformers.pipelines import PIPELINE_REGISTRY

import pvt_hf
from pvt_hf.engine.evaluation import evaluate_checkpoint, write_report
from pvt_hf.engine.run import train
from pvt_hf.families import MODELS
from pvt_hf.hub.card import build_card
from pvt_hf.hub.published import PUBLISHED
from pvt_hf.hub.published_card import build_published_card
from pvt_hf.metrics.coco_ap import FIGURES
from pvt_hf.tasks import get_task
from pvt_hf.tasks.classification.settings import ClassificationEvaluationSettings, ClassificationSettings
from pvt_hf.tasks.segmentation.settings import SegmentationEvaluationSettings
from pvt_hf.weights.convert import convert_checkpoint
from pvt_hf.weights.opening import weights_digest

from ..support.card_text import section, table_rows
from ..support.common import tiny_pvt_config
from ..support.heads import BACKBONES
from ..support.hub_kinds import KINDS
from ..support.training_runs import TINY_RUN, forget_accelerate
from ..support.warm_processes import ROOT


@pytest.fixture(scope="module")
def models():
    """A model and its processor, by the name of the class."""
    pairs = [(kind.model(), kind.make_processor()) for kind in KINDS.values()]
    return {type(model).__name__: (model, processor) for model, processor in pairs}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A real training and a real evaluation of what it saved: model, processor, and the content of their files."""
    root = tmp_path_factory.mktemp("trained") / "some|folder"
    settings = {**TINY_RUN, "epochs": 1, "samples_per_epoch": 64, "output_dir": str(root / "run")}
    train(get_task("image-classification"), ClassificationSettings(**settings))
    forget_accelerate()
    evaluate_checkpoint(
        get_task("image-classification"),
        ClassificationEvaluationSettings(
            model=str(root / "run"), dataset="digits", split="test", image_sizes=[32, 40], cpu=True, num_workers=0,
            output=str(root / "evaluation.json"),
        )
    )  # fmt: skip
    forget_accelerate()
    return SimpleNamespace(
        root=root,
        model=pvt_hf.PvtForImageClassification.from_pretrained(root / "run"),
        processor=pvt_hf.PvtImageProcessor.from_pretrained(root / "run"),
        run=json.loads((root / "run" / "run.json").read_text()),
        evaluation=json.loads((root / "evaluation.json").read_text()),
    )


def assert_valid(card: ModelCard, folder: Path) -> dict:
    """Saved, loaded and written again it is the same; returns the metadata."""
    card.save(folder / "README.md")
    assert str(ModelCard.load(folder / "README.md")) == str(card) == (folder / "README.md").read_text()
    metadata = metadata_load(folder / "README.md")
    assert metadata["pipeline_tag"] in PIPELINE_REGISTRY.get_supported_tasks()
    assert metadata["library_name"] == "transformers"
    # Of weights from the official release it is theirs; of others, for their author to say
    assert metadata.get("license") == ("apache-2.0" if "from <https://" in str(card) else None)
    return metadata


@pytest.mark.parametrize("name", MODELS)
def test_a_card_without_files_has_no_figures(name, models, tmp_path):
    model, processor = models[name]
    card = build_card(model, processor, repo_id="me/mine")
    metadata = assert_valid(card, tmp_path)
    remote = {known: str(build_card(model, processor, repo_id="me/mine", with_code=known)) for known in (True, False)}
    assert "trust_remote_code" in remote[True] and "trust_remote_code" not in remote[False]
    assert "if the repository holds its code" not in remote[True] and "if the repository holds its code" in str(card)
    assert ("and install torchvision" in remote[True]) == (name.startswith(("RetinaNet", "MaskRcnn")))
    assert not {"model-index", "metrics", "datasets", "base_model", "model_name"} & set(metadata)
    text = str(card)
    assert f"{model.num_parameters():,} parameters" in text
    assert not any(section(text, heading) for heading in ("Evaluation", "Training", "Origin of the weights", "Data"))
    is_pvt = name in ("PvtForImageClassification", "PvtModel", "PvtBackbone")
    size = "the centre to 64x64" if is_pvt else "side to 64 pixels, but the longer to at most 256"
    assert size in section(text, "Usage")
    names = "; ".join(model.config.id2label.values())
    assert (f"Classes: {names}." in text) == ("For" in name)


def test_transformers_alone_needs_images_of_the_size_of_construction(models):
    model, processor = models["PvtForImageClassification"]
    for given, is_shown in ((processor, True), (pvt_hf.PvtImageProcessor(), False), (None, False)):
        card = str(build_card(model, given, repo_id="me/mine"))
        assert ("Transformers builds its own class" in card) == is_shown
    assert "No image processor was saved" in card


def test_a_processor_of_transformers(models):
    """The size rules of our own do not apply to it."""
    processor = SegformerImageProcessor(size={"height": 64, "width": 96}, do_reduce_labels=True)
    card = build_card(models["SemanticFpnForSemanticSegmentation"][0], processor, repo_id="me/mine")
    text = section(str(card), "Usage")
    assert "`SegformerImageProcessor` resizes to 64x96 pixels, height x width" in text
    assert "ignores label 0" in text and "multiple of 32" not in text


def test_another_backbone_is_no_pvt(tmp_path):
    config = pvt_hf.SemanticFpnConfig(backbone_config=BACKBONES["resnet"](["stage1", "stage2", "stage3", "stage4"]))
    card = build_card(pvt_hf.SemanticFpnForSemanticSegmentation(config), None, repo_id="me/mine")
    assert assert_valid(card, tmp_path)["tags"] == ["vision", "image-segmentation"]
    assert "a backbone of type `resnet`" in str(card) and "Pyramid" not in str(card) and "32x32" not in str(card)


def test_the_smallest_image_follows_the_configuration():
    ratios = tiny_pvt_config(sequence_reduction_ratios=[8, 4, 2, 2])
    assert "at least 64x64 pixels" in str(build_card(pvt_hf.PvtModel(ratios), None, repo_id="me/mine"))


def test_figures_of_a_training(trained, tmp_path):
    card = build_card(trained.model, trained.processor, repo_id="me/digits", run=trained.run)
    metadata = assert_valid(card, tmp_path)
    assert metadata["metrics"] == ["accuracy"] and "datasets" not in metadata and "base_model" not in metadata
    expected = [round(100 * trained.run["metrics"][key], 2) for key in ("accuracy@1", "accuracy@5")]
    results = card.data.eval_results
    assert [one.metric_value for one in results] == expected and 0 < expected[0] < expected[1] <= 100
    assert {(one.dataset_name, one.dataset_split) for one in results} == {("digits", "test")}
    assert {one.source_url for one in results} == {"https://huggingface.co/me/digits#evaluation"}
    training = section(str(card), "Training")
    assert "| steps | 2 of 32 images (1 x cpu) |" in training and "| started from | random weights |" in training
    assert "learning_rate 0.001," in training and f"torch {torch.__version__}" in training
    assert "weight_decay" in training and "horizontal_flip" not in training  # which is off
    shown = section(str(card), "Evaluation")
    assert "On digits, test (355 images)." in shown
    assert [row["Top-1 accuracy (%)"] for row in table_rows(shown)] == [str(expected[0])]
    assert str(trained.root.parent) not in str(card) and "some" not in training


@pytest.mark.parametrize(("num_labels", "shown"), [(3, False), (5, False), (6, True)])
def test_accuracies_that_are_certain_are_left_out(trained, num_labels, shown):
    """One of five guesses among five classes is right whatever the model does."""
    model = pvt_hf.PvtForImageClassification(tiny_pvt_config(num_labels=num_labels))
    metrics = {"accuracy@1": 0.5, f"accuracy@{min(num_labels, 5)}": 1.0, "eval_samples": 9}
    card = build_card(model, trained.processor, repo_id="me/digits", run={**trained.run, "metrics": metrics})
    assert [one.metric_value for one in card.data.eval_results] == [50.0, 100.0][: 1 + shown]
    assert ("Top-5" in str(card)) == shown and "Top-1" in str(card) and "Top-3" not in str(card)


def test_an_evaluation_goes_before_the_training(trained, tmp_path):
    card = build_card(
        trained.model, trained.processor, repo_id="me/digits", run=trained.run, evaluation=trained.evaluation
    )
    assert_valid(card, tmp_path)
    expected = [
        (f"Top-{k} accuracy (%), {size}x{size} pixels", round(100 * result[f"accuracy@{k}"], 2))
        for size, result in zip((32, 40), trained.evaluation["results"])
        for k in (1, 5)
    ]
    assert [(one.metric_name, one.metric_value) for one in card.data.eval_results] == expected
    assert "## Training" in str(card) and str(trained.root.parent) not in str(card)


def test_names_of_data_and_checkpoints(trained, tmp_path, monkeypatch):
    def metadata_of(dataset, model=""):
        run = {**trained.run, "settings": {**trained.run["settings"], "dataset": dataset, "model": model}}
        card = build_card(trained.model, trained.processor, repo_id="me/digits", run=run)
        return card, assert_valid(card, tmp_path)

    card, metadata = metadata_of("ethz/food101", "org/pvt-small")
    assert metadata["datasets"] == ["ethz/food101"] and metadata["base_model"] == ["org/pvt-small"]
    assert "| started from | org/pvt-small |" in str(card)
    for path in ("/home/me/secret/photos", "./secret/photos", "secret/more/photos"):
        card, metadata = metadata_of(path, path)
        assert "datasets" not in metadata and "base_model" not in metadata and "secret" not in str(card)
        assert card.data.eval_results[0].dataset_type == "photos"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "photos").mkdir(parents=True)
    assert "secret" not in str(metadata_of("secret/photos")[0])


def test_evaluations_of_segmenters_and_detectors(models, tmp_path):
    model, processor = models["SemanticFpnForSemanticSegmentation"]
    settings = SegmentationEvaluationSettings(
        model="mine", dataset="ade/scenes", mode="multi_scale", output=str(tmp_path / "e.json")
    )
    accelerator = SimpleNamespace(
        num_processes=1, device=torch.device("cpu"), is_main_process=True, end_training=lambda: None
    )
    means = {"mean_iou": 0.5125, "mean_accuracy": None, "overall_accuracy": 0.75, "eval_samples": 3}
    write_report(accelerator, settings, model, {}, results={**means, "classes": []}, reduce_labels=True, warning=None)
    evaluation = json.loads((tmp_path / "e.json").read_text())
    card = build_card(model, processor, repo_id="me/scenes", evaluation=evaluation)
    assert_valid(card, tmp_path)
    assert [(one.metric_name, one.metric_value, one.dataset_type) for one in card.data.eval_results] == [
        ("Mean IoU (%), multi scale", 51.25, "ade/scenes"), ("Pixel accuracy (%), multi scale", 75.0, "ade/scenes"),
    ]  # fmt: skip

    model, processor = models["MaskRcnnForInstanceSegmentation"]
    figures = {f"{prefix}{name}": index / 100 for prefix in ("", "mask_") for index, name in enumerate(FIGURES)}
    evaluation |= {"results": figures, "model_class": type(model).__name__, "weights": weights_digest(model)}
    evaluation["settings"] = {"dataset": "coco", "split": "val2017", "mixed_precision": "bf16"}
    card = build_card(model, processor, repo_id="me/boxes", evaluation=evaluation)
    metadata = assert_valid(card, tmp_path)
    assert [one.metric_value for one in card.data.eval_results] == [*range(6), *range(6)]
    assert [entry["task"]["name"] for entry in metadata["model-index"][0]["results"]] == [
        "Object detection", "Instance segmentation",
    ]  # fmt: skip
    assert "in bf16" in section(str(card), "Evaluation")


def test_a_converted_model_tells_its_origin(tmp_path):
    golden = shutil.copy(ROOT / "tests" / "golden" / "official_layout_tiny.pth", tmp_path / "pvt_tiny.pth")
    url = "https://example.org/pvt_tiny.pth"
    report = convert_checkpoint(golden, tmp_path / "out", source_url=url)
    model = pvt_hf.PvtForImageClassification.from_pretrained(tmp_path / "out")
    card = build_card(model, None, repo_id="me/converted", conversion=report)
    assert_valid(card, tmp_path)
    origin = section(str(card), "Origin of the weights")
    assert report["source"]["sha256"] in origin and f"<{url}>" in origin and "`pvt_tiny.pth`" in origin
    assert str(tmp_path) not in str(card) and "No image processor" in str(card)
    assert card.data.datasets is None  # not the 1000 classes
    own = {**report, "source": {**report["source"], "url": None}}
    assert build_card(model, None, repo_id="me/converted", conversion=own).data.license is None
    report["model"]["labels"] = "ImageNet-1K, WordNet's names from timm 1"
    assert build_card(model, None, repo_id="me/converted", conversion=report).data.datasets == ["ILSVRC/imagenet-1k"]


def test_hostile_names_stay_in_their_line():
    names = {0: "a|b", 1: "c\n---\n# Title", 2: "<script>x</script>", 3: "[d](http://e)", 4: "`*e"}
    model = pvt_hf.PvtForImageClassification(tiny_pvt_config(id2label=names))
    text = str(build_card(model, None, repo_id="me/mine"))
    assert "Classes: a\\|b; c --- # Title; &lt;script>x&lt;/script>; \\[d](http://e); \\`\\*e." in text
    assert text.count("\n---\n") == 1 and "\n# Title" not in text
    many = pvt_hf.PvtForImageClassification(tiny_pvt_config(num_labels=1000))
    assert "LABEL_49; and 950 more (see `config.json`)" in str(build_card(many, None, repo_id="me/mine"))


def test_bad_input_is_named(trained):
    good = {"model": trained.model, "processor": trained.processor, "repo_id": "me/mine"}

    def refused(words, **changes):
        with pytest.raises(ValueError, match=words):
            arguments = {**good, **changes}
            build_card(arguments.pop("model"), arguments.pop("processor"), **arguments)

    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    refused("no model card for ViTModel, only for PvtForImageClassification", model=vit)
    for repo_id in ("a/b/c", "me/mine.git", "-x", "me/with space"):
        refused("is not of the form org/name", repo_id=repo_id)
    refused("run has no settings, metrics, steps, versions: expected the content of run.json", run={})
    without = {**trained.run, "settings": {"batch_size": 8}}
    refused(r"run\['settings'\] has no dataset, gradient_accumulation_steps", run=without)
    refused("conversion has no verification", conversion={"source": {}, "model": {}})
    incomplete = {key: value for key, value in trained.evaluation.items() if key != "weights"}
    refused("evaluation has no weights", evaluation=incomplete)
    other = {**trained.evaluation, "model_class": "PvtModel"}
    refused("evaluation is of a PvtModel, expected .* evaluate this model", evaluation=other)
    retrained = copy.deepcopy(trained.model)
    retrained.classifier.bias.data[0] += 1e-3
    refused("with other weights: evaluate this model", model=retrained, evaluation=trained.evaluation)
    with pytest.raises(ValueError, match="expected a PvtForImageClassification"):
        build_published_card(PUBLISHED["pvt-tiny"], {**trained.evaluation, "model_class": "PvtModel"})
