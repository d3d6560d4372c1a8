"""
The programs of docs/deployment.md that need no PyTorch prepare images as the image processors do.

    pytest tests/export/test_page_examples.py
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import pvt_hf

from ..support.pages import DOCS, blocks


class Recorder:
    """Stands for the session of ONNX Runtime: keeps the images that it gets, and answers nothing."""

    images: ClassVar = []

    def __init__(self, path: str):
        self.size = json.loads((Path(path).parent / "export_report.json").read_text())["fixed_size"]

    def get_inputs(self):
        return [SimpleNamespace(shape=[1, 3, *self.size])]

    def run(self, names, inputs):
        self.images.append(inputs["pixel_values"])
        return [np.zeros((1, 1))] if len(names) == 1 else [[[]]] * len(names)


@pytest.mark.parametrize("name", ["classifier-onnx", "detector-onnx"])
def test_the_examples_of_the_page_prepare_images_like_the_image_processor(name, tmp_path, monkeypatch):
    """To two grey levels, by which Pillow and torchvision resize differently."""
    size = {"max_height": 128, "max_width": 192}
    if name == "classifier-onnx":
        processor = pvt_hf.PvtImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    else:
        processor = pvt_hf.PvtDetectionImageProcessor(size=size, do_pad=True, pad_size={"height": 128, "width": 192})
    processor.save_pretrained(tmp_path / name)
    (tmp_path / name / "labels.txt").write_text("nothing\n")
    (tmp_path / name / "export_report.json").write_text('{"fixed_size": [128, 192]}')
    (code,) = [one.code for one in blocks(DOCS / "deployment.md") if "onnxruntime.I" in one.code and name in one.code]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxruntime.InferenceSession", Recorder)
    monkeypatch.setattr(Recorder, "images", [])
    for width, height in [(75, 75), (97, 64), (64, 97), (201, 83), (83, 201), (131, 202), (333, 250), (20, 3000)]:
        pixels = np.random.default_rng(width).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width])
        for file in ("china.jpg", "scene.png"):
            image.save(tmp_path / file, format="png")
        exec(code, {})
        expected = processor(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(Recorder.images.pop(), expected, atol=2 / 255 / 0.224 + 1e-6)
