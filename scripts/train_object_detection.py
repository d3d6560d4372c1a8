"""
Trains or fine-tunes a detector (boxes, or boxes and masks), in one process or several.

    python scripts/train_object_detection.py RECIPE.yaml --output_dir out
    python scripts/train_object_detection.py RECIPE.yaml --dataset path/to/coco --output_dir out
    accelerate launch scripts/train_object_detection.py RECIPE.yaml --output_dir out                     # on GPUs
    torchrun --nproc_per_node 2 scripts/train_object_detection.py RECIPE.yaml --cpu --output_dir out     # on CPUs

RECIPE.yaml is a file such as those in scripts/recipes. --dataset is a folder in COCO's layout (described at
`open_detection_stream` in pvt_hf/tasks/detection/streams.py), a folder of parquet files or webdataset tars, or the id
of a data set on the Hub. Ctrl-C saves a checkpoint and stops; --resume_from_checkpoint latest continues.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("object-detection")
    try:
        train(task, parse_arguments(task.training_settings, description=__doc__))
    except (OSError, ValueError, StreamError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
