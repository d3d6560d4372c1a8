"""
`pipeline("image-segmentation")` serves both segmenters, with the package and with nothing but the files that travel:
quietly, with the right mask for every pixel, on images of many modes and sizes.

Two clean processes do it all: one that imports pvt_hf, and saves the models with their code; one that cannot import it.
Masks are compared with the processor and the model called by hand, and with the largest of all resized logits.

    python -m pytest tests/models/test_segmentation_pipelines.py
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers import SegformerImageProcessor

from pvt_hf import (
    PvtSemanticImageProcessor,
    SemanticFpnConfig,
    SemanticFpnForSemanticSegmentation,
    Trans2SegConfig,
    Trans2SegForSemanticSegmentation,
)

from ..support.clean_process import run_python, without_progress_bars
from ..support.common import randomize, tiny_pvt_config


NAMES = dict(enumerate("sky road car tree dog cat".split()))
MODELS = {
    "semantic_fpn": lambda: SemanticFpnForSemanticSegmentation(
        SemanticFpnConfig(
            backbone_config=tiny_pvt_config(out_features=["stage1", "stage2", "stage3", "stage4"]),
            fpn_channels=16, head_channels=8, id2label=NAMES,
        )
    ),
    "trans2seg": lambda: Trans2SegForSemanticSegmentation(
        Trans2SegConfig(
            backbone_config=tiny_pvt_config(out_features=["stage1", "stage4"]), hidden_size=32, encoder_layers=1,
            decoder_layers=1, num_attention_heads=4, head_channels=8, id2label=NAMES,
        )
    ),
}  # fmt: skip
# The modes that the pipeline's loader keeps intact: width and height, ending
PICTURES = {
    "L": (40, 40, "png"),
    "LA": (33, 200, "png"),
    "P": (200, 33, "png"),
    "RGBA": (64, 96, "png"),
    "CMYK": (120, 90, "tiff"),
    "1": (41, 77, "png"),
    "RGB": (3000, 2000, "jpg"),
    "upright": (80, 48, "jpg"),  # lies on its side, by its EXIF orientation
}


def save_pictures(folder) -> None:
    """Smooth random colours, so that resizing means something."""
    random = np.random.default_rng(0)
    for mode, (width, height, ending) in PICTURES.items():
        pixels = Image.fromarray(random.integers(0, 256, (4, 5, 4), dtype=np.uint8), "RGBA")
        image = pixels.resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if mode == "upright":
            exif[0x0112] = 6
        image = image if mode == "RGBA" else image.convert("RGB")
        image.convert("RGB" if mode == "upright" else mode).save(folder / f"{mode}.{ending}", exif=exif)


ANSWER = """
import json, sys
from pathlib import Path

def answer(folder, root, kind, **remote):
    \"\"\"Saves the label maps of pictures, and returns where the classes came from.\"\"\"
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

    segment = pipeline("image-segmentation", model=str(folder), **remote)
    label2id = {name: label for label, name in segment.model.config.id2label.items()}
    files = [file for file in sorted((root / "images").iterdir()) if kind == "package" or file.stem != "RGB"]
    maps = {}
    for file, found in zip(files, segment([str(file) for file in files]), strict=True):
        labels = [label2id[one["label"]] for one in found]
        masks = np.stack([np.asarray(one["mask"]) for one in found])
        assert len(set(labels)) == len(labels) and masks.dtype == np.uint8
        assert np.all(masks.sum(0, dtype=np.uint16) == 255)  # every pixel is in one mask
        maps[file.stem] = np.array(labels, dtype=np.uint8)[masks.argmax(0)]
    assert [one["label"] for one in segment(Image.open(files[0]))] == [one["label"] for one in segment(str(files[0]))]
    np.savez(root / f"{folder.name}-{kind}.npz", **maps)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, **remote)
    return {
        "modules": [type(part).__module__ for part in (model, model.backbone, segment.image_processor)],
        "pil": type(AutoImageProcessor.from_pretrained(folder, backend="pil", **remote)).__name__,
        "same": type(model) is type(segment.model),
    }
"""

WITH_THE_PACKAGE = (
    ANSWER
    + """
root = Path(sys.argv[1])
import pvt_hf
from transformers import AutoModelForSemanticSegmentation
from transformers import IMAGE_PROCESSOR_MAPPING, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

# Heads and their processors are imported when something is asked of them, not of their names
heads = {pvt_hf.SemanticFpnConfig: "SemanticFpnForSemanticSegmentation",
         pvt_hf.Trans2SegConfig: "Trans2SegForSemanticSegmentation"}
processors = {"pil": "PvtSemanticImageProcessorPil", "torchvision": "PvtSemanticImageProcessor"}
lazy = ["modeling_semantic_fpn", "modeling_trans2seg", "image_processing_semantic"]
assert {*heads.values(), *processors.values()} < set(pvt_hf.__all__)
stand_ins = {config_class: MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[config_class] for config_class in heads}
for config_class, name in heads.items():
    assert stand_ins[config_class].__name__ == name
    assert {key: kind.__name__ for key, kind in IMAGE_PROCESSOR_MAPPING[config_class].items()} == processors
imported_early = [name for name in lazy if f"pvt_hf.models.{name}" in sys.modules]

answers = {name: answer(root / name, root, "package") for name in ("semantic_fpn", "trans2seg", "foreign")}

for config_class, name in heads.items():
    assert MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[config_class] is getattr(pvt_hf, name)
    assert stand_ins[config_class].config_class is config_class
    config_class.register_for_auto_class()
    getattr(pvt_hf, name).register_for_auto_class("AutoModelForSemanticSegmentation")
pvt_hf.PvtSemanticImageProcessor.register_for_auto_class()
code = {}
for name, target in (("semantic_fpn", "with.code-1"), ("trans2seg", "trans2seg-with-code")):
    AutoModelForSemanticSegmentation.from_pretrained(root / name).save_pretrained(root / target)
    of_the_model = sorted(path.name for path in (root / target).glob("*.py"))
    pvt_hf.PvtSemanticImageProcessor.from_pretrained(root / name).save_pretrained(root / target)
    code[name] = [of_the_model, sorted(path.name for path in (root / target).glob("*.py"))]
print(json.dumps({"imported early": imported_early, "code": code, "answers": answers}))
"""
)

WITHOUT_THE_PACKAGE = (
    ANSWER
    + """
root = Path(sys.argv[1])
sys.modules["pvt_hf"] = None  # it cannot be imported
folders = {"semantic_fpn": "with.code-1", "trans2seg": "moved"}
answers = {name: answer(root / folder, root, "code", trust_remote_code=True) for name, folder in folders.items()}
print(json.dumps({"answers": answers}))
"""
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three folders with a model and its processor, and pictures."""
    root = tmp_path_factory.mktemp("segmenters")
    (root / "images").mkdir()
    save_pictures(root / "images")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = randomize(make())
        with torch.no_grad():
            model.head.classifier.weight.mul_(20)  # so that several classes win somewhere
        model.save_pretrained(root / name)
        PvtSemanticImageProcessor(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(root / name)
        if name == "semantic_fpn":  # and the same with a processor of Transformers
            model.save_pretrained(root / "foreign")
            SegformerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(root / "foreign")
    return root


@pytest.fixture(scope="module")
def package(root):
    return run_python(WITH_THE_PACKAGE, root, warm=True)


@pytest.fixture(scope="module")
def code(root, package, tmp_path_factory):
    (root / "trans2seg-with-code").rename(root / "moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        return run_python(WITHOUT_THE_PACKAGE, root, cwd=root)


def test_with_the_package(package):
    assert without_progress_bars(package.stderr) == ""
    result = json.loads(package.stdout)
    assert result["imported early"] == []
    for name, answer in result["answers"].items():
        model = "semantic_fpn" if name == "foreign" else name
        *modules, processor = answer["modules"]
        assert modules == [f"pvt_hf.models.modeling_{model}", "pvt_hf.models.modeling_pvt"] and answer["same"]
        if name == "foreign":
            assert processor.startswith("transformers.models.segformer")
        else:
            assert (
                processor == "pvt_hf.models.image_processing_semantic"
                and answer["pil"] == "PvtSemanticImageProcessorPil"
            )


SHARED_CODE = [
    *(f"configuration_{name}.py" for name in ("head", "pvt", "semantic_fpn")),
    *(f"modeling_{name}.py" for name in ("fpn", "head", "pvt")),
]
MODEL_CODE = {
    "semantic_fpn": [*SHARED_CODE, "modeling_semantic_fpn.py"],
    "trans2seg": [*SHARED_CODE, "configuration_trans2seg.py", "modeling_semantic_fpn.py", "modeling_trans2seg.py"],
}
PROCESSOR_CODE = ["backends", "input", "semantic", "sizes"]


@pytest.mark.parametrize("name", MODELS)
def test_with_the_code_that_travels(name, package, code):
    of_the_model, all_files = json.loads(package.stdout)["code"][name]
    assert of_the_model == sorted(MODEL_CODE[name])
    assert all_files == sorted([*of_the_model, *(f"image_processing_{file}.py" for file in PROCESSOR_CODE)])
    assert "not supported" not in code.stderr and "rror" not in code.stderr, code.stderr
    answer = json.loads(code.stdout)["answers"][name]
    assert all(module.startswith("transformers_modules.") for module in answer["modules"]), answer
    assert answer["modules"][0].endswith(f".modeling_{name}")
    assert answer["pil"] == "PvtSemanticImageProcessorPil" and answer["same"]


CASES = {
    "semantic_fpn": ["semantic_fpn-package", "with.code-1-code"],
    "trans2seg": ["trans2seg-package", "moved-code"],
    "foreign": ["foreign-package"],
}


@pytest.mark.parametrize("name", CASES)
def test_masks(name, root, package, code):
    model_class = Trans2SegForSemanticSegmentation if name == "trans2seg" else SemanticFpnForSemanticSegmentation
    processor_class = SegformerImageProcessor if name == "foreign" else PvtSemanticImageProcessor
    model, processor = (kind.from_pretrained(root / name) for kind in (model_class, processor_class))
    several = 0
    files = [np.load(root / f"{file}.npz") for file in CASES[name]]
    for picture, (width, height, ending) in PICTURES.items():
        image = ImageOps.exif_transpose(Image.open(root / "images" / f"{picture}.{ending}")).convert("RGB")
        size = (width, height) if picture == "upright" else (height, width)
        with torch.no_grad():
            outputs = model.eval()(**processor(image, return_tensors="pt"))
            scores = F.interpolate(outputs.logits, size=size, mode="bilinear", align_corners=False)[0]
        best = scores.amax(0)
        expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        found = [torch.from_numpy(maps[picture]).long() for maps in files if picture in maps]
        assert len(found) == (1 if picture == "RGB" else len(files))
        for labels in (expected, *found):
            assert labels.shape == size, picture
            # Sums in another order: of two classes as good as equal either may win
            assert (best - scores.gather(0, labels[None])[0]).max() < 1e-4 * best.abs().max(), picture
            assert (labels != expected).float().mean() < 1e-3, picture
        several += len(expected.unique()) > 1
    assert several > len(PICTURES) / 2  # a wrong place or size would show
