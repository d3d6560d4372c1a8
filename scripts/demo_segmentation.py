"""
The segmentation part of `make demo`: trains PVT with Semantic FPN to segment digits in scenes, then opens the saved
model in a new process and predicts through `pipeline("image-segmentation")`.
"""

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import pipeline

import pvt_hf  # noqa: F401  (registers the model)
from pvt_hf.data.samples import decode_rgb
from pvt_hf.engine import run
from pvt_hf.engine.curves import plot_curves
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.inference.pictures import class_colors
from pvt_hf.metrics.mean_iou import MeanIoU
from pvt_hf.tasks import get_task
from pvt_hf.tasks.segmentation.samples import decode_labels
from pvt_hf.tasks.segmentation.settings import SegmentationSettings
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream


RECIPE = Path(__file__).parent / "recipes" / "digits_semantic_fpn.yaml"
# Fewer samples than in the recipe, so that it takes minutes. The trained backbone has a lower learning rate: with that
# of the head it would get worse at first, and not recover in so few steps.
SHORTER = "--epochs 2 --eval_every_epochs 2 --samples_per_epoch 3600 --backbone_learning_rate 1.5e-4".split()
SHOWN = 6


def train(output_dir: Path, backbone: Path) -> dict:
    """
    Trains the model, saves it in `output_dir/segmenter`, and returns the content of its `run.json`. The backbone starts
    with the weights of the model in `backbone`.
    """
    model_dir = output_dir / "segmenter"
    shutil.rmtree(model_dir, ignore_errors=True)
    given = [str(RECIPE), *SHORTER, "--backbone", str(backbone), "--output_dir", str(model_dir)]
    report = run.train(get_task("semantic-segmentation"), parse_arguments(SegmentationSettings, given))
    if report["interrupted"]:
        raise SystemExit(f"Interrupted by {report['interrupted']}.")
    plot_curves(report["history"], output_dir / "segmentation_curves.png", "Semantic FPN on digit scenes")
    return report


def answer(output_dir: Path) -> dict:
    """Runs in the new process: draws `segmentation.png`, and returns the mean IoU of the pipeline's masks."""
    segmenter = pipeline("image-segmentation", model=str(output_dir / "segmenter"), device="cpu")
    labels = segmenter.model.config.label2id
    settings = parse_arguments(SegmentationSettings, [str(RECIPE), "--output_dir", str(output_dir)])
    stream = open_segmentation_stream(
        "digit-scenes", "test", image_size=settings.scene_size, digit_sizes=settings.digit_sizes
    )
    metric = MeanIoU(num_labels=len(labels))
    images, truth, predicted = [], [], []
    for example in islice(stream.dataset, 200):
        image = decode_rgb(example[stream.image_column])
        mask = decode_labels(example[stream.columns["mask"]], len(labels), reduce_labels=False)
        prediction = np.zeros(mask.shape, dtype=np.int64)
        for segment in segmenter(image):
            prediction[np.asarray(segment["mask"]) > 0] = labels[segment["label"]]
        metric.add_batch(predictions=[prediction], references=[mask])
        if len(images) < SHOWN:
            images.append(image), truth.append(mask), predicted.append(prediction)
    plot(images, truth, predicted, segmenter.model.config.id2label, output_dir / "segmentation.png")
    return {"pipeline_mean_iou": metric.compute()["mean_iou"]}


def plot(images: list, truth: list, predicted: list, id2label: dict[int, str], path: Path) -> None:
    """Draws scenes in the first row, their masks in the second, the predicted masks in the third; with a legend."""
    import matplotlib.figure
    import matplotlib.patches

    colors = class_colors(len(id2label))
    figure = matplotlib.figure.Figure(figsize=(1.6 * len(images), 5.6), layout="constrained")
    axes = figure.subplots(3, len(images))
    for column, scene in enumerate(zip(images, truth, predicted)):
        for row, (title, pixels) in enumerate(zip(("scene", "truth", "prediction"), scene)):
            axes[row, column].imshow(pixels if row == 0 else colors[pixels])
            axes[row, column].set(xticks=[], yticks=[])
            if column == 0:
                axes[row, column].set_ylabel(title)
    patches = [matplotlib.patches.Patch(color=colors[label] / 255, label=name) for label, name in id2label.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
    figure.savefig(path, dpi=130)
