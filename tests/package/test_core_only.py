"""
The package works with its core dependencies alone: no torchvision, no datasets, no accelerate.

The wheel is built and installed into `.venv-core`, a second environment beside the development one (kept between
runs while pyproject.toml, constraints.txt and the interpreter stay as they are). A model and a processor are saved and
opened there; the numbers are compared with those of this environment, which has everything.

    python -m pytest tests/package/test_core_only.py
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

import pvt_hf

from ..support.clean_process import REPOSITORY, run_python, without_progress_bars
from ..support.distributions import uv, wheel_to_test


ENVIRONMENT = REPOSITORY / ".venv-core"
CONSTRAINTS = REPOSITORY / "constraints.txt"
# What the extras bring and the core must do without
EXTRAS = (
    "accelerate",
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


def install_core(wheel: Path) -> Path:
    """Installs the package's `wheel` with its core dependencies into `.venv-core`; returns its interpreter."""
    python = ENVIRONMENT / "bin" / "python"
    inputs = (REPOSITORY / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes() + sys.version.encode()
    stamp, wanted = ENVIRONMENT / "installed-from", hashlib.sha256(inputs).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        uv("venv", "--python", sys.executable, ENVIRONMENT)
    # Always: the code may have changed. A complete environment takes nothing else from this.
    uv("pip", "install", "--python", python, "--constraint", CONSTRAINTS, "--reinstall-package", "pvt-hf", wheel)
    stamp.write_text(wanted)
    return python


@pytest.fixture(scope="module")
def core_python(tmp_path_factory, pytestconfig):
    wheel = wheel_to_test(tmp_path_factory.mktemp("sources"))
    with FileLock(pytestconfig.cache.mkdir("core-environment") / "lock"):
        yield install_core(wheel)


CORE = """
import importlib.util, json, sys
from pathlib import Path

found = [name for name in sys.argv[3].split(",") if importlib.util.find_spec(name)]

import pvt_hf
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, pipeline

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
try:
    pvt_hf.PvtImageProcessor()
    message = ""
except ImportError as error:
    message = str(error)
print(json.dumps({
    "found": found,
    "package": pvt_hf.__file__,
    "processor": type(processor).__name__,
    "native processor": type(AutoImageProcessor.from_pretrained(native)).__name__,
    "model": type(model).__module__,
    "feature maps": [list(feature_map.shape) for feature_map in backbone(pixel_values).feature_maps],
    "missing": report.missing,
    "message": message,
    "answer": pipeline("image-classification", model=str(folder))(image),
}))
"""


def test_core_dependencies_suffice(core_python, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((150, 111), Image.Resampling.BICUBIC).save(tmp_path / "image.png")
    process = run_python(
        CORE, tmp_path / "model", tmp_path / "image.png", ",".join(EXTRAS), python=core_python, cwd=tmp_path
    )
    assert without_progress_bars(process.stderr) == ""
    facts = json.loads(process.stdout)
    assert facts["found"] == []
    assert Path(facts["package"]).is_relative_to(ENVIRONMENT)
    assert facts["processor"] == "PvtImageProcessorPil" and facts["model"] == "pvt_hf.models.modeling_pvt"
    assert facts["feature maps"] == [[1, 16, 16, 16], [1, 128, 2, 2]] and facts["missing"] == []
    assert "PvtImageProcessor requires the Torchvision library" in facts["message"]
    assert facts["native processor"] == "PvtImageProcessorPil"
    assert len(facts["answer"]) == 5

    computed = load_file(tmp_path / "model" / "computed.safetensors")
    pil = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    image = Image.open(tmp_path / "image.png")
    assert torch.equal(pil(image, return_tensors="pt").pixel_values, computed["pixel_values"])
    with torch.no_grad():
        model = AutoModel.from_pretrained(tmp_path / "model").eval()
        # another process may split the work among another number of threads
        torch.testing.assert_close(
            model(computed["pixel_values"]).last_hidden_state, computed["last_hidden_state"], atol=1e-5, rtol=1e-5
        )
    # The same folder, where torchvision is there
    torchvision = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert type(torchvision) is pvt_hf.PvtImageProcessor
    difference = torchvision(image, return_tensors="pt").pixel_values - computed["pixel_values"]
    # the stated agreement of the two: two grey levels of 255, in units of the smallest standard deviation
    assert difference.abs().max() <= 2 / 255 / 0.224 + 1e-6


DETECTORS = """
import json
import pvt_hf

messages = {}
for name in ("RetinaNetForObjectDetection", "MaskRcnnForInstanceSegmentation"):
    model_class = getattr(pvt_hf, name)
    try:
        model_class(model_class.config_class())
    except ImportError as error:
        messages[name] = str(error)
print(json.dumps(messages))
"""


def test_detectors_without_torchvision_say_what_they_need(core_python, tmp_path):
    messages = json.loads(run_python(DETECTORS, python=core_python, cwd=tmp_path).stdout)
    assert len(messages) == 2
    for name, message in messages.items():
        assert name in message and "pip install torchvision" in message
