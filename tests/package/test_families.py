"""
The rows of `pvt_hf/families.py` agree with what they name, and with what is written down a second time: the package's
names for type checkers, and the Auto classes in each modeling file, which registers itself when it travels.

    python -m pytest tests/package/test_families.py
"""

import ast
import json

import pytest
import transformers
from transformers.models.auto import modeling_auto

import pvt_hf
from pvt_hf.families import FAMILIES, class_name, load

from ..support.clean_process import REPOSITORY, run_python


def names_for_type_checkers() -> dict[str, str]:
    """What `if TYPE_CHECKING:` in `pvt_hf/__init__.py` imports: "file.Class" by name."""
    tree = ast.parse((REPOSITORY / "pvt_hf" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        name.name: f"{statement.module.removeprefix('models.')}.{name.name}"
        for statement in block.body
        for name in statement.names
    }


def test_type_checkers_see_every_name():
    """If this fails after a new row: add its names to `if TYPE_CHECKING:` and to `__all__` in pvt_hf/__init__.py."""
    paths = {class_name(path): path for family in FAMILIES.values() for path in family.paths}
    shown = names_for_type_checkers()
    assert shown.items() >= paths.items()
    for name in shown.keys() - paths.keys():  # those that no row has
        assert pvt_hf._ON_DEMAND[name] in (f"models.{shown[name].partition('.')[0]}", shown[name].rpartition(".")[0])
    assert set(paths) < set(pvt_hf.__all__)
    for name in pvt_hf.__all__:
        assert getattr(pvt_hf, name).__name__ == name


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_row_agrees_with_its_classes(family):
    config_class = load(family.config)
    assert config_class.model_type == family.model_type
    if family.stages:
        # Trans2Seg reads the first and the last of the feature maps that it gets
        assert set(family.stages) <= set(config_class().backbone_config.out_features)
    for model in family.models:
        assert load(model.path).config_class is config_class
    pillow, torchvision = (load(family.processors[backend]) for backend in ("pil", "torchvision"))
    assert torchvision().to_dict()["image_processor_type"] == pillow.__name__.removesuffix("Pil")
    assert hasattr(torchvision, "post_process_instance_segmentation") == family.masks


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_auto_classes_of_a_row_are_those_that_build_it(family):
    """Of a PVT, an Auto class holds what stands for the class; a head's file has put the class itself there."""
    config_class, expected = load(family.config), {}
    for model in family.models:
        expected |= {name: repr(load(model.path)) for name in model.auto_classes}
    found = {
        name: repr(auto_class._model_mapping[config_class])
        for name, auto_class in vars(modeling_auto).items()
        if name.startswith("Auto") and config_class in (getattr(auto_class, "_model_mapping", None) or ())
    }
    assert found == expected
    assert transformers.AutoConfig.for_model(family.model_type).__class__ is config_class


LAZY = """
import json, sys
import transformers
import pvt_hf
from pvt_hf.families import FAMILIES

configs = [pvt_hf.__getattr__(family.config.partition(".")[2]) for family in FAMILIES.values()]
mapping = transformers.IMAGE_PROCESSOR_MAPPING
names = [sorted(kind.__name__ for kind in mapping[config].values()) for config in configs]
modules = lambda: sorted(name for name in sys.modules if name.startswith("pvt_hf.models."))
before = modules()
built = type(transformers.AutoModelForSemanticSegmentation.from_config(configs[1]())).__name__
print(json.dumps([names, before, modules(), built]))
"""


def test_models_are_imported_when_they_are_used():
    names, before, after, built = json.loads(run_python(LAZY, warm=True).stdout)
    assert names == [sorted(map(class_name, family.processors.values())) for family in FAMILIES.values()]
    assert not [name for name in before if name.rpartition(".")[2].startswith(("modeling", "image_processing"))]
    assert "pvt_hf.models.modeling_semantic_fpn" in after and built == "SemanticFpnForSemanticSegmentation"
    assert "pvt_hf.models.modeling_trans2seg" not in after


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'pvt_hf' has no attribute 'PvtForEverything'"):
        getattr(pvt_hf, "PvtForEverything")  # noqa: B009
