"""
`scripts/convert_checkpoint.py` writes a complete, verified model folder or nothing, from a file or from a download.

Proved in clean processes (the script itself; plain Transformers without pvt_hf opening the result; a process killed
half way) and against a local HTTP server that misbehaves.

    python -m pytest tests/weights/test_convert_checkpoint.py
"""

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

import pvt_hf.weights.convert
import pvt_hf.weights.whole_folder
from pvt_hf import PvtBackbone, PvtForImageClassification
from pvt_hf.weights.convert import convert_checkpoint, imagenet_labels
from pvt_hf.weights.official_files import download_checkpoint
from pvt_hf.weights.variants import get_variant

from ..support.golden import GOLDEN_OUTPUTS, GOLDEN_WEIGHTS


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"
SHA256 = hashlib.sha256(GOLDEN_WEIGHTS.read_bytes()).hexdigest()
FILES = ["config.json", "conversion.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The result of the real script in a process of its own, and what it printed."""
    output = tmp_path_factory.mktemp("converted") / "new" / "pvt"
    command = [sys.executable, str(SCRIPT), "--checkpoint", str(GOLDEN_WEIGHTS), "--output", str(output)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return output, process.stdout


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs the script's main function here; gives exit code and what went to stderr."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        code = module.main()
        return code, capsys.readouterr().err

    return run


def content(folder):
    """Everything below a folder, hidden files included, but for the locks of downloads, which are empty."""
    found = {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    return {path: data for path, data in found.items() if path.suffix != ".lock"}


# The written folder


@torch.no_grad()
def test_script_writes_a_model_that_the_auto_classes_open(converted, golden):
    output, printed = converted
    assert sorted(path.name for path in output.iterdir()) == FILES
    assert [path.name for path in output.parent.iterdir()] == [output.name]  # no temporary folder
    assert SHA256 in printed and "141 tensors" in printed and str(output) in printed

    model = AutoModelForImageClassification.from_pretrained(output)
    assert type(model) is PvtForImageClassification
    for size in ("64x64", "72x100"):
        # fp32 rounding in another order of operations
        torch.testing.assert_close(
            model(golden[f"{size}.pixel_values"]).logits, golden[f"{size}.logits"], atol=1e-5, rtol=0
        )
    pixel_values = AutoImageProcessor.from_pretrained(output)(
        Image.new("RGB", (90, 70)), return_tensors="pt"
    ).pixel_values
    assert pixel_values.shape == (1, 3, 64, 64)  # the size that the model was built for


def test_provenance(converted):
    report = json.loads((converted[0] / "conversion.json").read_text())
    assert report["source"] == {"file": GOLDEN_WEIGHTS.name, "url": None, "sha256": SHA256, "keys": 129}
    # 566,986: the elements of the golden file's tensors
    counts = {"keys": 141, "parameters": 566_986}
    assert report["model"] == {"class": "PvtForImageClassification", **counts, "dtype": "float32", "labels": None}
    assert report["verification"]["image_sizes"] == [[64, 64], [97, 129]]
    # fp64 rounding; 1.81 is the largest logit
    assert report["verification"]["max_abs_difference"] < 1e-13
    assert report["verification"]["tolerance"] == pytest.approx(1e-8 * report["verification"]["max_abs_value"])
    assert report["versions"]["torch"] == torch.__version__
    assert sorted(report["versions"]) == ["pvt_hf", "python", "safetensors", "torch", "transformers"]


def test_plain_transformers_opens_the_result(converted, golden):
    """In a process that never imports pvt_hf: the native class, all keys matched, at its native size."""
    code = f"""
import json, sys, torch, safetensors.torch
from transformers import AutoModelForImageClassification
model, info = AutoModelForImageClassification.from_pretrained({str(converted[0])!r}, output_loading_info=True)
golden = safetensors.torch.load_file({str(GOLDEN_OUTPUTS)!r})
with torch.no_grad():
    difference = (model.eval()(golden["64x64.pixel_values"]).logits - golden["64x64.logits"]).abs().max()
print(json.dumps([
    type(model).__module__, "pvt_hf" in sys.modules, float(difference),
    sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])),
]))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=converted[0])
    assert process.returncode == 0, process.stderr
    module, imported, difference, unmatched = json.loads(process.stdout.splitlines()[-1])
    assert module == "transformers.models.pvt.modeling_pvt" and not imported and not unmatched
    # The native class has one epsilon, 1e-6; the official code has 1e-5 after the patch and reduction projections.
    assert difference < 2e-5


@torch.no_grad()
def test_dense_only_file_becomes_a_backbone(script, golden, golden_weights, tmp_path):
    names = ("cls_token", "norm.", "head.")
    torch.save({key: value for key, value in golden_weights.items() if not key.startswith(names)}, tmp_path / "f.pth")
    code, errors = script("--checkpoint", tmp_path / "f.pth", "--output", tmp_path / "out")
    assert code == 0, errors
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["model"]["class"] == "PvtBackbone"
    maps = PvtBackbone.from_pretrained(tmp_path / "out")(golden["96x128.pixel_values"]).feature_maps
    for i, feature_map in enumerate(maps, start=1):
        torch.testing.assert_close(feature_map, golden[f"96x128.feature{i}"], atol=1e-5, rtol=0)
    assert i == 4


def test_half_precision_and_heads_and_size_arguments(script, golden_weights, tmp_path):
    torch.save({key: value.bfloat16() for key, value in golden_weights.items()}, tmp_path / "bf16.pth")
    arguments = ("--num_attention_heads", 1, 1, 1, 2, "--image_size", 66)
    code, errors = script("--checkpoint", tmp_path / "bf16.pth", "--output", tmp_path / "out", *arguments)
    assert code == 0, errors
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.num_attention_heads == [1, 1, 1, 2] and config.image_size == 66 and config.dtype == torch.bfloat16


# ImageNet's names


def test_a_head_of_1000_classes_gets_imagenet_labels(golden_weights, tmp_path):
    weights = {**golden_weights, "head.weight": torch.randn(1000, 128), "head.bias": torch.randn(1000)}
    torch.save(weights, tmp_path / "imagenet.pth")
    report = convert_checkpoint(tmp_path / "imagenet.pth", tmp_path / "out")
    assert "timm" in report["model"]["labels"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in imagenet_labels().items()}
    assert config["label2id"] == {name: index for index, name in imagenet_labels().items()}
    assert len(config["label2id"]) == 1000

    own_names = {index: f"species {index}" for index in range(1000)}
    convert_checkpoint(tmp_path / "imagenet.pth", tmp_path / "own", id2label=own_names)
    assert AutoConfig.from_pretrained(tmp_path / "own").id2label == own_names


def test_imagenet_labels_agree_with_torchvision():
    """An independent list in the same order; it shortens names and calls three classes differently."""
    categories = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    labels = imagenet_labels()
    assert sorted(labels) == list(range(1000)) and len(set(labels.values())) == 1000
    different = {index for index in labels if categories[index] not in labels[index].split(", ")}
    assert different == {134, 517, 639}  # crane (bird), crane (machine), "maillot, tank suit"
    assert categories[134] == "crane bird" and labels[134] == "crane (bird)" and labels[517] == "crane (machine)"


# Nothing half-written, nothing lost


def test_failed_verification_writes_nothing(script, golden_weights, tmp_path):
    weights = {**golden_weights, "norm.bias": torch.full((128,), torch.nan)}
    torch.save(weights, tmp_path / "nan.pth")
    before = content(tmp_path)
    code, errors = script("--checkpoint", tmp_path / "nan.pth", "--output", tmp_path / "out" / "pvt")
    assert code == 1 and "error: Verification failed" in errors and "Traceback" not in errors
    assert content(tmp_path) == before


@pytest.mark.parametrize("fault", ["key and value swapped", "epsilon"])
def test_verification_notices_a_wrong_conversion(monkeypatch, tmp_path, fault):
    build = pvt_hf.weights.convert.model_from_official_state_dict

    def build_wrongly(state_dict, **overrides):
        if fault == "epsilon":
            return build(state_dict, reduction_layer_norm_eps=1e-6, **overrides)  # the native class's
        model = build(state_dict, **overrides)
        attention = model.pvt.encoder.block[1][1].attention.self
        attention.key, attention.value = attention.value, attention.key
        return model

    monkeypatch.setattr(pvt_hf.weights.convert, "model_from_official_state_dict", build_wrongly)
    with pytest.raises(ValueError, match="differ by up to"):
        convert_checkpoint(GOLDEN_WEIGHTS, tmp_path / "out")
    assert not content(tmp_path)


def test_existing_output_is_kept_unless_overwritten(script, golden_weights, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    before = content(tmp_path)
    code, errors = script("--checkpoint", GOLDEN_WEIGHTS, "--output", output)
    assert code == 1 and "is not empty" in errors and "--overwrite" in errors
    code, errors = script("--checkpoint", GOLDEN_WEIGHTS, "--output", output, "--overwrite")
    assert code == 1 and "has notes.txt, which no earlier run wrote" in errors
    assert content(tmp_path) == before

    (output / "notes.txt").rename(output / "conversion.json")
    bad = {**golden_weights, "head.bias": torch.full((10,), torch.inf)}
    torch.save(bad, tmp_path / "bad.pth")
    before = content(tmp_path)
    assert script("--checkpoint", tmp_path / "bad.pth", "--output", output, "--overwrite")[0] == 1
    assert content(tmp_path) == before

    assert script("--checkpoint", GOLDEN_WEIGHTS, "--output", output, "--overwrite")[0] == 0
    assert sorted(path.name for path in output.iterdir()) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth", "out"]


def test_an_empty_output_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    convert_checkpoint(GOLDEN_WEIGHTS, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_old_output_returns_when_the_new_one_cannot_be_put_in_place(monkeypatch, tmp_path):
    convert_checkpoint(GOLDEN_WEIGHTS, tmp_path / "out")
    (tmp_path / "out" / "conversion.json").write_text("{}")
    before, rename = content(tmp_path), pvt_hf.weights.whole_folder.os.rename

    def rename_but_for_the_new(source, target):
        if ".new." in str(source):
            raise OSError("disk trouble")
        rename(source, target)

    monkeypatch.setattr(pvt_hf.weights.whole_folder.os, "rename", rename_but_for_the_new)
    with pytest.raises(OSError, match="disk trouble"):
        convert_checkpoint(GOLDEN_WEIGHTS, tmp_path / "out", overwrite=True)
    assert content(tmp_path) == before


def test_overwrite_spares_what_is_needed(script, monkeypatch, tmp_path):
    checkpoint = tmp_path / "run" / "pvt.pth"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(GOLDEN_WEIGHTS.read_bytes())
    code, errors = script("--checkpoint", checkpoint, "--output", checkpoint.parent, "--overwrite")
    assert code == 1 and "has pvt.pth, which no earlier run wrote" in errors and checkpoint.exists()
    monkeypatch.chdir(checkpoint.parent)
    code, errors = script("--checkpoint", GOLDEN_WEIGHTS, "--output", tmp_path, "--overwrite")
    assert code == 1 and "contains the working directory" in errors and checkpoint.exists()
    code, errors = script("--checkpoint", GOLDEN_WEIGHTS, "--output", checkpoint, "--overwrite")
    assert code == 1 and "is a file" in errors and checkpoint.exists()


def test_output_appears_only_after_verification(monkeypatch, tmp_path):
    """Until then there is a hidden folder beside it, which an interrupt removes and the next run would not mind."""
    output, seen = tmp_path / "out", []

    def interrupt(source, folder, is_classifier):
        seen.append((output.exists(), folder.name, "model.safetensors" in [path.name for path in folder.iterdir()]))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pvt_hf.weights.convert, "verify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(GOLDEN_WEIGHTS, output)
    ((existed, name, complete),) = seen
    assert not existed and complete and not content(tmp_path)

    (tmp_path / name).mkdir()  # as a killed run leaves it
    convert_checkpoint(GOLDEN_WEIGHTS, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "out"]


@pytest.mark.parametrize("rename", [0, 1, 2])
def test_sigterm_leaves_the_old_folder(script, monkeypatch, tmp_path, rename):
    """While the new one is verified, and right after each of the two renames that replace the old one."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "conversion.json").write_text("{}")
    renamed, real_rename = [], pvt_hf.weights.whole_folder.os.rename

    def verified(*arguments):
        if not rename:
            signal.raise_signal(signal.SIGTERM)
        return {"image_sizes": []}

    def renames(*paths):
        real_rename(*paths)
        renamed.append(paths)
        if len(renamed) == rename:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(pvt_hf.weights.convert, "verify", verified)
    monkeypatch.setattr(pvt_hf.weights.whole_folder.os, "rename", renames)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            script("--checkpoint", GOLDEN_WEIGHTS, "--output", output, "--overwrite")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 128 + signal.SIGTERM
    assert content(tmp_path) == {Path("out"): None, Path("out/conversion.json"): b"{}"}


@pytest.mark.slow
def test_a_killed_process_leaves_no_output(tmp_path):
    code = f"""
import os, signal, pvt_hf.weights.convert as module
module.verify = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
module.convert_checkpoint({str(GOLDEN_WEIGHTS)!r}, "out")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [path.name.startswith(".out.new.") for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--checkpoint", "nowhere.pth"], "No checkpoint at nowhere.pth"),
        (["--checkpoint", str(SCRIPT)], "not a complete torch.save file"),
        (["--checkpoint", str(GOLDEN_WEIGHTS), "--image_size", "128"], "patch rows"),
        (["--checkpoint", str(GOLDEN_WEIGHTS), "--num_attention_heads", "3", "3", "3", "3"], "does not divide"),
    ],
)
def test_errors_are_one_message(script, tmp_path, arguments, message):
    code, errors = script(*arguments, "--output", tmp_path / "out")
    assert code == 1 and errors.startswith("error: ") and message in " ".join(errors.split())
    assert not content(tmp_path)


@pytest.mark.parametrize(
    "arguments", [[], ["--checkpoint", "a.pth", "--variant", "pvt-tiny"], ["--variant", "pvt-small-wide"]]
)
def test_wrong_arguments(script, tmp_path, arguments):
    with pytest.raises(SystemExit) as error:
        script(*arguments, "--output", tmp_path / "out")
    assert error.value.code == 2


# Download


@pytest.mark.parametrize("digest", [None, SHA256])
def test_download_converts_and_is_kept(script, serve, tmp_path, digest):
    requests = serve("/good", checkpoint_sha256=digest)
    cache, output = tmp_path / "cache", tmp_path / "out"
    code, errors = script("--variant", "pvt-tiny", "--output", output, "--cache_dir", cache)
    assert code == 0, errors
    assert "pvt_tiny.pth: 100%" in errors  # the progress bar
    assert list(content(cache)) == [Path("pvt_tiny.pth")]
    source = json.loads((output / "conversion.json").read_text())["source"]
    assert source["sha256"] == SHA256 and source["url"] == get_variant("pvt-tiny").checkpoint_url

    count = len(requests)
    assert download_checkpoint(get_variant("pvt-tiny"), cache) == cache / "pvt_tiny.pth"
    assert len(requests) == count == 2  # the redirect and the file, once


def test_a_kept_file_with_another_digest_is_downloaded_again(serve, tmp_path):
    serve("/good", checkpoint_sha256=SHA256)
    (tmp_path / "pvt_tiny.pth").write_bytes(b"damaged")
    assert download_checkpoint(get_variant("pvt-tiny"), tmp_path).read_bytes() == GOLDEN_WEIGHTS.read_bytes()


@pytest.mark.parametrize(
    "path, changes, message",
    [
        ("/missing", {}, "HTTP Error 404"),
        ("/truncated", {}, "IncompleteRead"),
        ("/unannounced", {}, "not a complete torch.save file"),  # truncated, and the server gave no length
        ("/login", {}, "not a complete torch.save file"),
        ("/silent", {}, "Could not download"),
        ("/good", {"checkpoint_sha256": "0" * 64}, f"has SHA-256 {SHA256}, expected {'0' * 64}"),
        ("/good", {"checkpoint_url": "http://127.0.0.1:1/pvt_tiny.pth"}, "Could not download"),  # refused
        ("/good", {"config": {"depths": [3, 4, 6, 3]}}, "depths=[3, 4, 6, 3] was given, but the tensors have"),
    ],
)
def test_failed_downloads_leave_nothing(script, serve, monkeypatch, tmp_path, path, changes, message):
    if path == "/silent":
        monkeypatch.setattr("pvt_hf.weights.official_files._TIMEOUT", 0.5)
    serve(path, **changes)
    cache, output = tmp_path / "cache", tmp_path / "out"
    code, errors = script("--variant", "pvt-tiny", "--output", output, "--cache_dir", cache)
    assert code == 1 and message in errors and "Traceback" not in errors
    assert not output.exists()
    # The last case is a good file for the wrong variant
    assert list(content(cache)) == ([Path("pvt_tiny.pth")] if "config" in changes else [])


def test_a_variant_without_released_weights(tmp_path):
    with pytest.raises(ValueError, match="No weights were released for pvt-small-wide"):
        download_checkpoint(get_variant("pvt-small-wide"), tmp_path)
