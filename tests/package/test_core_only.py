"""
The package works with its core dependencies alone: no torchvision, no datasets, no accelerate.

The wheel is installed into `.venv-core`, a second environment beside the development one. One process there saves and
opens a model and a processor; its numbers are compared with those of this environment, which has everything.

    python -m pytest tests/package/test_core_only.py
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

import pvt_hf

from ..support.clean_process import REPOSITORY, run_python, without_progress_bars
from ..support.distributions import CORE_ENVIRONMENT
from ..support.imports import read_imports, travelling_files


pytestmark = pytest.mark.slow
# What the extras bring and the core must do without
EXTRAS = (
    "accelerate",
    "av",
    "datasets",
    "evaluate",
    "matplotlib",
    "pandas",
    "peft",
    "pycocotools",
    "sklearn",
    "timm",
    "torchdata",
    "torchvision",
)


CORE = """
import importlib.util, json, sys
from pathlib import Path

found = [name for name in sys.argv[3].split(",") if importlib.util.find_spec(name)]

import pvt_hf
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, pipeline
from transformers.dynamic_module_utils import check_imports

import pvt_hf.export.folder, pvt_hf.inference.files  # export and predict need no extra for photographs and torch

folder, image = Path(sys.argv[1]), Image.open(sys.argv[2])
torch.manual_seed(0)
config = pvt_hf.PvtConfig(
    image_size=64, hidden_sizes=[16, 32, 80, 128], depths=[1, 1, 1, 1], mlp_ratios=[2, 2, 2, 2], num_labels=5
)
pvt_hf.PvtForImageClassification(config).save_pretrained(folder)
pvt_hf.PvtImageProcessorPil(size=73, crop_size=64).save_pretrained(folder)

processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
pixel_values = processor(image, return_tensors="pt").pixel_values
with torch.no_grad():
    hidden_state = model(pixel_values).last_hidden_state
save_file({"pixel_values": pixel_values, "last_hidden_state": hidden_state}, folder / "computed.safetensors")

backbone = AutoBackbone.from_config(AutoConfig.from_pretrained(folder, out_features=["stage1", "stage4"]))
report = pvt_hf.load_pretrained_backbone(backbone, folder)
native = folder / "native"
native.mkdir()
config.save_pretrained(native)
settings = {"image_processor_type": "PvtImageProcessor", "size": {"height": 224, "width": 224}}
(native / "preprocessor_config.json").write_text(json.dumps(settings))


def refusal(make):
    try:
        make()
    except ImportError as error:
        return str(error)


detectors = [pvt_hf.RetinaNetForObjectDetection, pvt_hf.MaskRcnnForInstanceSegmentation]
print(json.dumps({
    "found": found,
    "package": pvt_hf.__file__,
    "processor": type(processor).__name__,
    "native processor": type(AutoImageProcessor.from_pretrained(native)).__name__,
    "model": type(model).__module__,
    "feature maps": [list(feature_map.shape) for feature_map in backbone(pixel_values).feature_maps],
    "missing": report.missing,
    "message": refusal(pvt_hf.PvtImageProcessor),
    "detectors": {kind.__name__: refusal(lambda: kind(kind.config_class())) for kind in detectors},
    "imports": {file: check_imports(file) for file in sys.argv[4:]},
    "answer": pipeline("image-classification", model=str(folder))(image),
}))
"""


@pytest.fixture(scope="module")
def work(core_python, tmp_path_factory):
    """A folder with the image and the model, and what the process found."""
    folder = tmp_path_factory.mktemp("core")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((150, 111), Image.Resampling.BICUBIC).save(folder / "image.png")
    arguments = [folder / "model", folder / "image.png", ",".join(EXTRAS), *travelling_files(REPOSITORY)]
    return folder, run_python(CORE, *arguments, python=core_python, cwd=folder)


def test_core_dependencies_suffice(work):
    folder, process = work
    assert without_progress_bars(process.stderr) == ""
    facts = json.loads(process.stdout)
    assert facts["found"] == []
    assert Path(facts["package"]).is_relative_to(CORE_ENVIRONMENT)
    assert facts["processor"] == "PvtImageProcessorPil" and facts["model"] == "pvt_hf.models.modeling_pvt"
    assert facts["feature maps"] == [[1, 16, 16, 16], [1, 128, 2, 2]] and facts["missing"] == []
    assert "PvtImageProcessor requires the Torchvision library" in facts["message"]
    assert facts["native processor"] == "PvtImageProcessorPil"
    assert len(facts["answer"]) == 5

    computed = load_file(folder / "model" / "computed.safetensors")
    pil = AutoImageProcessor.from_pretrained(folder / "model", backend="pil")
    image = Image.open(folder / "image.png")
    assert torch.equal(pil(image, return_tensors="pt").pixel_values, computed["pixel_values"])
    with torch.no_grad():
        model = AutoModel.from_pretrained(folder / "model").eval()
        # another process may split the work among another number of threads
        torch.testing.assert_close(
            model(computed["pixel_values"]).last_hidden_state, computed["last_hidden_state"], atol=1e-5, rtol=1e-5
        )
    # The same folder, where torchvision is there
    torchvision = AutoImageProcessor.from_pretrained(folder / "model")
    assert type(torchvision) is pvt_hf.PvtImageProcessor
    difference = torchvision(image, return_tensors="pt").pixel_values - computed["pixel_values"]
    # the stated agreement of the two: two grey levels of 255, in units of the smallest standard deviation
    assert difference.abs().max() <= 2 / 255 / 0.224 + 1e-6


def test_detectors_without_torchvision_say_what_they_need(work):
    messages = json.loads(work[1].stdout)["detectors"]
    assert len(messages) == 2
    for name, message in messages.items():
        assert name in message and "pip install torchvision" in message


def test_imports_of_travelling_files_are_met_by_the_core(work):
    """Transformers checks them before it runs code from the Hub, and tells which other files it needs."""
    checked = json.loads(work[1].stdout)["imports"]
    assert len(checked) > 20
    for file, found in checked.items():
        expected = {one.module.rpartition(".")[2] for one in read_imports(Path(file), REPOSITORY) if one.level}
        assert set(found) == expected, file
