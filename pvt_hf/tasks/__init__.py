"""
Image classification, semantic segmentation and object detection: what the engine needs to know about each.

A new task is a folder here with a [`pvt_hf.engine.task.Task`], a row in `TASKS`, and two short scripts.
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
    The task of that name, one of `TASKS`. Its file is imported now.

    Raises:
        KeyError: there is no such task.
    """
    module, _, class_name = TASKS[name].rpartition(".")
    return getattr(import_module(f".{module}", __name__), class_name)()
