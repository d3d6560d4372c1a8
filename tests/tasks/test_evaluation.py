"""
Evaluation of any image classifier: against brute force with Pillow and NumPy for four model classes, labels matched by
name, each sample once over two and three processes, equally many forward passes under sharding, and skipped samples.

    pytest tests/tasks/test_evaluation.py
"""

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.pvt.configuration_pvt import PvtConfig as NativeConfig
from transformers.models.pvt.image_processing_pvt import PvtImageProcessor as NativeProcessor
from transformers.models.pvt.modeling_pvt import PvtForImageClassification as NativeModel

from pvt_hf import PvtForImageClassification, PvtImageProcessor, PvtModel
from pvt_hf.data.streams import Stream, StreamError
from pvt_hf.engine import evaluation as engine_evaluation
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks.classification.evaluation import OfficialProtocol
from pvt_hf.tasks.classification.settings import ClassificationEvaluationSettings
from pvt_hf.tasks.classification.task import ClassificationTask
from pvt_hf.tasks.labels import match_labels, numbers_without_names

from ..support.common import randomize, tiny_pvt_config
from ..support.warm_processes import ROOT
from ..support.warm_processes import run as launch


SCRIPT = ROOT / "scripts" / "evaluate_image_classification.py"
NAMES = ("apple", "brick", "cloud", "dune", "ember", "fern", "grape")
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """35 + 4 images of 7 classes: blocks of colour, wide and tall; the number divides by neither 2 nor 3 nor 4."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for label, name in enumerate(NAMES):
        folder = root / "validation" / name
        folder.mkdir(parents=True)
        for index in range(5 if label else 7):
            blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            size = (80, 66) if index % 2 else (70, 90)
            Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return root


def files_and_labels(photos: Path) -> list[tuple[Path, int]]:
    return [(file, NAMES.index(file.parent.name)) for file in sorted((photos / "validation").glob("*/*.png"))]


@torch.no_grad()
def save(folder: Path, photos: Path, model: torch.nn.Module, size: int, processor) -> Path:
    """With random weights, but a head whose logits are centred: otherwise one class would win on every image."""
    randomize(model, seed=1).eval()
    files = [file for file, _ in files_and_labels(photos)]
    images = torch.cat([prepare(file, (size, size), size, 3, processor) for file in files])
    model.classifier.bias -= model(images).logits.mean(0)
    model.classifier.weight *= 4
    model.classifier.bias *= 4
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pvt(tmp_path_factory, photos):
    """Its processor follows the official protocol at 64 pixels."""
    model = PvtForImageClassification(tiny_pvt_config(num_labels=7, **LABELS))
    processor = PvtImageProcessor(size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64})
    return save(tmp_path_factory.mktemp("pvt"), photos, model, 64, processor)


def prepare(file: Path, resized: tuple[int, int] | int, crop: int, filter_: int, processor) -> torch.Tensor:
    """Pillow and NumPy alone: resize (the shorter side, or to a width and height), centre crop, normalise."""
    image = Image.open(file).convert("RGB")
    if isinstance(resized, int):
        short, long = sorted(image.size)
        other = int(resized * long / short)
        resized = (resized, other) if image.width < image.height else (other, resized)
    image = image.resize(resized, Image.Resampling(filter_))
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop))) / 255
    pixels = (pixels - np.array(processor.image_mean)) / np.array(processor.image_std)
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float()[None]


@torch.no_grad()
def by_hand(photos: Path, model, resized, crop: int, filter_: int, processor, **forward) -> dict[str, float]:
    """The figures, one image at a time."""
    top1, top5, losses, predicted = 0, 0, [], []
    samples = files_and_labels(photos)
    for file, label in samples:
        logits = model.eval()(prepare(file, resized, crop, filter_, processor), **forward).logits[0].double().numpy()
        ranked = np.argsort(-logits)
        top1, top5 = top1 + int(ranked[0] == label), top5 + int(label in ranked[:5])
        losses.append(math.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
        predicted.append(int(ranked[0]))
    assert len(set(predicted)) >= 3 and 0 < top1 < top5 < len(samples)  # otherwise a wrong image would not show
    return {
        "accuracy@1": top1 / len(samples),
        "accuracy@5": top5 / len(samples),
        "eval_loss": sum(losses) / len(losses),
    }


def assert_figures(result: dict, expected: dict[str, float], loss_tolerance: float = 1e-3) -> None:
    assert result["eval_samples"] == 37 and result["eval_skipped"] == 0
    for name in ("accuracy@1", "accuracy@5"):
        assert result[name] == pytest.approx(expected[name], abs=1e-12), name
    # fp32 in batches against one by one; the images are the same to the last bit or nearly so
    assert result["eval_loss"] == pytest.approx(expected["eval_loss"], abs=loss_tolerance)


def evaluate(model: Path, photos: Path, **settings) -> dict:
    return evaluate_checkpoint(
        ClassificationTask(),
        ClassificationEvaluationSettings(
            **{"model": str(model), "dataset": str(photos), "batch_size": 8, "num_workers": 0, "cpu": True, **settings}
        ),
    )


def test_pvt_at_its_own_size_and_others(pvt, photos):
    model, processor = PvtForImageClassification.from_pretrained(pvt), PvtImageProcessor.from_pretrained(pvt)
    report = evaluate(pvt, photos, image_sizes=[96, 64])
    at_96, at_64 = report["results"]
    assert (at_96["height"], at_64["width"]) == (96, 64)
    assert_figures(at_96, by_hand(photos, model, int(96 / 0.875), 96, 3, processor))
    assert at_96["images_per_second"] > 0 and report["warning"] is None
    # 64 is what the processor does by itself, on torchvision: there as in training, up to two grey levels from Pillow.
    own = evaluate(pvt, photos)["results"][0]
    assert {k: v for k, v in at_64.items() if k[0] != "i"} == {k: v for k, v in own.items() if k[0] != "i"}
    assert own["eval_loss"] == pytest.approx(by_hand(photos, model, 73, 64, 3, processor)["eval_loss"], abs=0.05)
    # Another ratio is another crop.
    (whole,) = evaluate(pvt, photos, image_sizes=[64], crop_ratio=1.0)["results"]
    assert_figures(whole, by_hand(photos, model, 64, 64, 3, processor))
    assert abs(whole["eval_loss"] - own["eval_loss"]) > 0.01


def test_native_pvt_checkpoint(photos, tmp_path):
    """Saved by Transformers' own class, whose processor squeezes the image into a square."""
    fields = {"image_size": 64, "hidden_sizes": [16, 32, 80, 128], "depths": [1, 1, 1, 1], "mlp_ratios": [4, 4, 2, 2]}
    model = NativeModel(NativeConfig(**fields, num_labels=7, **LABELS))
    processor = NativeProcessor(size={"height": 64, "width": 64})
    save(tmp_path, photos, model, 64, processor)
    report = evaluate(tmp_path, photos)
    assert report["model_class"] == "PvtForImageClassification"
    expected = by_hand(photos, model, (64, 64), 64, processor.resample, processor)
    assert report["results"][0]["eval_loss"] == pytest.approx(expected["eval_loss"], abs=0.05)  # torchvision, Pillow
    (official,) = evaluate(tmp_path, photos, image_sizes=[64])["results"]
    assert_figures(official, by_hand(photos, model, 73, 64, processor.resample, processor))


def test_vit_is_told_to_interpolate_its_positions(photos, tmp_path):
    fields = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(**fields, intermediate_size=64, **LABELS))
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    save(tmp_path, photos, model, 32, processor)
    at_32, at_64 = evaluate(tmp_path, photos, image_sizes=[32, 64])["results"]
    assert_figures(at_32, by_hand(photos, model, 36, 32, processor.resample, processor))
    assert_figures(at_64, by_hand(photos, model, 73, 64, processor.resample, processor, interpolate_pos_encoding=True))


def test_convnext_whose_processor_crops_by_itself(photos, tmp_path):
    model = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], **LABELS))
    processor = ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875)
    save(tmp_path, photos, model, 64, processor)
    assert evaluate(tmp_path, photos)["results"][0]["height"] == 64
    at_64, at_400 = evaluate(tmp_path, photos, image_sizes=[64, 400])["results"]
    assert_figures(at_64, by_hand(photos, model, 73, 64, processor.resample, processor))
    # From 384 on this processor would squeeze instead.
    assert_figures(at_400, by_hand(photos, model, int(400 / 0.875), 400, processor.resample, processor))


def test_a_processor_that_keeps_the_shape_needs_a_size(photos, tmp_path):
    processor = ViTImageProcessor(size={"shortest_edge": 32}, default_to_square=False)
    save(tmp_path, photos, PvtForImageClassification(tiny_pvt_config(num_labels=7, **LABELS)), 64, processor)
    with pytest.raises(ValueError, match=r"480x640 to \(32, 42\) and one of 640x480 to \(42, 32\).*--image_sizes"):
        evaluate(tmp_path, photos)


def test_a_checkpoint_without_a_head_is_refused(photos, tmp_path):
    PvtModel(tiny_pvt_config(num_labels=7, **LABELS)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not a complete PvtForImageClassification.*'classifier.bias'"):
        evaluate(tmp_path, photos)


def stream_of(names: tuple[str, ...] | None) -> Stream:
    return Stream("shop (test)", None, class_names=names)


def test_labels_by_name_or_by_number():
    assert match_labels(stream_of(("a", "b", "c")), ("a", "b", "c")) == ([0, 1, 2], None)
    assert match_labels(stream_of(("a", "b", "c")), ("c", "a", "b")) == ([1, 2, 0], None)
    twice = ("crane", "maillot", "crane")
    assert match_labels(stream_of(twice), twice) == ([0, 1, 2], None)
    labels, warning = match_labels(stream_of(("a", "b")), ("LABEL_0", "LABEL_1"))
    assert labels == [0, 1]
    assert "only in the data: 'a', 'b'; only in the model: 'LABEL_0', 'LABEL_1'" in warning
    assert "Label i of the data is taken as label i of the model" in warning
    assert match_labels(stream_of(None), ("a", "b")) == ([0, 1], None)
    assert numbers_without_names(stream_of(("a", "b")), ("a", "b")) is None
    assert "have no names: numbers are the model's labels, 0 (a) to 1 (b)" in numbers_without_names(
        stream_of(None), ("a", "b")
    )
    for names, model_names, words in (
        (("a", "b"), ("a", "b", "c"), "has 2 classes and the model 3; only in the data: none; only in the model: 'c'"),
        (("a", "b", "c"), ("b", "a", "d"), "only in the data: 'c'.*'d'; in both with another number: 'a', 'b'"),
        (("crane", "crane", "jay"), ("jay", "crane", "crane"), "in both with another number: 'crane', 'jay'"),
        (tuple("abcdefghijklmn"), ("x",), "'j' and 4 more"),
    ):
        with pytest.raises(ValueError, match=words):
            match_labels(stream_of(names), model_names)


def test_renumbered_labels_give_the_same_figures(pvt, photos, tmp_path, capsys):
    """The same model with its classes in another order, and with names that say nothing."""
    expected = evaluate(pvt, photos)["results"][0]
    order = [3, 0, 6, 1, 5, 2, 4]
    model = PvtForImageClassification.from_pretrained(pvt)
    model.classifier.weight.data, model.classifier.bias.data = (
        model.classifier.weight.data[order],
        model.classifier.bias.data[order],
    )
    for names, word in (([NAMES[i] for i in order], None), ([f"LABEL_{i}" for i in range(7)], "warning: ")):
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: label for label, name in enumerate(names)}
        model.save_pretrained(tmp_path)
        PvtImageProcessor.from_pretrained(pvt).save_pretrained(tmp_path)
        report = evaluate(tmp_path, photos)
        printed = capsys.readouterr().out
        result = report["results"][0]
        if word is None:
            assert "warning" not in printed
            assert result["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
            assert result["accuracy@1"] == expected["accuracy@1"]
        else:
            assert re.search(r"^warning: .*taken as label i of the model", printed, re.MULTILINE)
            assert abs(result["eval_loss"] - expected["eval_loss"]) > 0.01  # by number: now another class


def assert_same_figures(many: dict, one: dict) -> None:
    for name in ("accuracy@1", "accuracy@5", "eval_samples", "eval_skipped"):
        assert many[name] == one[name], name
    # The same losses, added in another order and out of other batches
    assert many["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-5)


def test_three_processes_with_workers_name_every_bad_sample_once(pvt, photos, tmp_path):
    folder = tmp_path / "photos"
    for file, _ in files_and_labels(photos):
        copy = folder / "validation" / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for name, content in (("apple/cut.png", file.read_bytes()[:90]), ("fern/empty.png", b"")):
        (folder / "validation" / name).write_bytes(content)
    for num_workers in (0, 1):  # a loader process adds its traceback, which must not be shown
        with pytest.raises(StreamError, match=r"^2 of \d+ samples .*allowed share of 1.00%") as error:
            evaluate(pvt, folder, num_workers=num_workers)
        assert "Traceback" not in str(error.value)
    one = evaluate(pvt, folder, max_bad_share=0.05, figures=str(tmp_path / "figures" / "one"))
    command = [SCRIPT, "--model", pvt, "--dataset", folder, "--batch_size", 4, "--num_workers", 1, "--cpu"]
    command += ["--max_bad_share", 0.05, "--figures", tmp_path / "figures" / "three"]
    launch([*command, "--output", tmp_path / "new" / "three.json"], processes=3)
    three = json.loads((tmp_path / "new" / "three.json").read_text())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["three.json"]
    assert (one["world_size"], three["world_size"]) == (1, 3)
    assert one["results"][0]["eval_samples"] == 37 and one["results"][0]["eval_skipped"] == 2
    assert_same_figures(three["results"][0], one["results"][0])
    assert three["skipped"] == one["skipped"]
    assert sorted(Path(name).name for name in one["skipped"]) == ["cut.png", "empty.png"]
    found = [tmp_path / "figures" / count for count in ("one", "three")]
    matrix, other = (np.array(json.loads((path / "confusion_matrix.json").read_text())["matrix"]) for path in found)
    assert (matrix == other).all() and matrix.sum() == 37
    assert matrix.trace() / 37 == pytest.approx(one["results"][0]["accuracy@1"])
    worst, others = (json.loads((path / "worst_images.json").read_text()) for path in found)
    assert [each["loss"] for each in worst] == pytest.approx([each["loss"] for each in others], abs=1e-5)
    assert (tmp_path / "figures" / "three" / "predictions.html").is_file()  # only the command draws


IN_TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from pvt_hf import PvtForImageClassification, PvtImageProcessor, PvtModel
from pvt_hf.data.batches import BatchStream
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.data.samples import ProcessorTransform
from accelerate.utils import gather_object
from pvt_hf.engine.evaluation import evaluate, evaluate_checkpoint
from pvt_hf.tasks.classification.evaluation import ClassificationEvaluation
from pvt_hf.tasks.classification.settings import ClassificationEvaluationSettings
from pvt_hf.tasks.classification.task import ClassificationTask

class Sharded(Accelerator):
    is_fsdp2 = True  # Accelerate has no FSDP on a CPU

def main(folder, photos, output):
    accelerator = Sharded(cpu=True)
    assert accelerator.num_processes == 2
    model = PvtForImageClassification.from_pretrained(folder).eval()
    mesh = init_device_mesh("cpu", (2,))
    for block in [b for stage in model.pvt.encoder.block for b in stage]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    calls = []
    model.register_forward_pre_hook(
        lambda module, args, inputs: calls.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    stream = open_classification_stream(photos, "validation")
    prepare = ClassificationSample(stream, ProcessorTransform(PvtImageProcessor.from_pretrained(folder)))
    sharded = []
    only = sorted(str(p) for p in Path(photos).rglob("*.png"))[:1]
    for keep in (None, lambda name: name in only, lambda name: False):
        calls.clear()
        batches = BatchStream(stream, prepare, 2, rank=accelerator.process_index, world_size=2, keep=keep)
        try:
            metrics = evaluate(accelerator, model, batches, 0, ClassificationEvaluation((224, 224)))
        except ValueError as error:
            metrics = str(error)
        sharded.append({"metrics": metrics, "calls": gather_object([list(calls)])})
    settings = ClassificationEvaluationSettings(model=folder, dataset=photos, batch_size=8, num_workers=0, cpu=True)
    report = evaluate_checkpoint(ClassificationTask(), settings)
    if accelerator.is_main_process:
        Path(output).write_text(json.dumps({"report": report, "sharded": sharded}))

main(*sys.argv[1:])
"""


def test_two_processes_and_a_sharded_model(pvt, photos, tmp_path):
    """FSDP with unequal parts: every process runs equally often, or the run would hang in a collective."""
    one = evaluate(pvt, photos)["results"][0]
    (tmp_path / "two.py").write_text(IN_TWO_PROCESSES)
    launch([tmp_path / "two.py", pvt, photos, tmp_path / "two.json"], processes=2)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["report"]["world_size"] == 2
    assert_same_figures(two["report"]["results"][0], one)
    whole, single, nothing = two["sharded"]
    assert_same_figures(whole["metrics"], one)
    # 19 and 18 images in batches of 2: the second process makes its tenth pass on zeros
    assert whole["calls"] == [[2] * 9 + [1], [2] * 9 + [1]]
    # One image, and a process that never has any
    assert single["metrics"]["eval_samples"] == 1 and single["calls"] == [[1], [1]]
    assert "no sample to evaluate on" in nothing["metrics"] and nothing["calls"] == [[], []]


@pytest.mark.parametrize("names", [("left", "right"), tuple("abcde"), tuple("abcdef")], ids=len)
def test_accuracies_that_are_certain_are_left_out(names, tmp_path):
    """accuracy@5 of five classes is 1 whatever the model does."""
    for name in names:
        (tmp_path / "photos" / "validation" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "validation" / name / "0.png")
    model = PvtForImageClassification(tiny_pvt_config(id2label=dict(enumerate(names)), num_labels=len(names)))
    processor = PvtImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    result = evaluate(tmp_path / "model", tmp_path / "photos")["results"][0]
    accuracies = {name: value for name, value in result.items() if name.startswith("accuracy@")}
    expected = {"accuracy@1": 1 / len(names)} | ({"accuracy@5": 5 / 6} if len(names) == 6 else {})
    assert accuracies == pytest.approx(expected)  # images that are all the same
    assert result["images_per_second"] is None  # a single batch


def test_images_per_second_leave_the_first_batch_out(monkeypatch):
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(engine_evaluation.time, "perf_counter", lambda: next(clock))
    alone = SimpleNamespace(num_processes=1, is_main_process=False)
    with engine_evaluation.Monitor(alone, SimpleNamespace(worker_sizes=lambda *given: None), 0, "title", {}) as monitor:
        monitor({"skipped": []})  # does not start the clock
        for size in (8, 8, 4):
            monitor({"sample_ids": ["x"] * size, "skipped": []})
    assert monitor.images_per_second() == 12 / 4.0


def test_arguments(tmp_path, capsys):
    given = ["--model", "m", "--dataset", "d"]
    settings = parse_arguments(ClassificationEvaluationSettings, [*given, "--image_sizes", "224", "256"])
    assert settings.image_sizes == [224, 256] and not settings.trust_remote_code and settings.split == "validation"
    for bad in (["--batch_size", "0"], ["--crop_ratio", "1.2"], ["--image_sizes", "0"], ["--num_workers", "-1"]):
        with pytest.raises(SystemExit):
            parse_arguments(ClassificationEvaluationSettings, [*given, *bad])
        assert bad[0] in capsys.readouterr().err
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        evaluate_checkpoint(
            ClassificationTask(),
            ClassificationEvaluationSettings(model="m", dataset="d", cpu=True, output=str(tmp_path)),
        )
    with pytest.raises(FileNotFoundError, match="no model folder .*nowhere: give a folder"):
        evaluate_checkpoint(
            ClassificationTask(),
            ClassificationEvaluationSettings(model=str(tmp_path / "nowhere"), dataset="d", cpu=True),
        )
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        evaluate_checkpoint(
            ClassificationTask(),
            ClassificationEvaluationSettings(model="m", dataset="d", cpu=True, mixed_precision="fp16"),
        )


def test_the_protocol_on_sides_that_do_not_divide():
    """256 of 224 as in the official code, whatever the image's proportions; against Pillow in `by_hand` elsewhere."""
    seen = []
    protocol = OfficialProtocol(type("P", (), {"resample": 3})(), 224)
    protocol.processor = lambda image, **settings: (seen.append((image.size, settings)), {"pixel_values": [image]})[1]
    protocol(Image.new("RGB", (301, 999)))
    assert seen == [((224, 224), {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"})]
    assert protocol.steps.transforms[0](Image.new("RGB", (301, 999))).size == (256, int(256 * 999 / 301))


def test_answers_that_are_not_finite(pvt, photos, tmp_path):
    """NaN has a first class too: accuracies of such a model would be those of a guess."""
    shutil.copytree(pvt, tmp_path / "model")
    ViTImageProcessor(size={"height": 64, "width": 64}, image_std=[0.0] * 3).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"pixels that are NaN or infinite: check its image_mean.*Samples: '.*\.png'"):
        evaluate(tmp_path / "model", photos)
    model = PvtForImageClassification.from_pretrained(pvt)
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)  # finite, but what it computes is not
    model.save_pretrained(tmp_path / "model")
    PvtImageProcessor.from_pretrained(pvt).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"logits are NaN or infinite.*range of float32\. .*Samples: '.*\.png'"):
        evaluate(tmp_path / "model", photos)
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="have values that are NaN or infinite: 'classifier.weight'"):
        evaluate(tmp_path / "model", photos)
