"""`pvt-hf train-TASK`: trains or fine-tunes a model, in one process or several."""

from typing import Any

from ..engine.settings import parse_arguments
from ..tasks import get_task, training_settings
from . import check_dataset


DESCRIPTION = """
Trains or fine-tunes {model}, in one process or several.

    pvt-hf train-{task} RECIPE --output_dir out
    pvt-hf train-{task} {example} --output_dir out
    accelerate launch -m pvt_hf train-{task} RECIPE --output_dir out                      # on GPUs
    torchrun --nproc_per_node 2 -m pvt_hf train-{task} RECIPE --cpu --output_dir out      # on CPUs

RECIPE is a YAML file of arguments, or the name of a recipe of this package, such as {recipe}.
--dataset is {data}, a folder of parquet files or webdataset tars,
or the id of a data set on the Hub. Ctrl-C saves a checkpoint and stops; --resume_from_checkpoint latest continues.
In a checkout, scripts/train_{file}.py is the same command.
"""
TEXTS = {
    "image-classification": {
        "model": "an image classifier",
        "example": "--dataset path/to/folder --model path/or/hub-id",
        "recipe": "digits_pvt",
        "data": "a folder with one subfolder per class",
    },
    "semantic-segmentation": {
        "model": "a model for semantic segmentation",
        "example": "RECIPE --dataset path/to/folder --class_names names.txt --reduce_labels false",
        "recipe": "digits_semantic_fpn",
        "data": "a folder of images and masks",
    },
    "object-detection": {
        "model": "a detector (boxes, or boxes and masks)",
        "example": "RECIPE --dataset path/to/coco",
        "recipe": "digits_retinanet",
        "data": "a folder in COCO's or YOLO's layout",
    },
}


def main(task: str) -> None:
    description = DESCRIPTION.format(task=task, file=task.replace("-", "_"), **TEXTS[task])
    settings: Any = parse_arguments(training_settings(task), description=description)
    check_dataset(settings.dataset)

    from ..data.streams import StreamError
    from ..engine.run import train
    from ..inference.held_out_page import write_page
    from .allocator import keep_freed_memory

    keep_freed_memory(on_cpu=settings.cpu)
    try:
        train(get_task(task), settings, write_page)
    except (OSError, ValueError, StreamError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
