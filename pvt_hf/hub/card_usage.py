"""What a model card shows of using a model: Python for its pipelines, and what its image processor does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..families import Family, Model


# By pipeline: the variable, and what is done with it
_PIPELINES = {
    "image-classification": ("classifier", 'print(classifier("photo.jpg"))'),
    "image-feature-extraction": (
        "extractor",
        'print(extractor("photo.jpg", return_tensors=True).shape)  # (images, tokens, channels)',
    ),
    "image-segmentation": (
        "segmenter",
        'for segment in segmenter("photo.jpg"):\n    print(segment["label"], segment["mask"].size)',
    ),
    "object-detection": (
        "detector",
        'for found in detector("photo.jpg"):\n    print(found["label"], found["score"], found["box"])',
    ),
}
_STAGES = '["stage1", "stage2", "stage3", "stage4"]'


def package_usage(model: Model, repo_id: str) -> str:
    """Python that opens and runs a model with this package installed."""
    if not model.pipelines:
        return backbone_usage(repo_id)
    parts = ["import pvt_hf\nfrom transformers import pipeline"]
    for task in model.pipelines:
        variable, usage = _PIPELINES[task]
        parts.append(f'{variable} = pipeline("{task}", model="{repo_id}")\n{usage}')
    return "\n\n".join(parts)


def remote_usage(model: Model, repo_id: str) -> str:
    """Python that opens a model with the code in its repository."""
    if not model.pipelines:
        return (
            "from transformers import AutoBackbone\n\n"
            f'backbone = AutoBackbone.from_pretrained("{repo_id}", trust_remote_code=True, out_features={_STAGES})'
        )
    lines = [
        f'{_PIPELINES[task][0]} = pipeline("{task}", model="{repo_id}", trust_remote_code=True)'
        for task in model.pipelines
    ]
    return "\n".join(["from transformers import pipeline\n", *lines])


def backbone_usage(repo_id: str) -> str:
    """Python that takes feature maps from a classifier or a backbone."""
    return (
        "import torch\nfrom pvt_hf import PvtBackbone\n\n"
        f'backbone = PvtBackbone.from_pretrained("{repo_id}", out_features={_STAGES})\n'
        "feature_maps = backbone(torch.randn(1, 3, 320, 480)).feature_maps  # at strides 4, 8, 16 and 32\n"
        "print([tuple(feature_map.shape) for feature_map in feature_maps])"
    )


def opens_natively(model: Model, config: Any, processor: Any) -> bool:
    """
    Whether Transformers' own class is of use: there is one, and the image processor makes images of the one size that
    it takes, that of its construction.
    """
    settings = processor.to_dict() if processor is not None else {}
    crops = settings.get("do_center_crop")
    size = (settings.get("crop_size") if crops else settings.get("do_resize") and settings.get("size")) or {}
    return model.name in ("PvtForImageClassification", "PvtModel") and size == {
        "height": config.image_size,
        "width": config.image_size,
    }


def preprocessing_steps(family: Family, processor: Any) -> list[str]:
    """What an image processor does, by its settings, in the order of its steps."""
    settings, steps = processor.to_dict(), []
    ours = type(processor).__module__.startswith("pvt_hf.")
    if settings.get("do_resize"):
        step = f"resizes {_size_rule(settings.get('size') or {})}"
        if settings.get("resample") is not None:
            step += f" ({Image.Resampling(settings['resample']).name.lower()})"
        steps.append(step)
        if ours and family.task == "segmentation":
            steps.append("resizes both sides up to a multiple of 32")
    if settings.get("do_center_crop"):
        steps.append(f"crops the centre to {settings['crop_size']['height']}x{settings['crop_size']['width']} pixels")
    if settings.get("do_rescale"):
        steps.append(f"multiplies by {settings['rescale_factor']:.6g}")
    if settings.get("do_normalize"):
        mean, std = (", ".join(f"{value:g}" for value in settings[key]) for key in ("image_mean", "image_std"))
        steps.append(f"subtracts ({mean}) and divides by ({std}), in the order red, green, blue")
    if ours and family.task == "detection":
        steps.append("pads with zeros at the right and bottom to the largest image of the batch and a multiple of 32")
    if settings.get("do_reduce_labels"):
        steps.append("ignores label 0 of segmentation maps and turns label n into n - 1")
    return steps


def _size_rule(size: Mapping[str, int]) -> str:
    if size.get("shortest_edge") and size.get("longest_edge"):
        return f"the shorter side to {size['shortest_edge']} pixels, but the longer to at most {size['longest_edge']}"
    if size.get("shortest_edge"):
        return f"the shorter side to {size['shortest_edge']} pixels"
    if size.get("height"):
        return f"to {size['height']}x{size['width']} pixels, height x width"
    if size.get("max_height"):
        return f"to fit {size['max_height']}x{size['max_width']} pixels, height x width"
    return ", ".join(f"{name} {value}" for name, value in size.items() if value)
