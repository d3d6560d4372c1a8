"""
Official PVT checkpoints (https://github.com/whai362/PVT) to this package's models, and back.

Two layouts hold the same numbers. The official one has one key/value matrix per block and counts stages from 1; ours,
which is that of Transformers' native PVT, has a key and a value matrix and counts from 0. The mapping is complete: a
key that is left over or missing is an error, never a silent loss.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.configuration_pvt import PvtConfig
from ..models.modeling_pvt import PvtBackbone, PvtForImageClassification
from .official_files import read_checkpoint, unwrap_checkpoint


NUM_STAGES = 4  # the official code has no other number

# Modules with weight and bias: official name, then ours; two of ours share the rows of one official matrix.
_STAGE_MODULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("patch_embed{i}.proj", ("patch_embeddings.{s}.projection",)),
    ("patch_embed{i}.norm", ("patch_embeddings.{s}.layer_norm",)),
)
_BLOCK_MODULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("norm1", ("layer_norm_1",)),
    ("attn.q", ("attention.self.query",)),
    ("attn.kv", ("attention.self.key", "attention.self.value")),
    ("attn.sr", ("attention.self.sequence_reduction",)),
    ("attn.norm", ("attention.self.layer_norm",)),
    ("attn.proj", ("attention.output.dense",)),
    ("norm2", ("layer_norm_2",)),
    ("mlp.fc1", ("mlp.dense1",)),
    ("mlp.fc2", ("mlp.dense2",)),
)
# What the dense-prediction model does without
_CLASSIFIER_KEYS = (
    ("cls_token", "pvt.encoder.patch_embeddings.3.cls_token"),
    ("norm.weight", "pvt.encoder.layer_norm.weight"),
    ("norm.bias", "pvt.encoder.layer_norm.bias"),
    ("head.weight", "classifier.weight"),
    ("head.bias", "classifier.bias"),
)


@dataclass(frozen=True)
class _Layout:
    """What decides which keys a checkpoint has; the same for both namings."""

    depths: tuple[int, ...]
    has_reduction: tuple[bool, ...]
    qkv_bias: bool
    is_classifier: bool


def convert_official_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Renames an official state dict to ours and splits its key/value matrices. Values and dtypes stay as they are.

    Args:
        state_dict: flat, in the official layout, of a classifier (official `classification/pvt.py`) or of a
            dense-prediction model, which has no cls_token, norm and head (official `detection/pvt.py`).
            [`unwrap_checkpoint`] makes it flat.

    Returns:
        the state dict of [`PvtForImageClassification`], or of [`PvtBackbone`] with all four stages for a
        dense-prediction model. Every tensor is a contiguous copy of its own, so that safetensors can write it.

    Raises:
        ValueError: a key has no counterpart or a counterpart is missing (all are listed), or a value is no tensor.
    """
    pairs = _key_pairs(_official_layout(state_dict))
    _check_keys(
        state_dict, [official for official, _ in pairs], "the official PVT (our own layout: see from_pretrained)"
    )
    converted: dict[str, torch.Tensor] = {}
    for official, ours in pairs:
        tensor = state_dict[official]
        if tensor.shape[0] % len(ours):
            raise ValueError(f"{official} holds key and value and needs an even number of rows: {tuple(tensor.shape)}.")
        converted.update(zip(ours, (_own_copy(part) for part in tensor.chunk(len(ours)))))
    return converted


def convert_to_official_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The exact inverse of [`convert_official_state_dict`]: the same bits under the official names, key and value in one.

    Args:
        state_dict: of a [`PvtForImageClassification`] or a [`PvtBackbone`], with four stages.

    Raises:
        ValueError: as [`convert_official_state_dict`].
    """
    pairs = _key_pairs(_our_layout(state_dict))
    _check_keys(state_dict, [key for _, ours in pairs for key in ours], "PvtForImageClassification or PvtBackbone")
    return {official: _own_copy(torch.cat([state_dict[key] for key in ours])) for official, ours in pairs}


def load_official_checkpoint(path: str | Path, **config_overrides: Any) -> PvtForImageClassification | PvtBackbone:
    """
    Opens a file of the official release, of the official trainer or of a detector or segmentor built on it.

    Args:
        path: a `.pth` file or a `.safetensors` file in the official layout; see [`read_checkpoint`] and
            [`unwrap_checkpoint`] for what may be around the weights.
        config_overrides: fields of [`PvtConfig`], for what tensors do not tell:
            `num_attention_heads` (otherwise [1, 2, 5, 8] if these divide the widths, else heads of 64 channels as in
            all published models); `image_size` as (height, width) for tables of a non-square grid; rates, labels,
            `out_features`. A field that contradicts the tensors is an error.

    Returns:
        [`PvtForImageClassification`]; or [`PvtBackbone`] (all four stages unless `out_features` says otherwise) if the
        file has no cls_token, norm and head. In eval mode, on the CPU, in the dtype of the file (fp32 if that is fp16
        or mixed). Depths, widths, channels, classes, ratios, patch sizes, bias and construction size are read from the
        tensors. A size that was no multiple of the patch size becomes the next lower one (230 becomes 228): same grids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, tries to execute code, or holds something else than one PVT.
    """
    return model_from_official_state_dict(unwrap_checkpoint(read_checkpoint(path)), **config_overrides)


def model_from_official_state_dict(
    state_dict: Mapping[str, torch.Tensor], **config_overrides: Any
) -> PvtForImageClassification | PvtBackbone:
    """[`load_official_checkpoint`] for a flat official state dict that is in memory already."""
    weights = convert_official_state_dict(state_dict)
    config = _read_config(weights, config_overrides)
    with torch.device("meta"):
        model = (PvtForImageClassification if "classifier.weight" in weights else PvtBackbone)(config)

    # A backbone builds no stage after its last output; nothing else may be left over.
    encoder = model.pvt.encoder if isinstance(model, PvtForImageClassification) else model.encoder
    stages = range(len(encoder.block), NUM_STAGES)
    unbuilt = tuple(f"encoder.{part}.{stage}." for part in ("patch_embeddings", "block") for stage in stages)
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith(unbuilt)}
    in_file = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    in_model = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    wrong = sorted(key for key in in_file | in_model if in_file.get(key) != in_model.get(key))
    if wrong:
        raise ValueError(
            "The tensors do not make up one PVT. Shapes in the file, and in the PVT that the other tensors imply:\n  "
            + "\n  ".join(f"{key}: {in_file.get(key, 'none')}, {in_model.get(key, 'none')}" for key in wrong)
        )

    dtypes = {tensor.dtype for tensor in weights.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 and torch.float16 not in dtypes else torch.float32
    model.load_state_dict({key: tensor.to(dtype) for key, tensor in weights.items()}, assign=True)
    return model.eval()


def _official_layout(keys: Iterable[str]) -> _Layout:
    return _read_layout(
        keys,
        block_pattern=r"block([1-4])\.(\d+)\.(.+)",
        first_stage=1,
        reduction=("attn.sr.", "attn.norm."),
        qkv_biases=("attn.q.bias", "attn.kv.bias"),
        classifier_keys=[official for official, _ in _CLASSIFIER_KEYS],
    )


def _our_layout(keys: Iterable[str]) -> _Layout:
    return _read_layout(
        keys,
        block_pattern=r"(?:pvt\.)?encoder\.block\.([0-3])\.(\d+)\.(.+)",
        first_stage=0,
        reduction=("attention.self.sequence_reduction.", "attention.self.layer_norm."),
        qkv_biases=tuple(f"attention.self.{name}.bias" for name in ("query", "key", "value")),
        classifier_keys=[ours for _, ours in _CLASSIFIER_KEYS],
    )


def _read_layout(
    keys: Iterable[str],
    block_pattern: str,
    first_stage: int,
    reduction: tuple[str, ...],
    qkv_biases: tuple[str, ...],
    classifier_keys: list[str],
) -> _Layout:
    blocks: list[set[str]] = [set() for _ in range(NUM_STAGES)]
    has_reduction, qkv_bias = [False] * NUM_STAGES, False
    for match in filter(None, (re.fullmatch(block_pattern, str(key)) for key in keys)):
        stage, name = int(match[1]) - first_stage, match[3]
        blocks[stage].add(match[2])
        has_reduction[stage] |= name.startswith(reduction)
        qkv_bias |= name in qkv_biases
    is_classifier = not set(classifier_keys).isdisjoint(keys)
    if is_classifier:
        has_reduction[-1] = False  # the cls token has no place in a grid: such a key is left over
    # At least one block, so that those of an absent stage are listed as missing
    depths = tuple(max(len(stage), 1) for stage in blocks)
    return _Layout(depths, tuple(has_reduction), qkv_bias, is_classifier)


def _key_pairs(layout: _Layout) -> list[tuple[str, tuple[str, ...]]]:
    """Every official key of the layout with the keys of ours that its rows go to, in order."""
    encoder = "pvt.encoder." if layout.is_classifier else "encoder."
    pairs: list[tuple[str, tuple[str, ...]]] = []

    def add_module(official: str, ours: Iterable[str], has_bias: bool = True) -> None:
        for parameter in ("weight", "bias") if has_bias else ("weight",):
            pairs.append((f"{official}.{parameter}", tuple(f"{encoder}{name}.{parameter}" for name in ours)))

    for s, depth in enumerate(layout.depths):
        pairs.append((f"pos_embed{s + 1}", (f"{encoder}patch_embeddings.{s}.position_embeddings",)))
        for official, ours in _STAGE_MODULES:
            add_module(official.format(i=s + 1), [name.format(s=s) for name in ours])
        for j in range(depth):
            for official, ours in _BLOCK_MODULES:
                if official in ("attn.sr", "attn.norm") and not layout.has_reduction[s]:
                    continue
                has_bias = layout.qkv_bias or official not in ("attn.q", "attn.kv")
                add_module(f"block{s + 1}.{j}.{official}", [f"block.{s}.{j}.{name}" for name in ours], has_bias)
    if layout.is_classifier:
        pairs += [(official, (key,)) for official, key in _CLASSIFIER_KEYS]
    return pairs


def _check_keys(state_dict: Mapping[str, Any], expected: list[str], owner: str) -> None:
    leftover = sorted(str(key) for key in set(state_dict).difference(expected))
    missing = sorted(set(expected).difference(state_dict))
    if leftover or missing:
        raise ValueError(
            f"The state dict is not one of {owner}.\n"
            f"Keys without a counterpart ({len(leftover)}): {', '.join(leftover) or 'none'}\n"
            f"Missing keys ({len(missing)}): {', '.join(missing) or 'none'}"
        )
    for key, value in state_dict.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or not value.is_floating_point():
            kind = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{key} is {kind}, expected a floating-point tensor with at least one dimension.")


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _read_config(weights: Mapping[str, torch.Tensor], overrides: dict[str, Any]) -> PvtConfig:
    """The configuration that the tensors (our keys) imply. Wrong shapes elsewhere show when the model is built."""
    is_classifier = "classifier.weight" in weights
    encoder = "pvt.encoder." if is_classifier else "encoder."

    def shape(name: str, ndim: int) -> torch.Size:
        size = weights[name].shape
        if len(size) != ndim or 0 in size:
            raise ValueError(f"{name} has shape {tuple(size)}, expected {ndim} dimensions, none of them 0.")
        return size

    stages, depths = range(NUM_STAGES), _our_layout(weights).depths
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
        f"The tensors do not tell the number of heads, and neither [1, 2, 5, 8] heads nor heads of 64 channels fit "
        f"the widths {hidden_sizes}: pass num_attention_heads, one number per stage."
    )


def _infer_image_size(rows: list[int], patch_sizes: list[int]) -> int:
    """Smallest size with a stage-1 grid of that many patches; every larger one with it has the same four grids."""
    side = math.isqrt(rows[0])
    if side * side != rows[0]:
        raise ValueError(
            f"The position tables have {rows} patch rows, and those of stage 1 make no square: pass the size that the "
            "model was built for, image_size=(height, width)."
        )
    return side * patch_sizes[0]
