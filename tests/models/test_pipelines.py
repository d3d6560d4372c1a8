"""
Pipelines answer for every head what its model and processor give by hand, on images of many modes and sizes.

tests/hub/test_hub.py runs the same pipelines in clean processes, with the package and with nothing but the files that
travel. How Transformers itself saves those files is compared here with how this package does.

    python -m pytest tests/models/test_pipelines.py
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers import SegformerImageProcessor, pipeline

from pvt_hf.families import load
from pvt_hf.hub.repository import save_repository

from ..support.clean_process import run_python
from ..support.heads import HEADS, tiny_head


NAMES = dict(enumerate("sky road car tree dog cat".split()))
LABELS = {name: label for label, name in NAMES.items()}
SIZE = {"shortest_edge": 64, "longest_edge": 256}
THRESHOLD = 0.3
# The modes that the pipeline's loader keeps intact: width and height, ending
PICTURES = {
    "L": (40, 40, "png"),
    "LA": (33, 200, "png"),
    "P": (200, 33, "png"),
    "RGBA": (64, 96, "png"),
    "CMYK": (120, 90, "tiff"),
    "1": (41, 77, "png"),
    "RGB": (1500, 1000, "jpg"),
    "upright": (80, 48, "jpg"),  # lies on its side, by its EXIF orientation
}
SEGMENTERS = [name for name, family in HEADS.items() if family.task == "segmentation"]
DETECTORS = [name for name, family in HEADS.items() if family.task == "detection"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files by mode, of smooth random colours, so that resizing means something."""
    folder, random, files = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), {}
    for mode, (width, height, ending) in PICTURES.items():
        pixels = Image.fromarray(random.integers(0, 256, (4, 5, 4), dtype=np.uint8), "RGBA")
        image = pixels.resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if mode == "upright":
            exif[0x0112] = 6
        files[mode] = folder / f"{mode}.{ending}"
        image = image if mode == "RGBA" else image.convert("RGB")
        image.convert("RGB" if mode == "upright" else mode).save(files[mode], exif=exif)
    return files


def save_head(name, folder, processor=None):
    """A head in `folder`; returns the model and the processor there."""
    model = tiny_head(name, id2label=NAMES)
    if HEADS[name].task == "segmentation":
        with torch.no_grad():
            model.head.classifier.weight.mul_(20)  # so that several classes win somewhere
    processor = processor or load(HEADS[name].processor)(size=SIZE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def opened(file):
    """The image upright in RGB, and its (height, width), which is written down above."""
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    width, height, _ = PICTURES[file.stem]
    assert image.size == ((height, width) if file.stem == "upright" else (width, height))
    return image, (image.height, image.width)


@pytest.mark.parametrize(("name", "processor"), [*((name, None) for name in SEGMENTERS), ("semantic_fpn", "Segformer")])
def test_masks_of_semantic_segmentation(name, processor, pictures, tmp_path):
    """Every pixel is in the mask of the class with the largest of the resized logits; also with a foreign processor."""
    foreign = SegformerImageProcessor(size={"height": 64, "width": 96}) if processor else None
    model, processor = save_head(name, tmp_path, foreign)
    segment = pipeline("image-segmentation", model=str(tmp_path))
    assert type(segment.model) is type(model) and type(segment.image_processor) is type(processor)
    several = 0
    for file, found in zip(pictures.values(), segment([str(file) for file in pictures.values()]), strict=True):
        image, size = opened(file)
        labels = [LABELS[one["label"]] for one in found]
        masks = np.stack([np.asarray(one["mask"]) for one in found])
        assert len(set(labels)) == len(labels) and masks.dtype == np.uint8
        assert np.all(masks.sum(0, dtype=np.uint16) == 255)  # every pixel is in one mask
        chosen = torch.from_numpy(np.array(labels)[masks.argmax(0)])
        with torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits
        scores = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
        assert chosen.shape == size, file.stem
        # Sums in another order: of two classes as good as equal either may win
        best = scores.amax(0)
        assert (best - scores.gather(0, chosen[None])[0]).max() < 1e-4 * best.abs().max(), file.stem
        several += len(labels) > 1
    assert several > len(PICTURES) / 2  # a wrong place or size would show
    image = Image.open(pictures["LA"])
    assert [one["label"] for one in segment(image)] == [one["label"] for one in segment(str(pictures["LA"]))]


@pytest.mark.parametrize("name", DETECTORS)
def test_objects_of_detection(name, pictures, tmp_path):
    model, processor = save_head(name, tmp_path)
    detect, total = pipeline("object-detection", model=str(tmp_path)), 0
    assert type(detect.model) is type(model) and type(detect.image_processor) is type(processor)
    for file in pictures.values():
        image, size = opened(file)
        found = detect(str(file), threshold=THRESHOLD)
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        expected = processor.post_process_object_detection(outputs, THRESHOLD, [size])[0]
        assert len(found) == len(expected["scores"]), file.stem
        total += len(found)
        for one, score, label, box in zip(found, *(expected[key] for key in ("scores", "labels", "boxes"))):
            assert one["label"] == NAMES[label.item()] and one["score"] == pytest.approx(score.item(), abs=1e-4)
            # the pipeline cuts coordinates to whole numbers
            assert np.allclose([*one["box"].values()], box.tolist(), atol=1.01)
            assert 0 <= one["box"]["xmin"] <= one["box"]["xmax"] <= size[1]
            assert 0 <= one["box"]["ymin"] <= one["box"]["ymax"] <= size[0]
    assert total > 10


@pytest.mark.parametrize("name", [name for name in DETECTORS if HEADS[name].masks])
def test_masks_of_instance_segmentation(name, pictures, tmp_path):
    model, processor = save_head(name, tmp_path)
    segment, several = pipeline("image-segmentation", model=str(tmp_path)), 0
    for file in pictures.values():
        image, size = opened(file)
        found = segment(str(file), threshold=THRESHOLD, overlap_mask_area_threshold=0.0)
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        expected = processor.post_process_instance_segmentation(
            outputs, THRESHOLD, overlap_mask_area_threshold=0.0, target_sizes=[size]
        )[0]
        assert len(found) == len(expected["segments_info"]), file.stem
        several += len(found) > 1
        for one, info in zip(found, expected["segments_info"]):
            assert one["label"] == NAMES[info["label_id"]] and one["score"] == pytest.approx(info["score"], abs=1e-4)
            mask = np.asarray(one["mask"]) > 0
            assert mask.shape == size
            area = (expected["segmentation"] == info["id"]).sum().item()
            assert abs(mask.sum() - area) <= max(2, 0.01 * area)  # a pixel at the threshold
    assert several > 3


SAVE = """
import json, sys
from pathlib import Path
from pvt_hf.families import FAMILIES, load
from transformers import AutoImageProcessor

root = Path(sys.argv[1])
for name in sys.argv[2:]:
    family = FAMILIES[name]
    model_class, processor_class = load(family.models[0].path), load(family.processor)
    model_class.config_class.register_for_auto_class()
    for auto_class in family.models[0].auto_classes:
        model_class.register_for_auto_class(auto_class)
    processor_class.register_for_auto_class()
    model = model_class.from_pretrained(root / name)
    model.save_pretrained(root / f"{name}-with-code")
    AutoImageProcessor.from_pretrained(root / name).save_pretrained(root / f"{name}-with-code")
"""


def test_code_that_transformers_saves_is_the_code_of_a_repository(tmp_path):
    """
    `register_for_auto_class` and `save_pretrained` copy the same files and name the same classes as `save_repository`,
    but for one thing: Transformers keeps one Auto class per model.
    """
    for name in HEADS:
        save_repository(*save_head(name, tmp_path / name), tmp_path / f"{name}-repository")
    run_python(SAVE, tmp_path, *HEADS, warm=True)
    for name, family in HEADS.items():
        ours, theirs = tmp_path / f"{name}-repository", tmp_path / f"{name}-with-code"
        assert {file.name: file.read_text() for file in theirs.glob("*.py")} == {
            file.name: file.read_text() for file in ours.glob("*.py")
        }
        for file in ("config.json", "preprocessor_config.json"):
            expected = json.loads((ours / file).read_text())["auto_map"]
            found = json.loads((theirs / file).read_text())["auto_map"]
            for other in family.models[0].auto_classes[:-1]:
                expected.pop(other, None)
            assert found == expected, (name, file)
