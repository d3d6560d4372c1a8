"""
What the real client pushes opens everywhere: from a Hub on localhost (`hub_server.py`) and from folders, in plain
Transformers, with the package and without it, and from the cache without a network.

Three clean processes (`hub_client.py`) open everything. Their tensors are compared with those of the pushed models.

    python -m pytest tests/hub/test_hub.py
"""

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import pipeline

import pvt_hf
from pvt_hf.families import class_name
from pvt_hf.hub.repository import auto_classes, save_repository
from pvt_hf.hub.upload import push

from ..support import hub_client
from ..support.clean_process import run_python
from ..support.common import randomize
from ..support.hub_fixtures import TOKEN
from ..support.hub_kinds import ANIMALS, KINDS
from ..support.hub_server import HubServer


pytest_plugins = ["tests.support.hub_fixtures"]

# Whoever has no package needs the most from a repository, so `make test` opens everything as a stranger
MODES = ["stranger", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("package", "offline"))]
# The same code on the same machine with the same number of threads: only what is not deterministic would differ
SAME = {"atol": 1e-6, "rtol": 1e-6}


@pytest.fixture(scope="module")
def root(hub, client, tmp_path_factory):
    """Every kind of model in a folder and on the Hub, an image, the models' outputs, and the jobs of the clients."""
    root = tmp_path_factory.mktemp("hub")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((150, 111), Image.Resampling.BICUBIC).save(root / "image.png")
    image, inputs, jobs, expected = Image.open(root / "image.png"), {}, {}, {}
    for name, kind in KINDS.items():
        model, processor = kind.model(), kind.make_processor()
        repo, folder = f"org/pvt-{name}.v1", root / "folders" / f"pvt-{name}"
        save_repository(model, processor, folder)
        push(model, processor, repo, token=TOKEN, license="mit")
        inputs[name] = processor(image, return_tensors="pt")["pixel_values"].contiguous()
        expected[name] = hub_client.compute(model, inputs[name])
        built = {key: class_name(path) for key, path in auto_classes(type(model).__name__).items()}
        jobs[name] = {"repo": repo, "folder": str(folder), "auto_classes": built, "tasks": kind.tasks}
    # The same classifier in many files
    jobs["shards"] = {**jobs["classifier"], "repo": "org/shards", "folder": str(root / "folders" / "shards")}
    inputs["shards"], expected["shards"] = inputs["classifier"].clone(), expected["classifier"]
    classifier, processor = KINDS["classifier"].model(), KINDS["classifier"].make_processor()
    save_repository(classifier, processor, jobs["shards"]["folder"], max_shard_size="500KB")
    push(classifier, processor, "org/shards", token=TOKEN, max_shard_size="500KB")

    # Other weights on the main branch, and on one of their own; the first ones stay under a tag
    repo = jobs["classifier"]["repo"]
    first = hub.repositories[repo].branches["main"]
    HfApi(token=TOKEN).create_tag(repo, tag="first")
    other = randomize(KINDS["classifier"].model(), seed=1)
    push(other, processor, repo, token=TOKEN, revision="other/weights")
    expected["other"] = hub_client.compute(other, inputs["classifier"])
    pinned = {
        "tag": {"revision": "first"},
        "commit": {"revision": first},
        "branch": {"revision": "other/weights"},
        "code": {"revision": "other/weights", "code_revision": first},
    }
    save_file(inputs, root / "inputs.safetensors")
    work = {"jobs": jobs, "pinned": pinned, "threads": torch.get_num_threads()}
    (root / "jobs.json").write_text(json.dumps(work))
    torch.save(expected, root / "expected.pt")
    return root


def run_client(mode: str, root: Path, hub: HubServer, home: Path) -> dict:
    """One clean process; its facts and tensors."""
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    environment["HF_HUB_OFFLINE"] = "1" if mode == "offline" else "0"
    process = run_python(
        Path(hub_client.__file__).read_text(), mode, root, environment=environment, installed=mode == "package"
    )
    return {
        "facts": json.loads((root / f"{mode}.json").read_text()),
        "tensors": load_file(root / f"{mode}.safetensors"),
        "stderr": process.stderr,
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def stranger(root, hub, home):
    return run_client("stranger", root, hub, home)


@pytest.fixture(scope="module")
def package(root, hub, tmp_path_factory):
    return run_client("package", root, hub, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def offline(root, hub, home, stranger):
    """From the cache that `stranger` left."""
    before = len(hub.requests)
    result = run_client("offline", root, hub, home)
    assert len(hub.requests) == before
    return result


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance) -> None:
    assert found.keys() == expected.keys() and expected
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **(tolerance or SAME))


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def references(root):
    """By kind: what the models pushed compute and what the pipelines answer, here, from the folders."""
    jobs, image = json.loads((root / "jobs.json").read_text())["jobs"], Image.open(root / "image.png")
    expected, inputs = torch.load(root / "expected.pt"), load_file(root / "inputs.safetensors")
    references = {}
    for name, kind in KINDS.items():
        model_name, processor_name = type(kind.model()).__name__, type(kind.make_processor()).__name__
        tensors, folder = {}, jobs[name]["folder"]
        for auto_class, part_name in jobs[name]["auto_classes"].items():
            outputs = expected[name]
            if part_name != model_name or part_name == "PvtBackbone":  # another class on the same weights
                options = {"out_features": ["stage2", "stage4"]} if part_name == "PvtBackbone" else {}
                part = getattr(pvt_hf, part_name).from_pretrained(folder, **options)
                outputs = hub_client.compute(part, inputs[name])
            tensors.update({f"{auto_class}/{key}": tensor for key, tensor in outputs.items()})
        classes = {"pil": f"{processor_name}Pil", "torchvision": processor_name}
        for backend, name_of_class in classes.items():
            processor = getattr(pvt_hf, name_of_class).from_pretrained(folder)
            tensors[f"{backend}/pixel_values"] = processor(image, return_tensors="pt")["pixel_values"]
        answers = {task: hub_client.answer_of(pipeline(task, model=folder), image) for task in kind.tasks}
        references[name] = {
            "tensors": tensors,
            "classes": {**jobs[name]["auto_classes"], **classes},
            "answers": answers,
        }
    return references | {"shards": references["classifier"]}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [*KINDS, "shards"])
def test_it_opens_and_computes_the_same(kind, mode, references, request):
    result, reference = request.getfixturevalue(mode), references[kind]
    origin = "pvt_hf." if mode == "package" else "transformers_modules."
    for where in hub_client.PLACES[mode]:
        facts, tensors = result["facts"][f"{kind}/{where}"], under(result["tensors"], f"{kind}/{where}/")
        # AutoBackbone asks the Hub, whatever it is given
        without = "AutoBackbone" if mode == "offline" or where == "folder" else "nothing"
        compare(tensors, {n: tensor for n, tensor in reference["tensors"].items() if not n.startswith(without)})
        for what, expected in reference["classes"].items():
            if what != without:
                assert facts[what][0] == expected and facts[what][1].startswith(origin)
        for task, answer in reference["answers"].items():
            assert len(answer) == len(facts[task]) > 0
            for one, other in zip(facts[task], answer):
                if task == "image-feature-extraction":
                    assert np.allclose(one, other, atol=1e-5)
                else:
                    assert one[0] == other[0] and one[1:] == pytest.approx(other[1:], abs=1e-5)


@pytest.mark.parametrize("where", ["repo", "folder"])
def test_plain_transformers_opens_a_classifier(where, root, stranger):
    facts, tensors = stranger["facts"][f"native/{where}"], under(stranger["tensors"], f"native/{where}/")
    for auto_class in ("AutoModelForImageClassification", "AutoModel"):
        assert facts[auto_class][1] == "transformers.models.pvt.modeling_pvt"
    expected = torch.load(root / "expected.pt")["classifier"]
    # Another implementation of the same arithmetic rounds otherwise
    logits = tensors["AutoModelForImageClassification/logits"]
    torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)
    assert [row[0] for row in facts["image-classification"]][0] == ANIMALS[int(expected["logits"].argmax())]


def test_code_runs_only_when_it_is_trusted(stranger):
    assert "trust_remote_code=True" in stranger["facts"]["refused"]


@pytest.mark.parametrize("mode", MODES)
def test_no_complaints(mode, request):
    output = request.getfixturevalue(mode)["stderr"]
    for word in ("not supported", "rror", "newly initialized", "Traceback"):
        assert word not in output, output


def test_backbones_of_folders_by_configuration(stranger):
    for kind in ("classifier", "model", "backbone"):
        assert stranger["facts"][f"{kind}/from_config"] == ["PvtBackbone", [[1, 16, 16, 16]]]


@pytest.mark.slow
def test_pinned_revisions(root, hub, stranger, package, offline):
    expected, repository = torch.load(root / "expected.pt"), hub.repositories["org/pvt-classifier.v1"]
    first, other = (repository.branches[name] for name in ("main", "other/weights"))
    assert first == repository.tags["first"] != other
    for name, weights, code in (
        ("tag", "classifier", first),
        ("commit", "classifier", first),
        ("branch", "other", other),
        ("code", "other", first),
    ):
        for result in (stranger, package):
            torch.testing.assert_close(result["tensors"][f"pinned/{name}/logits"], expected[weights]["logits"], **SAME)
        assert all(f".{code}." in module for module in stranger["facts"][f"pinned/{name}"])
    torch.testing.assert_close(offline["tensors"]["pinned/tag/logits"], expected["classifier"]["logits"], **SAME)


def test_a_repository_holds_the_code_that_is_used(root, hub, home, stranger):
    """Every file of code was imported by somebody who opened everything, and nothing else was needed."""
    for kind, job in json.loads((root / "jobs.json").read_text())["jobs"].items():
        code = sorted(path for path in hub.files(job["repo"]) if path.endswith(".py"))
        commit = hub.repositories[job["repo"]].branches["main"]
        (folder,) = (home / "modules" / "transformers_modules").rglob(commit)
        assert sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py") == code, kind
        imported = {name.rpartition(".")[2] for name in stranger["facts"]["imported"] if f".{commit}." in name}
        assert imported == {name.removesuffix(".py") for name in code}, kind
        assert sorted(path.name for path in Path(job["folder"]).glob("*.py")) == code


def test_the_card_of_a_backbone_shows_how_strangers_open_it(stranger):
    assert stranger["facts"]["card"] == [[1, 16, 80, 120], [1, 32, 40, 60], [1, 80, 20, 30], [1, 128, 10, 15]]


def test_a_push_is_one_commit(hub, root):
    repository = hub.repositories["org/pvt-semantic_fpn.v1"]
    assert list(repository.titles.values()) == ["initial commit", "Upload model"] and not repository.private
    files = hub.files("org/pvt-semantic_fpn.v1")
    assert {name for name, file in files.items() if file.lfs} == {"model.safetensors"}
    assert {"README.md", "config.json", "preprocessor_config.json", "model.safetensors"} < files.keys()
    card = ModelCard(files["README.md"].content.decode())
    assert card.data.license == "mit"


def test_the_local_hub_speaks_as_the_client_expects(hub, client, tmp_path):
    """What the tests above do not ask for: names, ranges, files that are not there."""
    api = HfApi(hub.url, token=TOKEN)
    assert api.whoami()["name"] == "me"
    repo = api.create_repo("me/plain").repo_id
    api.upload_file(path_or_fileobj=bytes(1000), path_in_repo="x.safetensors", repo_id=repo)
    info = next(file for file in api.list_repo_tree(repo) if file.path == "x.safetensors")
    assert info.lfs.size == 1000 and api.file_exists(repo, "x.safetensors") and not api.file_exists(repo, "y")
    url = huggingface_hub.hf_hub_url(repo, "x.safetensors", endpoint=hub.url)
    part = huggingface_hub.utils.get_session().get(url, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == bytes(10)
    with pytest.raises(huggingface_hub.errors.RevisionNotFoundError):
        api.model_info(repo, revision="nowhere")
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.model_info("me/nothing")
