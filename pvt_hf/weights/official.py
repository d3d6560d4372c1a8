"""Builds models from official PVT checkpoints (https://github.com/whai362/PVT): architecture and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..models.configuration_pvt import PvtConfig
from ..models.modeling_pvt import PvtBackbone, PvtForImageClassification
from .official_files import read_checkpoint, unwrap_checkpoint
from .official_layout import NUM_STAGES, convert_official_state_dict, depths_of


def load_official_checkpoint(path: str | Path, **config_overrides: Any) -> PvtForImageClassification | PvtBackbone:
    """
    Opens a checkpoint of the official release or trainer, or the PVT of a detector or segmentor trained with it.

    Depths, widths, input channels, classes, MLP and reduction ratios, patch sizes, biases and `image_size` are read
    from the tensors. (If a model was built for an image size that is not a multiple of the patch size, `image_size`
    becomes the next lower multiple, 228 for 230; all grids are the same.)

    Args:
        path: a `.pth` or `.safetensors` file in the official layout; [`unwrap_checkpoint`] lists the known wrappings.
        config_overrides: fields of [`PvtConfig`] that tensors do not show: `num_attention_heads` (by default
            [1, 2, 5, 8] if these divide the widths, else heads of 64 channels, as in all published models);
            `image_size` as (height, width), needed for non-square position tables; rates, labels, `out_features`.

    Returns:
        A [`PvtForImageClassification`], or a [`PvtBackbone`] if the file has no cls_token, norm and head (with all four
        stages unless `out_features` names others). In eval mode, on the CPU, in the dtype of the file; in fp32 if that
        is fp16 or mixed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, would run code, does not hold exactly one PVT, or contradicts
            `config_overrides`.
    """
    return model_from_official_state_dict(unwrap_checkpoint(read_checkpoint(path)), **config_overrides)


def model_from_official_state_dict(
    state_dict: Mapping[str, torch.Tensor], **config_overrides: Any
) -> PvtForImageClassification | PvtBackbone:
    """[`load_official_checkpoint`] for a flat official state dict in memory."""
    weights = convert_official_state_dict(state_dict)
    config = _read_config(weights, config_overrides)
    with torch.device("meta"):
        model = (PvtForImageClassification if "classifier.weight" in weights else PvtBackbone)(config)

    # A backbone builds no stage after its last output, so those weights are dropped. No others may be left over.
    encoder = model.pvt.encoder if isinstance(model, PvtForImageClassification) else model.encoder
    stages = range(len(encoder.block), NUM_STAGES)
    unbuilt = tuple(f"encoder.{part}.{stage}." for part in ("patch_embeddings", "block") for stage in stages)
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith(unbuilt)}
    in_file = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    in_model = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    wrong = sorted(key for key in in_file | in_model if in_file.get(key) != in_model.get(key))
    if wrong:
        raise ValueError(
            "The shapes of the tensors do not fit together. In the file, and in the PVT that the others imply:\n  "
            + "\n  ".join(f"{key}: {in_file.get(key, 'none')}, {in_model.get(key, 'none')}" for key in wrong)
        )

    dtypes = {tensor.dtype for tensor in weights.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 and torch.float16 not in dtypes else torch.float32
    model.load_state_dict({key: tensor.to(dtype) for key, tensor in weights.items()}, assign=True)
    return model.eval()


def _read_config(weights: Mapping[str, torch.Tensor], overrides: dict[str, Any]) -> PvtConfig:
    """The configuration that the tensors (under our keys) imply. Other wrong shapes show when the model is built."""
    is_classifier = "classifier.weight" in weights
    encoder = "pvt.encoder." if is_classifier else "encoder."

    def shape(name: str, ndim: int) -> torch.Size:
        size = weights[name].shape
        if len(size) != ndim or 0 in size:
            raise ValueError(f"{name} has shape {tuple(size)}, expected {ndim} dimensions, none of them 0.")
        return size

    stages, depths = range(NUM_STAGES), depths_of(weights)
    patches = [shape(f"{encoder}patch_embeddings.{s}.projection.weight", 4) for s in stages]
    hidden_sizes, patch_sizes = [patch[0] for patch in patches], [patch[2] for patch in patches]
    mlp_sizes = [shape(f"{encoder}block.{s}.0.mlp.dense1.weight", 2)[0] for s in stages]
    for s in stages:
        if mlp_sizes[s] % hidden_sizes[s]:
            raise ValueError(
                f"The MLP of stage {s + 1} is {mlp_sizes[s]} wide, expected a multiple of its width {hidden_sizes[s]}."
            )
    reductions = [f"{encoder}block.{s}.0.attention.self.sequence_reduction.weight" for s in stages]
    fields: dict[str, Any] = {
        "num_channels": patches[0][1],
        "depths": list(depths),
        "hidden_sizes": hidden_sizes,
        "patch_sizes": patch_sizes,
        "strides": patch_sizes,
        "mlp_ratios": [mlp_sizes[s] // hidden_sizes[s] for s in stages],
        "sequence_reduction_ratios": [shape(name, 4)[2] if name in weights else 1 for name in reductions],
        "qkv_bias": f"{encoder}block.0.0.attention.self.query.bias" in weights,
    }
    if is_classifier:
        fields["num_labels"] = shape("classifier.weight", 2)[0]
    for name in fields.keys() & overrides.keys():
        wanted = overrides[name]
        if (list(wanted) if isinstance(wanted, tuple) else wanted) != fields[name]:
            raise ValueError(f"{name}={wanted} was given, but the tensors have {name}={fields[name]}: leave it out.")
    if is_classifier and len(overrides.get("id2label") or range(fields["num_labels"])) != fields["num_labels"]:
        raise ValueError(
            f"id2label has {len(overrides['id2label'])} names, but the head has {fields['num_labels']} classes."
        )
    if not is_classifier and not {"out_features", "out_indices"} & overrides.keys():
        fields["out_features"] = [f"stage{s + 1}" for s in stages]

    rows = [shape(f"{encoder}patch_embeddings.{s}.position_embeddings", 3)[1] - (s == NUM_STAGES - 1) for s in stages]
    fields["num_attention_heads"] = overrides.get("num_attention_heads") or _infer_heads(hidden_sizes)
    fields["image_size"] = overrides.get("image_size") or _infer_image_size(rows, patch_sizes)
    config = PvtConfig(**{**overrides, **fields})
    size = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    grids = config.grid_sizes(*size)
    if [height * width for height, width in grids] != rows:
        raise ValueError(
            f"Position tables have {rows} patch rows in the four stages, but images of {size[0]}x{size[1]} give grids "
            f"{grids}: pass the size that the model was built for, image_size=(height, width)."
        )
    return config


def _infer_heads(hidden_sizes: list[int]) -> list[int]:
    default = [1, 2, 5, 8]
    if all(size % heads == 0 for size, heads in zip(hidden_sizes, default)):
        return default
    if all(size % 64 == 0 for size in hidden_sizes):
        return [size // 64 for size in hidden_sizes]
    raise ValueError(
        f"The number of heads cannot be read from the tensors, and neither [1, 2, 5, 8] heads nor heads of 64 "
        f"channels fit the widths {hidden_sizes}: pass num_attention_heads, one number per stage."
    )


def _infer_image_size(rows: list[int], patch_sizes: list[int]) -> int:
    """The smallest square size with this stage-1 grid. Larger sizes with that grid have the same four grids."""
    side = math.isqrt(rows[0])
    if side * side != rows[0]:
        raise ValueError(
            f"Position tables have {rows} patch rows in the four stages, and the number in stage 1 is no square: pass "
            "the size that the model was built for, image_size=(height, width)."
        )
    return side * patch_sizes[0]
