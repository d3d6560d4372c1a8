"""
Loads the weights of a checkpoint, usually a classifier, into the backbone of a dense-prediction model.

Transformers builds the backbones of DETR, UperNet, MaskFormer and others from a configuration without loading weights,
and loading with strict=False says nothing if no weight matches. Here the result is a report or an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from ..models.modeling_pvt import PvtBackbone, PvtForImageClassification, PvtPatchEmbeddings, resize_position_table
from .official import load_official_checkpoint
from .opening import open_config
from .paths import folder_or_id, official_variant
from .release import from_official


@dataclass
class BackboneLoadReport:
    """
    What [`load_pretrained_backbone`] did, by parameter name in the backbone.

    Attributes:
        loaded: copied unchanged.
        resized: position tables, resized (bilinear) to the grid that the backbone was built for.
        missing: in the backbone but not in the checkpoint; left as they were.
        unused: in the checkpoint but not in the backbone: classifier, final norm, cls token, later stages.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, {len(self.resized)} position tables resized"]
        for name in ("missing", "unused"):
            names = getattr(self, name)
            lines.append(
                f"{len(names)} {name}" + (f": {', '.join(names[:6])}{' ...' * (len(names) > 6)}" * bool(names))
            )
        return "; ".join(lines)


def load_pretrained_backbone(model: nn.Module, checkpoint: str | Path, **hub_kwargs: Any) -> BackboneLoadReport:
    """
    Loads the weights of a classifier, or of another model's backbone, into the backbone of `model`, in place.

    PVT position tables are resized if the checkpoint was built for another image size.

    Args:
        model: a backbone, or a model with exactly one (`DetrForObjectDetection`, `UperNetForSemanticSegmentation`, this
            package's heads ...), PVT or another architecture.
        checkpoint: a folder or Hub id in Transformers' layout, of the same architecture or of a model whose `backbone`
            has that architecture (RetinaNet, Semantic FPN ...); an official PVT `.pth` file; or "official:pvt-small",
            which downloads one.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only` ... as in `from_pretrained`.

    Returns:
        A [`BackboneLoadReport`].

    Raises:
        ValueError: `model` has no backbone or several; the checkpoint cannot be read or has another model type; it is a
            PVT with other numbers of attention heads (which tensor shapes do not show); no weight matches; or a tensor
            other than a position table has another shape. `model` is unchanged.
        OSError: there is no such checkpoint.
    """
    backbone = _find_backbone(model)
    source, unused = _load_source(backbone, checkpoint, hub_kwargs)
    source_state, target_state = source.state_dict(), backbone.state_dict()

    report = BackboneLoadReport(unused=sorted({*unused, *(source_state.keys() - target_state.keys())}))
    new_state = {}
    for name, target in target_state.items():
        if name not in source_state:
            report.missing.append(name)
            continue
        tensor = source_state[name]
        if isinstance(backbone, PvtBackbone) and name.endswith("position_embeddings"):
            old, new = source.get_submodule(name.rpartition(".")[0]), backbone.get_submodule(name.rpartition(".")[0])
            assert isinstance(old, PvtPatchEmbeddings) and isinstance(new, PvtPatchEmbeddings)
            if old.grid != new.grid and tensor.shape[2] == target.shape[2]:
                tensor = resize_position_table(tensor.float(), old.grid, new.grid, new.num_prefix_rows)
                report.resized.append(name)
        if tensor.shape != target.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in {checkpoint} and {tuple(target.shape)} in the backbone: "
                f"{_advice(checkpoint)}"
            )
        if name not in report.resized:
            report.loaded.append(name)
        new_state[name] = tensor
    if not any(name in new_state for name, _ in backbone.named_parameters()):
        raise ValueError(
            f"Nothing in {checkpoint} matches the backbone ({type(backbone).__name__}). In the checkpoint: "
            f"{', '.join(report.unused[:4]) or 'nothing'} ...; in the backbone: {', '.join(list(target_state)[:4])} ..."
        )
    with torch.no_grad():
        for name, tensor in new_state.items():
            target_state[name].copy_(tensor)
    return report


def _advice(checkpoint: str | Path) -> str:
    is_official = Path(checkpoint).is_file()
    config = (
        f'load_official_checkpoint("{checkpoint}").config'
        if is_official
        else f'AutoConfig.from_pretrained("{checkpoint}", out_features=[...])'
    )
    return f"build the backbone with the configuration of the checkpoint, `{config}`."


def _find_backbone(model: nn.Module) -> PreTrainedModel:
    backbones = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and isinstance(module, BackboneMixin)
    ]
    if len(backbones) != 1:
        found = ", ".join(type(module).__name__ for module in backbones) or "none"
        raise ValueError(
            f"{type(model).__name__} must contain exactly one Transformers backbone, found: {found}. Pass the backbone "
            "itself, or a model that was built on one."
        )
    return backbones[0]


def _load_source(
    backbone: PreTrainedModel, checkpoint: str | Path, hub_kwargs: dict
) -> tuple[PreTrainedModel, list[str]]:
    """The checkpoint as a model with the backbone's parameter names, and the names of its unused weights."""
    if str(checkpoint).startswith((".", "/", "~")) and not Path(checkpoint).exists():
        raise FileNotFoundError(f"There is no {checkpoint} to start from: give a file, folder or Hub id.")
    official = official_variant(checkpoint)
    if official or Path(checkpoint).is_file():
        model = from_official(official)[0] if official else load_official_checkpoint(checkpoint)
        if isinstance(model, PvtForImageClassification):
            return model.pvt, [name for name in model.state_dict() if name.startswith("classifier.")]
        return model, []
    config, prefix = open_config(checkpoint, **hub_kwargs), backbone.base_model_prefix
    if config.model_type != backbone.config.model_type and getattr(config, "backbone_config", None) is not None:
        config, prefix = config.backbone_config, "backbone"
    if config.model_type != backbone.config.model_type:
        raise ValueError(
            f"{checkpoint} is a {config.model_type!r} checkpoint, the backbone is {backbone.config.model_type!r}."
        )
    if isinstance(backbone, PvtBackbone):
        heads, expected = list(config.num_attention_heads), list(backbone.config.num_attention_heads)
        if heads != expected:
            raise ValueError(
                f"{checkpoint} has {heads} attention heads per stage and the backbone {expected}: {_advice(checkpoint)}"
            )
    config.out_features = list(config.stage_names)[-1:]  # builds every stage
    # The class hides weights that it expects to be unused, but the report names them.
    attributes = {"_keys_to_ignore_on_load_unexpected": None, "base_model_prefix": prefix}
    source_class: Any = type(type(backbone).__name__, (type(backbone),), attributes)  # a subclass of PreTrainedModel
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        source, info = source_class.from_pretrained(
            folder_or_id(checkpoint), config=config, output_loading_info=True, **hub_kwargs
        )
    except SafetensorError as error:
        raise ValueError(f"The weights of {checkpoint} cannot be read: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    for name in info["missing_keys"]:
        module_name, _, parameter_name = name.rpartition(".")
        delattr(source.get_submodule(module_name), parameter_name)
    return source, [name.removeprefix(f"{prefix}.") for name in info["unexpected_keys"]]
