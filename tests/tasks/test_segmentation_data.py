"""
Streams of images and masks from real files made on the spot: every layout is found and paired, every unusable pair is
skipped by name, labels are reduced once; the training transforms keep image and mask aligned, with mmsegmentation's
rules.

    pytest tests/tasks/test_segmentation_data.py
"""

import io
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from pvt_hf.data import digits
from pvt_hf.data.batches import BatchStream, StreamError, make_loader
from pvt_hf.data.fingerprint import stream_fingerprint
from pvt_hf.data.samples import BadSample
from pvt_hf.tasks.ade20k import ADE20K_CLASS_NAMES
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.tasks.segmentation.samples import (
    SegmentationEvaluationSample,
    SegmentationSample,
    collate_lists,
    decode_labels,
)
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream
from pvt_hf.tasks.segmentation.transforms import (
    PhotometricDistortion,
    RandomCropOfClasses,
    RandomRescale,
    SegmentationTransform,
)


CLASSES = ("sky", "tree", "road")


def encoded(array: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format)
    return buffer.getvalue()


def mask(seed: int, height: int = 36, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, len(CLASSES), (height, width), dtype=np.uint8)


def picture_of(labels: np.ndarray) -> np.ndarray:
    """A grey image whose values tell the labels."""
    return np.repeat(labels[..., None] * 10, 3, axis=2).astype(np.uint8)


def write_pair(images, masks, name: str, seed: int) -> None:
    (images / name).parent.mkdir(parents=True, exist_ok=True)
    (masks / name).parent.mkdir(parents=True, exist_ok=True)
    (images / f"{name}.jpg").write_bytes(encoded(picture_of(mask(seed)), "JPEG"))
    (masks / f"{name}.png").write_bytes(encoded(mask(seed)))


def whole(image: Image.Image, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), torch.from_numpy(labels)


def read(stream, **settings) -> dict[str, np.ndarray]:
    """Labels by name, of all usable examples."""
    sample = SegmentationSample(stream, whole, CLASSES, **settings)
    batches = BatchStream(stream, sample, 1, collate=collate_lists)
    return {batch["sample_ids"][0]: batch["labels"][0].numpy() for batch in batches if "sample_ids" in batch}


# Sources


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/training", "annotations/training"),
        ("images/train", "masks/train"),
        ("train/images", "train/masks"),
        ("training/image", "training/labels"),
        ("images", "masks"),
    ],
)
def test_folders_of_images_and_masks(images, masks, tmp_path):
    for seed, name in enumerate(("b", "a", "sub/a", "c.d")):
        write_pair(tmp_path / images, tmp_path / masks, name, seed)
    stream = open_segmentation_stream(str(tmp_path))
    assert stream.num_samples == stream.dataset.num_shards == 4 and stream.class_names is None
    found = {name.removeprefix(f"{tmp_path / images}/"): labels for name, labels in read(stream).items()}
    assert found.keys() == {"a.jpg", "b.jpg", "c.d.jpg", "sub/a.jpg"}
    for seed, name in enumerate(("b", "a", "sub/a", "c.d")):
        assert np.array_equal(found[f"{name}.jpg"], mask(seed)), name
    with pytest.raises(FileNotFoundError, match="validation"):
        open_segmentation_stream(str(tmp_path), "validation")


def test_ade20k_folders_have_two_splits(tmp_path):
    for split, count in (("training", 3), ("validation", 2)):
        for seed in range(count):
            write_pair(tmp_path / "images" / split, tmp_path / "annotations" / split, f"ADE_{seed}", seed)
    (tmp_path / "objectInfo150.txt").write_text("Idx Ratio Train Val Name")
    assert open_segmentation_stream(str(tmp_path), "train").num_samples == 3
    assert open_segmentation_stream(str(tmp_path), "validation").num_samples == 2
    with pytest.raises(FileNotFoundError, match="split 'test'.*There is: annotations, images, objectInfo150.txt"):
        open_segmentation_stream(str(tmp_path), "test")


def test_ade20k_names():
    assert len(set(ADE20K_CLASS_NAMES)) == 150
    some = {0: "wall", 2: "sky", 12: "person", 20: "car", 44: "chest of drawers", 126: "animal", 149: "flag"}
    assert {index: ADE20K_CLASS_NAMES[index] for index in some} == some


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """As ADE20K lies on the Hub: two image columns and one that is none of ours."""
    root = tmp_path_factory.mktemp("parquet")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "annotation": datasets.Image(),
            "scene_category": datasets.ClassLabel(names=["abbey"]),
        }
    )
    for split, size in (("train", 6), ("validation", 2)):
        rows = {
            "image": [{"bytes": encoded(picture_of(mask(i))), "path": f"{split}_{i}.jpg"} for i in range(size)],
            "annotation": [{"bytes": encoded(mask(i)), "path": f"{split}_{i}.png"} for i in range(size)],
            "scene_category": [0] * size,
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet", batch_size=2)
    return root


def test_parquet(parquet):
    stream = open_segmentation_stream(str(parquet))
    assert (stream.num_samples, stream.dataset.num_shards) == (6, 3)
    assert (stream.image_column, stream.mask_column) == ("image", "annotation")
    found = read(stream)
    assert all(np.array_equal(found[f"train_{i}.jpg"], mask(i)) for i in range(6)) and len(found) == 6
    assert open_segmentation_stream(str(parquet), "validation").num_samples == 2
    swapped = open_segmentation_stream(str(parquet), image_column="annotation", mask_column="image")
    assert (swapped.image_column, swapped.mask_column) == ("annotation", "image")
    with pytest.raises(ValueError, match="no column 'mask'; it has image, annotation, scene_category"):
        open_segmentation_stream(str(parquet), mask_column="mask")


def test_hub_id(parquet, monkeypatch):
    """What the Hub gives for an id is a streamed data set like that of the same files."""
    calls, load = [], datasets.load_dataset

    def from_files(source, split, streaming, **settings):
        calls.append((source, split, streaming, settings))
        return load("parquet", data_files={split: str(parquet / f"{split}-*")}, split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", from_files)
    stream = open_segmentation_stream("someone/ade20k", "validation", revision="main")
    assert calls == [("someone/ade20k", "validation", True, {"revision": "main"})]
    assert sorted(read(stream)) == ["validation_0.jpg", "validation_1.jpg"]


def test_webdataset(tmp_path):
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for seed in range(3):
            for ending, content in (("jpg", encoded(picture_of(mask(seed)), "JPEG")), ("png", encoded(mask(seed)))):
                info = tarfile.TarInfo(f"{seed}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    found = read(open_segmentation_stream(str(tmp_path)))
    assert all(np.array_equal(found[str(seed)], mask(seed)) for seed in range(3)) and len(found) == 3


def test_digit_scenes():
    stream = open_segmentation_stream("digit-scenes", "validation", image_size=48)
    assert stream.class_names == ("background", *"0123456789") and stream.num_samples == 400
    sample = SegmentationSample(stream, whole)
    expected = iter(digits.digit_scenes("test", 48, 48, num_shards=16, length=400))
    for example, scene in zip(stream.dataset.take(3), expected):
        made = sample(example)
        assert np.array_equal(made["labels"], np.array(scene["semantic_map"]))
        assert np.array_equal(made["pixel_values"].permute(1, 2, 0), np.array(scene["image"]))
    assert SegmentationSample(stream, whole, reduce_labels=True).class_names == tuple("0123456789")


def test_sources_that_do_not_fit(tmp_path, parquet):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        open_segmentation_stream(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="Expected in it: images/SPLIT and annotations/.*There is: nothing"):
        open_segmentation_stream(str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(encoded(picture_of(mask(0)), "JPEG"))
    (tmp_path / "masks" / "b.png").write_bytes(encoded(mask(0)))
    with pytest.raises(FileNotFoundError, match=r"None of the 1 image\(s\) .* has a mask among the 1 PNG"):
        open_segmentation_stream(str(tmp_path))
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"picture": [{"bytes": encoded(mask(0)), "path": "0.png"}], "label": [0]}
    (tmp_path / "one").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "one" / "train.parquet")
    with pytest.raises(ValueError, match=r"one of masks.*the image columns \['picture'\]: name them"):
        open_segmentation_stream(str(tmp_path / "one"))
    stream = open_segmentation_stream(str(parquet))
    with pytest.raises(ValueError, match="have no names: give class_names, in the order of the labels from 1 on"):
        SegmentationSample(stream, whole, reduce_labels=True)
    with pytest.raises(ValueError, match="256 classes: at most 255"):
        SegmentationSample(stream, whole, tuple(map(str, range(256))))
    with pytest.raises(ValueError, match="no mask column"):
        SegmentationSample(open_classification_stream("digits"), whole)


def test_fingerprint_sees_the_masks(parquet, tmp_path):
    assert stream_fingerprint(open_segmentation_stream(str(parquet))) == stream_fingerprint(
        open_segmentation_stream(str(parquet))
    )
    for seed in range(2):
        write_pair(tmp_path / "images", tmp_path / "masks", str(seed), seed)
    before = stream_fingerprint(open_segmentation_stream(str(tmp_path)))
    (tmp_path / "masks" / "1.png").unlink()
    assert stream_fingerprint(open_segmentation_stream(str(tmp_path))) != before


# Samples


def test_labels_are_reduced_once_and_255_stays():
    raw = np.array([[0, 1, 2, 150], [255, 149, 0, 3]], dtype=np.uint8)
    value = {"bytes": encoded(raw), "path": None}
    assert decode_labels(value, 150, True).tolist() == [[255, 0, 1, 149], [255, 148, 255, 2]]
    assert decode_labels(value, 151, False).tolist() == raw.tolist()
    for count, reduce_labels, words in (
        (149, True, r"labels 150 are not among the 149 classes, 1 to 149"),
        (149, False, r"labels 149, 150 are not among the 149 classes, 0 to 148"),
    ):
        with pytest.raises(BadSample, match=words):
            decode_labels(value, count, reduce_labels)
    wide = {"bytes": encoded(np.array([[0, 300]], dtype=np.uint16)), "path": None}
    for reduce_labels in (False, True):
        with pytest.raises(BadSample, match="300"):
            decode_labels(wide, 150, reduce_labels)


def test_palette_masks_are_indices(tmp_path):
    palette = Image.new("P", (40, 36))
    palette.putdata(mask(1).flatten().tolist())
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(tmp_path / "mask.png")
    value = {"bytes": None, "path": str(tmp_path / "mask.png")}
    assert np.array_equal(decode_labels(value, 3, False), mask(1))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    root = tmp_path_factory.mktemp("damaged")
    images, masks = root / "images", root / "masks"
    for seed in range(20):
        write_pair(images, masks, f"good_{seed:02d}", seed)
    for seed, name in enumerate(
        ("no_mask", "size", "range", "cut_image", "cut_mask", "empty_mask", "colour", "no_image"), start=30
    ):
        write_pair(images, masks, name, seed)
    (masks / "no_mask.png").unlink()
    (images / "no_image.jpg").unlink()
    (masks / "size.png").write_bytes(encoded(mask(0, 40, 36)))
    wrong = mask(0)
    wrong[3, 4] = 77
    (masks / "range.png").write_bytes(encoded(wrong))
    for file in (images / "cut_image.jpg", masks / "cut_mask.png"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    (masks / "empty_mask.png").write_bytes(b"")
    (masks / "colour.png").write_bytes(encoded(picture_of(mask(0))))
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unusable_pairs_are_skipped_by_name_and_counted(damaged, num_workers):
    stream = open_segmentation_stream(str(damaged))
    sample = SegmentationSample(stream, whole, CLASSES)
    batches = list(make_loader(BatchStream(stream, sample, 4, max_bad_share=0.1), num_workers))
    names = [name.rpartition("/")[2] for batch in batches for name in batch.get("sample_ids", [])]
    assert sorted(names) == [f"good_{seed:02d}.jpg" for seed in range(20)]
    reasons = {name.rpartition("/")[2]: reason for batch in batches for name, reason in batch["skipped"]}
    words = {
        "no_mask.jpg": "mask is missing",
        "size.jpg": "image has 36x40 pixels (height x width) and its mask 40x36",
        "range.jpg": "labels 77 are not among the 3 classes, 0 to 2",
        "cut_image.jpg": "Error",
        "cut_mask.jpg": "mask: ",
        "empty_mask.jpg": "mask: ",
        "colour.jpg": "one class index per pixel",
    }
    assert reasons.keys() == words.keys() and stream.num_samples == 27
    for name, word in words.items():
        assert word in reasons[name], reasons[name]
    with pytest.raises(StreamError, match="cannot be used"):
        list(BatchStream(stream, sample, 4, max_bad_share=0.01))


def test_evaluation_samples_keep_their_size_and_batches_are_lists(tmp_path):
    sizes = [(36, 40), (50, 33), (32, 64), (36, 40), (41, 41)]
    for seed, (height, width) in enumerate(sizes):
        write_pair(tmp_path / "images", tmp_path / "masks", str(seed), seed)
        (tmp_path / "images" / f"{seed}.jpg").write_bytes(encoded(picture_of(mask(seed, height, width)), "JPEG"))
        (tmp_path / "masks" / f"{seed}.png").write_bytes(encoded(mask(seed, height, width)))

    def views(image):
        return [torch.zeros(3, image.height, image.width), torch.zeros(3, image.height // 2, image.width // 2)]

    stream = open_segmentation_stream(str(tmp_path))
    sample = SegmentationEvaluationSample(stream, views, CLASSES)

    def loader():
        return make_loader(BatchStream(stream, sample, 2, collate=collate_lists), 0)

    whole_run, running, states = [], loader(), []
    for batch in running:
        whole_run.append(batch)
        states.append(running.state_dict())
    assert [len(batch["views"]) for batch in whole_run] == [2, 2, 1]
    assert [tuple(labels.shape) for batch in whole_run for labels in batch["labels"]] == sizes
    for batch in whole_run:
        for seen, labels in zip(batch["views"], batch["labels"]):
            height, width = labels.shape
            assert [tuple(view.shape) for view in seen] == [(3, height, width), (3, height // 2, width // 2)]
    resumed = loader()
    resumed.load_state_dict(states[0])
    assert [batch["sample_ids"] for batch in resumed] == [batch["sample_ids"] for batch in whole_run[1:]]


# Transforms

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "photometric": False}


def blocks(height: int, width: int, side: int = 24) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] // side
    return (rows * 5 + columns * 3) % 25


@pytest.mark.parametrize(("height", "width"), [(170, 250), (256, 90), (60, 60)])
def test_image_and_mask_stay_aligned(height, width):
    """The image tells the mask: in the middle of a block, where nothing is interpolated, both must say the same."""
    labels = blocks(height, width)
    transform = SegmentationTransform(**PLAIN, crop_size=96, shortest_edge=96, longest_edge=384)
    shapes, checked, padded = set(), 0, 0
    for seed in range(40):
        torch.manual_seed(seed)
        pixels, out = transform(Image.fromarray(picture_of(labels)), labels)
        assert pixels.shape == (3, 96, 96) and pixels.dtype == torch.float32 and type(pixels) is torch.Tensor
        assert out.shape == (96, 96) and out.dtype == torch.int64 and type(out) is torch.Tensor
        told = pixels[0] * 255 / 10
        is_padding = out == 255
        assert (pixels[:, is_padding] == 0).all()
        rows, columns = int((~is_padding).any(1).sum()), int((~is_padding).any(0).sum())
        assert not is_padding[:rows, :columns].any(), "padding lies at the right and below alone"
        shapes.add((rows, columns))
        padded += int(is_padding.any())
        windows = torch.nn.functional.unfold(told[None, None], 7).reshape(49, 90, 90)
        is_flat = (windows.amax(0) - windows.amin(0) < 1e-4) & ~is_padding[3:-3, 3:-3]
        checked += int(is_flat.sum())
        assert torch.equal(told[3:-3, 3:-3][is_flat].round().long(), out[3:-3, 3:-3][is_flat])
    assert checked > 20_000 and 0 < padded < 40 and len(shapes) > 5


def test_flip_turns_both():
    labels = blocks(64, 64)
    options = {"crop_size": 64, "shortest_edge": 64, "longest_edge": 64, "min_scale": 1.0, "max_scale": 1.0}
    for probability, expected in ((0.0, labels), (1.0, labels[:, ::-1])):
        transform = SegmentationTransform(**PLAIN, **options, max_class_share=1.0, horizontal_flip=probability)
        pixels, out = transform(Image.fromarray(picture_of(labels)), labels)
        assert np.array_equal(out, expected) and np.array_equal((pixels[1] * 25.5).round(), expected)


def test_defaults_are_the_papers():
    """PAPER_FACTS section 5.2."""
    steps = SegmentationTransform((0.0,) * 3, (1.0,) * 3).steps.transforms
    rescale, crop, flip, photometric = steps[:4]
    assert (rescale.shortest_edge, rescale.longest_edge, rescale.min_scale, rescale.max_scale) == (512, 2048, 0.5, 2.0)
    assert (crop.height, crop.width, crop.max_class_share, flip.p) == (512, 512, 0.75, 0.5)
    assert photometric.contrast == photometric.saturation == (0.5, 1.5) and photometric.p == 0.5
    # mmsegmentation: 32 of 255 grey levels, 18 of OpenCV's 180 steps of hue
    assert photometric.brightness == (1 - 32 / 255, 1 + 32 / 255) and photometric.hue == (-18 / 180, 18 / 180)


@pytest.mark.parametrize(("height", "width"), [(683, 512), (512, 683), (100, 1000), (64, 64), (1500, 2250)])
def test_rescaling_has_mmcvs_sizes(height, width):
    image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
    for scale in (0.5, 0.7, 1.0, 1.33, 2.0):
        long_limit, short_limit = int(2048 * scale), int(512 * scale)
        factor = min(long_limit / max(height, width), short_limit / min(height, width))
        out = RandomRescale(512, 2048, scale, scale)(image)
        assert out.shape[1:] == (int(height * factor + 0.5), int(width * factor + 0.5))


def test_scales_are_drawn_uniformly():
    image = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
    torch.manual_seed(0)
    sides = np.array([RandomRescale(100, 400, 0.5, 2.0)(image).shape[1] for _ in range(2000)])
    assert sides.min() >= 50 and sides.max() <= 200
    # 500 expected in each quarter of the range; the standard deviation is 19
    assert all(abs(count - 500) < 80 for count in np.histogram(sides, bins=4, range=(50, 200))[0])


def test_crops_are_drawn_until_no_class_has_too_much():
    """Against mmsegmentation's rule on the same draws: one and ten more, the last one unchecked."""
    labels = np.full((40, 60), 7, dtype=np.uint8)
    labels[:, 40:] = 3
    labels[:12, :30] = 255
    crop, retried = RandomCropOfClasses(16, 16, 0.75), 0
    for seed in range(60):
        torch.manual_seed(seed)
        image, out = crop(tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8)), tv_tensors.Mask(labels))
        assert image.shape[1:] == (16, 16)
        torch.manual_seed(seed)
        for draw in range(11):
            top, left = int(torch.randint(25, ())), int(torch.randint(45, ()))
            retried += draw == 1
            window = labels[top : top + 16, left : left + 16]
            values, counts = np.unique(window[window != 255], return_counts=True)
            if len(values) > 1 and counts.max() / counts.sum() < 0.75:
                break
        assert np.array_equal(out, window)
    assert 30 < retried < 60


def test_crops_of_small_images_and_of_empty_masks():
    for labels in (np.full((20, 90), 255), np.zeros((90, 20))):
        mask_ = tv_tensors.Mask(labels.astype(np.uint8))
        image, out = RandomCropOfClasses(32, 32, 0.75)(
            tv_tensors.Image(torch.zeros(3, *labels.shape, dtype=torch.uint8)), mask_
        )
        assert image.shape[1:] == out.shape == tuple(min(32, side) for side in labels.shape)


def test_colours_are_distorted_without_exchanging_channels():
    image = tv_tensors.Image(torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).clone())
    labels = tv_tensors.Mask(torch.arange(16, dtype=torch.uint8).reshape(4, 4))
    distort, seen = PhotometricDistortion(), set()
    torch.manual_seed(0)
    for _ in range(200):
        out, kept = distort(image, labels)
        assert torch.equal(kept, labels)
        red, green, blue = out[:, 0, 0].tolist()
        assert red >= max(green, blue)  # 36 degrees of hue leave red the strongest
        seen.add((red, green, blue))
    # An image that nothing changes has a chance of 1/16.
    assert len(seen) > 100 and (200, 60, 60) in seen and any(g != b for _, g, b in seen)


def test_random_draws_belong_to_the_sample(parquet):
    stream = open_segmentation_stream(str(parquet))
    transform = SegmentationTransform((0.5,) * 3, (0.5,) * 3, crop_size=32, shortest_edge=32, longest_edge=128)
    batches = BatchStream(stream, SegmentationSample(stream, transform, CLASSES), 6, shuffle_window=4, seed=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = next(iter(batches)), next(iter(batches))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in ("pixel_values", "labels"))
    batches.set_epoch(1)
    assert not torch.equal(next(iter(batches))["pixel_values"], first["pixel_values"])
