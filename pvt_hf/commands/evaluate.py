"""`pvt-hf evaluate TASK`: computes the metrics of a model of any task."""

from typing import Any

from ..engine.settings import parse_arguments, split_task
from ..tasks import evaluation_settings, get_task
from . import check_dataset


DESCRIPTIONS = {
    "image-classification": """
Evaluates an image classifier, of any architecture that AutoModelForImageClassification opens: top-1 and top-5 accuracy,
loss, images per second.

    pvt-hf evaluate image-classification --model DIR --dataset path/to/folder --split validation
    pvt-hf evaluate image-classification --model DIR --dataset imagenet-1k --image_sizes 224 256 384 \\
        --mixed_precision bf16 --output results.json
    accelerate launch -m pvt_hf evaluate image-classification --model DIR --dataset ...      # several GPUs
    torchrun --nproc_per_node 2 -m pvt_hf evaluate image-classification --model DIR --dataset ... --cpu

Without --image_sizes, the model's image processor prepares the images. With it, the official protocol is followed at
each size: the shorter side is resized to size / 0.875 (--crop_ratio), and the centre is cropped. Several processes
share the images; each image counts once. Images per second are measured over all processes, including loading, without
the first batch. Unusable images are skipped, named and counted.
""",
    "semantic-segmentation": """
Evaluates a model for semantic segmentation, of any architecture that AutoModelForSemanticSegmentation opens: mean IoU,
accuracies, the IoU of every class, images per second.

    pvt-hf evaluate semantic-segmentation --model DIR --dataset path/to/ade20k --split validation
    pvt-hf evaluate semantic-segmentation --model DIR --dataset ... --mode multi_scale --output out.json
    pvt-hf evaluate semantic-segmentation --model DIR --dataset ... --mode sliding --window 512 --stride 341
    accelerate launch -m pvt_hf evaluate semantic-segmentation --model DIR --dataset ...      # several GPUs
    torchrun --nproc_per_node 2 -m pvt_hf evaluate semantic-segmentation --model DIR --dataset ... --cpu

Predictions are compared with the masks at each image's own size. --mode single predicts the image at the size of the
model's image processor. multi_scale averages the probabilities over six scales (--ratios), each also mirrored (not with
--no_flip). sliding moves a window over the image at its own resolution, with bounded memory for images of any size.
Classes are matched by name if the data have names; pixels with 255 in the mask do not count. Several processes share
the images; each image counts once. Images per second are measured over all processes, including loading, without the
first batch. Unusable images and masks are skipped, named and counted.
""",
    "object-detection": """
Evaluates a detector, of any architecture that AutoModelForObjectDetection opens: COCO's twelve metrics for boxes, and
for masks if the model predicts them; the AP of every class; images per second.

    pvt-hf evaluate object-detection --model DIR --dataset path/to/coco --split validation
    pvt-hf evaluate object-detection --model DIR --dataset ... --output ap.json --results detections.json
    accelerate launch -m pvt_hf evaluate object-detection --model DIR --dataset ...      # several GPUs
    torchrun --nproc_per_node 2 -m pvt_hf evaluate object-detection --model DIR --dataset ... --cpu

Detections are compared with the annotations at each image's own size. Classes are matched by name if the data have
names. --results writes COCO's results file, with the category and image ids of the data. Several processes share the
images; each image counts once. Images per second are measured over all processes, including loading, without the first
batch. Unusable images are skipped, named and counted.
""",
}


def main(task: str = "") -> None:
    if not task:
        task = split_task("Computes the metrics of a model on a data set.", list(DESCRIPTIONS))
    settings: Any = parse_arguments(evaluation_settings(task), description=DESCRIPTIONS[task])
    check_dataset(settings.dataset)

    from ..data.streams import StreamError
    from ..engine.evaluation import evaluate_checkpoint
    from ..inference.held_out_page import write_page
    from .allocator import keep_freed_memory

    keep_freed_memory(on_cpu=settings.cpu)
    try:
        evaluate_checkpoint(get_task(task), settings, write_page)
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
