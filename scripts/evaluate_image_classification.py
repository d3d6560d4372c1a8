"""
Evaluates any image classifier that AutoModel opens on any stream: top-1, top-5, loss, images per second.

    python scripts/evaluate_image_classification.py --model DIR --dataset path/to/folder --split validation
    python scripts/evaluate_image_classification.py --model DIR --dataset imagenet-1k --image_sizes 224 256 384 \\
        --mixed_precision bf16 --output results.json
    accelerate launch scripts/evaluate_image_classification.py --model DIR --dataset ...              # several GPUs
    torchrun --nproc_per_node 2 scripts/evaluate_image_classification.py --model DIR --dataset ... --cpu

Without --image_sizes the checkpoint's processor prepares the images as it is; with it, the official protocol at each
size: shorter side to size / 0.875 (--crop_ratio), centre crop. Several processes share the samples, each once.
Images per second are those of all processes together, loading and forward passes, from the end of the first batch to
that of the last. Unusable images are skipped, named and counted. `--help` lists every argument.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("image-classification")
    try:
        evaluate_checkpoint(task, parse_arguments(task.evaluation_settings))
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
