"""
Evaluates any semantic segmenter that AutoModel opens on any stream of images and masks: mean IoU, accuracies, the IoU
of every class, images per second.

    python scripts/evaluate_semantic_segmentation.py --model DIR --dataset path/to/ade20k --split validation
    python scripts/evaluate_semantic_segmentation.py --model DIR --dataset ... --mode multi_scale --output out.json
    python scripts/evaluate_semantic_segmentation.py --model DIR --dataset ... --mode sliding --window 512 --stride 341
    accelerate launch scripts/evaluate_semantic_segmentation.py --model DIR --dataset ...                # several GPUs
    torchrun --nproc_per_node 2 scripts/evaluate_semantic_segmentation.py --model DIR --dataset ... --cpu

Predictions are made and compared at each image's own size. --mode single takes the image as the checkpoint's processor
prepares it; multi_scale averages the probabilities at six scales (--ratios), each also mirrored (--no_flip does not);
sliding moves a window over the image at its own resolution, for images of any size in the same memory. Classes are
compared by name where the data have names; 255 in a mask does not count. Several processes share the samples, each
once. Images per second are those of all processes together, from the end of the first batch to that of the last.
Unusable images and masks are skipped, named and counted. `--help` lists every argument.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("semantic-segmentation")
    try:
        evaluate_checkpoint(task, parse_arguments(task.evaluation_settings))
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
