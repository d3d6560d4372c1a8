"""
The usage on model cards runs, all of it, with a tiny model's folder in place of the name on the Hub. That a model gives
the same answers whichever way it is opened is tested in test_hub.py.

    python -m pytest tests/hub/test_card_usage.py
"""

import json

import pytest
import torch
from PIL import Image

from pvt_hf.families import MODELS
from pvt_hf.hub.card import build_card
from pvt_hf.hub.published import PUBLISHED
from pvt_hf.hub.repository import save_repository

from ..support.card_text import code_blocks, section
from ..support.clean_process import run_python
from ..support.hub_kinds import KINDS
from ..support.warm_processes import ROOT


# What a card's code printed, and whether it imported the package
RUN = """
import json, sys
from pathlib import Path

answers = []
for code in json.loads(Path(sys.argv[1]).read_text()):
    shown = []
    exec(compile(code, "card", "exec"), {"print": lambda *values: shown.append(values)})
    answers.append([shown, "pvt_hf" in sys.modules])
print(json.dumps(answers))
"""


@torch.no_grad()
def make_decided(model):
    """Several classes win somewhere, and objects have high scores: so that a card's loops have something to show."""
    for name, part in model.named_modules():
        if name in ("class_labels_classifier", "box_head.classifier", "head.classifier"):
            part.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("usage")


@pytest.fixture(scope="module")
def usages(root):
    """By class: the Python on the card of "org/mine", whose repository lies in a folder of `root`."""
    usages = {}
    for kind in KINDS.values():
        model, processor = make_decided(kind.model()), kind.make_processor()
        name = type(model).__name__
        save_repository(model, processor, root / name)
        text = section(str(build_card(model, processor, repo_id="org/mine")), "Usage")
        usages[name] = code_blocks(text, "python")
        if "Without `import pvt_hf`, Transformers builds its own class" in text:
            usages[name].append(usages[name][0].replace("import pvt_hf\n", ""))
    return usages


@pytest.fixture(scope="module")
def answers(usages, root):
    """By class and block: what it prints. One process runs what needs no package, then what does."""
    pixels = torch.randint(0, 256, (6, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).resize((120, 90), Image.Resampling.BICUBIC).save(root / "photo.jpg")
    # AutoBackbone asks the Hub, whatever it is given: tests/hub/test_hub.py runs that block
    jobs = [(name, block) for name, blocks in usages.items() for block in blocks if "AutoBackbone" not in block]
    jobs.sort(key=lambda job: "pvt_hf" in job[1])
    code = [
        block.replace("org/mine", str(root / name)).replace("photo.jpg", str(root / "photo.jpg"))
        for name, block in jobs
    ]
    (root / "jobs.json").write_text(json.dumps(code))
    environment = {"HF_MODULES_CACHE": str(root / "modules")}
    found = json.loads(run_python(RUN, root / "jobs.json", environment=environment).stdout)
    for (name, block), (_, imported) in zip(jobs, found, strict=True):
        assert imported == ("pvt_hf" in block), (name, block)
    return {job: shown for job, (shown, _) in zip(jobs, found)}


def test_every_class_has_its_ways(usages):
    assert set(usages) == set(MODELS)
    numbers = {name: len(blocks) for name, blocks in usages.items()}
    assert numbers.pop("PvtForImageClassification") == 4  # also as a backbone, and in plain Transformers
    assert numbers.pop("PvtModel") == 3
    assert set(numbers.values()) == {2}  # with the package, and with the repository's code


def test_all_of_it_runs(answers):
    shapes = [[1, 16, 80, 120], [1, 32, 40, 60], [1, 80, 20, 30], [1, 128, 10, 15]]
    for (name, block), shown in answers.items():
        if "trust_remote_code" in block:
            assert shown == []  # it only opens the model
        elif "PvtBackbone" in block:
            assert shown == [[shapes]], name
        else:
            assert len(shown) == 1 if "Pvt" in name and "Detr" not in name else len(shown) > 1, (name, shown)
    package, native = (shown for (name, block), shown in answers.items() if name == "PvtModel" and "print" in block)
    assert package == native == [[[1, 5, 128]]]
    masks = next(shown for (name, _), shown in answers.items() if name.startswith("MaskRcnn") and shown)
    assert any(one[1] == [120, 90] for one in masks)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cards_show_the_same(name, usages):
    blocks = code_blocks((ROOT / "model_cards" / f"{name}.md").read_text(), "python")
    expected = usages[PUBLISHED[name].model_class]
    assert [block.replace(f"org/{name}", "org/mine") for block in blocks] == expected[: len(blocks)] and blocks
