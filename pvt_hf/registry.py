"""
Registers the package with Transformers' Auto classes. Takes over the `pvt` model type (`exist_ok`).

Importing the Auto classes takes seconds, so `import pvt_hf` does not import them. A finder on `sys.meta_path` waits
until a program does, and registers the package's classes right after.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .families import FAMILIES, load


class _OnDemand(type):
    """
    Stands for a class in an Auto class, and imports its file when an attribute is first read.

    Why nothing simpler: Transformers' own lazy mappings import from `transformers.models` only. Importing
    all heads at once costs little (0.06 of the 4 s of importing the Auto classes), but then a release of Transformers
    that breaks one head would break every model.
    """

    def __getattr__(cls, name: str) -> Any:
        return getattr(load(cls.__dict__["path"]), name)


def _on_demand(path: str) -> type:
    file, _, name = path.partition(".")
    return _OnDemand(name, (), {"__module__": f"{__package__}.models.{file}", "path": path})


def _register_configs(auto: Any) -> None:
    for family in FAMILIES.values():
        auto.AutoConfig.register(family.model_type, load(family.config), exist_ok=True)


def _register_models(auto: Any) -> None:
    for family in FAMILIES.values():
        for model in family.models:
            for auto_class in model.auto_classes:
                # Not `AutoX.register`, which reads an attribute of the class
                mapping = getattr(auto, auto_class)._model_mapping
                mapping.register(load(family.config), _on_demand(model.path), exist_ok=True)


def _register_processors(auto: Any) -> None:
    for family in FAMILIES.values():
        # Not `AutoImageProcessor.register`, which first looks up what the name "PvtConfig" stands for natively. That
        # imports the native processors and, without torchvision, prints a warning that does not apply here.
        processors: Any = {backend: _on_demand(path) for backend, path in family.processors.items()}
        auto.IMAGE_PROCESSOR_MAPPING.register(load(family.config), processors, exist_ok=True)


_REGISTER: dict[str, Callable[[Any], None] | None] = {
    "transformers.models.detr.configuration_detr": None,  # our configuration of DETR inherits from it
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_processors,
}


class _AutoClassFinder(MetaPathFinder):
    """
    Loads the modules of the Auto classes as Python does, and registers the package's classes in each one after it has
    been executed. These modules import each other, and importing one of our configurations may import another of them
    (`DetrConfig` does). So modules that have been executed wait in a queue until none is being executed.
    """

    def __init__(self) -> None:
        self.running = 0
        self.waiting: list[ModuleType] = []

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _REGISTER else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self.running += 1
                try:
                    run(module)
                    self.waiting.append(module)
                finally:
                    self.running -= 1
                self.register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        """Registers with the queued modules, unless one is being executed or registered with right now."""
        while self.waiting and not self.running:
            self.running += 1
            module = self.waiting.pop(0)
            try:
                if register_with := _REGISTER[module.__name__]:
                    register_with(module)
            finally:
                self.running -= 1


def register() -> None:
    """Makes `AutoX.from_pretrained` and `AutoX.from_config` build this package's classes for its model types."""
    finder = _AutoClassFinder()
    sys.meta_path.insert(0, finder)
    finder.waiting = [sys.modules[name] for name in _REGISTER if name in sys.modules]
    finder.register()
