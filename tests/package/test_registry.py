"""
`import pvt_hf` imports neither PyTorch nor the Auto classes. Whatever imports them first, they build this package's
classes from then on.

    pytest tests/package/test_registry.py
"""

import pytest

from ..support.clean_process import run_python


CHECK = """
from transformers import IMAGE_PROCESSOR_MAPPING, AutoBackbone, AutoConfig, AutoModel
import pvt_hf
config = AutoConfig.for_model("pvt", depths=[1, 1, 1, 1])
assert type(config) is pvt_hf.PvtConfig
assert type(AutoModel.from_config(config)) is pvt_hf.PvtModel
assert type(AutoBackbone.from_config(config)) is pvt_hf.PvtBackbone
assert type(AutoConfig.for_model("semantic_fpn")) is pvt_hf.SemanticFpnConfig in IMAGE_PROCESSOR_MAPPING
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import pvt_hf; from transformers import AutoBackbone",
        "import pvt_hf; import transformers.modeling_utils",
        "from transformers import pipeline; import pvt_hf",
        "import transformers.modeling_utils; import pvt_hf",
        "from pvt_hf.models.configuration_head import HeadConfig",
        "from pvt_hf.models.modeling_pvt_detr import PvtDetrForObjectDetection",
        "import pvt_hf; from transformers import DetrConfig",
    ],
)
def test_the_order_of_imports_does_not_matter(first):
    run_python(f"{first}\n{CHECK}")


def test_the_import_is_light():
    code = "import pvt_hf, sys; print(sorted({'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    assert run_python(code).stdout.strip() == "[]"
