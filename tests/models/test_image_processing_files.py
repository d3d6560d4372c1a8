"""
Files of image processors of every contract reload in a clean process: with the package, with the code that travels and
without torchvision.

    pytest tests/models/test_image_processing_files.py
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from ..support.clean_process import run_python
from ..support.image_processing_cases import CLASSES, noise
from ..support.image_processing_files import PREPARE, assert_prepares_the_same, reload


pytest_plugins = ["tests.support.image_processing_cases"]

# Of pycocotools' arrays, by NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCALE = {"size": {"shortest_edge": 64, "longest_edge": 100}, "image_mean": [0.5] * 3}
BOXES = {**SCALE, "size_divisor": 16, "return_segmentation_masks": True}
SETTINGS = {
    "pvt": {"size": {"shortest_edge": 100}, "crop_size": {"height": 96, "width": 96}, "image_mean": [0.5] * 3},
    "semantic": {**SCALE, "do_reduce_labels": True},
    "detection": {**BOXES, "nms_threshold": 0.6, "max_detections": 50},
    "detr": BOXES,
    "instance": BOXES,
}
# The files that a repository with a processor of each contract holds
BOX_FILES = {"backends", "bands", "boxes", "coco", "input", "masks", "sizes"}
FILES = {
    "pvt": {"backends", "bands", "input", "sizes", "pvt"},
    "semantic": {"backends", "bands", "input", "sizes", "semantic"},
    "detection": {*BOX_FILES, "detection"},
    "detr": {*BOX_FILES, "detr"},
    "instance": {*BOX_FILES, "instance"},
}


@pytest.fixture(scope="module")
def image_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(noise(50, 81)).save(file)
    return file


def test_saved_files_reload(tmp_path, image_file):
    """By either backend, whichever saved them."""
    cases = {}
    for contract, classes in CLASSES.items():
        for settings in (SETTINGS[contract], {}):
            for backend, processor_class in classes.items():
                name = f"{contract}-{backend}-{len(settings)}"
                cases[name] = contract, settings
                processor_class(**settings).save_pretrained(tmp_path / name)
                saved = json.loads((tmp_path / name / "preprocessor_config.json").read_text())
                assert saved["image_processor_type"] == classes["torchvision"].__name__ and "auto_map" not in saved
                assert settings.items() <= saved.items()
                assert saved["do_center_crop"] is (contract == "pvt")  # tells files of ours from native ones
                assert {"size", "resample", "do_convert_rgb", "do_resize", "do_rescale"} <= saved.keys()
                assert {"rescale_factor", "do_normalize", "image_mean", "image_std"} <= saved.keys()
    found = reload("package", tmp_path, image_file, {name: contract for name, (contract, _) in cases.items()})
    for (name, backend), (arrays, loaded) in found.items():
        contract, settings = cases[name]
        built = CLASSES[contract][backend]
        assert loaded == f"pvt_hf.models.image_processing_{contract} {built.__name__}"
        assert_prepares_the_same(arrays, built(**settings), image_file, contract)


@pytest.mark.parametrize("contract", CLASSES)
def test_arguments_win_over_saved_files(tmp_path, backend, contract):
    processor_class = CLASSES[contract][backend]
    processor_class(**SETTINGS[contract]).save_pretrained(tmp_path)
    loaded, unused = processor_class.from_pretrained(tmp_path, size=96, other=1, return_unused_kwargs=True)
    assert dict(loaded.size) == {"shortest_edge": 96} and loaded.image_mean == (0.5, 0.5, 0.5)
    assert unused["other"] == 1
    if contract != "pvt":  # there, an empty file is a native one
        assert processor_class.from_dict({}).to_dict() == processor_class().to_dict()


def test_settings_of_the_suppression(tmp_path, backend):
    processor_class = CLASSES["detection"][backend]
    assert processor_class().nms_threshold == 0.5 and processor_class().max_detections == 100
    processor_class(nms_threshold=0.6).save_pretrained(tmp_path)
    assert processor_class.from_pretrained(tmp_path).nms_threshold == 0.6
    assert processor_class.from_pretrained(tmp_path, nms_threshold=0.7).nms_threshold == 0.7


def save_with_code(folder: Path, contract: str, backend: str, monkeypatch) -> None:
    processor_class = CLASSES[contract][backend]
    monkeypatch.setattr(processor_class, "_auto_class", None)  # put back afterwards
    processor_class.register_for_auto_class()
    processor_class(**SETTINGS[contract]).save_pretrained(folder)


def test_code_travels_with_the_files(tmp_path, image_file, monkeypatch):
    """Also when saved again by the code that travelled."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    names = {}
    for number, contract in enumerate(CLASSES):
        # either backend brings both; one of each kind is enough, as the rest does not differ
        backends = ("pil", "torchvision") if contract == "pvt" else [("pil", "torchvision")[number % 2]]
        for backend in backends:
            names[f"{contract}-{backend}"] = contract
            save_with_code(tmp_path / f"{contract}-{backend}", contract, backend, monkeypatch)
    found = reload("code", tmp_path, image_file, names)
    for (name, backend), (arrays, loaded) in found.items():
        contract = names[name]
        built = CLASSES[contract][backend]
        assert loaded.startswith("transformers_modules.") and loaded.endswith(f" {built.__name__}")
        assert_prepares_the_same(arrays, built(**SETTINGS[contract]), image_file, contract)
        for folder in (tmp_path / name, tmp_path / name / f"again-{backend}"):
            saved = json.loads((folder / "preprocessor_config.json").read_text())
            assert saved["auto_map"]["AutoImageProcessor"] == {
                key: f"image_processing_{contract}.{value.__name__}" for key, value in CLASSES[contract].items()
            }
            files = {path.stem.removeprefix("image_processing_") for path in folder.glob("*.py")}
            files -= {"configuration_finite"}  # every processor checks its fields with it
            assert files == FILES[contract]
        monkeypatch.setattr(built, "_auto_class", None)
        assert "auto_map" not in built.from_pretrained(tmp_path / name).to_dict()  # would name code that is not there


WITHOUT_TORCHVISION = (
    PREPARE
    + """
import importlib.util
find_spec = importlib.util.find_spec
hidden = ("torchvision", "pycocotools")
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in hidden else find_spec(name, *rest)
sys.modules.update(dict.fromkeys(hidden))
from transformers import AutoImageProcessor
folder, file, contracts = sys.argv[1:]
image = Image.open(file)
for how in ("code", "package"):
    if how == "package":
        import pvt_hf
    for contract in json.loads(contracts):
        for backend in (None, "pil") if how == "code" else (None, "pil", "torchvision"):
            processor = AutoImageProcessor.from_pretrained(
                f"{folder}/{contract}", backend=backend, trust_remote_code=how == "code",
                **({} if contract in ("pvt", "semantic") else {"return_segmentation_masks": False}),
            )
            found = prepare(processor, image, contract)
            print(type(processor).__module__.partition(".")[0], type(processor).__name__, *found["pixel_values"].shape)
for name in json.loads(contracts).values():
    try:
        getattr(pvt_hf, name)()
    except ImportError as error:
        assert "Torchvision" in str(error)
        print("refused")
"""
)


@pytest.mark.slow
def test_without_torchvision_the_pillow_class_is_taken(tmp_path, image_file, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    contracts = {contract: classes["torchvision"].__name__ for contract, classes in CLASSES.items()}
    for contract in contracts:
        save_with_code(tmp_path / contract, contract, "torchvision", monkeypatch)
    printed = run_python(WITHOUT_TORCHVISION, tmp_path, image_file, json.dumps(contracts)).stdout.splitlines()
    shapes = {"pvt": "1 3 96 96", "semantic": "1 3 64 128"}
    expected = [
        f"{origin} {name}Pil {shapes.get(contract, '1 3 64 112')}"
        for origin, calls in (("transformers_modules", 2), ("pvt_hf", 3))
        for contract, name in contracts.items()
        for _ in range(calls)
    ]
    assert printed == [*expected, *["refused"] * len(contracts)]
