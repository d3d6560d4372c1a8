"""
The official PVT's state dicts (https://github.com/whai362/PVT) in this package's layout, and back.

Both layouts hold the same numbers. The official one fuses key and value into one matrix and counts stages from 1. Ours,
the layout of Transformers' native PVT, has separate matrices and counts from 0. A key without a counterpart, or a
missing one, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


NUM_STAGES = 4  # fixed in the official code

# Modules with weight and bias: official name, then ours. If ours are two, the official rows are split between them.
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
# Keys that dense-prediction models do not have
_CLASSIFIER_KEYS = (
    ("cls_token", "pvt.encoder.patch_embeddings.3.cls_token"),
    ("norm.weight", "pvt.encoder.layer_norm.weight"),
    ("norm.bias", "pvt.encoder.layer_norm.bias"),
    ("head.weight", "classifier.weight"),
    ("head.bias", "classifier.bias"),
)


@dataclass(frozen=True)
class _Layout:
    """The facts that decide which keys a checkpoint has, under either naming."""

    depths: tuple[int, ...]
    has_reduction: tuple[bool, ...]
    qkv_bias: bool
    is_classifier: bool


def convert_official_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Renames the keys of an official state dict to ours and splits key/value matrices. Values and dtypes do not change.

    Args:
        state_dict: a flat state dict in the official layout, of a classifier (official `classification/pvt.py`) or of a
            dense-prediction model, which has no cls_token, norm and head (official `detection/pvt.py`).
            [`unwrap_checkpoint`] flattens a checkpoint.

    Returns:
        The state dict of a [`PvtForImageClassification`], or of a [`PvtBackbone`] with all four stages for a
        dense-prediction model. Tensors are contiguous copies that share no memory, as safetensors requires.

    Raises:
        ValueError: keys have no counterpart or are missing (the message lists them all), or a value is not a
            floating-point tensor.
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
    The exact inverse of [`convert_official_state_dict`]: official names, fused key/value matrices, the same bits.

    Args:
        state_dict: of a [`PvtForImageClassification`] or a [`PvtBackbone`] with four stages.

    Returns:
        A flat state dict in the official layout.

    Raises:
        ValueError: as [`convert_official_state_dict`].
    """
    pairs = _key_pairs(_our_layout(state_dict))
    _check_keys(state_dict, [key for _, ours in pairs for key in ours], "PvtForImageClassification or PvtBackbone")
    return {official: _own_copy(torch.cat([state_dict[key] for key in ours])) for official, ours in pairs}


def depths_of(keys: Iterable[str]) -> tuple[int, ...]:
    """Blocks per stage, read from the keys of our layout."""
    return _our_layout(keys).depths


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
        has_reduction[-1] = False  # a cls token cannot be reduced on a grid; a key that claims it has no counterpart
    # At least one block per stage: if a stage is absent, its keys are then listed as missing.
    depths = tuple(max(len(stage), 1) for stage in blocks)
    return _Layout(depths, tuple(has_reduction), qkv_bias, is_classifier)


def _key_pairs(layout: _Layout) -> list[tuple[str, tuple[str, ...]]]:
    """Each official key of the layout, with our keys that its rows go to, in order."""
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
