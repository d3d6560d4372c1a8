"""
The training, evaluation, prediction and Trainer scripts for detectors, on digit scenes and on a small COCO folder: what
they leave behind agrees with pycocotools and with the models called by hand.

    python -m pytest tests/tasks/test_detection_training.py
"""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    RTDetrImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
)

from pvt_hf.data.digits import digit_scenes
from pvt_hf.data.samples import ProcessorTransform
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.optimizer import make_schedule, parameter_groups
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.families import load
from pvt_hf.tasks.detection.settings import ARCHITECTURES, DetectionEvaluationSettings, DetectionSettings
from pvt_hf.tasks.detection.task import DetectionTask, check_takes_pixel_mask

from ..support.heads import BACKBONES, random_objects, tiny_head
from ..support.warm_processes import run as run_program


REPOSITORY = Path(__file__).parents[2]
BACKBONE = {
    "image_size": 64, "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4], "depths": [1, 1, 1, 1],
    "mlp_ratios": [2, 2, 2, 2],
}  # fmt: skip
HEADS = {
    "retinanet": {"fpn_channels": 16, "num_head_convs": 1, "prior_probability": 0.2},  # scores high enough to count
    "mask_rcnn": {"fpn_channels": 16, "box_head_size": 32, "num_mask_convs": 1, "num_proposals": 30,
                  "num_train_candidates": 60, "num_candidates": 60, "box_num_samples": 16, "finest_scale": 20},
    "detr": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 10},
}  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """A COCO folder of digit scenes with category ids that have gaps, polygons nowhere, RLE everywhere, and a crowd."""
    from pycocotools import mask as mask_api

    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for split, start, count in (("train2017", 0, 12), ("val2017", 12, 6)):
        (root / split).mkdir()
        images, annotations = [], []
        for index, scene in enumerate(digit_scenes("train", 64, 80, length=start + count).skip(start)):
            number = 100 + 7 * index
            scene["image"].convert("RGB").save(root / split / f"{number:012d}.png")
            images.append({"id": number, "file_name": f"{number:012d}.png", "height": 64, "width": 80})
            objects = scene["objects"]
            for place, mask in enumerate(scene["masks"]):
                rle = mask_api.encode(np.asfortranarray(np.asarray(mask) > 0, dtype=np.uint8))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 3 + 2 * objects["category"][place],
                        "bbox": objects["bbox"][place],
                        "area": objects["area"][place],
                        "iscrowd": int(index == 0 and place == 0),
                        "segmentation": {"size": [64, 80], "counts": rle["counts"].decode()},
                    }
                )
        categories = [{"id": 3 + 2 * digit, "name": str(digit)} for digit in range(10)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


TASK = DetectionTask()


def settings(architecture: str, output: Path, **more) -> DetectionSettings:
    arguments = {
        "output_dir": str(output), "dataset": "digit-scenes", "eval_split": "test", "scene_size": 64,
        "shortest_edges": [64], "eval_shortest_edge": 64, "longest_edge": 96, "horizontal_flip": 0.0,
        "architecture": architecture, "backbone_overrides": json.dumps(BACKBONE),
        "config_overrides": json.dumps(HEADS[architecture]), "drop_path_rate": 0.0, "batch_size": 4, "max_steps": 6,
        "samples_per_epoch": 24, "warmup_epochs": 0, "learning_rate": 1e-3, "shuffle_window": 16, "num_workers": 0,
        "cpu": True, **more,
    }  # fmt: skip
    return DetectionSettings(**arguments)


ON_COCO = {"eval_split": "validation", "samples_per_epoch": 0, "max_steps": 0, "epochs": 2}  # 6 steps


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request, coco, tmp_path_factory):
    """The folder and the report of a few steps on the COCO folder."""
    output = tmp_path_factory.mktemp(request.param) / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        report = train(TASK, settings(request.param, output, **ON_COCO, dataset=str(coco)))
    (output.parent / "printed.txt").write_text(printed.getvalue())
    return request.param, output, report


def test_training_leaves_a_model_and_figures(trained):
    architecture, output, report = trained
    assert report["steps"] == 6 and report["skipped"] == 0 and report["metrics"]["eval_samples"] == 6
    model, info = AutoModelForObjectDetection.from_pretrained(output, output_loading_info=True)
    assert not any(map(len, info.values())) and model.config.id2label == {n: str(n) for n in range(10)}
    assert type(model.config) is load(ARCHITECTURES[architecture].config)
    processor = AutoImageProcessor.from_pretrained(output)
    assert type(processor).__name__.startswith(load(ARCHITECTURES[architecture].processor).__name__)
    assert ("mask_ap50" in report["metrics"]) == (architecture == "mask_rcnn")
    # No object of 64x80 pixels is large.
    assert report["metrics"]["ap_large"] is None
    assert (output.parent / "printed.txt").read_text().count(", ap_large undefined, ") == 2
    written = json.loads((output / "run.json").read_text())
    assert written["metrics"]["ap"] == report["metrics"]["ap"] and len(written["metrics"]["per_category_ap"]) == 10


def test_evaluation_agrees_with_pycocotools_on_the_files(trained, coco, tmp_path):
    """The results file, read by pycocotools with the annotation file, gives the figures of the report."""
    architecture, output, trained_report = trained
    report = evaluate_checkpoint(
        TASK,
        DetectionEvaluationSettings(
            model=str(output),
            dataset=str(coco),
            num_workers=0,
            cpu=True,
            output=str(tmp_path / "ap.json"),
            results=str(tmp_path / "detections.json"),
        ),  # fmt: skip
    )
    figures = report["results"]
    assert json.loads((tmp_path / "ap.json").read_text())["results"] == figures
    detections = json.loads((tmp_path / "detections.json").read_text())
    assert detections and {entry["image_id"] for entry in detections} <= {100 + 7 * index for index in range(6)}
    assert {entry["category_id"] for entry in detections} <= {3 + 2 * digit for digit in range(10)}
    kinds = {"bbox": "", "segm": "mask_"} if architecture == "mask_rcnn" else {"bbox": ""}
    for kind, prefix in kinds.items():
        truth = COCO(coco / "annotations" / "instances_val2017.json")
        entries = [{k: v for k, v in entry.items() if kind == "bbox" or k != "bbox"} for entry in detections]
        evaluation = COCOeval(truth, truth.loadRes(entries), kind)
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
        for place, name in enumerate(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1")):
            expected, actual = evaluation.stats[place], figures[prefix + name]
            assert actual is None if expected < 0 else actual == pytest.approx(expected, abs=1e-9), (kind, name)
    for name in ("ap", "ap50"):
        assert figures[name] == pytest.approx(trained_report["metrics"][name], abs=1e-9)


def test_prediction_script(trained, coco, tmp_path):
    architecture, output, _ = trained
    files = sorted((coco / "val2017").iterdir())[:2]
    command = ["scripts/predict.py", *map(str, files), "--model", str(output)]  # the task is the model's own
    process = run_program([*command, "--threshold", "0.02", "--output_dir", str(tmp_path)])
    for file in files:
        objects = json.loads((tmp_path / f"{file.stem}.objects.json").read_text())
        picture = Image.open(tmp_path / f"{file.stem}.objects.png")
        assert picture.size == (80, 64) and picture.mode == "RGB"
        drawn = np.asarray(picture) != np.asarray(Image.open(file).convert("RGB"))
        assert bool(objects) == bool(drawn.any())
        for one in objects:
            x0, y0, x1, y1 = one["box"]
            assert 0 <= x0 <= x1 <= 80 and 0 <= y0 <= y1 <= 64 and one["score"] > 0.02
            assert ("segmentation" in one) == (architecture == "mask_rcnn")
    assert f"{files[0]}: " in process.stdout


def test_detectors_of_transformers(coco, tmp_path):
    """
    DETR's processor can make masks of another model's outputs: of this one's nobody asks for any. All queries count.
    """
    config = DetrConfig(
        backbone_config=BACKBONES["resnet"](["stage4"]), id2label={n: str(n) for n in range(10)}, **HEADS["detr"]
    )
    torch.manual_seed(0)
    DetrForObjectDetection(config).save_pretrained(tmp_path / "detr")
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(tmp_path / "detr")
    assert hasattr(processor, "post_process_instance_segmentation")
    more = {"model": str(tmp_path / "detr"), "dataset": str(coco), "eval_split": "validation", "samples_per_epoch": 0}
    report = train(TASK, settings("detr", tmp_path / "out", **more, max_steps=2))
    assert report["steps"] == 2 and report["metrics"]["eval_samples"] == 6 and "mask_ap" not in report["metrics"]
    evaluated = evaluate_checkpoint(
        TASK,
        DetectionEvaluationSettings(
            model=str(tmp_path / "out"),
            dataset=str(coco),
            num_workers=0,
            cpu=True,
            results=str(tmp_path / "detections.json"),
        ),
    )
    assert evaluated["results"]["ap"] == pytest.approx(report["metrics"]["ap"], abs=1e-9)
    assert len(json.loads((tmp_path / "detections.json").read_text())) == 6 * config.num_queries


def test_detectors_without_pixel_mask():
    """A processor may give none, because it resizes to one size; a model has to take one."""
    image = Image.fromarray(np.zeros((50, 75, 3), dtype=np.uint8))
    process = ProcessorTransform(RTDetrImageProcessor(size={"height": 64, "width": 96}))
    assert process(image).shape == (3, 64, 96)
    with torch.device("meta"):
        yolos = YolosForObjectDetection(YolosConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match="YolosForObjectDetection has no pixel_mask argument"):
        check_takes_pixel_mask(yolos)


def test_several_sizes_groups_and_a_held_out_share(coco, tmp_path):
    report = train(
        TASK,
        settings(
            "retinanet",
            tmp_path / "out",
            dataset=str(coco),
            eval_share=0.3,
            shortest_edges=[64, 96],
            shortest_edge_range=True,
            longest_edge=128,
            max_steps=3,
            samples_per_epoch=8,
            batch_size=2,
        ),  # fmt: skip
    )
    assert report["steps"] == 3 and 0 < report["metrics"]["eval_samples"] < 12


def test_resuming_goes_on_with_the_same_bits(trained, coco, tmp_path):
    architecture, whole, report = trained
    saving = {**ON_COCO, "dataset": str(coco), "save_every_steps": 2, "save_total_limit": 0}
    train(TASK, settings(architecture, tmp_path / "parts", **saving))
    for checkpoint in (tmp_path / "parts").glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-00000004":
            shutil.rmtree(checkpoint)
    resumed = train(TASK, settings(architecture, tmp_path / "parts", **saving, resume_from_checkpoint="latest"))
    assert resumed["steps"] == report["steps"] == 6
    one, other = (AutoModelForObjectDetection.from_pretrained(folder) for folder in (whole, tmp_path / "parts"))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_two_processes_evaluate_every_image_once(coco, tmp_path):
    arguments = ["scripts/train_object_detection.py", "--dataset", coco, "--output_dir", tmp_path / "out", "--cpu"]
    arguments += ["--architecture", "mask_rcnn", "--backbone_overrides", json.dumps(BACKBONE), "--batch_size", 2]
    arguments += ["--config_overrides", json.dumps(HEADS["mask_rcnn"]), "--shortest_edges", 64, "--max_steps", 2]
    arguments += ["--eval_shortest_edge", 64, "--longest_edge", 96, "--num_workers", 0, "--shuffle_window", 8]
    run_program(list(map(str, arguments)), processes=2)
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["world_size"] == 2 and report["metrics"]["eval_samples"] == 6
    curves = json.loads((tmp_path / "out" / "precision_recall.json").read_text())
    assert np.mean(curves["boxes"]["mean"]["0.50"]) == pytest.approx(report["metrics"]["ap50"], abs=1e-9)
    assert np.mean(curves["masks"]["mean"]["0.50"]) == pytest.approx(report["metrics"]["mask_ap50"], abs=1e-9)
    worst = json.loads((tmp_path / "out" / "worst_images.json").read_text())
    assert len({each["sample"] for each in worst}) == len(worst) <= 6  # of both processes
    page = (tmp_path / "out" / "predictions.html").read_text()
    assert page.count("<figure>") == 6 + len(worst)


# Settings


def test_the_schedule_of_detection():
    """Rates by step: a warm-up over 500, a tenth from epochs 8 and 11 on, of 12 epochs of 7,000."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = make_schedule(optimizer, "step", 84_000, 500, 1e-7, 0.0, decay_steps=[56_000, 77_000])
    for step, rate in ((0, 1e-7), (250, 5.005e-5), (500, 1e-4), (55_999, 1e-4), (56_000, 1e-5), (76_999, 1e-5),
                       (77_000, 1e-6), (83_999, 1e-6)):  # fmt: skip
        schedule.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-6), step


def test_the_backbone_of_detr_has_a_rate_of_its_own():
    model = tiny_head("detr")
    groups = parameter_groups(model, 1e-4, decay_all=True, backbone_learning_rate=1e-5)
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {group["weight_decay"] for group in optimizer.param_groups if group["params"]}
    assert len(rates) == len(list(model.parameters())) and decays == {1e-4}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (1e-5 if name.startswith("model.backbone.") else 1e-4), name


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"shortest_edges": [16]}, ["shortest_edges", "16"]),
        ({"shortest_edges": [64], "shortest_edge_range": True}, ["shortest_edge_range", "two"]),
        ({"longest_edge": 40}, ["longest_edge", "40"]),
        ({"horizontal_flip": 2.0}, ["horizontal_flip", "2.0"]),
        ({"schedule": "step"}, ["decay_epochs", "step"]),
        ({"decay_epochs": [3.0]}, ["decay_epochs", "cosine"]),
        ({"config_overrides": '{"anchor_size": 3}'}, ["anchor_size", "RetinaNetConfig"]),
        ({"model": "a", "backbone": "b"}, ["--backbone", "--model"]),
    ],
)
def test_settings_that_cannot_be(more, words, tmp_path):
    with pytest.raises(ValueError) as error:
        settings("retinanet", tmp_path, **more)
    for word in words:
        assert word in str(error.value)


def test_a_head_may_read_other_stages(tmp_path):
    for more, stages in (([], ["stage4"]), (["--out_features", "stage3"], ["stage3"])):
        given = ["--dataset", "digit-scenes", "--architecture", "detr", "--output_dir", str(tmp_path), *more]
        with torch.device("meta"):
            model = TASK.build_model(parse_arguments(DetectionSettings, given), ("a", "b"))
        assert model.config.backbone_config.out_features == stages
        channels = {"stage3": 320, "stage4": 512}[stages[0]]
        assert model.model.input_projection.in_channels == channels


def test_labels_of_the_tests_are_of_the_size_that_they_say():
    """Guards the helper that other tests rely on: boxes are those of the masks, to a pixel."""
    for label in random_objects(2, 48, 80):
        for box, mask in zip(label["boxes"] * torch.tensor([80, 48, 80, 48]), label["masks"]):
            rows, columns = torch.where(mask)
            extent = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            corners = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
            assert (extent - corners).abs().max() <= 1
