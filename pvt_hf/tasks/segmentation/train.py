"""Semantic segmentation on the training loop: streams of images and masks, models, and evaluation by mean IoU."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel

from ...data.batches import BatchStream
from ...data.streams import Stream
from ...engine.checkpoints import ensure_output_dir
from ...engine.feed import Batch
from ...engine.processes import make_accelerator
from ...engine.run import run_task
from ...engine.settings import TrainingSettings, parse_overrides
from ...models.configuration_pvt import PvtConfig
from ...models.configuration_semantic_fpn import SemanticFpnConfig
from ...models.configuration_trans2seg import Trans2SegConfig
from ...models.image_processing_semantic import PvtSemanticImageProcessor
from ...weights.variants import get_config
from ..models import label_fields, open_trained_model, read_class_names, start_backbone, synchronize_batch_norm
from .evaluate_stream import evaluate_segmenter
from .inference import SingleScale
from .samples import SegmentationEvaluationSample, SegmentationSample, collate_lists
from .streams import open_segmentation_stream
from .transforms import SegmentationTransform


# The head's configuration, and the stages of the backbone that it reads
ARCHITECTURES = {
    "semantic_fpn": (SemanticFpnConfig, ["stage1", "stage2", "stage3", "stage4"]),
    "trans2seg": (Trans2SegConfig, ["stage1", "stage4"]),
}


@dataclass
class SegmentationSettings(TrainingSettings):
    """Arguments of `scripts/train_semantic_segmentation.py`."""

    dataset: str = field(default="digit-scenes", metadata={"help": "'digit-scenes', a folder, or a Hub data set id."})
    mask_column: str = field(default="", metadata={"help": "If it cannot be found by its type and name."})
    class_names: str = field(
        default="", metadata={"help": "'ade20k', names separated by commas, or a text file with a name per line."}
    )
    reduce_labels: bool = field(
        default=False, metadata={"help": "Label 0 of the masks is no class, and 1 is the first: true for ADE20K."}
    )
    scene_size: int = field(default=128, metadata={"help": "Side in pixels of the built-in scenes."})
    digit_sizes: list[int] = field(
        default_factory=list,
        metadata={"help": "Smallest and largest digit in them, in pixels; by default a sixth to a half of the side."},
    )
    model: str = field(
        default="", metadata={"help": "Segmenter to fine-tune, with the processor that it has: a folder or Hub id."}
    )
    architecture: str = field(
        default="semantic_fpn", metadata={"help": "Head to build if --model is not given.", "choices": [*ARCHITECTURES]}
    )
    variant: str = field(default="pvt-tiny", metadata={"help": "Its backbone."})
    backbone: str = field(
        default="",
        metadata={"help": "Its first weights: of a classifier, or of another head's backbone; folder, Hub id or .pth."},
    )
    config_overrides: str = field(default="{}", metadata={"help": "JSON of fields of the head's configuration."})
    backbone_overrides: str = field(default="{}", metadata={"help": "JSON of PvtConfig fields for --variant."})
    out_features: list[str] = field(
        default_factory=list, metadata={"help": "Stages of the backbone that the head reads; default: the paper's."}
    )
    drop_path_rate: float = field(default=0.1, metadata={"help": "Stochastic depth of the backbone."})
    shortest_edge: int = field(default=512, metadata={"help": "Limit of the shorter side, in training at scale 1."})
    longest_edge: int = field(default=2048, metadata={"help": "Limit of the longer side, in training at scale 1."})
    min_scale: float = field(default=0.5, metadata={"help": "Smallest random factor on these limits."})
    max_scale: float = field(default=2.0, metadata={"help": "Largest."})
    crop_size: int = field(default=512, metadata={"help": "Side in pixels of the training crops."})
    max_class_share: float = field(
        default=0.75, metadata={"help": "Draw a crop again in which one class has more of the pixels; 1 takes any."}
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability."})
    photometric: bool = field(default=True, metadata={"help": "Distort brightness, contrast, saturation and hue."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scene_size", "crop_size", "shortest_edge"):
            if getattr(self, name) < 32:
                raise ValueError(f"--{name} must be at least 32, got {getattr(self, name)}.")
        if self.longest_edge < self.shortest_edge:
            raise ValueError(f"--longest_edge {self.longest_edge} is below --shortest_edge {self.shortest_edge}.")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(f"--min_scale {self.min_scale} must be above 0 and at most --max_scale {self.max_scale}.")
        for name in ("max_class_share", "horizontal_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is from 0 to 1, got {getattr(self, name)}.")
        if self.model and self.backbone:
            raise ValueError("--backbone goes with a new model; --model has a trained backbone. Give one of them.")
        self.parsed_overrides()

    def parsed_overrides(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fields of the head's configuration and of the backbone's. ValueError for what they do not have."""
        head = parse_overrides("config_overrides", self.config_overrides, ARCHITECTURES[self.architecture][0])
        return head, parse_overrides("backbone_overrides", self.backbone_overrides, PvtConfig)


def build_model(settings: SegmentationSettings, class_names: tuple[str, ...]) -> PreTrainedModel:
    """The model to train: a segmenter with a classifier of the right size, or a new one."""
    if settings.model:
        return open_trained_model(
            settings.model, AutoModelForSemanticSegmentation, class_names, settings.drop_path_rate
        )
    config_class, out_features = ARCHITECTURES[settings.architecture]
    head_fields, backbone_fields = settings.parsed_overrides()
    backbone_fields = {"drop_path_rate": settings.drop_path_rate, **backbone_fields}
    backbone_fields["out_features"] = settings.out_features or out_features
    config = config_class(
        backbone_config=get_config(settings.variant, **backbone_fields), **head_fields, **label_fields(class_names)
    )
    return AutoModelForSemanticSegmentation.from_config(config)


def build_processor(settings: SegmentationSettings) -> Any:
    """The evaluation's processor, which is saved with the model; with `--model` its own, at its own size."""
    if settings.model:
        return AutoImageProcessor.from_pretrained(settings.model, do_reduce_labels=settings.reduce_labels)
    size = {"shortest_edge": settings.shortest_edge, "longest_edge": settings.longest_edge}
    return PvtSemanticImageProcessor(size=size, do_reduce_labels=settings.reduce_labels)


def open_streams(settings: SegmentationSettings) -> tuple[Stream, Stream]:
    """Training and evaluation streams; the same one twice where a share is held out."""
    options: dict[str, Any] = {
        "image_column": settings.image_column or None,
        "mask_column": settings.mask_column or None,
        "image_size": settings.scene_size,
        "digit_sizes": settings.digit_sizes,
    }
    train_stream = open_segmentation_stream(settings.dataset, settings.train_split, **options)
    if settings.eval_share:
        return train_stream, train_stream
    return train_stream, open_segmentation_stream(settings.dataset, settings.eval_split, **options)


def training_transform(settings: Any, processor: Any) -> SegmentationTransform:
    """The random crops that `settings` describe, in the colours of `processor`."""
    return SegmentationTransform(
        tuple(processor.image_mean),
        tuple(processor.image_std),
        crop_size=settings.crop_size,
        shortest_edge=settings.shortest_edge,
        longest_edge=settings.longest_edge,
        min_scale=settings.min_scale,
        max_scale=settings.max_scale,
        max_class_share=settings.max_class_share,
        horizontal_flip=settings.horizontal_flip,
        photometric=settings.photometric,
    )


def segmentation_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The model's own loss: the mean cross-entropy over labelled pixels."""
    return model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss


def run(settings: SegmentationSettings) -> dict[str, Any]:
    """
    The whole training: returns what is written to `run.json`. The final model and processor are saved into
    `settings.output_dir` as safetensors and JSON, with `curves.png`.

    Evaluation is at the images' own size and a single scale. In `history` and `metrics`, what there is per class is a
    list with None for a class that neither the masks nor the predictions have.
    """
    accelerator = make_accelerator(settings)
    output_dir = ensure_output_dir(settings.output_dir, settings.resume_from_checkpoint)
    train_stream, eval_stream = open_streams(settings)
    processor = build_processor(settings)
    class_names = read_class_names(settings.class_names)
    inference = SingleScale(processor)
    train_sample = SegmentationSample(
        train_stream, training_transform(settings, processor), class_names, settings.reduce_labels
    )
    eval_sample = SegmentationEvaluationSample(eval_stream, inference, class_names, settings.reduce_labels)
    model = build_model(settings, train_sample.class_names)
    if settings.backbone:
        start_backbone(accelerator, model, settings.backbone)

    def evaluate(unwrapped: Any, batches: BatchStream) -> dict[str, Any]:
        metrics = evaluate_segmenter(
            accelerator,
            unwrapped,
            batches,
            settings.num_workers,
            inference,
            len(train_sample.class_names),
        )
        return {name: _without_nan(value) if isinstance(value, list) else value for name, value in metrics.items()}

    return run_task(
        accelerator,
        settings,
        output_dir,
        synchronize_batch_norm(accelerator, model),
        processor,
        train_sample,
        eval_sample,
        segmentation_loss,
        evaluate,
        best_metric="mean_iou",
        eval_batch_size=1,  # images of different sizes are predicted one by one
        collate_evaluation=collate_lists,
    )


def _without_nan(values: list[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if math.isnan(value) else value for value in values]
