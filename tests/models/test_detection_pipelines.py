"""
`pipeline("object-detection")` serves all three detectors, and `pipeline("image-segmentation")` Mask R-CNN, with the
package and with nothing but the files that travel: quietly, on images of many modes and sizes.

Two clean processes do it all: one that imports pvt_hf, and saves the models with their code; one that cannot import it.
Their answers are compared with the processor and the model called by hand.

    python -m pytest tests/models/test_detection_pipelines.py
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import pvt_hf

from ..support.clean_process import run_python, without_progress_bars
from ..support.common import randomize, tiny_pvt_config
from .test_segmentation_pipelines import PICTURES, save_pictures


NAMES = dict(enumerate("cat dog cow car bus jet".split()))
STAGES = ["stage1", "stage2", "stage3", "stage4"]
DETR = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=10)  # fmt: skip
CONFIGS = {
    "retinanet": lambda: pvt_hf.RetinaNetConfig(
        backbone_config=tiny_pvt_config(out_features=STAGES[1:]), fpn_channels=16, num_head_convs=1, id2label=NAMES
    ),
    "mask_rcnn": lambda: pvt_hf.MaskRcnnConfig(
        backbone_config=tiny_pvt_config(out_features=STAGES), fpn_channels=16, box_head_size=32, num_mask_convs=1,
        id2label=NAMES,
    ),
    "pvt_detr": lambda: pvt_hf.PvtDetrConfig(
        backbone_config=tiny_pvt_config(out_features=STAGES[3:]), id2label=NAMES, **DETR
    ),
}  # fmt: skip
CLASSES = {
    "retinanet": ("RetinaNetForObjectDetection", "Detection"),
    "mask_rcnn": ("MaskRcnnForInstanceSegmentation", "Instance"),
    "pvt_detr": ("PvtDetrForObjectDetection", "Detr"),
}
THRESHOLD = 0.3

ANSWER = """
import json, sys
from pathlib import Path

def answer(folder, root, kind, **remote):
    import numpy as np
    from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

    # the large picture once, where there are masks of it, too
    large = kind == "package" and folder.name == "mask_rcnn"
    files = [file for file in sorted((root / "images").iterdir()) if large or file.stem != "RGB"]
    detect = pipeline("object-detection", model=str(folder), threshold=0.3, **remote)
    found = {file.stem: detect(str(file), threshold=0.3) for file in files}
    masks = None
    if "InstanceSegmentation" in type(detect.model).__name__:
        segment = pipeline("image-segmentation", model=str(folder), **remote)
        masks = {}
        for file in files:
            segments = segment(str(file), threshold=0.3, overlap_mask_area_threshold=0.0)
            masks[file.stem] = [[s["label"], s["score"], int((np.asarray(s["mask"]) > 0).sum()),
                                 list(np.asarray(s["mask"]).shape)] for s in segments]
    model = AutoModelForObjectDetection.from_pretrained(folder, **remote)
    return {
        "found": found,
        "masks": masks,
        "modules": [type(part).__module__ for part in (model, detect.image_processor)],
        "pil": type(AutoImageProcessor.from_pretrained(folder, backend="pil", **remote)).__name__,
        "same": type(model) is type(detect.model),
    }
"""

WITH_THE_PACKAGE = (
    ANSWER
    + """
root, classes = Path(sys.argv[1]), json.loads(sys.argv[2])
import pvt_hf
from transformers import AutoModelForObjectDetection

lazy = ["modeling_retinanet", "modeling_mask_rcnn", "modeling_pvt_detr", "image_processing_detection"]
imported_early = [name for name in lazy if f"pvt_hf.models.{name}" in sys.modules]
answers = {name: answer(root / name, root, "package") for name in classes}
code = {}
for name, (model_name, processor_name) in classes.items():
    model_class, processor_class = getattr(pvt_hf, model_name), getattr(pvt_hf, f"Pvt{processor_name}ImageProcessor")
    model_class.config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForObjectDetection")
    processor_class.register_for_auto_class()
    model = AutoModelForObjectDetection.from_pretrained(root / name)
    model.config.auto_map = {}
    model.save_pretrained(root / f"{name}-code")
    processor_class.from_pretrained(root / name).save_pretrained(root / f"{name}-code")
    config = json.loads((root / f"{name}-code" / "config.json").read_text())
    if name == "mask_rcnn":  # it serves several Auto classes
        target = config["auto_map"]["AutoModelForObjectDetection"]
        for auto in ("AutoModelForInstanceSegmentation", "AutoModelForImageSegmentation"):
            config["auto_map"][auto] = target
        (root / f"{name}-code" / "config.json").write_text(json.dumps(config))
    code[name] = sorted(path.name for path in (root / f"{name}-code").glob("*.py"))
print(json.dumps({"imported early": imported_early, "code": code, "answers": answers}))
"""
)

WITHOUT_THE_PACKAGE = (
    ANSWER
    + """
root, classes = Path(sys.argv[1]), json.loads(sys.argv[2])
sys.modules["pvt_hf"] = None  # it cannot be imported
answers = {name: answer(root / f"{name}-code", root, "code", trust_remote_code=True) for name in classes}
print(json.dumps({"answers": answers}))
"""
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder per detector, with its processor, and pictures."""
    root = tmp_path_factory.mktemp("detectors")
    (root / "images").mkdir()
    save_pictures(root / "images")
    for name, (model_name, processor_name) in CLASSES.items():
        torch.manual_seed(0)
        model = randomize(getattr(pvt_hf, model_name)(CONFIGS[name]()))
        with torch.no_grad():
            for part in model.modules():
                if isinstance(part, torch.nn.Conv2d | torch.nn.Linear) and "regressor" in str(part):
                    part.weight.mul_(0.1)
        model.save_pretrained(root / name)
        processor_class = getattr(pvt_hf, f"Pvt{processor_name}ImageProcessor")
        processor_class(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def package(root):
    return run_python(WITH_THE_PACKAGE, root, json.dumps(CLASSES), warm=True)


@pytest.fixture(scope="module")
def code(root, package, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        return run_python(WITHOUT_THE_PACKAGE, root, json.dumps(CLASSES), cwd=root)


def test_with_the_package(package):
    assert without_progress_bars(package.stderr) == ""
    result = json.loads(package.stdout)
    assert result["imported early"] == []
    for name, answer in result["answers"].items():
        processor = CLASSES[name][1].lower()
        assert answer["modules"] == [f"pvt_hf.models.modeling_{name}", f"pvt_hf.models.image_processing_{processor}"]
        assert answer["same"] and answer["pil"] == f"Pvt{CLASSES[name][1]}ImageProcessorPil"


@pytest.mark.parametrize("name", CLASSES)
def test_with_the_code_that_travels(name, package, code):
    files = json.loads(package.stdout)["code"][name]
    assert {"configuration_pvt.py", "modeling_pvt.py", f"configuration_{name}.py", f"modeling_{name}.py"} <= set(files)
    others = {"retinanet", "mask_rcnn", "pvt_detr", "semantic_fpn", "trans2seg"} - {name}
    assert not {f"modeling_{other}.py" for other in others} & set(files)
    assert "not supported" not in code.stderr and "rror" not in code.stderr, code.stderr
    answer = json.loads(code.stdout)["answers"][name]
    assert all(module.startswith("transformers_modules.") for module in answer["modules"]), answer
    assert answer["same"] and answer["pil"] == f"Pvt{CLASSES[name][1]}ImageProcessorPil"


@pytest.mark.parametrize("name", CLASSES)
def test_detections_of_the_pipelines(name, root, package, code):
    model = getattr(pvt_hf, CLASSES[name][0]).from_pretrained(root / name).eval()
    processor = getattr(pvt_hf, f"Pvt{CLASSES[name][1]}ImageProcessor").from_pretrained(root / name)
    total = 0
    for kind, process in (("package", package), ("code", code)):
        answer = json.loads(process.stdout)["answers"][name]
        for picture, found in answer["found"].items():
            width, height, ending = PICTURES[picture]
            image = ImageOps.exif_transpose(Image.open(root / "images" / f"{picture}.{ending}")).convert("RGB")
            size = (image.height, image.width)
            assert size == ((width, height) if picture == "upright" else (height, width))
            with torch.no_grad():
                outputs = model(**processor(image, return_tensors="pt"))
            expected = processor.post_process_object_detection(outputs, THRESHOLD, [size])[0]
            assert len(found) == len(expected["scores"]), (kind, picture)
            total += len(found)
            for one, score, label, box in zip(found, *(expected[key] for key in ("scores", "labels", "boxes"))):
                assert one["label"] == NAMES[label.item()] and one["score"] == pytest.approx(score.item(), abs=1e-4)
                # the pipeline cuts coordinates to whole numbers
                assert np.allclose([*one["box"].values()], box.tolist(), atol=1.01)
                assert 0 <= one["box"]["xmin"] <= one["box"]["xmax"] <= size[1]
                assert 0 <= one["box"]["ymin"] <= one["box"]["ymax"] <= size[0]
    assert total > 20


def test_masks_of_the_pipeline(root, package, code):
    model = pvt_hf.MaskRcnnForInstanceSegmentation.from_pretrained(root / "mask_rcnn").eval()
    processor = pvt_hf.PvtInstanceImageProcessor.from_pretrained(root / "mask_rcnn")
    several = 0
    for process in (package, code):
        masks = json.loads(process.stdout)["answers"]["mask_rcnn"]["masks"]
        for picture, found in masks.items():
            image = Image.open(root / "images" / f"{picture}.{PICTURES[picture][2]}")
            image = ImageOps.exif_transpose(image).convert("RGB")
            size = (image.height, image.width)
            with torch.no_grad():
                outputs = model(**processor(image, return_tensors="pt"))
            expected = processor.post_process_instance_segmentation(
                outputs, THRESHOLD, overlap_mask_area_threshold=0.0, target_sizes=[size]
            )[0]
            assert len(found) == len(expected["segments_info"]), picture
            several += len(found) > 1
            for (label, score, area, shape), info in zip(found, expected["segments_info"]):
                assert tuple(shape) == size and label == NAMES[info["label_id"]]
                assert score == pytest.approx(info["score"], abs=1e-4)
                expected_area = (expected["segmentation"] == info["id"]).sum().item()
                assert abs(area - expected_area) <= max(2, 0.01 * expected_area)  # a pixel at the threshold
    assert several > 3
