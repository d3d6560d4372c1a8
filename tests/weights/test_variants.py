"""
The configurations of the published variants: fields are replaced, and fields that do not exist are refused.

    python -m pytest tests/weights/test_variants.py
"""

import pytest

from pvt_hf import PvtConfig
from pvt_hf.weights.variants import get_config


def test_fields_and_arguments_are_replaced():
    config = get_config("pvt-small", num_labels=7, out_features=["stage2"], drop_path_rate=0.3, id2label=None)
    assert (
        config.to_dict()
        == PvtConfig(depths=[3, 4, 6, 3], num_labels=7, out_features=["stage2"], drop_path_rate=0.3).to_dict()
    )
    assert get_config("pvt-tiny", output_hidden_states=True, output_attentions=False).output_hidden_states


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"depth": [1, 1, 1, 1]}, "no field 'depth'; did you mean 'depths'?"),
        ({"num_label": 3}, "no field 'num_label'; did you mean 'num_labels'?"),
        ({"xyz": 1}, "no field 'xyz'."),
        ({"_out_features": ["stage1"]}, "no field '_out_features'; did you mean 'out_features'?"),
        ({"depths": [1, 1, 10**7, 1]}, "depths of stage 3"),
    ],
)
def test_unknown_fields_and_absurd_values_are_refused(overrides, words):
    with pytest.raises(ValueError) as error:
        get_config("pvt-small", **overrides)
    assert words in str(error.value)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="Unknown variant 'pvt-smal': choose one of pvt-tiny, pvt-small"):
        get_config("pvt-smal")
