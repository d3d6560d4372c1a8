"""
No field of a configuration or an image processor takes NaN or infinity: in a file, as an override, in the constructor
and in the processor's call.

    python -m pytest tests/models/test_configuration_finite.py
"""

import json
import math

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import ResNetConfig

from pvt_hf.families import FAMILIES, load
from pvt_hf.models.configuration_finite import check_finite_fields

from ..support.common import random_images


PROCESSORS = {path: load(path) for family in FAMILIES.values() for path in family.processors.values()}


def number_fields(settings: dict) -> dict:
    """Every field that holds a number or a list of numbers, with NaN in it."""
    fields = {}
    for name, value in settings.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            fields[name] = math.nan
        elif isinstance(value, (list, tuple)) and value and isinstance(value[-1], (int, float)):
            fields[name] = [*value[:-1], math.nan]
    return fields


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_field_of_a_configuration(family, tmp_path):
    config_class = load(family.config)
    settings = config_class().to_dict()
    fields = number_fields(settings)
    assert len(fields) > 5
    for name, value in fields.items():
        with pytest.raises(ValueError, match=rf"{name}.* must be a finite number, got nan"):
            config_class.from_dict({**settings, name: value})
        with pytest.raises(ValueError, match=rf"{name}.* must be a finite number, got nan"):
            config_class.from_dict(settings, **{name: value})
        with pytest.raises((ValueError, StrictDataclassError), match=name):  # may be of a wrong type, too
            config_class(**{name: value})
    (tmp_path / "config.json").write_text(json.dumps({**settings, **dict([fields.popitem()])}))
    with pytest.raises(ValueError, match="must be a finite number, got nan"):
        config_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_true_and_text_are_no_numbers(family):
    config_class = load(family.config)
    settings = config_class().to_dict()
    for name, value in number_fields(settings).items():
        if name in ("num_labels", "out_indices", "chunk_size_feed_forward"):
            continue
        for wrong in (True, "8"):
            given = [*value[:-1], wrong] if isinstance(value, list) else wrong
            with pytest.raises(ValueError, match=rf"{name}"):
                config_class.from_dict({**settings, name: given})
    with pytest.raises(ValueError, match="num_labels must be from 1 to 1,000,000"):
        config_class(num_labels=True)
    if family.name == "pvt":
        with pytest.raises(ValueError, match=r"depths must be a list of 4 integers, .* got \[True, 2, 2, 2\]"):
            config_class(depths=[True, 2, 2, 2])
        assert config_class(depths=(np.int64(1), 1, 1, 1), drop_path_rate=0).depths[0] == 1


@pytest.mark.parametrize(
    "backbone", [{"layer_norm_eps": math.inf}, ResNetConfig().to_dict() | {"depths": [3, math.nan]}]
)
def test_fields_of_a_backbone(backbone):
    config_class = load(FAMILIES["semantic_fpn"].config)
    with pytest.raises(ValueError, match=r"backbone_config\.(layer_norm_eps|depths\[1\]) must be a finite number"):
        config_class(backbone_config=backbone)


def test_overrides_of_a_head_are_validated():
    config_class = load(FAMILIES["semantic_fpn"].config)
    with pytest.raises(ValueError, match="classifier_dropout_prob is a probability"):
        config_class.from_dict(config_class().to_dict(), classifier_dropout_prob=1.5)
    config, unused = config_class.from_dict({}, head_channels=8, other=1, return_unused_kwargs=True)
    assert config.head_channels == 8 and unused == {"other": 1}


SETTINGS = {
    "image_mean": [0.5, math.nan, 0.5], "image_std": [1.0, 1.0, math.inf], "rescale_factor": math.nan,
    "size": {"shortest_edge": math.nan}, "crop_size": {"height": math.nan, "width": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_field_of_a_processor(name, tmp_path):
    processor_class = PROCESSORS[name]
    processor = processor_class()
    content = json.loads(processor.to_json_string())
    own = number_fields(content)
    for field, value in {**SETTINGS, **own}.items():
        match = rf"{field}.* must be a finite number, got (nan|inf)"
        with pytest.raises(ValueError, match=match):
            processor_class(**{field: value})
        with pytest.raises(ValueError, match=match):
            processor_class.from_dict(content, **{field: value})
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**content, field: value}))
        with pytest.raises(ValueError, match=match):
            processor_class.from_pretrained(tmp_path)
    image = random_images(1, 64, 64)[0].clamp(0, 1)
    for field in ("image_mean", "rescale_factor"):
        with pytest.raises(ValueError, match=rf"{field}.* must be a finite number, got nan"):
            processor(image, **{field: SETTINGS[field]})


def test_numbers_of_any_kind():
    for value in (np.float32("nan"), np.array([0, np.inf]), {"a": [(1, -math.inf)]}):
        with pytest.raises(ValueError, match="^field.* must be a finite number"):
            check_finite_fields({"field": value})
    check_finite_fields({"a": 10**400, "b": "nan", "c": None, "d": True, "e": [0.5, {"f": np.arange(3)}], "g": float})


@pytest.mark.parametrize("path", PROCESSORS)
@pytest.mark.parametrize(
    ("field", "value"),
    [("rescale_factor", 0), ("rescale_factor", 0.0), ("image_mean", ["NaN", 0, 0]), ("image_std", "1")],
)
def test_settings_of_a_processor_that_cannot_be_used(path, field, value):
    processor = PROCESSORS[path]()
    for use in (
        lambda: PROCESSORS[path](**{field: value}),
        lambda: PROCESSORS[path].from_dict({**processor.to_dict(), field: value}),
        lambda: processor(random_images(1, 40, 40).clamp(0, 1)[0], **{field: value}),
    ):
        with pytest.raises((ValueError, TypeError, StrictDataclassError), match=field):
            use()
