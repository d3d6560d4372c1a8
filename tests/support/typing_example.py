"""
A program of a user who checks types strictly. mypy accepts it with the package's sources (`make typecheck`) and with
the installed package (tests/package/test_typing.py); nobody runs it.

What stays `Any`, because Transformers and torch have no types for it: what the Auto classes return, the call of a model
(hence the annotations of outputs below), attributes of a configuration that are no fields; and `eval()` of its models
counts as untyped in the strict mode.
"""

from pathlib import Path

import torch
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection
from transformers.image_processing_base import BatchFeature
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput, SemanticSegmenterOutput

import pvt_hf
from pvt_hf import (
    BackboneLoadReport,
    MaskRcnnConfig,
    MaskRcnnForInstanceSegmentation,
    PvtBackbone,
    PvtConfig,
    PvtDetectionImageProcessor,
    PvtDetrConfig,
    PvtForImageClassification,
    PvtImageProcessor,
    PvtImageProcessorPil,
    PvtInstanceImageProcessor,
    PvtInstanceImageProcessorPil,
    PvtSemanticImageProcessor,
    PvtSemanticImageProcessorPil,
    RetinaNetConfig,
    RetinaNetForObjectDetection,
    SemanticFpnConfig,
    SemanticFpnForSemanticSegmentation,
    Trans2SegConfig,
    load_official_checkpoint,
    load_pretrained_backbone,
)
from pvt_hf.models.modeling_mask_rcnn import MaskRcnnInstanceSegmentationOutput
from pvt_hf.weights.variants import VARIANTS, get_config


STAGES = ["stage1", "stage2", "stage3", "stage4"]


def classify(folder: Path, image: Image.Image) -> str:
    model = PvtForImageClassification.from_pretrained(folder, attn_implementation="sdpa")
    processor: PvtImageProcessor | PvtImageProcessorPil = PvtImageProcessor.from_pretrained(folder)
    inputs: BatchFeature = processor(image, return_tensors="pt")
    outputs: ImageClassifierOutput = model(**inputs)
    assert outputs.logits is not None and model.config.id2label is not None
    names: list[str] = list(model.config.id2label.values())
    return names[int(outputs.logits.argmax())]


def configure() -> list[PvtConfig | SemanticFpnConfig | Trans2SegConfig | RetinaNetConfig | PvtDetrConfig]:
    config = PvtConfig(
        image_size=(256, 320), depths=[3, 4, 6, 3], drop_path_rate=0.1, num_labels=10, out_features=["stage4"]
    )
    height, width = config.grid_sizes(*(480, 640))[-1]
    assert height * width and config.minimum_image_size == 32 and config.num_labels == 10
    backbone = get_config("pvt-small", out_features=STAGES)
    return [
        config,
        SemanticFpnConfig(backbone_config=backbone, fpn_channels=128, num_labels=150),
        Trans2SegConfig(backbone_config=backbone.to_dict(), id2label={0: "glass", 1: "not glass"}),
        RetinaNetConfig(anchor_ratios=[0.5, 1, 2], num_labels=80),
        PvtDetrConfig(num_queries=50, num_labels=91),
    ]


def segment(checkpoint: Path | str, images: list[Image.Image]) -> list[torch.Tensor]:
    model = SemanticFpnForSemanticSegmentation(SemanticFpnConfig(num_labels=3))
    report: BackboneLoadReport = load_pretrained_backbone(model, checkpoint, revision="main")
    print(report, len(report.loaded), sorted(report.missing))
    processor = PvtSemanticImageProcessor(size={"shortest_edge": 512})
    outputs: SemanticSegmenterOutput = model(processor(images, return_tensors="pt")["pixel_values"])
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[(i.height, i.width) for i in images])


def prepare(image: Image.Image, mask: Image.Image, annotation: dict[str, object]) -> list[BatchFeature]:
    """Every processor's own arguments, of the constructor and of the call."""
    semantic = PvtSemanticImageProcessorPil(size=512, do_reduce_labels=True)
    boxes = PvtInstanceImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333}, size_divisor=64)
    return [
        PvtImageProcessorPil(crop_size=192, match_native=True)(image, do_center_crop=False, return_tensors="pt"),
        semantic(image, segmentation_maps=mask, do_reduce_labels=False),
        PvtSemanticImageProcessor(do_reduce_labels=True)([image], [mask], return_tensors="pt", device="cpu"),
        boxes(image, annotations=annotation, return_segmentation_masks=True),
        PvtDetectionImageProcessor(nms_threshold=0.6, size_divisor=32)(image, annotation, pad_size=1344),
    ]


def detect(model: RetinaNetForObjectDetection, image: Image.Image) -> dict[str, torch.Tensor]:
    processor = PvtDetectionImageProcessor(nms_threshold=0.5, max_detections=100)
    outputs = model(**processor(image, return_tensors="pt"))
    return processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=[(image.height, image.width)])[
        0
    ]


def find_instances(image: Image.Image) -> torch.Tensor:
    model = MaskRcnnForInstanceSegmentation(MaskRcnnConfig(num_labels=2))
    processor = PvtInstanceImageProcessor()
    outputs: MaskRcnnInstanceSegmentationOutput = model(**processor(image, return_tensors="pt"))
    assert outputs.pred_scores is not None
    found = processor.post_process_instance_segmentation(outputs, target_sizes=[(image.height, image.width)])
    segmentation: torch.Tensor = found[0]["segmentation"]
    return segmentation


def convert(file: Path, folder: Path) -> int:
    model = load_official_checkpoint(file, image_size=224)
    model.save_pretrained(folder)
    if isinstance(model, PvtBackbone):
        maps: BackboneOutput = model(torch.zeros(1, 3, 64, 64))
        return len(maps.feature_maps or ())
    return model.num_labels


def detr_of_transformers(checkpoint: str) -> DetrForObjectDetection:
    config = DetrConfig(backbone_config=get_config("pvt-tiny", out_features=["stage4"]))
    model = DetrForObjectDetection(config)
    pvt_hf.load_pretrained_backbone(model, checkpoint)
    return model


def largest() -> str:
    return max(VARIANTS.values(), key=lambda variant: variant.paper_params_m).name
