"""
Evaluates a model for semantic segmentation, of any architecture that AutoModelForSemanticSegmentation opens: mean IoU,
accuracies, the IoU of every class, images per second.

    python scripts/evaluate_semantic_segmentation.py --model DIR --dataset path/to/ade20k --split validation
    python scripts/evaluate_semantic_segmentation.py --model DIR --dataset ... --mode multi_scale --output out.json
    python scripts/evaluate_semantic_segmentation.py --model DIR --dataset ... --mode sliding --window 512 --stride 341
    accelerate launch scripts/evaluate_semantic_segmentation.py --model DIR --dataset ...                # several GPUs
    torchrun --nproc_per_node 2 scripts/evaluate_semantic_segmentation.py --model DIR --dataset ... --cpu

Predictions are compared with the masks at each image's own size. --mode single predicts the image at the size of the
model's image processor. multi_scale averages the probabilities over six scales (--ratios), each also mirrored (not with
--no_flip). sliding moves a window over the image at its own resolution, with bounded memory for images of any size.
Classes are matched by name if the data have names; pixels with 255 in the mask do not count. Several processes share
the images; each image counts once. Images per second are measured over all processes, including loading, without the
first batch. Unusable images and masks are skipped, named and counted.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("semantic-segmentation")
    try:
        evaluate_checkpoint(task, parse_arguments(task.evaluation_settings, description=__doc__))
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
