"""
Trains or fine-tunes an image classifier on a stream, on one process or many.

    python scripts/train_image_classification.py --dataset path/to/folder --model path/or/hub-id --output_dir out
    python scripts/train_image_classification.py RECIPE.yaml --output_dir out
    accelerate launch scripts/train_image_classification.py RECIPE.yaml --output_dir out        # GPUs
    torchrun --nproc_per_node 2 scripts/train_image_classification.py RECIPE.yaml --cpu --output_dir out

`--help` lists every argument.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("image-classification")
    try:
        train(task, parse_arguments(task.training_settings))
    except (OSError, ValueError, StreamError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
