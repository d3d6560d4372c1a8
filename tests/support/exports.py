"""Small models that know the built-in digits' classes, saved with an image processor, and exports of them."""

from pathlib import Path
from typing import Any

from pvt_hf import PvtForImageClassification, PvtImageProcessorPil
from pvt_hf.data.digits import DIGIT_NAMES, SCENE_CLASS_NAMES
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.export.folder import ExportRequest, export_checkpoint
from pvt_hf.families import FAMILIES, load
from pvt_hf.tasks import evaluation_settings, get_task
from pvt_hf.weights.export_formats import EXPORT_FORMATS

from .common import randomize, tiny_pvt_config
from .heads import HEADS, randomize_head, tiny_head_config


# A program is traced in half of the time
SHALLOW: dict[str, Any] = {"depths": [1, 1, 1, 1]}
TWO_STAGES: dict[str, Any] = {
    "num_encoder_blocks": 2, "hidden_sizes": [16, 32], "num_attention_heads": [1, 2], "depths": [1, 1],
    "mlp_ratios": [2, 2], "patch_sizes": [4, 8], "strides": [4, 8], "sequence_reduction_ratios": [8, 1],
}  # fmt: skip
TASKS = {"classification": "image-classification", "segmentation": "semantic-segmentation",
         "detection": "object-detection"}  # fmt: skip


def save_model(name: str, folder: Path, image_size: int = 64, **overrides: Any) -> Path:
    """
    A random model of the family `name`, which answers differently for different images.

    Args:
        image_size: in pixels, that its position tables are for.
        overrides: of the configuration.
    """
    names = SCENE_CLASS_NAMES if FAMILIES[name].task == "segmentation" else DIGIT_NAMES
    labels = {"id2label": dict(enumerate(names)), "label2id": {label: index for index, label in enumerate(names)}}
    processor = load(FAMILIES[name].processors["pil"])
    if name not in HEADS:
        config = tiny_pvt_config(**TWO_STAGES, image_size=image_size, num_labels=10, **labels, **overrides)
        randomize(PvtForImageClassification(config)).save_pretrained(folder)
        PvtImageProcessorPil(size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
        return folder
    backbone = tiny_pvt_config(**SHALLOW, image_size=image_size, out_features=list(HEADS[name].stages))
    config = tiny_head_config(name, backbone_config=backbone, **labels, **overrides)
    randomize_head(load(HEADS[name].models[0].path)(config)).save_pretrained(folder)
    processor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def export(model: Path | str, output: Path, kind: str = "onnx", **request: Any) -> dict[str, Any]:
    """The report of an export that says nothing."""
    return export_checkpoint(ExportRequest(str(model), output, EXPORT_FORMATS[kind], **request), say=lambda line: None)


def figures(name: str, model: Path, **settings: Any) -> dict[str, Any]:
    """What `pvt-hf evaluate` says of a model or an export on held-out digits or scenes of them, without its speed."""
    task = TASKS[FAMILIES[name].task]
    dataset = {"dataset": "digits"} if name == "pvt" else {"dataset": "digit-scenes", "scene_size": 64}
    chosen = evaluation_settings(task)(model=str(model), num_workers=0, cpu=True, **{**dataset, **settings})
    results = evaluate_checkpoint(get_task(task), chosen)["results"]
    results = results[0] if isinstance(results, list) else results
    return {key: value for key, value in results.items() if key != "images_per_second"}
