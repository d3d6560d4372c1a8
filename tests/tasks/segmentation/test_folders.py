"""
Finding images and masks in the layouts of known data sets and tools, and masks in every format, from real files made on
the spot. The images tell which mask is theirs, so that a wrong pair shows.

    pytest tests/tasks/segmentation/test_folders.py
"""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from pvt_hf.data.samples import BadSample
from pvt_hf.tasks.segmentation.samples import SegmentationEvaluationSample, decode_labels
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream

from ...support.segmentation_files import mask, read


def write_image(file, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (20 * seed,) * 3).save(file)


def write_mask(file, labels):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".npy":
        np.save(file.with_suffix(".npy"), labels)
    else:
        Image.fromarray(labels).save(file)


def assert_pairs(root, split, seeds, **settings):
    """Every image of the split has its own labels, and they are those of these seeds."""
    stream = open_segmentation_stream(str(root), split)
    found = read(stream, **settings)
    assert len(found) == stream.num_samples == len(seeds)
    expected = sorted(mask(seed).tolist() for seed in seeds)
    assert sorted(labels.tolist() for labels in found.values()) == expected
    for name, labels in found.items():
        seed = round(Image.open(name).getpixel((9, 9))[0] / 20)  # JPEG changes colours a little
        assert np.array_equal(labels, mask(seed)), name


# The files of the image and of the mask of number #, for each split
LAYOUTS = {
    "ADE20K": {"train": ("images/training/#.jpg", "annotations/training/#.png"),
               "validation": ("images/validation/#.jpg", "annotations/validation/#.png")},
    "mmsegmentation": {"train": ("img_dir/train/#.jpg", "ann_dir/train/#.png"),
                       "validation": ("img_dir/val/#.jpg", "ann_dir/val/#.png")},
    "Cityscapes in mmsegmentation's folders": {
        "train": ("img_dir/train/a_#_leftImg8bit.png", "ann_dir/train/a_#_gtFine_labelTrainIds.png")},
    "Cityscapes": {
        "train": ("leftImg8bit/train/bonn/bonn_#_leftImg8bit.png", "gtFine/train/bonn/bonn_#_gtFine_labelIds.png"),
        "validation": ("leftImg8bit/val/ulm/ulm_#_leftImg8bit.png", "gtFine/val/ulm/ulm_#_gtFine_labelIds.png")},
    "Carvana": {"train": ("train/#.jpg", "train_masks/#_mask.gif"), "test": ("test/#.jpg", "test_masks/#_mask.gif")},
    "SegNet": {"train": ("train/#.png", "trainannot/#.png"), "validation": ("val/#.png", "valannot/#.png")},
    "Roboflow": {"train": ("train/#_jpg.rf.0a.jpg", "train/#_jpg.rf.0a_mask.png"),
                 "validation": ("valid/#_jpg.rf.0a.jpg", "valid/#_jpg.rf.0a_mask.png")},
    "capitals": {"train": ("Images/Train/#.JPG", "Masks/TRAIN/#.PNG"),
                 "test": ("Images/Testing/#.JPEG", "Masks/Testing/#.Png")},
    "folders per split": {"train": ("Training/Imgs/#.jpg", "Training/Labels/#_label.PNG"),
                          "validation": ("Valid/Imgs/#.jpg", "Valid/Labels/#_label.PNG")},
    "ISIC": {"train": ("images/ISIC_#.jpg", "masks/ISIC_#_segmentation.png")},
    "DeepGlobe": {"train": ("train/#_sat.jpg", "train/#_mask.png")},
    "MRI": {"train": ("kaggle_3m/patient_#/p_#.tif", "kaggle_3m/patient_#/p_#_mask.tif")},
    "labelme": {"train": ("#_json/img.png", "#_json/label.png")},
    "one folder per image": {"train": ("stage1_train/#/images/#.png", "stage1_train/#/masks/#.png"),
                             "test": ("stage1_test/#/images/#.png", "stage1_test/#/masks/#.png")},
    "prefixes": {"train": ("images/image_#.jpg", "labels/label_#.png")},
    "a name for each": {"train": ("img/#.jpg", "gt/mask-#.tiff")},
    "full names": {"train": ("images/#.jpg", "masks/#.jpg.png")},
    "one folder": {"train": ("#.jpg", "#.png")},
    "masks not divided": {"train": ("images/train/#.jpg", "masks/#.png"),
                          "validation": ("images/val/#.jpg", "masks/#.png")},
    "unpacked": {"train": ("data/set/images/train/#.jpg", "data/set/masks/train/#.png"),
                 "validation": ("data/set/images/dev/#.jpg", "data/set/masks/dev/#.png")},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    seeds = {"train": [1, 2, 3], "validation": [4, 5], "test": [6]}
    for split, (image, label) in LAYOUTS[layout].items():
        for seed in seeds[split]:
            write_image(tmp_path / image.replace("#", str(seed)), seed)
            write_mask(tmp_path / label.replace("#", str(seed)), mask(seed))
    (tmp_path / "README.md").write_text("about")
    for split in LAYOUTS[layout]:
        assert_pairs(tmp_path, split, seeds[split])
    for split in seeds.keys() - LAYOUTS[layout].keys():
        with pytest.raises(FileNotFoundError, match=f"'{split}'"):
            open_segmentation_stream(str(tmp_path), split)


def test_pascal_voc(tmp_path):
    """The lists choose; images without masks are in no list; colours are a palette, and 255 is a border."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0, 0, 0] * 252 + [224, 224, 192]
    for seed in range(6):
        write_image(root / "JPEGImages" / f"2007_00000{seed}.jpg", seed)
        if seed < 5:
            labels = mask(seed)
            labels[:, 0] = 255
            image = Image.fromarray(labels).convert("P")
            image.putdata(labels.flatten().tolist())
            image.putpalette(palette)
            for folder in ("SegmentationClass", "SegmentationObject"):
                (root / folder).mkdir(exist_ok=True)
                image.save(root / folder / f"2007_00000{seed}.png")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir()
    (root / "ImageSets" / "Main" / "train.txt").write_text("2007_000005\n")
    lists = {"train": (0, 1, 2), "val": (3, 4), "trainval": (0, 1, 2, 3, 4)}
    for name, seeds in lists.items():
        lines = "".join(f"2007_00000{seed}\n" for seed in seeds)
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(lines)
    for split, seeds in {"train": (0, 1, 2), "validation": (3, 4), "trainval": (0, 1, 2, 3, 4)}.items():
        found = read(open_segmentation_stream(str(tmp_path / "VOCdevkit"), split))
        assert sorted(name[-10:-4] for name in found) == [f"00000{seed}" for seed in seeds]
        for seed, labels in zip(seeds, (found[name] for name in sorted(found))):
            assert np.array_equal(labels[:, 1:], mask(seed)[:, 1:]) and (labels[:, 0] == 255).all()
    with pytest.raises(FileNotFoundError, match="no test.txt; it has train.txt, trainval.txt, val.txt"):
        open_segmentation_stream(str(root), "test")


def test_train_ids_of_cityscapes_go_before_ids(tmp_path, caplog):
    for seed in (1, 2):
        name = f"train/aachen/aachen_{seed}"
        write_image(tmp_path / "leftImg8bit" / f"{name}_leftImg8bit.png", seed)
        for kind, labels in {"labelIds": mask(seed) + 7, "labelTrainIds": mask(seed), "color": mask(9)}.items():
            write_mask(tmp_path / "gtFine" / f"{name}_gtFine_{kind}.png", labels)
        (tmp_path / "gtFine" / f"{name}_gtFine_polygons.json").write_text("{}")
    assert_pairs(tmp_path, "train", [1, 2])
    assert "2 x files that are not masks" in caplog.text and "4 x masks without an image" in caplog.text
    # Never a mixture of two numberings: without its labelTrainIds an image has no mask.
    (tmp_path / "gtFine" / "train" / "aachen" / "aachen_1_gtFine_labelTrainIds.png").unlink()
    masks = [example["mask"] for example in open_segmentation_stream(str(tmp_path)).dataset]
    assert masks[0] is None and masks[1]["path"].endswith("aachen_2_gtFine_labelTrainIds.png")


def test_ids_of_cityscapes_are_mapped(tmp_path, caplog):
    """To the numbers that cityscapesScripts gives its 19 classes: road 0, ..., bicycle 18; 255 for the other ids."""
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
    train_ids |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    ids = np.arange(36 * 40, dtype=np.uint8).reshape(36, 40) % 34
    write_image(tmp_path / "leftImg8bit" / "train" / "bonn" / "bonn_1_leftImg8bit.png", 1)
    write_mask(tmp_path / "gtFine" / "train" / "bonn" / "bonn_1_gtFine_labelIds.png", ids)
    stream = open_segmentation_stream(str(tmp_path))
    advice = caplog.text.partition("--ignore_other_values --mask_values ")[2].partition(".")[0]
    names, values = tuple(map(str, range(19))), tuple(map(int, advice.split()))
    (example,) = stream.dataset
    sample = SegmentationEvaluationSample(stream, lambda image: [], names, False, values, True)(example)
    assert np.array_equal(sample["labels"], np.vectorize(lambda number: train_ids.get(number, 255))(ids))
    assert "of value not named or 255, which is no class" in str(sample["label_counts"])
    with pytest.raises(BadSample, match=r"labels 0, 1, 2, 3, 4 \.\.\. are not among the 19 classes"):
        SegmentationEvaluationSample(stream, lambda image: [], names, False, values)(example)


def test_masks_of_objects_in_one_folder_per_image_are_merged(tmp_path, caplog):
    for name, boxes in {"a": [(0, 10), (20, 30)], "b": [(5, 6)], "c": [(0, 3), (1, 4)]}.items():
        write_image(tmp_path / "stage1_train" / name / "images" / f"{name}.png", 0)
        for index, (start, stop) in enumerate(boxes):
            labels = np.zeros((36, 40), dtype=np.uint8)
            labels[start:stop] = 255
            write_mask(tmp_path / "stage1_train" / name / "masks" / f"{index}.png", labels)
    (tmp_path / "stage1_train" / "c" / "masks" / "1.png").write_bytes(b"damaged")
    stream = open_segmentation_stream(str(tmp_path))
    examples = list(stream.dataset)
    labels = [decode_labels(example["mask"], 2, False) for example in examples[:2]]
    rows = [set(np.flatnonzero(found.all(axis=1)).tolist()) for found in labels]
    assert rows == [{*range(10), *range(20, 30)}, {5}] and {found.max() for found in labels} == {1}
    with pytest.raises(ValueError, match="mask: .*1.png.*no image that Pillow reads"):
        decode_labels(examples[2]["mask"], 2, False)
    assert "merged into one, in which 1 is an object" in caplog.text


@pytest.mark.parametrize("labels", ["dense", "gaps"])
@pytest.mark.parametrize("ending", [".png", ".PNG", ".tif", ".TIFF", ".bmp", ".gif", ".npy", ".NPY"])
def test_masks_in_every_format(ending, labels, tmp_path):
    """Also labels with gaps, whose greys a GIF renumbers."""
    content = mask(1) if labels == "dense" else np.array([0, 3, 255], dtype=np.uint8)[mask(1)]
    file = tmp_path / f"mask{ending}"
    write_mask(file, content)
    if ending == ".NPY":
        (tmp_path / "mask.npy").rename(file)
    for value in ({"bytes": None, "path": str(file)}, {"bytes": file.read_bytes(), "path": None}):
        assert np.array_equal(decode_labels(value, 4, False), content)


def test_masks_of_other_types(tmp_path):
    labels = mask(1)
    files = {name: tmp_path / name for name in ("rgb.bmp", "rgba.png", "float.tif", "float.npy", "one.bmp", "grey.png")}
    Image.fromarray(labels).convert("RGB").save(files["rgb.bmp"])
    Image.fromarray(labels).convert("RGBA").save(files["rgba.png"])
    Image.fromarray(labels.astype(np.float32)).save(files["float.tif"])
    np.save(files["float.npy"], labels.astype(float)[..., None])
    Image.fromarray(labels > 0).save(files["one.bmp"])
    grey = Image.fromarray(labels).convert("P")
    grey.putdata(labels.flatten().tolist())
    grey.putpalette([0, 0, 0, 127, 127, 127, 255, 255, 255])  # a picture of the classes
    grey.save(files["grey.png"])
    for name, file in files.items():
        expected = labels > 0 if name == "one.bmp" else labels
        assert np.array_equal(decode_labels({"bytes": None, "path": str(file)}, 3, False), expected), name


@pytest.mark.parametrize(
    "content", [np.array([[0.5, 1.0]]), np.array([[np.nan, 1.0]]), np.zeros((2, 3, 4), int), np.array([{}])]
)
def test_arrays_that_are_no_masks(content, tmp_path):
    np.save(tmp_path / "mask.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match="mask: "):
        decode_labels({"bytes": None, "path": str(tmp_path / "mask.npy")}, 3, False)


def test_masks_that_do_not_fit(tmp_path):
    write_image(tmp_path / "images" / "a.jpg", 1)
    write_image(tmp_path / "masks" / "a.jpg", 1)
    with pytest.raises(FileNotFoundError, match=r"there is \.jpg; JPEG changes labels"):
        open_segmentation_stream(str(tmp_path))
    write_mask(tmp_path / "masks" / "a_mask.png", mask(1))
    write_mask(tmp_path / "masks" / "a_label.tif", mask(1))
    with pytest.raises(ValueError, match=r"a.jpg has more than one mask: .*a_label.tif, .*a_mask.png"):
        open_segmentation_stream(str(tmp_path))
    write_mask(tmp_path / "masks" / "a.png", mask(1))
    assert_pairs(tmp_path, "train", [1])


def test_accents_stored_in_two_ways(tmp_path):
    for seed, name in ((1, "é"), (2, "b")):
        write_image(tmp_path / "images" / f"{unicodedata.normalize('NFD', name)}.png", seed)
        write_mask(tmp_path / "masks" / f"{unicodedata.normalize('NFC', name)}.png", mask(seed))
    assert_pairs(tmp_path, "train", [1, 2])
