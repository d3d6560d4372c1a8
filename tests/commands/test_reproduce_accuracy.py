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
from pvt_hf.families import FAMILIES, load
from pvt_hf.models.image_processing_pvt import PvtImageProcessorPil
from pvt_hf.models.image_processing_semantic import PvtSemanticImageProcessorPil
from pvt_hf.weights import convert
from pvt_hf.weights.official import model_from_official_state_dict
from pvt_hf.weights.published_accuracy import published_accuracies

from ..support.detection_files import CATEGORIES, encoded, run_lengths, write_coco
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
    """Rows without official weights say so. A file of another architecture is refused, and other rows do not suffer."""
    weights, images, labels, _ = imagenet
    torch.save(weights, tmp_path / "pvt_small.pth")
    monkeypatch.setattr(
        "pvt_hf.commands.reproduce_accuracy.download_checkpoint", lambda variant: tmp_path / "pvt_small.pth"
    )
    folder = write_classes(tmp_path / "folder", images[:20], labels[:20], WORDNET_IDS)
    status, rows = run(2, "--data", folder, "--models", "ResNet18")
    assert status == 2 and rows[0]["ours"] is None and "no official weights" in capsys.readouterr().out
    status, rows = run(2, "--data", folder, "--models", "PVT-Small", "DeiT-Tiny/16")
    assert status == 1 and "not evaluated: " in rows[1]["note"] and "depths" in rows[1]["note"]
    assert "no official weights" in rows[0]["note"]


def test_checkpoints_that_cannot_be_evaluated(run, imagenet, tmp_path):
    """A truncated file, a folder without a model, and a model of another size, which is evaluated with a note."""
    weights, images, labels, _ = imagenet
    folder = write_classes(tmp_path / "folder", images[:20], labels[:20], WORDNET_IDS)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "resnet18").mkdir(parents=True)
    torch.save(weights, checkpoints / "pvt_small.pth")
    (checkpoints / "pvt_tiny.pth").write_bytes((checkpoints / "pvt_small.pth").read_bytes()[:5000])
    words = ("--checkpoints", checkpoints, "--models", "PVT-Tiny", "PVT-Small", "ResNet18")
    status, rows = run(2, "--data", folder, *words)
    notes = {row["checkpoint"]: row["note"] for row in rows}
    assert status == 1 and len(rows) == 4  # two trainings of ResNet18
    assert "not evaluated: " in notes["pvt-tiny"] and "truncated" in notes["pvt-tiny"]
    assert "resnet18 has no config.json" in notes["resnet18"] and "no resnet18-own/" in notes["resnet18-own"]
    assert notes["pvt-small"].startswith("20 images, not 50,000; not the paper's model: 0.") and rows[3]["ours"] > 0


def test_a_data_set_on_the_hub(run, imagenet, tmp_path, monkeypatch, capsys):
    """Its short name stands for the id there. What it is read from is a file here."""
    weights, images, labels, error = imagenet
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "pvt_small.pth")
    file = write_imagenet_parquet(tmp_path / "parquet", images, labels) / "data" / "validation-00000-of-00001.parquet"
    asked, load_here = [], datasets.load_dataset

    def load_dataset(name, split, streaming):
        asked.append(name)
        return load_here("parquet", data_files={"validation": str(file)}, split=split, streaming=streaming)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pvt_hf.data.paths.check_on_hub", lambda source, flag: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    words = ("--checkpoints", tmp_path / "checkpoints", "--models", "PVT-Small")
    status, (row,) = run(2, "--data", "imagenet-1k", *words)
    assert status == 0 and row["ours"] == pytest.approx(error, abs=0.05) and set(asked) == {"ILSVRC/imagenet-1k"}

    def refuse(name, **options):
        raise RuntimeError(f"Dataset scripts are no longer supported, but found {name}.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert run(5, "--data", "scene_parse_150")[0] == 2
    text = capsys.readouterr().out
    assert "no longer supported, but found scene_parse_150.py" in text and "ADEChallengeData2016.zip" in text


SIZES = {f"{index:012d}.png": (60 + 4 * index, 80) for index in range(3)}
IDS = [1, 3, 90]  # of COCO's categories, by label


def coco_processor(architecture, **fields):
    side = {"shortest_edge": 64, "longest_edge": 128}
    return load(FAMILIES[architecture].processor)(**{"size": side, **fields})


def found_objects(model, processor, path, size, masks) -> list[dict]:
    """What a model finds in an image, as annotations."""
    with torch.no_grad():
        inputs = processor(Image.open(path), return_tensors="pt")
        outputs = model(**{key: inputs[key] for key in ("pixel_values", "pixel_mask")})
    (found,) = processor.post_process_object_detection(outputs, threshold=0.05, target_sizes=[size])
    annotations = []
    for index, ((x0, y0, x1, y1), label) in enumerate(zip(found["boxes"].tolist(), found["labels"].tolist())):
        box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        if x1 - x0 > 4 and y1 - y0 > 4:
            annotations.append({**box, "category_id": IDS[label], "iscrowd": 0, "index": index})
    if masks:
        maps = processor.post_process_instance_segmentation(
            outputs, threshold=0.05, target_sizes=[size], return_binary_maps=True
        )[0]["segmentation"]
        for one in annotations:
            mask = np.asarray(maps[one["index"]], dtype=np.uint8)
            one["segmentation"] = {"size": list(size), "counts": run_lengths(mask)}
            one["area"] = int(mask.sum())
    return [one for one in annotations if one["area"]][:10]


@pytest.mark.parametrize(
    ("table", "row", "architecture", "name"),
    [
        (3, "PVT-Small", "retinanet", "retinanet-pvt-small"),
        (4, "ResNet50", "mask_rcnn", "mask-rcnn-resnet50"),
        (6, "PVT-Small", "detr", "detr-pvt-small"),
        (8, "ViT-Small/32", "retinanet", "retinanet-vit-small-32"),
        (10, "ResNet50 + GC r4", "mask_rcnn", "mask-rcnn-resnet50-gc-r4"),
        (11, "PVT-Small", "retinanet", "retinanet-pvt-small-640"),
    ],
)
def test_tables_of_detectors(run, tmp_path, table, row, architecture, name):
    """The annotations are what the model finds. Another preparation of the images, or order of classes, finds less."""
    metric = "mask_ap" if architecture == "mask_rcnn" else "ap"
    checkpoint, root = tmp_path / "outputs" / name, tmp_path / "coco"
    model = tiny_head(architecture, id2label=dict(enumerate(("person", "car", "toothbrush"))))
    model.save_pretrained(checkpoint)
    processor = coco_processor(architecture)
    processor.save_pretrained(checkpoint)
    file, folder = root / "annotations" / "instances_val2017.json", root / "val2017"
    write_coco(file, folder, SIZES)
    objects = {key: found_objects(model, processor, folder / key, size, architecture == "mask_rcnn")
               for key, size in SIZES.items()}  # fmt: skip
    content = write_coco(file, folder, SIZES, objects=objects)

    def ours():
        status, rows = run(table, "--data", root, "--checkpoints", tmp_path / "outputs", "--models", row)
        note = next(one["note"] for one in rows if one["checkpoint"] == name)
        assert status == 0 and "3 images, not 5,000" in note and "not the paper's model: 0." in note
        (figure,) = (one["ours"] for one in rows if (one["checkpoint"], one["metric"]) == (name, metric))
        return figure, note, rows

    right, note, rows = ours()
    assert right > 20
    assert "size {'longest_edge': 128, 'shortest_edge': 64}, not " in note
    if table == 3:
        assert "no retinanet-pvt-small-3x/" in rows[6]["note"] and "coco_retinanet_pvt_small_3x" in rows[6]["note"]
    if table == 11:
        assert "'shortest_edge': 640" in note and "ours on " in note and "threads: " in note
        milliseconds = [one for one in rows if one["metric"] == "ms_per_image"]
        assert [one["paper"] for one in milliseconds] == [51.7, 76.9]
        assert milliseconds[0]["ours"] > 0 and milliseconds[1]["ours"] is None

    names = dict(zip(CATEGORIES, [*CATEGORIES.values()][1:] + [*CATEGORIES.values()][:1]))
    file.write_text(json.dumps({**content, "categories": [{"id": i, "name": name} for i, name in names.items()]}))
    assert ours()[0] < right
    file.write_text(json.dumps(content))
    for change in ({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}, {"size": {"height": 96, "width": 64}}):
        coco_processor(architecture, **change).save_pretrained(checkpoint)
        assert ours()[0] < right, change


def write_ade20k(root, images, masks):
    for kind, ending, files in (("images", "jpg", images), ("annotations", "png", masks)):
        (root / kind / "validation").mkdir(parents=True, exist_ok=True)
        for index, content in enumerate(files, start=1):
            (root / kind / "validation" / f"ADE_val_{index:08d}.{ending}").write_bytes(content)
    return root


def write_ade20k_parquet(root, images, masks):
    """As the data set on the Hub: with the category of the scene, too."""
    columns = {name: [{"bytes": content, "path": None} for content in files]
               for name, files in (("image", images), ("annotation", masks))}  # fmt: skip
    image = datasets.Image()
    features = datasets.Features({"image": image, "annotation": image, "scene_category": datasets.Value("int64")})
    (root / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict({**columns, "scene_category": [3] * len(images)}, features=features)
    table.to_parquet(root / "data" / "validation-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize(
    ("table", "row", "architecture", "name"),
    [
        (5, "PVT-Tiny", "semantic_fpn", "semantic-fpn-pvt-tiny"),
        (7, "PVT-Small + Trans2Seg", "trans2seg", "trans2seg-pvt-small"),
    ],
)
def test_tables_of_segmenters(run, tmp_path, table, row, architecture, name):
    """The masks are what the model answers."""
    model = tiny_head(architecture, num_labels=150)
    checkpoint = tmp_path / "outputs" / name
    size = {"shortest_edge": 64, "longest_edge": 128}
    model.save_pretrained(checkpoint)
    processor = PvtSemanticImageProcessorPil(size=size, do_reduce_labels=True)
    processor.save_pretrained(checkpoint)
    images = [photo(seed, 70, 90) for seed in range(3)]
    with torch.no_grad():
        outputs = [
            model(processor(Image.open(io.BytesIO(image)), return_tensors="pt")["pixel_values"]) for image in images
        ]
    answers = [
        processor.post_process_semantic_segmentation(output, target_sizes=[(70, 90)])[0].numpy() for output in outputs
    ]

    def masks(shift):
        return [encoded(((answer + shift) % 150 + 1).astype(np.uint8)) for answer in answers]

    def ours(data):
        status, rows = run(table, "--data", data, "--checkpoints", tmp_path / "outputs", "--models", row)
        assert status == 0 and "3 images, not 2,000" in rows[0]["note"] and rows[0]["metric"] == "mean_iou"
        return rows[0]["ours"]

    root = write_ade20k(tmp_path / "ADEChallengeData2016", images, masks(0))
    assert (right := ours(root)) > 90  # the evaluation enlarges logits in another order of steps
    assert ours(write_ade20k_parquet(tmp_path / "parquet", images, masks(0))) == right
    assert ours(write_ade20k(tmp_path / "order", images, masks(1))) < 50
    for change in ({"image_mean": [0, 0, 0]}, {"size": {"shortest_edge": 96}}):
        fields = {"size": size, "do_reduce_labels": True, **change}
        PvtSemanticImageProcessorPil(**fields).save_pretrained(checkpoint)
        assert ours(root) < right, change
    shutil.rmtree(checkpoint)
    assert run(table, "--data", root, "--checkpoints", tmp_path / "outputs", "--models", row)[0] == 2


def test_table_9_needs_two_data_sets(run, imagenet, tmp_path):
    weights, images, labels, error = imagenet
    outputs = tmp_path / "outputs"
    tiny_head("retinanet", id2label=dict(enumerate(("person", "car", "toothbrush")))).save_pretrained(
        outputs / "retinanet-pvt-medium"
    )
    coco_processor("retinanet").save_pretrained(outputs / "retinanet-pvt-medium")
    torch.save(weights, outputs / "pvt_medium.pth")
    write_coco(tmp_path / "coco" / "annotations" / "instances_val2017.json", tmp_path / "coco" / "val2017", SIZES)

    def ours(ids):
        folder = write_classes(tmp_path / ids[0], images, labels, ids)
        words = ("--data", folder, tmp_path / "coco", "--checkpoints", outputs, "--models", "Deeper PVT-Small")
        status, rows = run(9, *words)
        assert status == 0 and [row["metric"] for row in rows] == ["top1_error", "ap", "ap50", "ap75"]
        assert rows[1]["ours"] is not None
        return rows[0]["ours"]

    assert ours(WORDNET_IDS) == pytest.approx(error, abs=0.05)
    assert ours(WORDNET_IDS[::-1]) > error + 10


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (2, ["ImageNet-1K", "about 7 GB", "hf download ILSVRC/imagenet-1k", "there is no folder ./nowhere"]),
        (6, ["COCO 2017", "about 1 GB", "instances_val2017.json", "val2017.zip"]),
        (7, ["ADE20K", "ADEChallengeData2016.zip"]),
        (9, ["ImageNet-1K", "COCO 2017", "--data gives no folder for it"]),
    ],
)
def test_without_the_data(run, table, words, capsys):
    status, rows = run(table, "--data", "./nowhere")
    text = capsys.readouterr().out
    assert status == 2 and not rows and all(word in text for word in words)


def test_figure_5(monkeypatch, tmp_path, capsys):
    def call(*runs):
        monkeypatch.setattr(sys, "argv", ["x", "figure5", *runs, "--output_dir", str(tmp_path / "out")])
        return reproduce.main()

    assert call() == 2 and "coco_retinanet_pvt_small_1x --backbone ''" in capsys.readouterr().out
    (tmp_path / "a").mkdir()
    assert call("--runs", f"scratch-1x={tmp_path / 'a'}") == 2
    for damaged in ("{", "[]", '{"history": [{"ap": 0.2}]}'):
        (tmp_path / "a" / "run.json").write_text(damaged)
        with pytest.raises(SystemExit, match=r"run\.json is not the report of a training"):
            call("--runs", f"scratch-1x={tmp_path / 'a'}")
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
