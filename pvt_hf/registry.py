"""Registers the installed package with Transformers' Auto classes. Takes over the `pvt` model type (`exist_ok`)."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import IMAGE_PROCESSOR_MAPPING, AutoConfig

from .families import FAMILIES, load


class _OnDemand(type):
    """
    Stands for a class in an Auto class, and imports its file when an attribute is first read.

    Simpler ways do not do the same. Transformers' own lazy mappings import from `transformers.models` only. Importing
    all heads at once costs little (0.06 of the 4 s of `import pvt_hf`), but then a release of Transformers that breaks
    one head would break every model.
    """

    def __getattr__(cls, name: str) -> Any:
        return getattr(load(cls.__dict__["path"]), name)


def _on_demand(path: str) -> type:
    file, _, name = path.partition(".")
    return _OnDemand(name, (), {"__module__": f"{__package__}.models.{file}", "path": path})


def register() -> None:
    """Makes `AutoX.from_pretrained` and `AutoX.from_config` build this package's classes for its model types."""
    for family in FAMILIES.values():
        config_class = load(family.config)
        find = _on_demand if family.stages else load  # a model without a head is what all others need
        AutoConfig.register(family.model_type, config_class, exist_ok=True)
        for model in family.models:
            for auto_class in model.auto_classes:
                # Not `AutoX.register`, which reads an attribute of the class
                mapping = getattr(transformers, auto_class)._model_mapping
                mapping.register(config_class, find(model.path), exist_ok=True)
        # Not `AutoImageProcessor.register`, which first looks up what the name "PvtConfig" stands for natively. That
        # imports the native processors and, without torchvision, prints a warning that concerns nobody.
        processors: Any = {backend: find(path) for backend, path in family.processors.items()}
        IMAGE_PROCESSOR_MAPPING.register(config_class, processors, exist_ok=True)
