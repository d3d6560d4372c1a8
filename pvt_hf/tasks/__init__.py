"""
The tasks: image classification, semantic segmentation and object detection.

To add one: a folder here, with the same file names as the others, whose `task.py` has a subclass of
[`pvt_hf.engine.task.Task`]; a row in `TASKS`; and a training and an evaluation script of a few lines, such as
`scripts/train_image_classification.py`. `scripts/finetune.py` needs only the row.
"""

from importlib import import_module

from ..engine.task import Task


TASKS = {
    "image-classification": "classification.task.ClassificationTask",
    "semantic-segmentation": "segmentation.task.SegmentationTask",
    "object-detection": "detection.task.DetectionTask",
}


def get_task(name: str) -> Task:
    """
    Makes the task of that name, a key of `TASKS`, and imports its file.

    Raises:
        KeyError: there is no such task.
    """
    module, _, class_name = TASKS[name].rpartition(".")
    return getattr(import_module(f".{module}", __name__), class_name)()
