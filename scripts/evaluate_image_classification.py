"""
Evaluates an image classifier, of any architecture that AutoModelForImageClassification opens: top-1 and top-5 accuracy,
loss, images per second.

    python scripts/evaluate_image_classification.py --model DIR --dataset path/to/folder --split validation
    python scripts/evaluate_image_classification.py --model DIR --dataset imagenet-1k --image_sizes 224 256 384 \\
        --mixed_precision bf16 --output results.json
    accelerate launch scripts/evaluate_image_classification.py --model DIR --dataset ...              # several GPUs
    torchrun --nproc_per_node 2 scripts/evaluate_image_classification.py --model DIR --dataset ... --cpu

Without --image_sizes, the model's image processor prepares the images. With it, the official protocol is followed at
each size: the shorter side is resized to size / 0.875 (--crop_ratio), and the centre is cropped. Several processes
share the images; each image counts once. Images per second are measured over all processes, including loading, without
the first batch. Unusable images are skipped, named and counted.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("image-classification")
    try:
        evaluate_checkpoint(task, parse_arguments(task.evaluation_settings, description=__doc__))
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
