"""
Trains or fine-tunes a model for semantic segmentation on a stream of images and masks, on one process or many.

    python scripts/train_semantic_segmentation.py RECIPE.yaml --output_dir out
    python scripts/train_semantic_segmentation.py RECIPE.yaml --dataset path/to/folder --class_names names.txt \\
        --reduce_labels false --output_dir out
    accelerate launch scripts/train_semantic_segmentation.py RECIPE.yaml --output_dir out        # GPUs
    torchrun --nproc_per_node 2 scripts/train_semantic_segmentation.py RECIPE.yaml --cpu --output_dir out

`--help` lists every argument; `open_segmentation_stream` in `pvt_hf/tasks/segmentation/streams.py` says how a folder is
laid out.
"""

from pvt_hf.data.streams import StreamError
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks import get_task


if __name__ == "__main__":
    task = get_task("semantic-segmentation")
    try:
        train(task, parse_arguments(task.training_settings))
    except (OSError, ValueError, StreamError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
