"""Object detection and instance segmentation on the training loop: streams, models, and evaluation by COCO AP."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, PreTrainedModel

from ...data.batches import BatchStream
from ...data.streams import Stream
from ...engine.checkpoints import ensure_output_dir
from ...engine.feed import Batch
from ...engine.processes import make_accelerator
from ...engine.run import run_task
from ...engine.settings import TrainingSettings, parse_overrides
from ...models.configuration_mask_rcnn import MaskRcnnConfig
from ...models.configuration_pvt import PvtConfig
from ...models.configuration_pvt_detr import PvtDetrConfig
from ...models.configuration_retinanet import RetinaNetConfig
from ...models.image_processing_detection import PvtDetectionImageProcessor
from ...models.image_processing_detr import PvtDetrImageProcessor
from ...models.image_processing_instance import PvtInstanceImageProcessor
from ...weights.variants import get_config
from ..models import label_fields, open_trained_model, read_class_names, start_backbone, synchronize_batch_norm
from .evaluate_stream import MODELS_WITH_MASKS, check_takes_pixel_mask, evaluate_detector, without_nan
from .samples import DetectionEvaluationSample, DetectionSample, aspect_group, collate_detection
from .streams import open_detection_stream
from .transforms import DetectionTransform


@dataclass(frozen=True)
class Architecture:
    """A detector's classes, and the stages of the backbone that it reads."""

    config_class: type
    processor_class: type
    out_features: list[str]


ARCHITECTURES = {
    "retinanet": Architecture(RetinaNetConfig, PvtDetectionImageProcessor, ["stage2", "stage3", "stage4"]),
    "mask_rcnn": Architecture(MaskRcnnConfig, PvtInstanceImageProcessor, ["stage1", "stage2", "stage3", "stage4"]),
    "detr": Architecture(PvtDetrConfig, PvtDetrImageProcessor, ["stage4"]),
}


@dataclass
class DetectionSettings(TrainingSettings):
    """Arguments of `scripts/train_object_detection.py`."""

    dataset: str = field(default="digit-scenes", metadata={"help": "'digit-scenes', a folder, or a Hub data set id."})
    objects_column: str = field(default="", metadata={"help": "If it cannot be found by its type."})
    class_names: str = field(
        default="",
        metadata={"help": "Names separated by commas, or a text file with a name per line; or the source's."},
    )
    keep_empty: bool = field(default=True, metadata={"help": "Train on images without objects, too."})
    scene_size: int = field(default=128, metadata={"help": "Side in pixels of the built-in scenes."})
    digit_sizes: list[int] = field(
        default_factory=list,
        metadata={"help": "Smallest and largest digit in them, in pixels; by default a sixth to a half of the side."},
    )
    model: str = field(
        default="", metadata={"help": "Detector to fine-tune, with the processor that it has: a folder or Hub id."}
    )
    architecture: str = field(
        default="retinanet", metadata={"help": "What to build if --model is not given.", "choices": [*ARCHITECTURES]}
    )
    masks: bool = field(default=True, metadata={"help": "Train and evaluate masks, where the model has them."})
    variant: str = field(default="pvt-tiny", metadata={"help": "The backbone of a new model."})
    backbone: str = field(
        default="",
        metadata={"help": "Its first weights: of a classifier, or of another head's backbone; folder, Hub id or .pth."},
    )
    config_overrides: str = field(default="{}", metadata={"help": "JSON of fields of the detector's configuration."})
    backbone_overrides: str = field(default="{}", metadata={"help": "JSON of PvtConfig fields for --variant."})
    out_features: list[str] = field(
        default_factory=list, metadata={"help": "Stages of the backbone that the head reads; default: the paper's."}
    )
    drop_path_rate: float = field(default=0.1, metadata={"help": "Stochastic depth of the backbone."})
    shortest_edges: list[int] = field(
        default_factory=lambda: [800],
        metadata={"help": "Lengths of the shorter side in training, one drawn per image."},
    )
    shortest_edge_range: bool = field(
        default=False, metadata={"help": "--shortest_edges are two, and all lengths between them are drawn."}
    )
    eval_shortest_edge: int = field(default=800, metadata={"help": "Length of the shorter side in evaluation."})
    longest_edge: int = field(default=1333, metadata={"help": "Limit of the longer side."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability."})
    group_by_aspect: bool = field(
        default=True, metadata={"help": "Batches of wide images, and of others, within --shuffle_window: less padding."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scene_size", "eval_shortest_edge"):
            if getattr(self, name) < 32:
                raise ValueError(f"--{name} must be at least 32, got {getattr(self, name)}.")
        if not self.shortest_edges or min(self.shortest_edges) < 32:
            raise ValueError(f"--shortest_edges must be at least 32, got {self.shortest_edges}.")
        if self.shortest_edge_range and (
            len(self.shortest_edges) != 2 or self.shortest_edges[0] > self.shortest_edges[1]
        ):
            raise ValueError(
                f"--shortest_edge_range goes with two --shortest_edges, in order, got {self.shortest_edges}."
            )
        if self.longest_edge < max(self.eval_shortest_edge, *self.shortest_edges, 0):
            raise ValueError(f"--longest_edge {self.longest_edge} is below the length of a shorter side.")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"--horizontal_flip is from 0 to 1, got {self.horizontal_flip}.")
        if self.model and self.backbone:
            raise ValueError("--backbone goes with a new model; --model has a trained backbone. Give one of them.")
        self.parsed_overrides()

    def parsed_overrides(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields of the detector's configuration and of the backbone's. ValueError for what they do not have."""
        config_class = ARCHITECTURES[self.architecture].config_class
        head = parse_overrides("config_overrides", self.config_overrides, config_class)
        return head, parse_overrides("backbone_overrides", self.backbone_overrides, PvtConfig)


def build_model(settings: DetectionSettings, class_names: tuple[str, ...]) -> PreTrainedModel:
    """The model to train: a detector with a classifier of the right size, or a new one."""
    if settings.model:
        model = open_trained_model(settings.model, AutoModelForObjectDetection, class_names, settings.drop_path_rate)
        check_takes_pixel_mask(model)
        return model
    architecture = ARCHITECTURES[settings.architecture]
    head_fields, backbone_fields = settings.parsed_overrides()
    backbone_fields = {"drop_path_rate": settings.drop_path_rate, **backbone_fields}
    backbone_fields["out_features"] = settings.out_features or architecture.out_features
    config = architecture.config_class(
        backbone_config=get_config(settings.variant, **backbone_fields), **head_fields, **label_fields(class_names)
    )
    return AutoModelForObjectDetection.from_config(config)


def learns_masks(settings: DetectionSettings) -> bool:
    """Whether the model has masks, and they are wanted."""
    config: Any = ARCHITECTURES[settings.architecture].config_class
    if settings.model:
        config = AutoConfig.from_pretrained(settings.model)
    return settings.masks and config.model_type in MODELS_WITH_MASKS


def build_processor(settings: DetectionSettings) -> Any:
    """The evaluation's processor, which is saved with the model; with `--model` its own, at its own size."""
    if settings.model:
        return AutoImageProcessor.from_pretrained(settings.model)
    size = {"shortest_edge": settings.eval_shortest_edge, "longest_edge": settings.longest_edge}
    return ARCHITECTURES[settings.architecture].processor_class(size=size)


def open_streams(settings: DetectionSettings) -> tuple[Stream, Stream]:
    """Training and evaluation streams; of the same split where a share is held out."""
    options: dict[str, Any] = {
        "image_column": settings.image_column or None,
        "objects_column": settings.objects_column or None,
        "image_size": settings.scene_size,
        "digit_sizes": settings.digit_sizes,
    }
    train_stream = open_detection_stream(
        settings.dataset, settings.train_split, keep_empty=settings.keep_empty, **options
    )
    eval_split = settings.train_split if settings.eval_share else settings.eval_split
    return train_stream, open_detection_stream(settings.dataset, eval_split, **options)


def training_transform(settings: Any, processor: Any) -> DetectionTransform:
    """The random sizes and flips that `settings` describe, in the colours of `processor`."""
    edges = settings.shortest_edges
    return DetectionTransform(
        tuple(processor.image_mean),
        tuple(processor.image_std),
        shortest_edges=range(edges[0], edges[1] + 1) if settings.shortest_edge_range else edges,
        longest_edge=settings.longest_edge,
        horizontal_flip=settings.horizontal_flip,
    )


class ProcessImage:
    """
    An image as `processor` prepares it, without the padding, which the batch will add; a class, because loader workers
    may have to pickle it.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Any) -> torch.Tensor:
        inputs = self.processor(image, return_tensors="pt")
        if "pixel_mask" not in inputs:  # RT-DETR's, say, which resizes to one size
            return inputs["pixel_values"][0]
        mask = inputs["pixel_mask"][0].bool()
        return inputs["pixel_values"][0, :, : mask.any(dim=1).sum(), : mask.any(dim=0).sum()]


def detection_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The model's own loss."""
    return model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], labels=batch["labels"]).loss


def run(settings: DetectionSettings) -> dict[str, Any]:
    """
    The whole training: returns what is written to `run.json`. The final model and processor are saved into
    `settings.output_dir` as safetensors and JSON, with `curves.png`.

    Evaluation is at the images' own size. In `history` and `metrics`, what there is per class is a list with None for a
    class that no image has.
    """
    accelerator = make_accelerator(settings)
    output_dir = ensure_output_dir(settings.output_dir, settings.resume_from_checkpoint)
    train_stream, eval_stream = open_streams(settings)
    processor = build_processor(settings)
    class_names = read_class_names(settings.class_names)
    with_masks = learns_masks(settings)
    train_sample = DetectionSample(train_stream, training_transform(settings, processor), class_names, with_masks)
    class_names = train_sample.class_names
    eval_sample = DetectionEvaluationSample(eval_stream, ProcessImage(processor), class_names, with_masks)
    model = build_model(settings, class_names)
    if settings.backbone:
        start_backbone(accelerator, model, settings.backbone)

    def evaluate(unwrapped: Any, batches: BatchStream) -> dict[str, Any]:
        metrics = evaluate_detector(
            accelerator, unwrapped, batches, settings.num_workers, processor, train_sample.class_names, with_masks
        )
        return {name: without_nan(value) for name, value in metrics.items()}

    return run_task(
        accelerator,
        settings,
        output_dir,
        synchronize_batch_norm(accelerator, model),
        processor,
        train_sample,
        eval_sample,
        detection_loss,
        evaluate,
        best_metric="ap",
        collate_training=collate_detection,
        collate_evaluation=collate_detection,
        group=partial(aspect_group, train_stream) if settings.group_by_aspect and settings.shuffle_window else None,
    )
