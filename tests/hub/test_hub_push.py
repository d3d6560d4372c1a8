"""
Uploads with the real client to a Hub on localhost (`hub_server.py`): everything in one commit, after a lost connection
only what is missing, and every error in one line.

    python -m pytest tests/hub/test_hub_push.py
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

import pvt_hf
from pvt_hf.hub.repository import save_repository
from pvt_hf.hub.upload import push, push_folder
from pvt_hf.weights.opening import weights_digest
from pvt_hf.weights.variants import VARIANTS

from ..support.common import randomize
from ..support.exports import export, save_model
from ..support.hub_fixtures import TOKEN, new_repository
from ..support.hub_kinds import KINDS
from ..support.hub_server import File


pytest_plugins = ["tests.support.hub_fixtures"]

GOLDEN = Path(__file__).parents[1] / "golden"


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
    again = push(model, processor, repo, token=f"{TOKEN}\n", with_code=False)  # nothing is new
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
def export_of_classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export(save_model("pvt", folder / "model"), folder / "export", fixed_size=(64, 64))
    return folder


def test_an_export_is_pushed_and_opened(hub, client, export_of_classifier, tmp_path, monkeypatch):
    folder, repo = export_of_classifier / "export", "org/classifier-onnx"
    (folder / "notes.txt").write_text("mine")
    result = push_folder(folder, repo, token=TOKEN, license="apache-2.0", private=False)
    files = hub.files(repo)
    assert set(files) - {".gitattributes"} == {
        "README.md", "config.json", "export.json", "export_report.json", "labels.txt", "model.onnx", "model.onnx.data",
        "preprocessor_config.json",
    } == set(result.files)  # fmt: skip
    card = ModelCard(files["README.md"].content.decode())
    assert card.data.pipeline_tag == "image-classification" and card.data.license == "apache-2.0"
    assert card.text.strip() == (folder / "README.md").read_text().strip()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    answers = [pvt_hf.open_pipeline(str(place))[1](image, top_k=10) for place in (folder, repo)]
    assert answers[0] == answers[1]


def test_exports_and_models_keep_to_their_own_repositories(hub, client, export_of_classifier):
    push_folder(export_of_classifier / "export", "me/export", token=TOKEN)
    push_folder(export_of_classifier / "model", "me/model", token=TOKEN, with_code=False)
    with pytest.raises(ValueError, match="me/export holds an export: give the model"):
        push_folder(export_of_classifier / "model", "me/export", token=TOKEN)
    with pytest.raises(ValueError, match="me/model holds a model: give the export"):
        push_folder(export_of_classifier / "export", "me/model", token=TOKEN)
    with pytest.raises(ValueError, match="leave the evaluation out"):
        push_folder(export_of_classifier / "export", "me/export", evaluation_file="x.json", dry_run=True)


def test_half_an_export_is_not_pushed(export_of_classifier, tmp_path):
    folder = shutil.copytree(export_of_classifier / "export", tmp_path / "export")
    (folder / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.onnx: export the model again"):
        push_folder(folder, "me/half", dry_run=True)


RUN = {
    "settings": {"dataset": "digits", "eval_split": "test", "batch_size": 8, "gradient_accumulation_steps": 1},
    "metrics": {"accuracy@1": 0.5, "eval_samples": 10},
    "steps": 3,
    "versions": {"torch": torch.__version__},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder as training leaves it."""
    folder = tmp_path_factory.mktemp("small") / "model"
    KINDS["classifier"].model().save_pretrained(folder)
    KINDS["classifier"].make_processor().save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps(RUN))
    return folder


ERRORS = {  # repository, options, statuses by path: the kind of error and a word in it
    "no name": ("pvt-small", {}, {}, ValueError, "org/name"),
    "too many names": ("a/b/c", {}, {}, ValueError, "org/name"),
    "an address": ("https://huggingface.co/a/b", {}, {}, ValueError, "org/name"),
    "a space": ("org/my model", {}, {}, ValueError, "org/name"),
    "a commit": ("org/x", {"revision": "0" * 40}, {}, ValueError, "branch"),
    "an empty branch": ("org/x", {"revision": ""}, {}, ValueError, "branch"),
    "a branch of two words": ("org/x", {"revision": "my branch"}, {}, ValueError, "branch"),
    "no token": ("org/x", {"token": None}, {}, PermissionError, "hf auth login"),
    "unknown token": ("org/x", {"token": "hf_wrong"}, {}, PermissionError, "does not accept"),
    "of another": ("another/x", {}, {}, PermissionError, "another"),
    "private, of another": ("another/secret", {}, {}, PermissionError, "another"),
    "read only": ("another/public", {}, {}, PermissionError, "another"),
    "hidden": ("org/x", {}, {"/api/models/org/x/": [404]}, FileNotFoundError, "private"),
    "out of order": ("org/x", {}, {"/api/repos/create": [503]}, ConnectionError, "503"),
    "out of order for long": ("org/x", {}, {"/preupload/": [503] * 6}, ConnectionError, "503"),
    "refused": ("org/x", {}, {"/commit/": [400]}, ValueError, "400"),
    "not private": ("org/known", {"private": True}, {}, ValueError, "org/known is public"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_a_push(case, hub, client, small, script):
    hub.repositories.setdefault("another/secret", replace(new_repository(), private=True))
    hub.repositories.setdefault("another/public", new_repository())
    hub.repositories.setdefault("org/known", new_repository())
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
    arguments += ["--private"] if "private" in options else []
    code, output, errors = script("push_to_hub", "--model", small, "--repo", repo, *arguments)
    hub.failures = {}
    assert code == 1 and output == "" and errors.splitlines()[-1].startswith("error: ") and word in errors
    assert "Traceback" not in errors
    assert len(hub.repositories["org/known"].commits) == 1


def test_no_network(hub, client, small, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConnectionError, match="127.0.0.1:9"):
        push_folder(small, "org/x", token=TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        push_folder(small, "org/x", token=TOKEN)


def test_what_cannot_be_saved(tmp_path, small):
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


# Scripts


def test_script(hub, client, small, tmp_path, script, monkeypatch):
    seen = {}
    build_card = pvt_hf.hub.upload.build_card
    monkeypatch.setattr("pvt_hf.hub.upload.build_card", lambda *a, **k: seen.update(k) or build_card(*a, **k))
    evaluation = {
        "settings": {"dataset": "digits", "split": "test"},
        "results": [{"height": 64, "width": 64, "accuracy@1": 0.75, "eval_samples": 10}],
        "model_class": "PvtForImageClassification",
        "weights": weights_digest(KINDS["classifier"].model()),
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    arguments = ["--model", small, "--repo", "me/fruit", "--evaluation", tmp_path / "evaluation.json"]
    before = len(hub.requests)
    code, output, errors = script("push_to_hub", *arguments, "--dry-run")  # without a token
    assert code == 0, errors
    assert len(hub.requests) == before and "modeling_pvt.py" in output and "dry run" in output
    files = {"run": RUN, "evaluation": evaluation, "conversion": None}
    assert seen == {"repo_id": "me/fruit", **files, "license": None, "with_code": True}
    weights = (small / "model.safetensors").stat().st_size
    assert any(line.split() == [f"{weights:,}", "model.safetensors"] for line in output.splitlines())
    assert "# fruit" not in output
    code, output, errors = script("push_to_hub", *arguments, "--dry-run", "--show_card")
    card = build_card(KINDS["classifier"].model(), KINDS["classifier"].make_processor(), **seen)
    assert code == 0 and output.startswith(f"{card}\n") and "Top-1 accuracy (%)" in output, errors
    assert len(hub.requests) == before

    script.environment("HF_TOKEN", TOKEN)
    code, output, errors = script("push_to_hub", *arguments, "--private", "--revision", "next", "--without_code")
    assert code == 0, errors
    repository = hub.repositories["me/fruit"]
    assert repository.private and list(hub.files("me/fruit")) == [".gitattributes"]
    files = hub.files("me/fruit", "next")
    assert files["model.safetensors"].content == (small / "model.safetensors").read_bytes()
    assert not any(name.endswith(".py") for name in files) and repository.branches["next"] in output


@pytest.mark.parametrize(
    "break_it, word",
    [
        (lambda folder: shutil.rmtree(folder), "no folder"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{ broken"), "config.json is not a JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json is not a JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds a list"),
        (lambda folder: change(folder, architectures="PvtForImageClassification"), "expected a list"),
        (lambda folder: change(folder, architectures=[["x"]]), "expected a list"),
        (lambda folder: change(folder, dtype="float99"), "config.json does not describe"),
        (lambda folder: change(folder, id2label={"a": "b"}), "config.json does not describe"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("[]"), "preprocessor_config.json holds"),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text('{"image_processor_type": 5}'),
            "does not describe an image processor",
        ),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: (folder / "run.json").write_text("not JSON"), "run.json"),
        (lambda folder: change(folder, architectures=["UperNetForSemanticSegmentation"]), "UperNet"),
        (lambda folder: change(folder, architectures=["SemanticFpnForSemanticSegmentation"]), "not a complete"),
        (lambda folder: change(folder, depths=[2, 2, 1, 1]), "has no weights for"),
        (lambda folder: change(folder, mlp_ratios=[2, 4, 2, 2]), "weights of other shapes"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "cannot be read"),
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

    arguments[arguments.index("me/pvt-small")] = "me/plain"
    assert script("convert_checkpoint", *arguments, "--without_code")[0] == 0
    assert "modeling_pvt.py" not in hub.files("me/plain") and "model.safetensors" in hub.files("me/plain")
