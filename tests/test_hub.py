"""
What is pushed with the real client opens for everybody: on a Hub on localhost (`hub_server.py`) and from folders, in
plain Transformers, with the package, and where there is no such package; from the cache without a network, too. And
what goes wrong on the way up is said in one line.

Three clean processes (`hub_client.py`) open everything; their tensors are compared with those of the models pushed.

    python -m pytest tests/test_hub.py
"""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline

import pvt_hf
from pvt_hf.hub import push, push_folder
from pvt_hf.hub_folder import AUTO_CLASSES, save_repository
from pvt_hf.variants import VARIANTS

from . import hub_client
from .clean_process import run_python
from .common import randomize
from .hub_kinds import ANIMALS, KINDS
from .hub_server import File, HubServer


ROOT = Path(__file__).parents[1]
TOKEN = "hf_of-nobody"
GOLDEN = Path(__file__).parent / "golden"
# The same code on the same machine with the same number of threads: only what is not deterministic would differ
SAME = {"atol": 1e-6, "rtol": 1e-6}


@pytest.fixture(scope="module")
def hub():
    server = HubServer()
    server.writers = {TOKEN: ["me", "org"], "hf_of-another": ["another"]}
    with server.running():
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Leads the client of this process to the local Hub: what HF_ENDPOINT and others do before it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            patch.delenv(name, raising=False)
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "token"))
        # Between its tries it waits, 23 seconds in all
        patch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield


@pytest.fixture(scope="module")
def root(hub, client, tmp_path_factory):
    """Every kind of model in a folder and on the Hub, an image, what the models compute, and the work for clients."""
    root = tmp_path_factory.mktemp("hub")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((150, 111), Image.Resampling.BICUBIC).save(root / "image.png")
    image, inputs, jobs, expected = Image.open(root / "image.png"), {}, {}, {}
    for name, kind in KINDS.items():
        model, processor = kind.model(), kind.make_processor()
        repo, folder = f"org/pvt-{name}.v1", root / "folders" / f"pvt-{name}"
        save_repository(model, processor, folder)
        push(model, processor, repo, token=TOKEN)
        inputs[name] = processor(image, return_tensors="pt")["pixel_values"].contiguous()
        expected[name] = hub_client.compute(model, inputs[name])
        auto_classes = AUTO_CLASSES[type(model).__name__]
        jobs[name] = {"repo": repo, "folder": str(folder), "auto_classes": auto_classes, "tasks": kind.tasks}
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
    other = randomize(KINDS["classifier"].make_model(), seed=1).eval()
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
        for backend, class_name in classes.items():
            processor = getattr(pvt_hf, class_name).from_pretrained(folder)
            tensors[f"{backend}/pixel_values"] = processor(image, return_tensors="pt")["pixel_values"]
        answers = {task: hub_client.answer_of(pipeline(task, model=folder), image) for task in kind.tasks}
        references[name] = {
            "tensors": tensors,
            "classes": {**jobs[name]["auto_classes"], **classes},
            "answers": answers,
        }
    return references | {"shards": references["classifier"]}


@pytest.mark.parametrize("mode", ["stranger", "package", "offline"])
@pytest.mark.parametrize("kind", [*KINDS, "shards"])
def test_it_opens_and_computes_the_same(kind, mode, references, request):
    result, reference = request.getfixturevalue(mode), references[kind]
    origin = "pvt_hf." if mode == "package" else "transformers_modules."
    for where in ("repo", "folder"):
        facts, tensors = result["facts"][f"{kind}/{where}"], under(result["tensors"], f"{kind}/{where}/")
        # AutoBackbone asks the Hub, whatever it is given
        without = "AutoBackbone" if mode == "offline" or where == "folder" else "nothing"
        compare(tensors, {n: tensor for n, tensor in reference["tensors"].items() if not n.startswith(without)})
        for what, class_name in reference["classes"].items():
            if what != without:
                assert facts[what][0] == class_name and facts[what][1].startswith(origin)
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
    torch.testing.assert_close(tensors["AutoModelForImageClassification/logits"], expected["logits"], **SAME)
    assert [row[0] for row in facts["image-classification"]][0] == ANIMALS[int(expected["logits"].argmax())]


def test_code_runs_only_when_it_is_trusted(stranger):
    assert "trust_remote_code=True" in stranger["facts"]["refused"]


def test_no_complaints(stranger, package, offline):
    for result in (stranger, package, offline):
        for word in ("not supported", "rror", "newly initialized", "Traceback"):
            assert word not in result["stderr"], result["stderr"]


def test_backbones_of_folders_by_configuration(stranger):
    for kind in ("classifier", "model", "backbone"):
        assert stranger["facts"][f"{kind}/from_config"] == ["PvtBackbone", [[1, 16, 16, 16]]]


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


# The way up


def test_a_push_is_one_commit(hub, root):
    repository = hub.repositories["org/pvt-semantic_fpn.v1"]
    assert list(repository.titles.values()) == ["initial commit", "Upload model"] and not repository.private
    files = hub.files("org/pvt-semantic_fpn.v1")
    assert {name for name, file in files.items() if file.lfs} == {"model.safetensors"}
    assert {"README.md", "config.json", "preprocessor_config.json", "model.safetensors"} < files.keys()
    card = ModelCard(files["README.md"].content.decode())
    assert card.data.license == "apache-2.0"


def test_what_is_no_longer_needed_goes(hub, client):
    model, processor, repo = KINDS["classifier"].model(), KINDS["classifier"].make_processor(), "org/changes"
    result = push(model, processor, repo, token=TOKEN, max_shard_size="500KB", private=True)
    before = hub.files(repo)
    assert len([name for name in before if name.startswith("model-")]) > 2 and "modeling_pvt.py" in before
    assert result.files == {name: len(file.content) for name, file in before.items() if name != ".gitattributes"}
    assert result.url == f"{hub.url}/{repo}/commit/{hub.repositories[repo].branches['main']}"
    assert hub.repositories[repo].private
    repository = hub.repositories[repo]
    repository.commit("main", before | {"notes.txt": File(b"mine", lfs=False)}, "by hand")

    push(model, processor, repo, token=TOKEN, with_code=False)
    files = hub.files(repo)
    assert set(files) == {".gitattributes", "notes.txt", "README.md", "config.json", "model.safetensors",
                          "preprocessor_config.json"}  # fmt: skip
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in json.loads(files[name].content)
    assert len(repository.commits) == 4

    hub.uploaded.clear()
    again = push(model, processor, repo, token=TOKEN, with_code=False)  # nothing is new
    assert len(repository.commits) == 4 and again.url.endswith(repository.branches["main"]) and not hub.uploaded


def test_after_a_cut_only_the_rest_is_uploaded(hub, client, tmp_path):
    model, processor, repo = KINDS["semantic_fpn"].model(), KINDS["semantic_fpn"].make_processor(), "me/cut"
    randomize(model, seed=7)  # weights that the Hub has not yet
    options = {"token": TOKEN, "max_shard_size": "400KB"}
    save_repository(model, processor, tmp_path / "folder", max_shard_size="400KB")
    shards = {File(path.read_bytes(), True).sha256: path.stat().st_size for path in tmp_path.glob("*/*.safetensors")}
    assert 2 < len(shards) <= 5  # as many as the client uploads at a time
    hub.uploaded.clear()
    hub.cut_uploads_after = sorted(shards.values())[len(shards) // 2]
    try:
        with pytest.raises(ConnectionError, match="only what is still missing"):
            push(model, processor, repo, **options)
    finally:
        hub.cut_uploads_after = None
    assert list(hub.files(repo)) == [".gitattributes"]  # no half of a repository
    missing = {oid: size for oid, size in shards.items() if oid not in hub.objects}
    assert 0 < len(missing) < len(shards)

    hub.uploaded.clear()
    push(model, processor, repo, **options)
    assert hub.uploaded == missing
    assert {file.sha256 for file in hub.files(repo).values() if file.lfs} == shards.keys()


def test_a_hub_that_hiccups(hub, client):
    model, processor = KINDS["model"].model(), KINDS["model"].make_processor()
    hub.failures = {"/preupload/": [503, 429], "/objects/batch": [500], "/[0-9a-f]{64}": [502]}
    push(randomize(model, seed=8), processor, "me/hiccups", token=TOKEN)
    assert not any(hub.failures.values()) and "model.safetensors" in hub.files("me/hiccups")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder as training leaves it."""
    folder = tmp_path_factory.mktemp("small") / "model"
    KINDS["classifier"].model().save_pretrained(folder)
    KINDS["classifier"].make_processor().save_pretrained(folder)
    (folder / "run.json").write_text('{"best": {"accuracy@1": 0.5}}')
    return folder


ERRORS = {  # repository, options, statuses by path: the kind of error and a word in it
    "no name": ("pvt-small", {}, {}, ValueError, "org/name"),
    "too many names": ("a/b/c", {}, {}, ValueError, "org/name"),
    "an address": ("https://huggingface.co/a/b", {}, {}, ValueError, "org/name"),
    "a space": ("org/my model", {}, {}, ValueError, "org/name"),
    "a commit": ("org/x", {"revision": "0" * 40}, {}, ValueError, "branch"),
    "no token": ("org/x", {"token": None}, {}, PermissionError, "hf auth login"),
    "unknown token": ("org/x", {"token": "hf_wrong"}, {}, PermissionError, "does not accept"),
    "of another": ("another/x", {}, {}, PermissionError, "another"),
    "private, of another": ("another/secret", {}, {}, PermissionError, "another"),
    "read only": ("another/public", {}, {}, PermissionError, "another"),
    "hidden": ("org/x", {}, {"/api/models/org/x/": [404]}, FileNotFoundError, "private"),
    "out of order": ("org/x", {}, {"/api/repos/create": [503]}, ConnectionError, "503"),
    "out of order for long": ("org/x", {}, {"/preupload/": [503] * 6}, ConnectionError, "503"),
    "refused": ("org/x", {}, {"/commit/": [400]}, ValueError, "400"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_a_push(case, hub, client, small, script):
    hub.repositories.setdefault("another/secret", replace(new_repository(), private=True))
    hub.repositories.setdefault("another/public", new_repository())
    repo, options, failures, error_class, word = ERRORS[case]
    options = {"token": TOKEN, **options}
    hub.failures = {path: list(statuses) for path, statuses in failures.items()}
    with pytest.raises(error_class, match=word):
        push_folder(small, repo, **options)
    # the script says so in one line
    hub.failures = {path: list(statuses) for path, statuses in failures.items()}
    if options["token"] is not None:
        script.environment("HF_TOKEN", options["token"])
    arguments = ["--revision", options["revision"]] if "revision" in options else []
    code, output, errors = script("push_to_hub", "--model", small, "--repo", repo, *arguments)
    hub.failures = {}
    assert code == 1 and output == "" and errors.splitlines()[-1].startswith("error: ") and word in errors
    assert "Traceback" not in errors


def new_repository():
    from .hub_server import Repository

    repository = Repository()
    repository.commit("main", {}, "initial commit")
    return repository


def test_no_network(hub, client, small, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConnectionError, match="127.0.0.1:9"):
        push_folder(small, "org/x", token=TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        push_folder(small, "org/x", token=TOKEN)


def test_what_cannot_be_saved(tmp_path, small):
    import transformers

    model, processor = KINDS["classifier"].model(), KINDS["classifier"].make_processor()
    native = transformers.PvtForImageClassification.from_pretrained(small)
    with pytest.raises(ValueError, match="transformers.models.pvt.*expected PvtForImageClassification"):
        save_repository(native, processor, tmp_path / "native")
    remote = type("PvtForImageClassification", (type(model),), {"__module__": "transformers_modules.x.modeling_pvt"})
    with pytest.raises(ValueError, match="import pvt_hf"):
        save_repository(remote(model.config), processor, tmp_path / "remote")
    own = type("MyProcessor", (type(processor),), {"__module__": "mine"})
    with pytest.raises(ValueError, match="mine.MyProcessor"):
        save_repository(model, own(), tmp_path / "processor")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="has content"):
        save_repository(model, processor, small)


def test_no_traces(tmp_path):
    """Saving leaves the classes as they were, and takes nothing along from where a model came."""
    model, processor = KINDS["retinanet"].model(), KINDS["retinanet"].make_processor()
    model.config.auto_map = {"AutoConfig": "elsewhere.Config"}
    model.config.backbone_config.auto_map = {"AutoConfig": "elsewhere.Config"}
    try:
        type(model.config).register_for_auto_class()
        save_repository(model, processor, tmp_path / "plain", with_code=False)
    finally:
        type(model.config)._auto_class = None
    assert (
        not list((tmp_path / "plain").glob("*.py")) and "auto_map" not in (tmp_path / "plain/config.json").read_text()
    )
    save_repository(model, processor, tmp_path / "code")
    assert "elsewhere" not in (tmp_path / "code" / "config.json").read_text()
    for value in (model, model.config, processor):
        assert type(value)._auto_class is None
    model.save_pretrained(tmp_path / "later")
    assert not list((tmp_path / "later").glob("*.py"))


def test_auto_map_names_every_auto_class_that_serves_the_class():
    """Compared with what the installed package registers with Transformers."""
    from transformers.models.auto import modeling_auto

    registered = {}
    for name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None)
        if name.startswith("AutoModel") or name == "AutoBackbone":
            for config_class, model_class in getattr(mapping, "_extra_content", {}).items():
                if config_class.__module__.startswith("pvt_hf."):
                    registered.setdefault(config_class.__name__, {})[name] = model_class.__name__
    for name, auto_classes in AUTO_CLASSES.items():
        config_class = getattr(pvt_hf, name).config_class.__name__
        if name in ("PvtModel", "PvtBackbone"):  # parts of a classifier
            assert auto_classes.items() < registered[config_class].items()
        else:
            assert auto_classes == registered[config_class], name


# Scripts


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a script's main function here; gives exit code, stdout and stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        code = module.main()
        return code, *capsys.readouterr()

    run.environment = monkeypatch.setenv
    return run


def test_script(hub, client, small, tmp_path, script, monkeypatch):
    seen = {}
    build_card = pvt_hf.hub.build_card
    monkeypatch.setattr("pvt_hf.hub.build_card", lambda *a, **k: seen.update(k) or build_card(*a, **k))
    (tmp_path / "evaluation.json").write_text('{"accuracy@1": 0.75}')
    arguments = ["--model", small, "--repo", "me/fruit", "--evaluation", tmp_path / "evaluation.json"]
    before = len(hub.requests)
    code, output, errors = script("push_to_hub", *arguments, "--dry-run", "--with-code")  # without a token
    assert code == 0, errors
    assert len(hub.requests) == before and "modeling_pvt.py" in output and "dry run" in output
    assert seen == {
        "repo_id": "me/fruit", "run": {"best": {"accuracy@1": 0.5}}, "evaluation": {"accuracy@1": 0.75}
    }  # fmt: skip
    weights = (small / "model.safetensors").stat().st_size
    assert any(line.split() == [f"{weights:,}", "model.safetensors"] for line in output.splitlines())

    script.environment("HF_TOKEN", TOKEN)
    code, output, errors = script("push_to_hub", *arguments, "--private", "--revision", "next")
    assert code == 0, errors
    repository = hub.repositories["me/fruit"]
    assert repository.private and list(hub.files("me/fruit")) == [".gitattributes"]
    files = hub.files("me/fruit", "next")
    assert files["model.safetensors"].content == (small / "model.safetensors").read_bytes()
    assert not any(name.endswith(".py") for name in files) and repository.branches["next"] in output


@pytest.mark.parametrize(
    "break_it, word",
    [
        (lambda folder: shutil.rmtree(folder), "config.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: (folder / "run.json").write_text("not JSON"), "run.json"),
        (lambda folder: change(folder, architectures=["UperNetForSemanticSegmentation"]), "UperNet"),
        (lambda folder: change(folder, architectures=["SemanticFpnForSemanticSegmentation"]), "missing"),
        (lambda folder: change(folder, depths=[2, 2, 1, 1]), "missing"),
        (lambda folder: change(folder, mlp_ratios=[2, 4, 2, 2]), "another shape"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "model.safetensors"),
    ],
)
def test_folders_that_are_not_pushed(break_it, word, small, tmp_path, script):
    shutil.copytree(small, tmp_path / "model")
    break_it(tmp_path / "model")
    code, output, errors = script("push_to_hub", "--model", tmp_path / "model", "--repo", "me/x", "--dry_run")
    assert code == 1 and output == "" and "error: " in errors and word in errors.splitlines()[-1]


def change(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def test_from_the_official_release_to_the_hub(hub, client, script, monkeypatch, tmp_path):
    official = new_repository()
    official.commit("main", {"golden.pth": File((GOLDEN / "official_layout_tiny.pth").read_bytes(), False)}, "release")
    hub.repositories["another/official"] = official
    url = f"{hub.url}/another/official/resolve/main/golden.pth"
    fields = {"depths": [1, 2, 2, 1], "hidden_sizes": [16, 32, 80, 128]}
    monkeypatch.setitem(VARIANTS, "pvt-small", replace(VARIANTS["pvt-small"], config=fields, checkpoint_url=url))
    arguments = ["--variant", "pvt-small", "--push", "me/pvt-small", "--cache_dir", tmp_path / "cache"]

    code, output, errors = script("convert_checkpoint", *arguments)
    assert code == 1 and "hf auth login" in errors and not (tmp_path / "cache").exists()  # before the work
    script.environment("HF_TOKEN", TOKEN)
    code, output, errors = script("convert_checkpoint", *arguments)
    assert code == 0, errors
    assert f"pushed    {hub.url}/me/pvt-small/commit/" in output
    (tmp_path / "pulled").mkdir()
    for name, file in hub.files("me/pvt-small").items():
        (tmp_path / "pulled" / name).write_bytes(file.content)
    golden = load_file(GOLDEN / "official_layout_tiny_expected.safetensors")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "pulled").eval()
    assert type(model) is pvt_hf.PvtForImageClassification and "modeling_pvt.py" in hub.files("me/pvt-small")
    with torch.no_grad():
        logits = model(golden["64x64.pixel_values"]).logits
    torch.testing.assert_close(logits, golden["64x64.logits"], atol=1e-5, rtol=1e-5)  # as in test_conversion.py


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
