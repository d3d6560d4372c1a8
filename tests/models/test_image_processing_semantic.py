"""
The semantic image processors resize by the paper's rule, computed here with fractions, and give Pillow's pixels; both
backends agree. Labels are reduced exactly once, and nearest neighbour takes the label that integer arithmetic names.
Post-processing is torch's interpolation and argmax.

    pytest tests/models/test_image_processing_semantic.py
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import SizeDict

from pvt_hf.models import image_processing_semantic
from pvt_hf.models.image_processing_sizes import resize_steps

from ..support.image_processing_cases import (
    CLASSES,
    FOUR_LEVELS,
    FP32,
    MEAN,
    RAW,
    STD,
    encode,
    noise,
    scaled_size,
)  # fmt: skip


pytest_plugins = ["tests.support.image_processing_cases"]

BACKENDS = CLASSES["semantic"]
SIZES = [(40, 40), (3000, 2000), (2000, 3000), (500, 375), (100, 3000), (512, 704), (333, 500), (1, 2000), (2000, 1)]


@pytest.fixture
def processor(backend):
    return BACKENDS[backend]()


def scaled_sizes(height: int, width: int, short: int = 512, long: int = 2048) -> tuple[tuple, tuple]:
    """To scale, then up to multiples of 32."""
    scaled = scaled_size(height, width, short, long)
    return scaled, tuple((side + 31) // 32 * 32 for side in scaled)


def nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixel under each new pixel's centre, in integers."""
    rows, columns = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip((height, width), array.shape))
    return array[np.ix_(rows, columns)]


# --- Size and pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", SIZES)
def test_defaults_are_two_resizes_of_the_paper(height, width):
    image = Image.fromarray(noise(height, width))
    segmentation_map = noise(height, width, 1)[..., 0]
    scaled, aligned = scaled_sizes(height, width)
    expected = image.resize(scaled[::-1], Image.Resampling.BILINEAR).resize(aligned[::-1], Image.Resampling.BILINEAR)
    expected = ((np.array(expected) / 255 - MEAN) / STD).transpose(2, 0, 1)
    for backend, tolerance in (("pil", FP32), ("torchvision", FOUR_LEVELS)):
        found = BACKENDS[backend]()(image, segmentation_map, return_tensors="np")
        assert found["pixel_values"].dtype == np.float32 and found["pixel_values"].shape == (1, 3, *aligned)
        np.testing.assert_allclose(found["pixel_values"][0], expected, rtol=0, atol=tolerance)
        assert found["labels"].dtype == np.int64
        np.testing.assert_array_equal(found["labels"][0], nearest(segmentation_map, *aligned))


def test_sizes_of_many_images_and_settings():
    generator = np.random.default_rng(0)
    for short, long in ((512, 2048), (256, 1024), (896, 3584), (64, 64)):
        size = SizeDict(shortest_edge=short, longest_edge=long)
        for height, width in generator.integers(1, 3000, (1000, 2)).tolist():
            steps = resize_steps(height, width, size)
            assert steps == list(scaled_sizes(height, width, short, long)), (height, width)


def test_forms_of_size(backend):
    image = Image.fromarray(noise(60, 90))
    for size, shape in (
        (64, (64, 96)),
        ({"shortest_edge": 64, "longest_edge": 64}, (64, 64)),  # 43x64
        ({"height": 96, "width": 160}, (96, 160)),
        ({"height": 97, "width": 160}, (128, 160)),
        ({"max_height": 64, "max_width": 64}, (64, 64)),  # 42x64
    ):
        built = BACKENDS[backend](size=size)
        for found in (built(image), BACKENDS[backend]()(image, size=size)):
            assert found["pixel_values"][0].shape == (3, *shape)
    assert BACKENDS[backend]()(image, image.convert("L"), do_resize=False)["labels"][0].shape == (60, 90)
    for size in ({"longest_edge": 64}, {"height": 0, "width": 5}):
        with pytest.raises(ValueError, match="expected positive 'shortest_edge'"):
            built(image, size=size)
    with pytest.raises(ValueError, match="1x100000 would be resized to 512x51200000"):
        built(Image.new("RGB", (100_000, 1)), size=512)


def test_images_of_different_sizes(processor):
    images = [Image.fromarray(noise(*size)) for size in ((40, 60), (60, 40), (40, 60))]
    maps = [np.full(image.size[::-1], i) for i, image in enumerate(images)]
    listed = processor(images, maps)
    assert [tuple(image.shape) for image in listed["pixel_values"]] == [(3, 512, 768), (3, 768, 512), (3, 512, 768)]
    assert [tuple(labels.shape) for labels in listed["labels"]] == [(512, 768), (768, 512), (512, 768)]
    assert [int(labels[0, 0]) for labels in listed["labels"]] == [0, 1, 2]
    with pytest.raises(ValueError, match="image 0 at 512x768, image 1 at 768x512.*one by one"):
        processor(images, return_tensors="pt")
    assert processor(images[::2], return_tensors="pt")["pixel_values"].shape == (2, 3, 512, 768)
    size = {"height": 64, "width": 96}
    found = processor(images, maps, size=size, return_tensors="pt")
    assert found["pixel_values"].shape == (3, 3, 64, 96) and found["labels"].shape == (3, 64, 96)


@pytest.mark.parametrize("option", ["do_center_crop", "do_pad"])
def test_cropping_and_padding_are_refused(processor, option):
    with pytest.raises(ValueError, match=f"{option}=True; the prediction must cover the whole image"):
        processor(noise(40, 40), crop_size=32, **{option: True})


# --- Segmentation maps ----------------------------------------------------------------------------------------------

VALUES = np.array([[0, 1, 2], [150, 254, 255]], np.uint8)
REDUCED = [[255, 0, 1], [149, 253, 255]]


def palette_image(indices: np.ndarray) -> Image.Image:
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(noise(256, 1).tobytes())
    return image


FORMS = {
    "uint8": VALUES,
    "int64": VALUES.astype(np.int64),
    "int16": VALUES.astype(np.int16),
    "big-endian": VALUES.astype(">u2"),
    "read-only": np.broadcast_to(VALUES, VALUES.shape),
    "one channel": VALUES[..., None],
    "channel first": VALUES[None],
    "batch": VALUES[None, None],
    "tensor": torch.from_numpy(VALUES),
    "int64 tensor": torch.from_numpy(VALUES).long(),
    "L": Image.fromarray(VALUES),
    "P": palette_image(VALUES),
    "I": Image.fromarray(VALUES.astype(np.int32)),
    "I;16": Image.fromarray(VALUES.astype(np.uint16)),
    "L in a file": encode(Image.fromarray(VALUES)),
    "P in a file": encode(palette_image(VALUES)),
}


@pytest.mark.parametrize("name", FORMS)
def test_labels_are_reduced_exactly_once(backend, name):
    image = noise(2, 3)
    for reduce, expected in ((True, REDUCED), (False, VALUES)):
        for processor, call in (
            (BACKENDS[backend](), {"do_reduce_labels": reduce}),
            (BACKENDS[backend](do_reduce_labels=reduce), {}),
        ):
            found = processor(image, FORMS[name], **call, **RAW, return_tensors="np")
            assert found["labels"].dtype == np.int64
            np.testing.assert_array_equal(found["labels"], [expected])
            np.testing.assert_array_equal(found["pixel_values"], [image.transpose(2, 0, 1)])
    assert VALUES.tolist() == [[0, 1, 2], [150, 254, 255]]  # the input is left alone


def test_binary_maps_hold_0_and_1(processor):
    mask = VALUES > 1
    for form in (mask, Image.fromarray(mask), torch.from_numpy(mask)):
        np.testing.assert_array_equal(processor(noise(2, 3), form, **RAW, return_tensors="np")["labels"], [mask])


def test_resizing_never_invents_labels(processor):
    """Labels so far apart that a mean of two would be a new one, and too large for 8 bits."""
    labels = np.random.default_rng(0).choice([0, 7, 200, 255, 40_000], (90, 70))
    found = processor(noise(90, 70), labels, size=64, return_tensors="np", resample=Image.Resampling.BICUBIC)["labels"]
    assert set(np.unique(found)) == set(np.unique(labels))
    np.testing.assert_array_equal(found[0], nearest(labels, 96, 64))


def test_batches_of_maps(processor):
    images = [Image.fromarray(noise(40, 60, seed=i)) for i in range(3)]
    maps = np.stack([np.full((40, 60), i, np.uint8) for i in range(3)])
    for form in (maps, list(maps), torch.from_numpy(maps), maps[:, None], [maps[:1], maps[1], [maps[2]]]):
        labels = processor(images, form, size=32, return_tensors="pt")["labels"]
        assert labels.dtype == torch.int64 and labels.shape == (3, 32, 64)
        assert labels[:, 5, 5].tolist() == [0, 1, 2]


def test_a_turned_photograph_fits_its_upright_map(processor):
    image, labels = Image.fromarray(noise(40, 60)), np.zeros((60, 40), np.uint8)
    image.getexif()[0x0112] = 6
    assert processor(image, labels, return_tensors="pt")["labels"].shape == (1, 768, 512)
    with pytest.raises(ValueError, match=r"segmentation_maps has 40x60 .* its image 60x40 after its EXIF"):
        processor(image, labels.T)
    turned = Image.fromarray(noise(40, 60, 1)[..., 0])  # a map that carries the orientation itself
    turned.getexif()[0x0112] = 6
    expected = nearest(np.array(turned.transpose(Image.Transpose.ROTATE_270)), 768, 512)
    np.testing.assert_array_equal(processor(image, turned, return_tensors="np")["labels"][0], expected)


BAD_MAPS = {
    "another size": (np.zeros((41, 60), np.uint8), r"has 41x60 pixels .* its image 40x60"),
    "turned": (np.zeros((60, 40), np.uint8), r"has 60x40 pixels .* its image 40x60"),
    "colours": (noise(40, 60), r"shape \(40, 60, 3\); expected \(height, width\) with one class index"),
    "RGB": (Image.fromarray(noise(40, 60)), "mode RGB; expected one class index per pixel"),
    "LA": (Image.new("LA", (60, 40)), "mode LA; expected one class index per pixel"),
    "float": (np.zeros((40, 60)), "dtype float64; expected integer"),
    "float tensor": (torch.zeros(40, 60, dtype=torch.bfloat16), "dtype bfloat16; expected integer"),
    "F": (Image.new("F", (60, 40)), "mode F"),
    "empty": (np.zeros((0, 60), np.uint8), r"shape \(0, 60\)"),
    "negative": (np.full((40, 60), -100), "labels from -100 to -100"),
    "truncated": (encode(Image.fromarray(noise(40, 60, 1)[..., 0]))[:900], "60x40 PNG file cannot be decoded"),
    "no file": ("missing/map.png", "cannot open 'missing/map.png'"),
}


@pytest.mark.parametrize("name", BAD_MAPS)
def test_bad_maps_are_named(processor, name):
    image, good = noise(40, 60), np.zeros((40, 60), np.uint8)
    segmentation_map, message = BAD_MAPS[name]
    with pytest.raises(ValueError, match=f"^segmentation_maps:? .*{message}"):
        processor(image, segmentation_map)
    with pytest.raises(ValueError, match=rf"^segmentation_maps\[1\]:? .*{message}"):
        processor([image, image], [good, segmentation_map])


def test_bad_calls_with_maps(processor):
    image, good = noise(40, 60), np.zeros((40, 60), np.uint8)
    with pytest.raises(ValueError, match="label 256 with do_reduce_labels=True"):
        processor(image, good.astype(int) + 256, do_reduce_labels=True)
    for maps, count in (([], 0), ([good], 1), ([good] * 3, 3)):
        with pytest.raises(ValueError, match=f"{count} segmentation_maps for 2 images"):
            processor([image, image], maps)
    with pytest.raises(TypeError, match=r"segmentation_maps\[1\]: got int"):
        processor([image, image], [good, 3])


# --- Post-processing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_scores", [1, 40 * 50 * 2, 2**26])  # one class at a time, some, all
def test_post_processing_resizes_logits(processor, monkeypatch, max_scores):
    monkeypatch.setattr(image_processing_semantic, "MAX_SCORES", max_scores)
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 9, 12, requires_grad=True)
    sizes = [(40, 50), (33, 7)]
    expected = [
        F.interpolate(logits[i : i + 1], size, mode="bilinear", align_corners=False)[0].argmax(0)
        for i, size in enumerate(sizes)
    ]
    of_labels = F.interpolate(logits.argmax(1)[:1, None].float(), sizes[0], mode="nearest")[0, 0].long()
    assert not torch.equal(of_labels, expected[0])  # resizing labels would be seen
    for target_sizes in (sizes, torch.tensor(sizes), np.array(sizes), tuple(map(list, sizes))):
        found = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes)
        assert isinstance(found, list) and all(labels.dtype == torch.int64 for labels in found)
        for labels, wanted in zip(found, expected, strict=True):
            assert torch.equal(labels, wanted)
    plain = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits))
    assert torch.equal(torch.stack(plain), logits.argmax(1))
    equal = processor.post_process_semantic_segmentation(SimpleNamespace(logits=torch.ones(1, 7, 3, 3)), [(6, 6)])
    assert equal[0].eq(0).all()  # of equal scores the first class, as argmax


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (12, 9)])
def test_post_processing_leaves_out_classes_that_are_nowhere_the_best(processor, shape):
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(1, 30, 2, 2) * 4, shape, mode="bilinear", align_corners=True)[0]
    logits = smooth + 0.1 * torch.randn(30, *shape)
    logits[20] = logits[3]  # a tie everywhere
    left = image_processing_semantic.possible_classes(logits).tolist()
    assert 1 <= len(left) < 25 and (3 in left) == (20 in left)
    for size in ((40, 31), (3, 2), shape):
        expected = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
        (found,) = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits[None]), [size])
        assert torch.equal(found, expected) and set(found.unique().tolist()) <= set(left)


def test_post_processing_gives_scores(processor):
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 9, 12).bfloat16()
    for sizes in (None, [(40, 50), (33, 7)]):
        maps = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), sizes)
        found = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), sizes, True)
        for index, (labels, image) in enumerate(zip(maps, found, strict=True)):
            assert type(image) is SemanticSegmentationPostProcessorOutput
            expected = logits[index]
            if sizes:
                expected = F.interpolate(expected[None].float(), sizes[index], mode="bilinear", align_corners=False)[0]
            assert torch.equal(image.segmentation_scores, expected) and torch.equal(image.segmentation, labels)


@pytest.mark.parametrize("target_sizes", [[], [(4, 4)], [(4, 4)] * 3, (4, 4), [(4, 4), (4, 0)], [(4, 4), (3, 4, 4)]])
def test_bad_target_sizes(processor, target_sizes):
    with pytest.raises(ValueError, match="expected (one|a positive) .*per image"):
        processor.post_process_semantic_segmentation(SimpleNamespace(logits=torch.zeros(2, 3, 4, 4)), target_sizes)


def test_only_the_method_of_the_task(processor):
    methods = [name for name in dir(processor) if name.startswith("post_process")]
    assert methods == ["post_process_semantic_segmentation"]


@pytest.mark.parametrize("size", [(40, 40), (300, 121)])
def test_pipeline_gives_masks_of_the_images_own_size(processor, size):
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=5, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    )
    model = SegformerForSemanticSegmentation(config).eval()
    image = Image.fromarray(noise(*size))
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    answer = pipeline("image-segmentation", model=model, image_processor=processor)(image)
    assert {entry["label"] for entry in answer} == {f"LABEL_{label}" for label in np.unique(expected)}
    for entry in answer:
        np.testing.assert_array_equal(np.array(entry["mask"]) == 255, expected == int(entry["label"][-1]))


@pytest.mark.gpu
def test_device():
    found = BACKENDS["torchvision"]()(noise(90, 70), noise(90, 70, 1)[..., 0], return_tensors="pt", device="cuda")
    assert found["pixel_values"].device.type == found["labels"].device.type == "cuda"
    processor, logits = BACKENDS["torchvision"](), torch.randn(1, 7, 20, 30)
    labels = [
        processor.post_process_semantic_segmentation(SimpleNamespace(logits=value), [(80, 120)])[0]
        for value in (logits, logits.cuda())
    ]
    assert labels[1].device.type == "cuda"
    # sums in another order may turn ties between two classes
    assert (labels[0] != labels[1].cpu()).float().mean() < 1e-3
