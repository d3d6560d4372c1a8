"""
Model cards: those of the paper's checkpoints are what the command writes, their figures are the paper's (typed here
once more), their metadata survive huggingface_hub, and their usage runs; those of other models say what their own
files hold, of a real training, evaluation and conversion.

    python -m pytest tests/test_model_cards.py
"""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import ModelCardData, eval_results_to_model_index, model_index_to_eval_results
from PIL import Image
from transformers import SegformerImageProcessor, ViTConfig, ViTModel
from transformers.pipelines import PIPELINE_REGISTRY

import pvt_hf
from pvt_hf.conversion_output import convert_checkpoint
from pvt_hf.metrics.coco_ap import FIGURES
from pvt_hf.model_card import build_card
from pvt_hf.published import PUBLISHED
from pvt_hf.published_card import build_published_card
from pvt_hf.training import checkpoint_evaluation, classification
from pvt_hf.training.evaluation_frame import write_report
from pvt_hf.training.segmentation_checkpoint_evaluation import SegmentationEvaluationSettings

from . import test_detection_pipelines, test_segmentation_pipelines
from .clean_process import run_python
from .common import randomize, tiny_pvt_config
from .training_runs import TINY_RUN, forget_accelerate
from .warm_processes import ROOT


CARDS = {file.stem: file for file in sorted((ROOT / "model_cards").glob("*.md"))}
OFFICIAL = None  # in place of a table's number: the official repository
TOP1, TOP5, MIOU = ["Top-1 accuracy (%)"], ["Top-5 accuracy (%)"], ["Mean IoU (%)"]
BOX = [f"Box {name} (%)" for name in ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")]
BOX_MASK = [f"{kind} {name} (%)" for kind in ("Box", "Mask") for name in ("AP", "AP50", "AP75")]
# PAPER_FACTS sections 3 to 6: parameters, GFLOPs, then per row of a table its number, columns and figures. The first
# row is that of the checkpoint. Table 2 prints errors: 24.9, 20.2, 18.8, 18.3.
EXPECTED = {
    "pvt-tiny": ("13.2", "1.9", (2, TOP1, "75.1")),
    "pvt-small": ("24.5", "3.8", (2, TOP1, "79.8"), (OFFICIAL, TOP1 + TOP5, "79.764 94.95")),
    "pvt-medium": ("44.2", "6.7", (2, TOP1, "81.2")),
    "pvt-large": ("61.4", "9.8", (2, TOP1, "81.7")),
    "semantic-fpn-pvt-tiny": ("17.0", "33.2", (5, MIOU, "35.7"), (OFFICIAL, MIOU, "36.6")),
    "semantic-fpn-pvt-small": ("28.2", "44.5", (5, MIOU, "39.8"), (OFFICIAL, MIOU, "41.9")),
    "semantic-fpn-pvt-medium": ("48.0", "61.0", (5, MIOU, "41.6"), (OFFICIAL, MIOU, "43.5")),
    "semantic-fpn-pvt-large": ("65.1", "79.6", (5, MIOU, "42.1"), (OFFICIAL, MIOU, "43.5"), (5, MIOU, "44.8")),
    "trans2seg-pvt-small": ("32.1", "31.6", (7, MIOU, "42.6")),
    "retinanet-pvt-tiny": (
        "23.0", "",
        (3, BOX, "36.7  56.9  38.9  22.6  38.8  50.0"), (3, BOX, "39.4  59.8  42.0  25.5  42.0  52.1"),
    ),
    "retinanet-pvt-small": (
        "34.2", "285.8",
        (3, BOX, "40.4  61.3  43.0  25.0  42.9  55.7"), (3, BOX, "42.2  62.7  45.0  26.2  45.2  57.2"),
        (11, BOX[:3], "38.7  59.3  40.8"),
    ),
    "retinanet-pvt-medium": (
        "53.9", "",
        (3, BOX, "41.9  63.1  44.3  25.0  44.9  57.6"), (3, BOX, "43.2  63.8  46.1  27.3  46.3  58.9"),
    ),
    "retinanet-pvt-large": (
        "71.1", "",
        (3, BOX, "42.6  63.7  45.4  25.8  46.0  58.4"), (3, BOX, "43.4  63.6  46.1  26.1  46.0  59.5"),
    ),
    "mask-rcnn-pvt-tiny": (
        "32.9", "",
        (4, BOX_MASK, "36.7  59.2  39.3  35.1  56.7  37.3"), (4, BOX_MASK, "39.8  62.2  43.0  37.4  59.3  39.9"),
    ),
    "mask-rcnn-pvt-small": (
        "44.1", "304.4",
        (4, BOX_MASK, "40.4  62.9  43.8  37.8  60.1  40.3"), (4, BOX_MASK, "43.0  65.3  46.9  39.9  62.5  42.8"),
    ),
    "mask-rcnn-pvt-medium": (
        "63.9", "",
        (4, BOX_MASK, "42.0  64.4  45.6  39.0  61.6  42.1"), (4, BOX_MASK, "44.2  66.0  48.2  40.5  63.1  43.5"),
    ),
    "mask-rcnn-pvt-large": (
        "81.0", "",
        (4, BOX_MASK, "42.9  65.0  46.6  39.5  61.9  42.5"), (4, BOX_MASK, "44.5  66.0  48.3  40.7  63.4  43.7"),
    ),
    "detr-pvt-small": ("", "", (6, BOX, "34.7 55.7 35.4 12.0 36.4 56.7")),
}  # fmt: skip
# Numbers with a point that are no figures: licences, the size of ImageNet-1K, preprocessing
OTHER_NUMBERS = {"2.0", "4.0", "1.28", "0.00392157", "0.485", "0.456", "0.406", "0.229", "0.224", "0.225"}


def expected_rows(name: str) -> list[tuple[str, float, int | None]]:
    return [
        (metric, float(value), table)
        for table, metrics, values in EXPECTED[name][2:]
        for metric, value in zip(metrics, values.split(), strict=True)
    ]


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_there_is_a_card_for_every_checkpoint():
    assert set(CARDS) == set(EXPECTED) == set(PUBLISHED) and len(CARDS) == 18


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_are_the_papers(name):
    text = CARDS[name].read_text()
    rows = []
    for line in section(text, "Evaluation").splitlines():
        if line.startswith("| ") and "%" in line:
            metric, value, _, source = (cell.strip() for cell in line.strip("|").split("|"))
            table = re.fullmatch(r"\[paper\]\(https://arxiv.org/abs/2102.12122\), Table (\d+)", source)
            assert table or source == "[official repository](https://github.com/whai362/PVT)"
            rows.append((metric, float(value), int(table[1]) if table else OFFICIAL))
    assert rows == expected_rows(name)
    assert "None of these figures was measured by us." in text

    params, gflops, (table, metrics, values), *_ = EXPECTED[name]
    facts = dict(re.findall(r"^\| (\S+(?: \S+)?) \| (.*) \|$", text.split("## Usage")[0], re.MULTILINE))
    assert facts["parameters"] == (f"{params} M (the paper's)" if params else "not in the paper")
    assert facts["GFLOPs (multiply-adds)"].split(" ")[0] == (gflops or "not")

    results = ModelCard.load(CARDS[name]).data.eval_results
    assert [(one.metric_name, one.metric_value) for one in results] == [
        (metric, float(value)) for metric, value in zip(metrics, values.split())
    ]
    sources = {(one.source_name, one.source_url) for one in results}
    assert sources == {(f"PVT paper, Table {table}", "https://arxiv.org/abs/2102.12122")}

    body = re.sub(r"^```.*?^```$", "", text.split("\n---\n", 1)[1], flags=re.MULTILINE | re.DOTALL)
    numbers = set(re.findall(r"\d+\.\d+", re.sub(r"\(\S+\)", "", body)))  # without the targets of links
    figures = {float(number) for number in numbers - OTHER_NUMBERS}
    assert figures <= {value for _, value, _ in expected_rows(name)} | {float(n) for n in (params, gflops) if n}


@pytest.mark.parametrize("name", EXPECTED)
def test_metadata_survive_huggingface_hub(name):
    card, raw = ModelCard.load(CARDS[name]), metadata_load(CARDS[name])
    assert str(card).encode() == CARDS[name].read_bytes()
    assert ModelCardData(**raw).to_dict() == raw
    model_name, results = model_index_to_eval_results(raw["model-index"])
    assert model_name == name and eval_results_to_model_index(name, results) == raw["model-index"]
    tasks = set(PIPELINE_REGISTRY.get_supported_tasks())
    assert raw["pipeline_tag"] in tasks and {one.task_type for one in results} <= tasks
    assert raw["library_name"] == "transformers" and raw["license"] == "apache-2.0"
    assert {one.dataset_type for one in results} == {raw["datasets"][0]}
    assert raw["datasets"][-1] == "ILSVRC/imagenet-1k"
    assert set(raw["metrics"]) == {one.metric_type for one in results}
    assert all(one.dataset_split and 0 < one.metric_value < 100 for one in results)


@pytest.mark.parametrize("name", EXPECTED)
def test_recipe_is_linked_and_whole(name):
    text = CARDS[name].read_text()
    shown, link = re.search(r"\[`(scripts/recipes/\S+\.yaml)`\]\((\S+)\)", text).groups()
    recipe = (CARDS[name].parent / link).resolve()
    assert recipe == ROOT / shown and recipe.read_text() in code_blocks(text, "yaml")
    hardware = re.search(r"Hardware of the paper's training: (.*?)\. ", section(text, "Environmental note"))[1]
    assert f"The paper's hardware: {hardware}" in recipe.read_text()
    for heading in ("Intended use", "Limits", "Training data", "Input and preprocessing", "Licence", "Citation"):
        assert len(section(text, heading).strip()) > 40


def test_preprocessing_is_that_of_the_recipe():
    steps = {name: section(file.read_text(), "Input and preprocessing") for name, file in CARDS.items()}
    for name, text in steps.items():
        if name.startswith("pvt-"):
            assert "shorter side to 256 pixels, bicubic" in text and "crop of 224x224" in text
        else:
            shorter, longer = (800, 1333) if PUBLISHED[name].data.hub_id == "coco" else (512, 2048)
            assert f"shorter side {shorter} pixels, but the longer at most {longer}, bilinear" in text
        assert ("0 is no class" in text) == ("seg" in name or "semantic" in name)


# The command


@pytest.fixture
def make_cards(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    main = importlib.import_module("make_model_cards").main

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["make_model_cards.py", *map(str, arguments)])
        return main()

    return run


def test_the_command_writes_these_files(make_cards, tmp_path, capsys):
    assert make_cards("--output_dir", tmp_path) == 0
    assert {file.stem: file.read_bytes() for file in tmp_path.iterdir()} == {
        name: file.read_bytes() for name, file in CARDS.items()
    }
    assert make_cards("--check") == 0
    changed = tmp_path / "detr-pvt-small.md"
    changed.write_text(changed.read_text().replace("34.7", "35.7"))
    before = changed.read_bytes()
    assert make_cards("--output_dir", tmp_path, "--check") == 1 and changed.read_bytes() == before
    assert "detr-pvt-small.md" in capsys.readouterr().err
    (tmp_path / "retinanet-pvt-smal.json").write_text("{}")
    assert make_cards("--output_dir", tmp_path) == 1
    assert "retinanet-pvt-smal, which are no checkpoints" in capsys.readouterr().err


def test_an_evaluation_of_ours_goes_into_the_card(make_cards, tmp_path, capsys):
    figures = {"ap": 0.40123, "ap50": 0.5, "ap75": 0.25, "ap_small": None, "ap_medium": 0.125, "ap_large": 0.75}
    evaluation = {
        "settings": {"dataset": "./coco", "split": "validation"}, "results": figures | {"eval_samples": 5000},
        "model_class": "RetinaNetForObjectDetection", "parameters": 34_220_000, "device": "some device",
    }  # fmt: skip
    (tmp_path / "retinanet-pvt-small.json").write_text(json.dumps(evaluation))
    assert make_cards("--output_dir", tmp_path) == 0
    card = ModelCard.load(tmp_path / "retinanet-pvt-small.md")
    assert [one.metric_value for one in card.data.eval_results] == [40.12, 50.0, 25.0, 12.5, 75.0]
    assert {one.source_name for one in card.data.eval_results} == {"evaluation with pvt_hf"}
    rows = section(str(card), "Evaluation")
    assert "| Box AP (%) | 40.12 | as above | pvt_hf, on some device |" in rows and "| Box AP (%) | 40.4 |" in rows
    assert "was measured by us" not in rows
    (tmp_path / "detr-pvt-small.json").write_text(json.dumps(evaluation))
    assert make_cards("--output_dir", tmp_path) == 1
    error = capsys.readouterr().err
    assert "detr-pvt-small: evaluation is of a RetinaNetForObjectDetection" in error


# Usage


def tiny_models() -> dict[str, tuple]:
    """A random model and its processor by the name of the class."""
    animals = dict(enumerate("cat dog cow hen pig".split()))
    processor = pvt_hf.PvtImageProcessor(size=73, crop_size=64)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    pairs = [
        (pvt_hf.PvtForImageClassification(tiny_pvt_config(id2label=animals)), processor),
        (pvt_hf.PvtModel(tiny_pvt_config()), processor),
        (pvt_hf.PvtBackbone(tiny_pvt_config(out_features=stages)), processor),
    ]
    size = {"shortest_edge": 64, "longest_edge": 256}
    pairs += [
        (make(), pvt_hf.PvtSemanticImageProcessor(size=size)) for make in test_segmentation_pipelines.MODELS.values()
    ]
    for name, (model_name, processor_name) in test_detection_pipelines.CLASSES.items():
        model = getattr(pvt_hf, model_name)(test_detection_pipelines.CONFIGS[name]())
        pairs.append((model, getattr(pvt_hf, f"Pvt{processor_name}ImageProcessor")(size=size)))
    for model, _ in pairs:
        randomize(model)
        for name, part in model.named_modules():
            is_semantic = "Semantic" in type(model).__name__
            if name in ("class_labels_classifier", "box_head.classifier") or (
                name == "head.classifier" and is_semantic
            ):
                part.weight.data.mul_(20)  # so that several classes win somewhere, and by much
    return {type(model).__name__: (model.eval(), processor) for model, processor in pairs}


@pytest.fixture(scope="module")
def models():
    return tiny_models()


AUTO_CLASSES = {
    "PvtForImageClassification": ["AutoModelForImageClassification"],
    "PvtModel": ["AutoModel"],
    "PvtBackbone": ["AutoBackbone"],
    "SemanticFpnForSemanticSegmentation": ["AutoModelForSemanticSegmentation"],
    "Trans2SegForSemanticSegmentation": ["AutoModelForSemanticSegmentation"],
    "RetinaNetForObjectDetection": ["AutoModelForObjectDetection"],
    "MaskRcnnForInstanceSegmentation": [
        "AutoModelForObjectDetection", "AutoModelForInstanceSegmentation", "AutoModelForImageSegmentation",
    ],
    "PvtDetrForObjectDetection": ["AutoModelForObjectDetection"],
}  # fmt: skip


def save_with_code(folder: Path, model, processor) -> None:
    autos = AUTO_CLASSES[type(model).__name__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "_auto_class", autos[0])
        patch.setattr(type(model.config), "_auto_class", "AutoConfig")
        patch.setattr(type(processor), "_auto_class", "AutoImageProcessor")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    model.config.auto_map = None
    for file, changes in (
        ("config.json", lambda auto_map: {auto: auto_map[autos[0]] for auto in autos}),
        ("preprocessor_config.json", lambda auto_map: {}),
    ):
        content = json.loads((folder / file).read_text())
        content["auto_map"] |= changes(content["auto_map"])
        (folder / file).write_text(json.dumps(content))
    if type(processor) is pvt_hf.PvtImageProcessor:
        content["auto_map"]["AutoImageProcessor"] = {
            "pil": "image_processing_pil_pvt.PvtImageProcessorPil",
            "torchvision": "image_processing_pvt.PvtImageProcessor",
        }
        (folder / file).write_text(json.dumps(content))


RUN_SNIPPETS = """
import json, sys
from pathlib import Path

answers = []
for code in json.loads(Path(sys.argv[1]).read_text()):
    shown = []
    exec(compile(code, "card", "exec"), {"print": lambda *values: shown.append(values)})
    answers.append([shown, "pvt_hf" in sys.modules])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(models, tmp_path_factory):
    """
    What the snippets of all cards print, by class and way, with a tiny model's folder in place of the name on the Hub;
    in one process, those that need no pvt_hf first. Equal ones run once.
    """
    root = tmp_path_factory.mktemp("usage")
    pixels = torch.randint(0, 256, (6, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).resize((120, 90), Image.Resampling.BICUBIC).save(root / "photo.jpg")
    cards = [(PUBLISHED[name].model_class, f"org/{name}", file.read_text()) for name, file in CARDS.items()]
    for name, (model, processor) in models.items():
        save_with_code(root / name, model, processor)
        cards.append((name, "org/mine", str(build_card(model, processor, repo_id="org/mine"))))
    jobs = {}
    for model_class, repo_id, text in cards:
        for code in code_blocks(text, "python"):
            assert repo_id in code
            way = "code" if "trust_remote_code" in code else "package" if "pvt_hf" in code else "native"
            way += " backbone" if "PvtBackbone" in code else ""
            code = code.replace(repo_id, str(root / model_class)).replace("photo.jpg", str(root / "photo.jpg"))
            assert jobs.setdefault((model_class, way), code) == code
    order = sorted(jobs, key=lambda job: ["native", "code", "package", "package backbone"].index(job[1]))
    (root / "jobs.json").write_text(json.dumps([jobs[job] for job in order]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        found = json.loads(run_python(RUN_SNIPPETS, root / "jobs.json").stdout)
    for job, (shown, imported) in zip(order, found, strict=True):
        assert shown and imported == job[1].startswith("package"), job
    return {job: shown for job, (shown, _) in zip(order, found)}


def test_every_card_has_the_ways_that_there_are(answers):
    ways = {name: {way for one, way in answers if one == name} for name in AUTO_CLASSES}
    assert ways.pop("PvtForImageClassification") == {"native", "code", "package", "package backbone"}
    assert ways.pop("PvtModel") == {"native", "code", "package"}
    assert ways.pop("PvtBackbone") == {"package backbone"}
    assert set(map(frozenset, ways.values())) == {frozenset({"code", "package"})}


def test_usage_answers_alike_all_ways(answers, models):
    for (name, way), shown in answers.items():
        if way == "code":
            assert shown == close_to(answers[name, "package"], 1e-5), name
    classifier, _ = models["PvtForImageClassification"]
    (package,), (native,) = (answers["PvtForImageClassification", way][0] for way in ("package", "native"))
    assert {one["label"] for one in package} == set(classifier.config.id2label.values())
    assert native == close_to(package, 1e-3)  # natively all norms have one epsilon
    assert answers["PvtModel", "native"] == answers["PvtModel", "package"] == [[[1, 5, 128]]]
    shapes = [[1, 16, 80, 120], [1, 32, 40, 60], [1, 80, 20, 30], [1, 128, 10, 15]]
    for name in ("PvtForImageClassification", "PvtBackbone"):
        assert answers[name, "package backbone"] == [[shapes]]
    for name in ("SemanticFpnForSemanticSegmentation", "Trans2SegForSemanticSegmentation"):
        labels, sizes = zip(*answers[name, "package"])
        assert len(set(labels)) > 1 and set(map(tuple, sizes)) == {(120, 90)}
    for name in ("RetinaNetForObjectDetection", "MaskRcnnForInstanceSegmentation", "PvtDetrForObjectDetection"):
        assert len(answers[name, "package"]) > 1
    assert any(one[2] == [120, 90] for one in answers["MaskRcnnForInstanceSegmentation", "package"])  # of masks


def close_to(value, tolerance):
    """`value` with its floats as approximate ones."""
    if isinstance(value, list):
        return [close_to(one, tolerance) for one in value]
    if isinstance(value, dict):
        return {key: close_to(one, tolerance) for key, one in value.items()}
    return pytest.approx(value, abs=tolerance) if isinstance(value, float) else value


# Cards of models that users push


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A real training and a real evaluation of what it saved: model, processor, and the content of their files."""
    root = tmp_path_factory.mktemp("trained") / "some|folder"
    settings = {**TINY_RUN, "epochs": 1, "samples_per_epoch": 64, "output_dir": str(root / "run")}
    classification.run(classification.ClassificationSettings(**settings))
    forget_accelerate()
    checkpoint_evaluation.run(
        checkpoint_evaluation.EvaluationSettings(
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
    assert (metadata["library_name"], metadata["license"]) == ("transformers", "apache-2.0")
    return metadata


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_a_card_without_files_has_no_figures(name, models, tmp_path):
    model, processor = models[name]
    card = build_card(model, processor, repo_id="me/mine")
    metadata = assert_valid(card, tmp_path)
    assert not {"model-index", "metrics", "datasets", "base_model", "model_name"} & set(metadata)
    text = str(card)
    assert f"{model.num_parameters():,} parameters" in text
    for heading in ("Evaluation", "Training", "Origin of the weights"):
        assert f"## {heading}" not in text
    size = (
        "crop of 64x64"
        if name.startswith("Pvt") and "Detr" not in name
        else "side 64 pixels, but the longer at most 256"
    )
    assert size in section(text, "Input and preprocessing")
    if hasattr(processor, "post_process_object_detection") or "Segmentation" in name:
        assert "6 classes: " in text


def test_a_processor_of_transformers(models):
    """The size rule of our own is not told of it."""
    processor = SegformerImageProcessor(size={"height": 64, "width": 96}, do_reduce_labels=True)
    card = build_card(models["SemanticFpnForSemanticSegmentation"][0], processor, repo_id="me/mine")
    text = section(str(card), "Input and preprocessing")
    assert "`SegformerImageProcessor`" in text and "1. Resize: to 64x96 pixels (height x width), whatever" in text
    assert "0 is no class" in text and "multiple of 32" not in text


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
    assert "| `learning_rate` | 0.001 |" in training and f"torch {torch.__version__}" in training
    assert "`weight_decay`" in training and "`horizontal_flip`" not in training  # which is off
    assert f"| Top-1 accuracy (%) | as the image processor | {expected[0]} |" in section(str(card), "Evaluation")
    assert str(trained.root.parent) not in str(card) and "some" not in training


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
    evaluation |= {"results": figures, "model_class": type(model).__name__, "parameters": model.num_parameters()}
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
    report["model"]["labels"] = "ImageNet-1K, WordNet's names from timm 1"
    assert build_card(model, None, repo_id="me/converted", conversion=report).data.datasets == ["ILSVRC/imagenet-1k"]


def test_hostile_names_stay_in_their_line():
    names = {0: "a|b", 1: "c\n---\n# Title", 2: "<script>x</script>", 3: "d", 4: "e"}
    model = pvt_hf.PvtForImageClassification(tiny_pvt_config(id2label=names))
    text = str(build_card(model, None, repo_id="me/mine"))
    assert "5 classes: a\\|b; c --- # Title; &lt;script>x&lt;/script>; d; e." in text
    assert text.count("\n---\n") == 1 and "\n# Title" not in text
    many = pvt_hf.PvtForImageClassification(tiny_pvt_config(num_labels=1000))
    assert "LABEL_199; and 800 more (`id2label` in `config.json`)" in str(build_card(many, None, repo_id="me/mine"))


def test_bad_input_is_named(trained):
    good = {"model": trained.model, "processor": trained.processor, "repo_id": "me/mine"}

    def refused(words, **changes):
        with pytest.raises(ValueError, match=words):
            arguments = {**good, **changes}
            build_card(arguments.pop("model"), arguments.pop("processor"), **arguments)

    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    refused("no model card for ViTModel: it is written for PvtForImageClassification", model=vit)
    for repo_id in ("a/b/c", "me/mine.git", "-x", "me/with space"):
        refused("is not of the form org/name", repo_id=repo_id)
    refused("run has no settings, metrics, steps, versions: expected the content of run.json", run={})
    refused("conversion has no verification", conversion={"source": {}, "model": {}})
    incomplete = {key: value for key, value in trained.evaluation.items() if key != "parameters"}
    refused("evaluation has no parameters", evaluation=incomplete)
    for change in ({"model_class": "PvtModel"}, {"parameters": 7}):
        refused("evaluation is of a .* evaluate this model", evaluation={**trained.evaluation, **change})
    with pytest.raises(ValueError, match="expected a PvtForImageClassification"):
        build_published_card(PUBLISHED["pvt-tiny"], ROOT, {**trained.evaluation, "model_class": "PvtModel"})
