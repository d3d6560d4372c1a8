"""
`make demo`: trains small PVTs on handwritten digits, and uses them from a new process.

    python scripts/demo.py [--output_dir outputs/demo]

1. Trains the classifier of `recipes/digits_pvt.yaml`, then a detector (PVT and RetinaNet, `demo_detection.py`) and a
   segmentation model (PVT and Semantic FPN, `demo_segmentation.py`) on scenes of digits; minutes on two CPU cores.
2. Starts a new process that has nothing but the saved folders. It opens the models through the Auto classes and
   `pipeline`, predicts images that were not trained on, and draws `predictions.png`, `attention.png`, `detection.png`
   and `segmentation.png`.
3. Writes the measured accuracies to `report.json`. Exits with an error if the classifier's is not above 98 %.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import accelerate
import datasets
import demo_detection
import demo_segmentation
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import pvt_hf
from pvt_hf.data.samples import decode_rgb
from pvt_hf.engine import run
from pvt_hf.engine.curves import plot_curves
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.inference.pictures import cls_attention, plot_attention, plot_predictions
from pvt_hf.tasks import get_task
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.tasks.classification.streams import open_classification_stream


ROWS, COLUMNS = 4, 5
RECIPE = Path(__file__).parent / "recipes" / "digits_pvt.yaml"


def train(output_dir: Path) -> dict:
    """Trains the classifier, saves it in `output_dir/model`, and returns the content of its `run.json`."""
    model_dir = output_dir / "model"
    shutil.rmtree(model_dir, ignore_errors=True)
    settings = parse_arguments(ClassificationSettings, [str(RECIPE), "--output_dir", str(model_dir)])
    report = run.train(get_task("image-classification"), settings)
    if report["interrupted"]:
        raise SystemExit(f"Interrupted by {report['interrupted']}.")
    plot_curves(report["history"], output_dir / "curves.png", "PVT on handwritten digits")
    return report


def page_of(digits: list[Image.Image]) -> Image.Image:
    """Puts ROWS x COLUMNS digits of 32x32 pixels each on one page."""
    page = Image.new("RGB", (32 * COLUMNS, 32 * ROWS))
    for index, digit in enumerate(digits):
        page.paste(digit.resize((32, 32), Image.Resampling.BICUBIC), (32 * (index % COLUMNS), 32 * (index // COLUMNS)))
    return page


def answer(output_dir: Path) -> None:
    """The new process: opens the saved models, predicts, draws the pictures and writes `answer.json`."""
    model_dir = output_dir / "model"
    model = AutoModelForImageClassification.from_pretrained(model_dir).eval()
    processor = AutoImageProcessor.from_pretrained(model_dir)
    classifier = pipeline("image-classification", model=model, image_processor=processor, device="cpu", top_k=1)
    stream = open_classification_stream("digits", "test", image_size=64)
    examples = list(stream.dataset)
    images = [decode_rgb(example["image"]) for example in examples]
    truth = [stream.class_names[example["label"]] for example in examples]

    predictions = [result[0] for result in classifier(images, batch_size=32)]
    labels = [prediction["label"] for prediction in predictions]
    scores = [prediction["score"] for prediction in predictions]
    wrong = [index for index in range(len(images)) if labels[index] != truth[index]]
    # The mistakes come first; there are few.
    shown = (wrong + [index for index in range(len(images)) if index not in wrong])[:32]
    plot_predictions(
        [images[i] for i in shown],
        [labels[i] for i in shown],
        [scores[i] for i in shown],
        [truth[i] for i in shown],
        output_dir / "predictions.png",
    )

    # The model was trained on single digits of 32x32 pixels, which are one cell of the last stage's grid. On a page of
    # such digits that it has not seen, its position tables and the grid grow with the image.
    pages = [page_of(images[start : start + ROWS * COLUMNS]) for start in range(0, 4 * ROWS * COLUMNS, ROWS * COLUMNS)]
    inputs = processor(pages, do_resize=False, do_center_crop=False, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    grid = model.config.grid_sizes(*inputs["pixel_values"].shape[-2:])[-1]
    plot_attention(
        pages,
        [cls_attention(attention, grid) for attention in outputs.attentions[-1]],
        [f"read as {model.config.id2label[label]}" for label in outputs.logits.argmax(-1).tolist()],
        output_dir / "attention.png",
    )
    result = {
        "pipeline_accuracy": 1 - len(wrong) / len(images),
        "pipeline_samples": len(images),
        "mistakes": len(wrong),
        "segmentation": demo_segmentation.answer(output_dir),
        "detection": demo_detection.answer(output_dir),
    }
    (output_dir / "answer.json").write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("outputs/demo"),
        help="Folder for models, pictures and report.json (default: %(default)s). Earlier models in it are replaced.",
    )
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output_dir = arguments.output_dir
    if arguments.answer:
        return answer(output_dir)

    output_dir.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    trained = train(output_dir)
    detector = demo_detection.train(output_dir)
    segmenter = demo_segmentation.train(output_dir, backbone=output_dir / "detector")
    print("Reloading in a new process ...", flush=True)
    subprocess.run([sys.executable, __file__, "--output_dir", str(output_dir), "--answer"], check=True)
    answers = output_dir / "answer.json"
    answered = json.loads(answers.read_text())
    modules = (pvt_hf, torch, transformers, datasets, accelerate)
    report = {
        "command": "make demo",
        "settings": trained["settings"],
        "seed": trained["settings"]["seed"],
        "trained_steps": trained["steps"],
        "skipped_samples": trained["skipped"],
        "accuracy_after_training": trained["metrics"]["accuracy@1"],
        **answered,
        "training_seconds": round(trained["seconds"], 1),
        "segmentation": {
            "trained_steps": segmenter["steps"],
            "mean_iou_after_training": segmenter["metrics"]["mean_iou"],
            **answered["segmentation"],
            "training_seconds": round(segmenter["seconds"], 1),
        },
        "detection": {
            "trained_steps": detector["steps"],
            "ap50_after_training": detector["metrics"]["ap50"],
            **answered["detection"],
            "training_seconds": round(detector["seconds"], 1),
        },
        "total_seconds": round(time.perf_counter() - started, 1),
        "versions": {"python": platform.python_version()} | {module.__name__: module.__version__ for module in modules},
    }
    answers.unlink()
    (output_dir / "report.json").write_text(json.dumps(report, indent=2))
    print(
        f"\nAccuracy of the reloaded classifier's pipeline on {report['pipeline_samples']} held-out digits: "
        f"{report['pipeline_accuracy']:.2%}. The demo took {report['total_seconds']:.0f} seconds."
    )
    print(
        f"On held-out scenes of digits: mean IoU {report['segmentation']['pipeline_mean_iou']:.3f}, AP50 of boxes "
        f"{report['detection']['pipeline_ap50']:.3f}. Files:"
    )
    for name in ("model", "curves.png", "predictions.png", "attention.png", "segmenter", "segmentation_curves.png",
                 "segmentation.png", "detector", "detection_curves.png", "detection.png", "report.json"):  # fmt: skip
        print(f"  {output_dir / name}")
    if report["pipeline_accuracy"] <= 0.98:
        raise SystemExit("error: the accuracy is not above 98 %: something is wrong.")


if __name__ == "__main__":
    main()
