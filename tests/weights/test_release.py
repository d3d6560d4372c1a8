"""
`from_official` and "official:NAME": the release on a local server that behaves or misbehaves, into an empty cache.

    python -m pytest tests/weights/test_release.py
"""

import hashlib
import io
import multiprocessing
import os

import pytest
import torch
from huggingface_hub import cached_assets_path
from huggingface_hub.utils import enable_progress_bars
from PIL import Image
from transformers import AutoModelForImageClassification, AutoModelForObjectDetection

import pvt_hf
from pvt_hf.inference.prediction import open_pipeline
from pvt_hf.tasks.segmentation.settings import SegmentationSettings
from pvt_hf.tasks.segmentation.task import SegmentationTask
from pvt_hf.weights.official_files import download_checkpoint
from pvt_hf.weights.opening import open_complete, open_config
from pvt_hf.weights.paths import check_model_path
from pvt_hf.weights.variants import get_variant

from ..support.golden import GOLDEN_WEIGHTS


SHA256 = hashlib.sha256(GOLDEN_WEIGHTS.read_bytes()).hexdigest()


class Hostile:
    """Unpickling it deletes a file."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.remove, (str(self.victim),)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty assets cache of the Hub's client."""
    assets = tmp_path / "assets"
    monkeypatch.setattr(
        "pvt_hf.weights.official_files.cached_assets_path",
        lambda library_name, subfolder: cached_assets_path(library_name, subfolder=subfolder, assets_dir=assets),
    )
    return assets


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@torch.no_grad()
def test_downloads_once_and_computes_what_the_official_code_does(serve, cache, golden, capfd, monkeypatch):
    requests = serve("/good")
    enable_progress_bars()  # commands that other tests ran in this process switch them off
    model, image_processor = pvt_hf.from_official("pvt-tiny")
    printed = capfd.readouterr().err
    assert SHA256 in printed and "pvt_tiny.pth: 100%" in printed  # the digest, and the progress bar
    assert type(model) is pvt_hf.PvtForImageClassification and not model.training
    for size in ("64x64", "72x100"):
        # fp32 rounding in another order of operations
        torch.testing.assert_close(
            model(golden[f"{size}.pixel_values"]).logits, golden[f"{size}.logits"], atol=1e-5, rtol=0
        )
    assert image_processor(Image.new("RGB", (90, 70)), return_tensors="pt").pixel_values.shape == (1, 3, 64, 64)
    assert files(cache) == ["pvt_tiny.pth"]

    count = len(requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    again, _ = pvt_hf.from_official("pvt-tiny", sha256=SHA256.upper(), drop_path_rate=0.25)
    assert len(requests) == count and again.config.drop_path_rate == 0.25
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), model.parameters()))


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("/truncated", {}, "Could not download .*IncompleteRead"),
        ("/missing", {}, "Could not download .*HTTP Error 404.* copy it to .*pvt_tiny.pth"),
        ("/good", {"sha256": "0" * 64}, f"has SHA-256 {SHA256}, expected {'0' * 64}"),
    ],
)
def test_a_bad_download_leaves_nothing_and_the_next_try_succeeds(serve, cache, path, options, message):
    serve(path)
    with pytest.raises((ConnectionError, ValueError), match=message):
        pvt_hf.from_official("pvt-tiny", **options)
    assert files(cache) == []
    serve("/good")
    assert pvt_hf.from_official("pvt-tiny", sha256=SHA256)[0].num_labels == 10


def test_a_full_disk_is_said(serve, cache):
    serve("/good")
    part = cached_assets_path("pvt_hf", subfolder="official-checkpoints", assets_dir=cache) / "pvt_tiny.pth.part"
    part.symlink_to("/dev/full")  # every write to it finds the disk full
    with pytest.raises(OSError, match="Could not write http.* No space left on device. Nothing was kept. Make room"):
        pvt_hf.from_official("pvt-tiny")
    assert files(cache) == [] and not part.is_symlink()
    assert pvt_hf.from_official("pvt-tiny")[0].num_labels == 10


def test_ctrl_c_in_the_middle_leaves_nothing(serve, cache, monkeypatch):
    def interrupt(progress, count):
        raise KeyboardInterrupt

    serve("/good")
    with monkeypatch.context() as patch:
        patch.setattr("pvt_hf.weights.official_files.tqdm.update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pvt_hf.from_official("pvt-tiny")
    assert files(cache) == []
    assert pvt_hf.from_official("pvt-tiny")[0].num_labels == 10


def test_code_in_the_file_is_not_run(serve, cache, tmp_path):
    victim = tmp_path / "victim"
    victim.touch()
    serve("/good", saved(Hostile(victim)))
    with pytest.raises(ValueError, match="no code in it was run: besides tensors it wants to load .*remove"):
        pvt_hf.from_official("pvt-tiny")
    assert victim.exists() and files(cache) == []


def test_without_a_network(serve, cache, monkeypatch):
    serve("/good", checkpoint_url="http://127.0.0.1:1/pvt_tiny.pth")  # refused
    with pytest.raises(ConnectionError, match=r"Could not download http://127.0.0.1:1/pvt_tiny.pth: .*copy it to"):
        pvt_hf.from_official("pvt-tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="is not in the cache, and HF_HUB_OFFLINE forbids downloads"):
        pvt_hf.from_official("pvt-tiny")


def test_a_mirror(serve, cache, monkeypatch):
    requests = serve("/good")
    mirror = get_variant("pvt-tiny").checkpoint_url.removesuffix("pvt_tiny.pth")
    serve("/missing", checkpoint_url="http://127.0.0.1:1/pvt_tiny.pth")
    monkeypatch.setenv("PVT_HF_RELEASE_URL", mirror)
    assert pvt_hf.from_official("pvt-tiny")[0].num_labels == 10 and requests[0] == "/good/pvt_tiny.pth"


def test_two_processes_download_once(serve, tmp_path):
    requests = serve("/slow")
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=download_checkpoint, args=(get_variant("pvt-tiny"), tmp_path / "cache"))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0] and requests == ["/slow/pvt_tiny.pth"]
    assert (tmp_path / "cache" / "pvt_tiny.pth").read_bytes() == GOLDEN_WEIGHTS.read_bytes()


def test_a_damaged_or_wrong_file_in_the_cache_is_named(serve, cache, tmp_path):
    (tmp_path / "pvt_tiny.pth").write_bytes(GOLDEN_WEIGHTS.read_bytes()[:10_000])
    serve("/good")
    with pytest.raises(ValueError, match="pvt_tiny.pth does not hold pvt-tiny: .*delete it, and it is downloaded"):
        pvt_hf.from_official("pvt-tiny", cache_dir=tmp_path)
    serve("/good", config={"depths": [3, 4, 6, 3]})
    with pytest.raises(ValueError, match=r"does not hold pvt-tiny: depths=\[3, 4, 6, 3\]"):
        pvt_hf.from_official("pvt-tiny")


def test_names_without_a_release(cache):
    with pytest.raises(ValueError, match="Unknown variant 'pvt-huge': choose one of pvt-tiny"):
        pvt_hf.from_official("pvt-huge")
    with pytest.raises(ValueError, match="No weights were released for pvt-small-wide"):
        pvt_hf.from_official("pvt-small-wide")
    for name in ("official:pvt-huge", "official:pvt-small-wide", "official:"):
        with pytest.raises(FileNotFoundError, match=f"has no {name}: choose one of official:pvt-tiny, official:pvt-"):
            check_model_path(name)
    check_model_path("official:pvt-large")


# Wherever a command takes a model


def test_commands_open_it(serve, cache, golden_weights):
    """As a pipeline, for evaluation, to fine-tune for other classes, and as backbone: all read the same weights."""
    head = {"head.weight": torch.randn(1000, 128), "head.bias": torch.zeros(1000)}
    fields = {"depths": [1, 2, 2, 1], "hidden_sizes": [16, 32, 80, 128], "image_size": 64}
    serve("/good", saved({**golden_weights, **head}), config=fields)
    model, image_processor = pvt_hf.from_official("pvt-tiny")
    image = Image.radial_gradient("L").convert("RGB")
    with torch.no_grad():
        expected = model(**image_processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    task, classifier = open_pipeline("official:pvt-tiny", use_safetensors=True)
    assert task == "image-classification"
    best = classifier(image, top_k=1)[0]
    # Softmax in another order of operations
    assert best["score"] == pytest.approx(expected.max().item(), abs=1e-6)
    assert best["label"] == model.config.id2label[int(expected.argmax())]

    names = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    config = open_config("official:pvt-tiny", **names)
    tuned = open_complete(AutoModelForImageClassification, "official:pvt-tiny", new_classifier=True, config=config)
    assert tuned.config.id2label == names["id2label"] and tuned.classifier.weight.shape == (2, 128)
    assert torch.equal(tuned.pvt.encoder.layer_norm.weight, model.pvt.encoder.layer_norm.weight)
    with pytest.raises(ValueError, match="official:pvt-tiny is a classifier, which is no model for AutoModelFor"):
        open_complete(AutoModelForObjectDetection, "official:pvt-tiny")

    settings = SegmentationSettings(
        dataset="digit-scenes", output_dir=str(cache / "out"), backbone="official:pvt-tiny", variant="pvt-tiny"
    )
    segmenter = SegmentationTask().build_model(settings, ("background", "thing"))
    key = "block.2.1.attention.self.query.weight"
    assert torch.equal(segmenter.backbone.encoder.state_dict()[key], model.pvt.encoder.state_dict()[key])
