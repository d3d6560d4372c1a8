"""
Trains or fine-tunes a model for semantic segmentation, in one process or several.

    python scripts/train_semantic_segmentation.py RECIPE.yaml --output_dir out
    python scripts/train_semantic_segmentation.py RECIPE.yaml --dataset path/to/folder --class_names names.txt \\
        --reduce_labels false --output_dir out
    accelerate launch scripts/train_semantic_segmentation.py RECIPE.yaml --output_dir out                     # on GPUs
    torchrun --nproc_per_node 2 scripts/train_semantic_segmentation.py RECIPE.yaml --cpu --output_dir out     # on CPUs

RECIPE.yaml is a file such as those in scripts/recipes. --dataset is a folder of images and masks (its layouts are
described at `open_segmentation_stream` in pvt_hf/tasks/segmentation/streams.py), a folder of parquet files or
webdataset tars, or the id of a data set on the Hub. Ctrl-C saves a checkpoint and stops; --resume_from_checkpoint
latest continues.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("semantic-segmentation")
    try:
        train(task, parse_arguments(task.training_settings, description=__doc__))
    except (OSError, ValueError, StreamError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
