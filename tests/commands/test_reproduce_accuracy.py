"""
`pvt-hf reproduce tableN` from end to end, on stand-in data in the layouts of ImageNet, COCO and ADE20K. Labels are what
a stand-in checkpoint answers for images that are prepared here by hand, so that another order of classes, another crop
or another normalisation changes the figure.

    python -m pytest tests/commands/test_reproduce_accuracy.py
"""

import io
import json
import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pvt_hf.commands import reproduce
from pvt_hf.hub.published_accuracy import published_accuracies
from pvt_hf.models.image_processing_detection import PvtDetectionImageProcessorPil
from pvt_hf.models.image_processing_pvt import PvtImageProcessorPil
from pvt_hf.models.image_processing_semantic import PvtSemanticImageProcessorPil
from pvt_hf.weights import convert
from pvt_hf.weights.official import model_from_official_state_dict

from ..support.detection_files import CATEGORIES, write_coco
from ..support.golden import GOLDEN_WEIGHTS
from ..support.heads import tiny_head


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
WORDNET_IDS = [f"n0144{index:04d}" for index in range(10)]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Calls `pvt-hf reproduce` and returns the exit status and its file of results, if there is one."""

    def call(table, *arguments):
        words = [f"table{table}", *map(str, arguments), "--workers", "0", "--device", "cpu"]
        output = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["pvt-hf reproduce", *words, "--output_dir", str(output)])
        status = reproduce.main()
        file = output / f"table{table}.json"
        return status, json.loads(file.read_text())["rows"] if file.exists() else []

    return call


def photo(seed: int, height: int, width: int) -> bytes:
    """A JPEG file with a coarse pattern of colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def imagenet():
    """A state dict in the official layout, images, and the label of each: most are what the model answers."""
    weights = torch.load(GOLDEN_WEIGHTS, weights_only=True)
    images = [photo(seed, 90, 110) for seed in range(50)]
    # The official evaluation at 64 pixels, by hand: 90x110 to 73x89, then the central 64x64
    crops = [
        np.asarray(Image.open(io.BytesIO(one)).resize((89, 73), Image.Resampling.BICUBIC))[4:68, 12:76] / 255
        for one in images
    ]
    inputs = torch.tensor(np.stack([(crop - MEAN) / STD for crop in crops])).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        logits = model_from_official_state_dict(weights)(inputs).logits
        # All classes alike frequent: the head's rows are standardised over these images
        weights["head.bias"] = (weights["head.bias"] - logits.mean(0)) / logits.std(0)
        weights["head.weight"] = weights["head.weight"] / logits.std(0)[:, None]
        answers = model_from_official_state_dict(weights)(inputs).logits.argmax(1).tolist()
    labels = [*range(10), *answers[10:]]  # the first ten give every class an image, mostly a wrong one
    return weights, images, labels, 100 * sum(a != b for a, b in zip(answers, labels)) / len(labels)


def write_classes(root, images, labels, ids):
    for index, (image, label) in enumerate(zip(images, labels)):
        (root / "validation" / ids[label]).mkdir(parents=True, exist_ok=True)
        name = f"ILSVRC2012_val_{index + 1:08d}.JPEG"
        (root / "validation" / ids[label] / name).write_bytes(image)
    return root


def write_imagenet_parquet(root, images, labels):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefghij"))})
    rows = {"image": [{"bytes": image, "path": f"{i}.JPEG"} for i, image in enumerate(images)]}
    (root / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict({**rows, "label": labels}, features=features)
    table.to_parquet(root / "data" / "validation-00000-of-00001.parquet")
    return root


def test_table_2(run, imagenet, tmp_path, capsys, monkeypatch):
    weights, images, labels, error = imagenet
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "pvt_small.pth")

    def ours(data):
        status, rows = run(2, "--data", data, "--checkpoints", tmp_path / "checkpoints", "--models", "PVT-Small")
        (row,) = rows
        assert status == 0 and row["paper"] == 20.2
        text = capsys.readouterr().out
        assert f"paper 20.2, ours {row['ours']} ({row['difference']:+}" in text
        return row["ours"]

    folder = write_classes(tmp_path / "folder", images, labels, WORDNET_IDS)
    assert ours(folder) == pytest.approx(error, abs=0.05)  # printed with one decimal
    assert ours(write_imagenet_parquet(tmp_path / "parquet", images, labels)) == pytest.approx(error, abs=0.05)
    other_order = write_classes(tmp_path / "order", images, labels, WORDNET_IDS[::-1])
    assert ours(other_order) > error + 10
    processor = convert.official_image_processor(64)
    for change in (
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        {"size": {"shortest_edge": 64}},
        {"do_center_crop": False, "size": {"height": 64, "width": 64}},
    ):
        changed = PvtImageProcessorPil(**{**processor.to_dict(), **change})
        monkeypatch.setattr(convert, "official_image_processor", lambda size: changed)  # noqa: B023  called at once
        assert ours(folder) != pytest.approx(error, abs=0.05), change


def test_the_official_release(run, imagenet, tmp_path, capsys, monkeypatch):
    """Rows without official weights say so; a file of another architecture is refused."""
    weights, images, labels, _ = imagenet
    torch.save(weights, tmp_path / "pvt_small.pth")
    monkeypatch.setattr(
        "pvt_hf.commands.reproduce_accuracy.download_checkpoint", lambda variant: tmp_path / "pvt_small.pth"
    )
    folder = write_classes(tmp_path / "folder", images[:20], labels[:20], WORDNET_IDS)
    status, rows = run(2, "--data", folder, "--models", "ResNet18")
    assert status == 2 and rows[0]["ours"] is None and "no official weights" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: .*depths"):
        run(2, "--data", folder, "--models", "PVT-Small")


def test_table_3(run, tmp_path):
    model = tiny_head("retinanet", id2label=dict(enumerate(("person", "car", "toothbrush"))))
    sizes = {f"{index:012d}.png": (60 + 4 * index, 80) for index in range(4)}
    checkpoint = tmp_path / "outputs" / "retinanet-pvt-small"
    model.save_pretrained(checkpoint)
    processor = PvtDetectionImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    processor.save_pretrained(checkpoint)
    root = tmp_path / "coco"
    file = root / "annotations" / "instances_val2017.json"
    write_coco(file, root / "val2017", sizes)
    ids, objects = [1, 3, 90], {}
    for name, size in sizes.items():
        with torch.no_grad():
            inputs = processor(Image.open(root / "val2017" / name), return_tensors="pt")
            outputs = model(**{key: inputs[key] for key in ("pixel_values", "pixel_mask")})
        (found,) = processor.post_process_object_detection(outputs, threshold=0.05, target_sizes=[size])
        objects[name] = [
            {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": ids[label], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            for (x0, y0, x1, y1), label in zip(found["boxes"].tolist(), found["labels"].tolist())
            if x1 - x0 > 4 and y1 - y0 > 4
        ][:10]

    def ours():
        status, rows = run(3, "--data", root, "--checkpoints", tmp_path / "outputs", "--models", "PVT-Small")
        assert status == 0 and len(rows) == 12
        assert "no retinanet-pvt-small-3x/" in rows[6]["note"] and "coco_retinanet_pvt_small_3x" in rows[6]["note"]
        assert "shortest_edge" in rows[0]["note"]  # the paper has 800
        return {row["metric"]: row["ours"] for row in rows[:6]}["ap50"]

    content = write_coco(file, root / "val2017", sizes, objects=objects)
    assert (right := ours()) > 20
    names = dict(zip(CATEGORIES, [*CATEGORIES.values()][1:] + [*CATEGORIES.values()][:1]))
    file.write_text(json.dumps({**content, "categories": [{"id": i, "name": name} for i, name in names.items()]}))
    assert ours() != right
    file.write_text(json.dumps(content))
    PvtDetectionImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 128}, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    ).save_pretrained(checkpoint)
    assert ours() != right


def test_table_5(run, tmp_path):
    model = tiny_head("semantic_fpn", num_labels=150)
    checkpoint = tmp_path / "outputs" / "semantic-fpn-pvt-tiny"
    model.save_pretrained(checkpoint)
    processor = PvtSemanticImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128}, do_reduce_labels=True)
    processor.save_pretrained(checkpoint)
    root = tmp_path / "ADEChallengeData2016"
    for part in ("images", "annotations"):
        (root / part / "validation").mkdir(parents=True)

    def write(shift):
        for seed in range(3):
            image = photo(seed, 70, 90)
            (root / "images" / "validation" / f"ADE_val_{seed + 1:08d}.jpg").write_bytes(image)
            with torch.no_grad():
                outputs = model(processor(Image.open(io.BytesIO(image)), return_tensors="pt")["pixel_values"])
            (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(70, 90)])
            mask = ((labels.numpy() + shift) % 150 + 1).astype(np.uint8)
            Image.fromarray(mask).save(root / "annotations" / "validation" / f"ADE_val_{seed + 1:08d}.png")

    def ours():
        status, rows = run(5, "--data", root, "--checkpoints", tmp_path / "outputs", "--models", "PVT-Tiny")
        assert status == 0 and rows[0]["paper"] == 35.7
        return rows[0]["ours"]

    write(shift=0)
    assert (right := ours()) > 99  # logits are enlarged in another order of steps here
    write(shift=1)
    assert ours() < 50
    write(shift=0)
    PvtSemanticImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 128}, do_reduce_labels=True, image_mean=[0, 0, 0]
    ).save_pretrained(checkpoint)
    assert ours() < right
    shutil.rmtree(checkpoint)
    assert run(5, "--data", root, "--checkpoints", tmp_path / "outputs", "--models", "PVT-Tiny")[0] == 2


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (2, ["ImageNet-1K", "about 7 GB", "hf download ILSVRC/imagenet-1k", "there is no folder nowhere"]),
        (6, ["COCO 2017", "about 1 GB", "instances_val2017.json", "val2017.zip"]),
        (7, ["ADE20K", "ADEChallengeData2016.zip"]),
        (9, ["ImageNet-1K", "COCO 2017", "--data gives no folder for it"]),
    ],
)
def test_without_the_data(run, table, words, capsys):
    status, rows = run(table, "--data", "nowhere")
    text = capsys.readouterr().out
    assert status == 2 and not rows and all(word in text for word in words)


def test_figure_5(monkeypatch, tmp_path, capsys):
    def call(*runs):
        monkeypatch.setattr(sys, "argv", ["x", "figure5", *runs, "--output_dir", str(tmp_path / "out")])
        return reproduce.main()

    assert call() == 2 and "coco_retinanet_pvt_small_1x --backbone ''" in capsys.readouterr().out
    (tmp_path / "a").mkdir()
    assert call("--runs", f"scratch-1x={tmp_path / 'a'}") == 2
    history = [{"step": 1, "epoch": 1, "loss": 2.0}, {"step": 9, "epoch": 6, "ap": 0.2},
               {"step": 18, "epoch": 12, "ap": 0.25}]  # fmt: skip
    (tmp_path / "a" / "run.json").write_text(json.dumps({"history": history}))
    capsys.readouterr()
    assert call("--runs", f"scratch-1x={tmp_path / 'a'}") == 0
    assert "scratch-1x: paper 26.6, ours 25.0 (-1.6), after 12 epochs" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "figure5.png").size[0] > 500


def test_every_table_has_rows():
    """The names of checkpoints tell trainings apart; the same name means the same weights."""
    rows = published_accuracies()
    assert {row.table for row in rows} == set(range(2, 12))
    by_table = {(row.table, row.checkpoint, row.multi_scale) for row in rows}
    assert len(by_table) == len(rows)
