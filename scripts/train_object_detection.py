"""
Trains or fine-tunes a detector (boxes, or boxes and masks) on a stream of images with objects, on one process or many.

    python scripts/train_object_detection.py RECIPE.yaml --output_dir out
    python scripts/train_object_detection.py RECIPE.yaml --dataset path/to/coco --output_dir out
    accelerate launch scripts/train_object_detection.py RECIPE.yaml --output_dir out        # GPUs
    torchrun --nproc_per_node 2 scripts/train_object_detection.py RECIPE.yaml --cpu --output_dir out

`--help` lists every argument; `open_detection_stream` in `pvt_hf/tasks/detection/streams.py` says how a folder is laid
out.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("object-detection")
    try:
        train(task, parse_arguments(task.training_settings))
    except (OSError, ValueError, StreamError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
