"""
The usage that model cards show runs, all of it: with a tiny model's folder in place of the name on the Hub, in one
process, and with the same answers whichever way the model is loaded.

    python -m pytest tests/hub/test_card_usage.py
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import pvt_hf
from pvt_hf.hub.card import build_card
from pvt_hf.hub.published import PUBLISHED

from ..support.card_cases import AUTO_CLASSES, code_blocks, tiny_models
from ..support.clean_process import run_python
from .test_model_cards import CARDS


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def save_with_code(folder: Path, model, processor) -> None:
    """A repository's folder, with its code, for every Auto class of the model."""
    auto_classes = AUTO_CLASSES[type(model).__name__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "_auto_class", auto_classes[0])
        patch.setattr(type(model.config), "_auto_class", "AutoConfig")
        patch.setattr(type(processor), "_auto_class", "AutoImageProcessor")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    model.config.auto_map = None
    file = f"{type(model).__module__.rpartition('.')[2]}.{type(model).__name__}"
    extend_auto_map(folder / "config.json", dict.fromkeys(auto_classes, file))
    if type(processor) is pvt_hf.PvtImageProcessor:
        backends = {
            "pil": "image_processing_pvt.PvtImageProcessorPil",
            "torchvision": "image_processing_pvt.PvtImageProcessor",
        }
        extend_auto_map(folder / "preprocessor_config.json", {"AutoImageProcessor": backends})


def extend_auto_map(file: Path, references: dict) -> None:
    content = json.loads(file.read_text())
    content["auto_map"] |= references
    file.write_text(json.dumps(content))


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
            if "AutoBackbone" in code:  # which asks the Hub: tests/hub/test_hub.py runs it there
                continue
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
