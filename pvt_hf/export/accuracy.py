"""
Data for an export: accuracy before and after, and images to calibrate the ranges of 8-bit integers with. What reads
data is imported when it is asked for: it needs the extra "train", which an export without data does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..weights.export_formats import ExportFormat
from .source import Source


# The task of `pvt-hf evaluate`, and its figures, for the tasks of `pvt_hf.inference.prediction`
EVALUATED = {
    "image-classification": ("image-classification", ("accuracy@1", "accuracy@5")),
    "semantic-segmentation": ("semantic-segmentation", ("mean_iou",)),
    "object-detection": ("object-detection", ("ap",)),
    "instance-segmentation": ("object-detection", ("ap", "mask_ap")),
}


@dataclass(frozen=True)
class AccuracyData:
    """
    Attributes:
        dataset: as `pvt-hf evaluate` takes it.
        split: to measure accuracy on.
        calibration_split: to calibrate with.
        calibration_images: how many.
    """

    dataset: str
    split: str = "validation"
    calibration_split: str = "train"
    calibration_images: int = 300


def settings_of(source: Source, model: str, data: AccuracyData, trusted: bool = False) -> tuple[Any, Any]:
    """
    The task and the arguments of its evaluation. Raises a ValueError or an OSError if the data set is none.

    Args:
        trusted: whether code in the folder `model` may run, which this process has written.
    """
    from ..tasks import evaluation_settings, get_task

    assert source.task is not None
    name = EVALUATED[source.task][0]
    return get_task(name), evaluation_settings(name)(
        model=model,
        dataset=data.dataset,
        split=data.split,
        num_workers=0,
        cpu=True,
        trust_remote_code=trusted,
    )


def check_data(source: Source, model: str, data: AccuracyData, calibrate: bool) -> None:
    """
    Opens the data set and matches its classes with the model's, before minutes of work. Raises a ValueError or
    StreamError if that fails.

    Args:
        calibrate: whether the split to calibrate with is needed, too.
    """
    task, settings = settings_of(source, model, data)
    streams = {}
    for option in ("split", "calibration_split") if calibrate else ("split",):
        split = getattr(data, option)
        try:
            streams[option] = task.open_stream(settings, split, source.processor)
        except (OSError, ValueError) as error:
            raise ValueError(f"--dataset {data.dataset} --{option} {split}: {error}") from error
    try:
        next(task.checkpoint_evaluations(settings, streams["split"], source.model, source.processor))
    except ValueError as error:
        raise ValueError(f"--dataset {data.dataset}: {error}") from error


def accuracy_before_and_after(source: Source, model: str, export: Any, data: AccuracyData) -> dict[str, Any]:
    """
    Evaluates a model and its export.

    Returns:
        `figures`: (before, after) by name; what was evaluated, and `samples`.
    """
    from ..engine.evaluation import evaluate_checkpoint

    assert source.task is not None
    results = []
    for place, trusted in ((model, False), (str(export), True)):
        task, settings = settings_of(source, place, data, trusted)
        found = evaluate_checkpoint(task, settings)["results"]
        results.append(found[0] if isinstance(found, list) else found)
    names = [name for name in EVALUATED[source.task][1] if results[0].get(name) is not None]
    return {
        "dataset": data.dataset,
        "split": data.split,
        "samples": results[0]["eval_samples"],
        "figures": {name: (results[0][name], results[1][name]) for name in names},
        "calibration_images": data.calibration_images,
        "calibration_split": data.calibration_split,
    }


class CalibrationSamples(Sequence[dict[str, torch.Tensor]]):
    """
    Inputs of a model, one image each. Images are decoded and processed each time that they are read: 300 inputs of
    800x1333 pixels would take 3.8 GB.

    Args:
        processor: the model's image processor.
        images: encoded, as `{"bytes": ..., "path": ...}`.
    """

    def __init__(self, processor: Any, images: list[dict[str, Any]]):
        self.processor, self.images = processor, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        from ..data.samples import decode_rgb

        return dict(self.processor(decode_rgb(self.images[index]), return_tensors="pt"))


def calibration_samples(source: Source, model: str, data: AccuracyData) -> CalibrationSamples:
    """
    Inputs of the model from a shuffled stream, without the images that are damaged.

    Raises:
        ValueError: there is no image, or the data set is none.
        StreamError: the source cannot be read.
    """
    from ..data.samples import decode_rgb

    task, settings = settings_of(source, model, data)
    stream = task.open_stream(settings, data.calibration_split, source.processor)
    images: list[dict[str, Any]] = []
    for example in stream.dataset.shuffle(seed=0, buffer_size=4 * data.calibration_images):
        if len(images) == data.calibration_images:
            break
        try:
            decode_rgb(example[stream.image_column], stream.title("image"))
        except ValueError:  # damaged
            continue
        images.append(example[stream.image_column])
    if not images:
        raise ValueError(f"{stream.name} has no image to calibrate with.")
    return CalibrationSamples(source.processor, images)


def quantizer_for(kind: ExportFormat, samples: Sequence[dict[str, torch.Tensor]]) -> Any:
    """
    The static post-training quantiser of a format: weights per channel, activations per tensor with the ranges that
    they have on `samples`.
    """
    from transformers import exporters

    if kind.name == "openvino":
        settings = exporters.NNCFQuantizationConfig(subset_size=len(samples))
        return exporters.NNCFOpenVINOQuantizer(settings, calibration_dataset=samples)

    from onnxruntime.quantization import QuantType

    # Products with weights only: softmax and its neighbours lose too much in 8 bits
    static = exporters.OnnxRuntimeStaticConfig(
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    return exporters.OnnxRuntimeQuantizer(static, calibration_dataset=samples)
