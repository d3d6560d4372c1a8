"""
The detection part of `make demo`: trains PVT with RetinaNet to detect digits in scenes, then opens the saved model in a
new process and predicts through `pipeline("object-detection")`.
"""

import shutil
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from transformers import pipeline

import pvt_hf  # noqa: F401  (registers the model)
from pvt_hf.data.samples import decode_rgb
from pvt_hf.engine import run
from pvt_hf.engine.curves import plot_curves
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.inference.pictures import overlay_objects
from pvt_hf.metrics.coco_ap import CocoAP
from pvt_hf.tasks import get_task
from pvt_hf.tasks.detection.settings import DetectionSettings
from pvt_hf.tasks.detection.streams import open_detection_stream


RECIPE = Path(__file__).parent / "recipes" / "digits_retinanet.yaml"
# Fewer epochs than in the recipe, and smaller images, so that it takes minutes
SHORTER = ["--epochs", "2", "--eval_every_epochs", "2", "--shortest_edges", "80", "96", "--eval_shortest_edge", "96"]
SHOWN = 8
SCALE = 4  # of the pictures, relative to the scenes


def train(output_dir: Path) -> dict:
    """Trains the detector, saves it in `output_dir/detector`, and returns the content of its `run.json`."""
    model_dir = output_dir / "detector"
    shutil.rmtree(model_dir, ignore_errors=True)
    settings = parse_arguments(DetectionSettings, [str(RECIPE), *SHORTER, "--output_dir", str(model_dir)])
    report = run.train(get_task("object-detection"), settings)
    if report["interrupted"]:
        raise SystemExit(f"Interrupted by {report['interrupted']}.")
    plot_curves(report["history"], output_dir / "detection_curves.png", "RetinaNet on digit scenes")
    return report


def answer(output_dir: Path) -> dict:
    """Runs in the new process: draws `detection.png`, and returns the AP of the pipeline's boxes."""
    detector = pipeline("object-detection", model=str(output_dir / "detector"), device="cpu")
    settings = parse_arguments(DetectionSettings, [str(RECIPE), "--output_dir", str(output_dir)])
    stream = open_detection_stream(
        "digit-scenes", "test", image_size=settings.scene_size, digit_sizes=settings.digit_sizes
    )
    label2id = detector.model.config.label2id
    metric, pictures = CocoAP(num_labels=len(label2id)), []
    for example in islice(stream.dataset, 200):
        image, objects = decode_rgb(example[stream.image_column]), example[stream.columns["objects"]]
        found = detector(image, threshold=0.05)
        boxes = torch.tensor([list(one["box"].values()) for one in found], dtype=torch.float32).reshape(-1, 4)
        labels, scores = [label2id[one["label"]] for one in found], [one["score"] for one in found]
        metric.add(
            prediction={"scores": scores, "labels": labels, "boxes_xyxy": boxes},
            reference={
                "image_id": example["image_id"],
                "labels": objects["category"],
                "boxes_xywh": objects["bbox"],
                "area": objects["area"],
            },
        )
        if len(pictures) < SHOWN:
            sure = [index for index, score in enumerate(scores) if score >= 0.5]
            large = image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC)
            pictures.append(
                overlay_objects(
                    large,
                    boxes[sure] * SCALE,
                    [labels[index] for index in sure],
                    [scores[index] for index in sure],
                    detector.model.config.id2label,
                )
            )
    columns = SHOWN // 2
    width, height = pictures[0].size
    page = Image.new("RGB", (columns * width, 2 * height))
    for index, picture in enumerate(pictures):
        page.paste(picture, (index % columns * width, index // columns * height))
    page.save(output_dir / "detection.png")
    figures = metric.compute()
    # The pipeline truncates coordinates to whole pixels. In scenes of 64 pixels that lowers the IoU a little.
    return {"pipeline_ap": figures["ap"], "pipeline_ap50": figures["ap50"]}
