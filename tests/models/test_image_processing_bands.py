"""
Images of six channels: every image processor prepares them, from arrays, tensors and TIFF files, as each channel would
be prepared alone, and a model of `num_channels=6` trains on them. What does not fit is refused.

    python -m pytest tests/models/test_image_processing_bands.py
"""

import io
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pvt_hf import PvtForImageClassification

from ..support.common import tiny_pvt_config
from ..support.heads import HEADS, boxes_only, random_label_maps, random_objects, tiny_head
from ..support.image_processing_cases import CLASSES


BANDS = {
    "image_mean": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.2, 0.3, 0.2, 0.3],
}
TASKS = list(CLASSES)


def bands(height: int, width: int, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    """(height, width, 6)"""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 6)).astype(dtype)


def pixels(processor, image) -> torch.Tensor:
    return processor(image, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("task", TASKS)
def test_channels_are_prepared_alone(task, backend):
    """Each channel three times, as an RGB image."""
    for image in (bands(50, 70), bands(90, 40, dtype=np.float32)):
        found = pixels(CLASSES[task][backend](size=64, do_center_crop=False, **BANDS), image)
        assert found.shape[1] == 6
        for channel in range(6):
            mean, std = ([BANDS[name][channel]] * 3 for name in ("image_mean", "image_std"))
            grey = np.repeat(image[..., channel, None], 3, axis=2)
            alone = pixels(CLASSES[task][backend](size=64, do_center_crop=False, image_mean=mean, image_std=std), grey)
            # the torchvision backend may resize images of other channels in another order of operations
            torch.testing.assert_close(found[:, channel], alone[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_forms_of_images(backend, tmp_path):
    """Bands as samples, beside or after each other, and as pages; compressed, big-endian, BigTIFF; paths and bytes."""
    image = bands(40, 60)
    processor = CLASSES["pvt"][backend](size=64, crop_size=64, **BANDS)
    expected = pixels(processor, image)
    first = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    forms = [first, torch.from_numpy(image), torch.from_numpy(first), [image], image[None]]
    files = {
        "samples": (image, {"photometric": "minisblack", "planarconfig": "contig"}),
        "separate": (first, {"photometric": "minisblack", "planarconfig": "separate"}),
        "pages": (first, {"photometric": "minisblack"}),
        "deflate": (image, {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}),
        "big": (image, {"photometric": "minisblack", "planarconfig": "contig", "bigtiff": True, "byteorder": ">"}),
    }
    for name, (array, options) in files.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", array, **options)
        forms += [tmp_path / f"{name}.tif", str(tmp_path / f"{name}.tif"), (tmp_path / f"{name}.tif").read_bytes()]
    for form in forms:
        assert torch.equal(pixels(processor, form), expected)
    tifffile.imwrite(tmp_path / "floats.tif", image.astype(np.float32), photometric="minisblack", planarconfig="contig")
    assert torch.equal(pixels(processor, tmp_path / "floats.tif"), pixels(processor, image.astype(np.float32)))


def test_four_means_keep_four_channels():
    """As in Transformers' common test of image processors: RGBA is then not composited onto white."""
    image = np.random.default_rng(0).integers(0, 256, (60, 50, 4), dtype=np.uint8)
    for classes in CLASSES.values():
        processor = classes["torchvision"](size=64, do_center_crop=False, do_resize=False)
        four = {"image_mean": [0.0] * 4, "image_std": [1.0] * 4}
        for given in (image, Image.fromarray(image)):
            found = processor(given, return_tensors="pt", **four)["pixel_values"][0, :, :60, :50]
            torch.testing.assert_close(found, torch.from_numpy(image).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_what_does_not_fit_is_refused(backend, tmp_path, monkeypatch):
    make = CLASSES["pvt"][backend]
    processor = make(size=64, **BANDS)
    for wrong in (bands(40, 40)[..., :5], bands(40, 40)[..., 0], Image.new("RGB", (40, 40))):
        with pytest.raises(ValueError, match=r"images\[1\]: an .*expected 6, as image_mean has"):
            processor([bands(40, 40), wrong])
    with pytest.raises(ValueError, match=r"\(40, 40, 6\).*expected 1 \(grey\).*one value per channel in image_mean"):
        make()(bands(40, 40))
    written = io.BytesIO()
    tifffile.imwrite(written, bands(40, 40), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"images: the TIFF file cannot be read"):
        processor(written.getvalue()[:300])
    with pytest.raises(ValueError, match=r"images: an .*expected 2"):
        make(size=64, image_mean=[0.5, 0.5], image_std=[0.5, 0.5])(Image.new("RGB", (40, 40)))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImportError, match="pip install tifffile"):
        processor(written.getvalue())


@pytest.mark.parametrize("name", HEADS)
def test_models_of_six_channels_train(name, tmp_path):
    """Prepared by the processor of their task, saved and opened again."""
    task = {"semantic_fpn": "semantic", "trans2seg": "semantic", "retinanet": "detection", "mask_rcnn": "instance"}
    processor = CLASSES[task.get(name, "detr")]["pil"](size={"height": 64, "width": 64}, **BANDS)
    processor.save_pretrained(tmp_path)
    processor = type(processor).from_pretrained(tmp_path)
    model = tiny_head(name, backbone_config=tiny_pvt_config(num_channels=6, out_features=list(HEADS[name].stages)))
    model = model.train()
    labels = random_objects(2, 64, 64)
    labels = labels if HEADS[name].masks else boxes_only(labels)
    if HEADS[name].task == "segmentation":
        labels = random_label_maps(2, 64, 64)
    inputs = processor([bands(64, 64), bands(50, 70)], return_tensors="pt")
    model(**inputs, labels=labels).loss.backward()
    backbone = model.model.backbone.model if name == "detr" else model.backbone
    gradient = backbone.get_input_embeddings().weight.grad
    assert gradient.shape[1] == 6 and all(gradient[:, channel].any() for channel in range(6))


def test_a_classifier_of_six_channels_learns(tmp_path):
    """From files: one class is bright in the last band, which an RGB reader would not see."""
    torch.manual_seed(0)
    files = []
    for index in range(8):
        image = bands(40, 40, seed=index) // 4
        image[..., 5] += 120 * (index % 2)
        files.append(tmp_path / f"{index}.tif")
        tifffile.imwrite(files[-1], image, photometric="minisblack", planarconfig="contig")
    processor = CLASSES["pvt"]["torchvision"](size=32, crop_size=32, **BANDS)
    model = PvtForImageClassification(tiny_pvt_config(num_channels=6, num_labels=2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.arange(8) % 2
    for _ in range(30):
        loss = model(pixels(processor, files), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels(processor, files)).logits.argmax(1), labels)
