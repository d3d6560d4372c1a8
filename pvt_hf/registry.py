"""
Registers the package with Transformers' Auto classes. Takes over the `pvt` model type (`exist_ok`).

Importing the Auto classes takes seconds, so `import pvt_hf` alone does not: the registration happens when a program
imports them, or models of this package.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .families import FAMILIES, load


AUTO_MODULES = tuple(
    f"transformers.models.auto.{name}_auto" for name in ("configuration", "image_processing", "modeling")
)


class _OnDemand(type):
    """
    Stands for a class in an Auto class, and imports its file when an attribute is first read.

    Simpler ways do not do the same. Transformers' own lazy mappings import from `transformers.models` only. Importing
    all heads at once costs little (0.06 of the 4 s of importing the Auto classes), but then a release of Transformers
    that breaks one head would break every model.
    """

    def __getattr__(cls, name: str) -> Any:
        return getattr(load(cls.__dict__["path"]), name)


def _on_demand(path: str) -> type:
    file, _, name = path.partition(".")
    return _OnDemand(name, (), {"__module__": f"{__package__}.models.{file}", "path": path})


def register() -> None:
    """Makes `AutoX.from_pretrained` and `AutoX.from_config` build this package's classes for its model types."""
    import transformers
    from transformers import IMAGE_PROCESSOR_MAPPING, AutoConfig

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


class _AutoClassWatcher(MetaPathFinder):
    """Finds the files of the Auto classes as Python does, and registers as soon as the last of them has run."""

    def __init__(self) -> None:
        self.running = 0

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in AUTO_MODULES else None
        if spec is not None and spec.loader is not None:
            run: Any = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self.running += 1  # they import each other
                try:
                    run(module)
                finally:
                    self.running -= 1
                if not self.running:
                    register_now()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_now() -> None:
    """Registers, once: `pvt_hf.models` calls [`register`] when it is imported."""
    import_module(f"{__package__}.models")


def register_on_import() -> None:
    """Registers now if the Auto classes have been imported, otherwise as soon as they are."""
    if any(name in sys.modules for name in AUTO_MODULES):
        register_now()
    else:
        sys.meta_path.insert(0, _AutoClassWatcher())
