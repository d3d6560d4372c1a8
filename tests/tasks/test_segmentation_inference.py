"""
Single scale, several scales and the sliding window: against sums over whole maps of scores, against each other where
they must agree, places of windows and sizes of scales as mmsegmentation has them, and a large image within 4 GB.

    pytest tests/tasks/test_segmentation_inference.py
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pvt_hf import SemanticFpnConfig, SemanticFpnForSemanticSegmentation
from pvt_hf.models.image_processing_semantic import PvtSemanticImageProcessor, PvtSemanticImageProcessorPil
from pvt_hf.tasks.segmentation import inference as segmentation_inference
from pvt_hf.tasks.segmentation.inference import MultiScale, SingleScale, SlidingWindow, resized_rows

from ..support.common import randomize, tiny_pvt_config


ROOT = Path(__file__).parents[2]
NUM_LABELS = 6


@pytest.fixture(scope="module")
def model():
    return make_model()


@torch.no_grad()
def make_model() -> SemanticFpnForSemanticSegmentation:
    """Random weights, but logits that are centred and wide: otherwise one class would win everywhere."""
    backbone = tiny_pvt_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = SemanticFpnConfig(backbone_config=backbone, fpn_channels=16, head_channels=16, num_labels=NUM_LABELS)
    model = randomize(SemanticFpnForSemanticSegmentation(config), seed=1).eval()
    logits = model(prepare(PvtSemanticImageProcessorPil(), picture(96, 96))).logits
    model.head.classifier.bias -= logits.mean(dim=(0, 2, 3))
    return model


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Blocks of colour of about 20 pixels with some noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 20), -(-width // 20), 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)).astype(int)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 10, pixels.shape), 0, 255).astype(np.uint8))


def prepare(processor, image: Image.Image, **settings) -> torch.Tensor:
    return processor(image, return_tensors="pt", **settings)["pixel_values"]


def upsampled(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]


def label(inference, model, image: Image.Image) -> torch.Tensor:
    size = (image.height, image.width)
    labels = inference.predict(model, inference(image), size)
    assert labels.shape == size and not labels.is_floating_point() and labels.device.type == "cpu"
    return labels.long()


def assert_best(labels: torch.Tensor, scores: torch.Tensor) -> None:
    """`labels` are the classes of the largest of `scores`; next to it within 1e-5, for another order of adding up."""
    best = scores.max(dim=0).values
    chosen = scores.gather(0, labels[None])[0]
    assert (best - chosen).max() < 1e-5
    assert (labels == scores.argmax(dim=0)).float().mean() > 0.999
    assert len(labels.unique()) >= 3  # otherwise a wrong map would not show


@pytest.mark.parametrize("processor_class", [PvtSemanticImageProcessorPil, PvtSemanticImageProcessor])
@torch.no_grad()
def test_single_scale(model, processor_class):
    processor = processor_class(size={"shortest_edge": 64, "longest_edge": 256})
    image = picture(75, 110)
    pixel_values = prepare(processor, image)
    assert pixel_values.shape[-2:] == (64, 96)  # 64 x 93.9, up to multiples of 32
    labels = label(SingleScale(processor), model, image)
    assert_best(labels, upsampled(model(pixel_values).logits, (75, 110)))
    expected = processor.post_process_semantic_segmentation(model(pixel_values), [(75, 110)])[0]
    assert torch.equal(labels, expected)


@pytest.mark.parametrize("size", [(20, 25), (96, 128), (33, 150), (1, 70)])
@pytest.mark.parametrize("processor_class", [PvtSemanticImageProcessorPil, PvtSemanticImageProcessor])
def test_a_window_that_covers_the_image_is_single_scale(model, processor_class, size):
    image = picture(*size)
    processor = processor_class(size={"height": size[0], "width": size[1]})
    expected = label(SingleScale(processor), model, image)
    windows = SlidingWindow(processor_class(), window=160, stride=160)
    assert torch.equal(label(windows, model, image), expected)
    assert size[0] == 1 or len(expected.unique()) >= 3


def by_windows(model, processor, image: Image.Image, window: int, stride: int) -> torch.Tensor:
    """Mean logits (classes, height, width), whole; windows placed by the arithmetic of mmsegmentation."""
    height, width = image.height, image.width
    total, count = torch.zeros(NUM_LABELS, height, width), torch.zeros(height, width)
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            part = image.crop((left, top, right, bottom))
            # Both sides up to multiples of 32 by resizing, where the window is not one already
            part = part.resize(tuple(-(-side // 32) * 32 for side in part.size), Image.Resampling.BILINEAR)
            logits = model(prepare(processor, part, do_resize=False)).logits
            total[:, top:bottom, left:right] += upsampled(logits, (bottom - top, right - left))
            count[top:bottom, left:right] += 1
    assert count.min() >= 1
    return total / count


@pytest.mark.parametrize(
    "size, window, stride",
    [((150, 230), 64, 43), ((64, 200), 64, 64), ((50, 150), 64, 20), ((150, 40), 64, 50), ((107, 171), 64, 43)],
)
@torch.no_grad()
def test_windows_equal_a_sum_over_the_whole_image(model, monkeypatch, size, window, stride):
    """In a single stripe and in several, with overlap and without, and narrower or lower than the window."""
    image, processor = picture(*size, seed=2), PvtSemanticImageProcessorPil()
    scores = by_windows(model, processor, image, window, stride)
    inference = SlidingWindow(processor, window, stride)
    labels = label(inference, model, image)
    assert_best(labels, scores)
    monkeypatch.setattr(segmentation_inference, "MAX_BAND_SCORES", NUM_LABELS * window * 37)
    bands = []
    argmax = torch.Tensor.argmax
    monkeypatch.setattr(torch.Tensor, "argmax", lambda self, dim: bands.append(self.shape) or argmax(self, dim))
    assert torch.equal(label(inference, model, image), labels)
    assert max(band[2] for band in bands) <= 37 * window / min(window, size[0])
    assert len(bands) > 1 and sum(band[1] * band[2] for band in bands) == size[0] * size[1]


def test_windows_read_single_pixels_of_their_own_place():
    """A model that knows nothing but colour: sixteen grey levels come back at every pixel."""
    levels = np.random.default_rng(0).integers(0, 16, (90, 130), dtype=np.uint8)
    image = Image.fromarray(levels * 16).convert("RGB")
    processor = PvtSemanticImageProcessorPil(do_rescale=False, do_normalize=False)

    def by_grey(pixel_values):
        grey = pixel_values[:, :1].float() / 16  # (batch, 1, height, width)
        return type("Output", (), {"logits": -(grey - torch.arange(16.0)[:, None, None]).abs()})

    labels = label(SlidingWindow(processor, window=32, stride=20), by_grey, image)
    assert np.array_equal(labels.numpy(), levels)
    mirrored = MultiScale(PvtSemanticImageProcessorPil(
        size={"height": 96, "width": 128}, do_rescale=False, do_normalize=False, resample=0), [1.0])  # fmt: skip
    image = image.crop((0, 0, 128, 90)).resize((128, 96), Image.Resampling.NEAREST)
    assert np.array_equal(label(mirrored, by_grey, image).numpy(), np.asarray(image)[:, :, 0] // 16)


@torch.no_grad()
def test_scales_equal_a_mean_over_whole_maps(model, monkeypatch):
    image, processor = picture(75, 110), PvtSemanticImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})
    ratios = (0.5, 1.0, 1.75)
    for flip in (False, True):
        total = torch.zeros(NUM_LABELS, 75, 110, dtype=torch.float64)
        for ratio in ratios:
            shorter, longer = int(64 * ratio), int(256 * ratio)
            pixel_values = prepare(processor, image, size={"shortest_edge": shorter, "longest_edge": longer})
            total += upsampled(model(pixel_values).logits, (75, 110)).double().softmax(0)
            if flip:
                mirrored = upsampled(model(pixel_values.flip(3)).logits, (75, 110))
                total += mirrored.flip(2).double().softmax(0)
        inference = MultiScale(processor, ratios, flip)
        labels = label(inference, model, image)
        assert_best(labels, total.float())
        monkeypatch.setattr(segmentation_inference, "MAX_SCORES", NUM_LABELS * 110 * 8)  # bands of 8 rows
        assert torch.equal(label(inference, model, image), labels)
        monkeypatch.undo()
    unflipped = label(MultiScale(processor, ratios, flip=False), model, image)
    assert (labels != unflipped).float().mean() > 0.001


@torch.no_grad()
def test_one_scale_is_single_scale(model):
    image, processor = picture(75, 110), PvtSemanticImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 256})
    inference = MultiScale(processor, [1.0], flip=False)
    assert torch.equal(inference(image)[0], SingleScale(processor)(image)[0])
    labels = label(inference, model, image)
    assert_best(labels, upsampled(model(prepare(processor, image)).logits, (75, 110)))
    assert (labels == label(SingleScale(processor), model, image)).float().mean() > 0.999  # but for ties


def test_sizes_of_the_scales():
    """480x640, and a panorama that the limit of the longer side decides: by hand."""
    inference = MultiScale(PvtSemanticImageProcessorPil())
    expected = {
        (480, 640): [(256, 352), (384, 512), (512, 704), (640, 864), (768, 1024), (896, 1216)],
        (100, 800): [(128, 1024), (192, 1536), (256, 2048), (320, 2560), (384, 3072), (448, 3584)],
    }
    for size, sizes in expected.items():
        assert [tuple(view.shape[1:]) for view in inference(picture(*size))] == sizes
    square = MultiScale(PvtSemanticImageProcessorPil(size={"height": 64, "width": 96}), [0.5, 2])
    assert [tuple(view.shape[1:]) for view in square(picture(50, 50))] == [(32, 64), (128, 192)]


@pytest.mark.parametrize("size", [(200, 90), (7, 5), (31, 300)])
def test_rows_of_a_resized_map(size):
    scores = torch.randn(3, 13, 40, generator=torch.Generator().manual_seed(0))
    whole = upsampled(scores[None], size)
    for top, bottom in ((0, 3), (2, size[0]), (size[0] - 1, size[0])):
        # Two bilinear passes in another order, and positions in fp64: numbers of order 1
        torch.testing.assert_close(resized_rows(scores, size, top, bottom), whole[:, top:bottom], atol=1e-5, rtol=1e-5)


def test_for_loader_workers(model):
    image = picture(70, 80)
    processor = PvtSemanticImageProcessor(size={"shortest_edge": 32})
    for inference in (SingleScale(processor), MultiScale(processor), SlidingWindow(processor)):
        for view, again in zip(inference(image), pickle.loads(pickle.dumps(inference))(image), strict=True):
            assert torch.equal(view, again)


def test_refuses():
    processor = PvtSemanticImageProcessorPil()
    for stride in (0, 65):
        with pytest.raises(ValueError, match=f"at most the window of 64 pixels, got {stride}"):
            SlidingWindow(processor, 64, stride)
    for ratios in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="ratios must be one or more positive numbers"):
            MultiScale(processor, ratios)


LARGE = """
import json, resource, sys
from pathlib import Path
from PIL import Image
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.tasks.segmentation.settings import SegmentationEvaluationSettings
from pvt_hf.tasks.segmentation.task import SegmentationTask
report = evaluate_checkpoint(SegmentationTask(), SegmentationEvaluationSettings(
    model=sys.argv[1], dataset=sys.argv[2], output=sys.argv[3], mode="sliding", stride=480, cpu=True, num_workers=0
))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
Path(sys.argv[4]).write_text(json.dumps({"peak": peak, "samples": report["results"]["eval_samples"],
    "pixels": sum(row["pixels"] for row in report["results"]["classes"])}))
"""


@pytest.mark.slow
def test_an_image_of_8000_pixels_width_within_4_gb(tmp_path):
    """
    The whole evaluation in a process of its own, decoding and counting included. Memory follows the width: the scores
    of 150 classes at all pixels of 8000x2000 would take 9.6 GB.
    """
    backbone = tiny_pvt_config(hidden_sizes=[8, 16, 20, 32], depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = SemanticFpnConfig(backbone_config=backbone, fpn_channels=8, head_channels=8, num_labels=150)
    SemanticFpnForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    PvtSemanticImageProcessor().save_pretrained(tmp_path / "model")
    for folder in ("images/validation", "annotations/validation"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    image = picture(200, 800).resize((8000, 2000), Image.Resampling.NEAREST)
    image.save(tmp_path / "data" / "images" / "validation" / "large.png", compress_level=1)
    labels = Image.fromarray((np.arange(2000 * 8000) % 150).astype(np.uint8).reshape(2000, 8000))
    labels.save(tmp_path / "data" / "annotations" / "validation" / "large.png", compress_level=1)
    result = subprocess.run(
        [sys.executable, "-c", LARGE, *(str(tmp_path / name) for name in ("model", "data", "out.json", "peak.json"))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    measured = json.loads((tmp_path / "peak.json").read_text())
    assert measured["samples"] == 1 and measured["pixels"] == 16_000_000
    assert measured["peak"] < 4 * 2**30
