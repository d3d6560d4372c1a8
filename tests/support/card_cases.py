"""What the tests of model cards share: parts of a card, and a tiny model of every class."""

import re

import pvt_hf

from ..models import test_detection_pipelines, test_segmentation_pipelines
from .common import randomize, tiny_pvt_config


AUTO_CLASSES = {
    "PvtForImageClassification": ["AutoModelForImageClassification"],
    "PvtModel": ["AutoModel"],
    "PvtBackbone": ["AutoBackbone"],
    "SemanticFpnForSemanticSegmentation": ["AutoModelForSemanticSegmentation"],
    "Trans2SegForSemanticSegmentation": ["AutoModelForSemanticSegmentation"],
    "RetinaNetForObjectDetection": ["AutoModelForObjectDetection"],
    "MaskRcnnForInstanceSegmentation": [
        "AutoModelForObjectDetection", "AutoModelForInstanceSegmentation", "AutoModelForImageSegmentation",
    ],
    "PvtDetrForObjectDetection": ["AutoModelForObjectDetection"],
}  # fmt: skip


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def tiny_models() -> dict[str, tuple]:
    """A random model and its processor by the name of the class."""
    animals = dict(enumerate("cat dog cow hen pig".split()))
    processor = pvt_hf.PvtImageProcessor(size=73, crop_size=64)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    pairs = [
        (pvt_hf.PvtForImageClassification(tiny_pvt_config(id2label=animals)), processor),
        (pvt_hf.PvtModel(tiny_pvt_config()), processor),
        (pvt_hf.PvtBackbone(tiny_pvt_config(out_features=stages)), processor),
    ]
    size = {"shortest_edge": 64, "longest_edge": 256}
    pairs += [
        (make(), pvt_hf.PvtSemanticImageProcessor(size=size)) for make in test_segmentation_pipelines.MODELS.values()
    ]
    for name, (model_name, processor_name) in test_detection_pipelines.CLASSES.items():
        model = getattr(pvt_hf, model_name)(test_detection_pipelines.CONFIGS[name]())
        pairs.append((model, getattr(pvt_hf, f"Pvt{processor_name}ImageProcessor")(size=size)))
    for model, _ in pairs:
        randomize(model)
        for name, part in model.named_modules():
            is_semantic = "Semantic" in type(model).__name__
            if name in ("class_labels_classifier", "box_head.classifier") or (
                name == "head.classifier" and is_semantic
            ):
                part.weight.data.mul_(20)  # so that several classes win somewhere, and by much
    return {type(model).__name__: (model.eval(), processor) for model, processor in pairs}
