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

from pvt_hf.data.batches import StreamError
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks.classification.evaluate import EvaluationSettings, run


if __name__ == "__main__":
    try:
        run(parse_arguments(EvaluationSettings))
    except (OSError, ValueError, StreamError) as error:
        raise SystemExit(f"error: {error}") from None
