"""
Walking folders and reading their names, on trees made on the spot: links, circles, junk, special files, splits.

    pytest tests/data/test_folders.py
"""

import os
import socket

import pytest
from PIL import Image

from pvt_hf.data.folders import (
    LeftOut,
    files_below,
    find_split,
    image_files,
    inner_folder,
    split_folder,
    split_in,
    split_of,
)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def below(folder, left_out=None):
    return [str(file.relative_to(folder)) for file in files_below(folder, left_out or LeftOut())]


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Train TRAINING trn train2017 train_set TrainSet training-data stage1_train train_images",
        ),
        ("validation", "val Validation valid DEV eval evaluation val2017 valid_set dev-set images_val"),
        ("test", "test Testing TEST tst test2 test_set stage2_test test-images"),
        (None, "trainer trains station testimony valley devices contest validity cat n01440764 0 images trainval 日本"),
    ],
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def test_splits_in_names_of_files():
    names = {
        "train-00000-of-00002.parquet": "train", "instances_Val2017": "validation", "data.TEST.1": "test",
        "contest": None, "0001": None,
    }  # fmt: skip
    assert {name: split_in(name) for name in names} == names


def test_the_best_name_of_a_split_is_found(tmp_path):
    touch(tmp_path, "val/a", "Validation/a", "train2014/a", "train2017/a", "extra/a")
    folders = [path for path in tmp_path.iterdir()]
    found = {split: find_split(folders, split) for split in ("validation", "VAL", "dev", "train2017", "extra", "test")}
    names = {split: path and path.name for split, path in found.items()}
    assert names == {
        "validation": "Validation", "VAL": "val", "dev": "Validation", "train2017": "train2017", "extra": "extra",
        "test": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"more than one 'train': .*train2017"):
        find_split(folders, "train")
    with pytest.raises(FileNotFoundError, match="no split 'test'; its folders are Validation, train2014"):
        split_folder(tmp_path, "test", LeftOut())


def test_junk_is_left_out_and_counted(tmp_path):
    touch(tmp_path, "a.png", "b/c.png", "._a.png", "b/.DS_Store", "b/THUMBS.DB", "desktop.ini", ".a.jpg.icloud")
    touch(tmp_path, "__MACOSX/b/._c.png", "b/.ipynb_checkpoints/c-checkpoint.png", "@eaDir/a.png/thumb.jpg")
    touch(tmp_path, "$RECYCLE.BIN/x.png", "lost+found/x.png", "System Volume Information/x.png", ".git/x.png")
    left_out = LeftOut()
    for _ in range(2):
        assert below(tmp_path, left_out) == ["a.png", "b/c.png"]
    assert sorted(map(len, left_out.paths.values())) == [1, 11]
    assert str(left_out).count(" x ") == 2 and "1 x files not downloaded from iCloud" in str(left_out)


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "data/cat/a.png", "data/dog/d.png", "store/one/b.png", "store/c.png")
    cat = tmp_path / "data" / "cat"
    for name, target in {
        "linked": tmp_path / "store", "again": tmp_path / "store" / "one", "up": tmp_path / "data", "here": cat,
        "file.png": tmp_path / "store" / "c.png", "broken.png": tmp_path / "nothing", "self.png": cat / "self.png",
    }.items():  # fmt: skip
        (cat / name).symlink_to(target)
    (tmp_path / "store" / "one" / "back").symlink_to(cat)
    left_out = LeftOut()
    found = below(cat, left_out)
    assert [name for name in found if not name.startswith(("linked", "again"))] == ["a.png", "file.png"]
    assert sorted(os.path.basename(name) for name in found) == ["a.png", "b.png", "c.png", "file.png"]
    assert "2 x broken links (cat/" in str(left_out) and "links to folders that are read" in str(left_out)
    (tmp_path / "data" / "bird").symlink_to(tmp_path / "store" / "one")
    assert "b.png" in below(tmp_path / "data" / "bird")


def test_many_links_between_folders_are_read_in_linear_time(tmp_path):
    """Every path through 12 folders that all link to each other would be 12! files."""
    names = [f"f{index}" for index in range(12)]
    touch(tmp_path, *(f"{name}/a.png" for name in names))
    for name in names:
        for other in set(names) - {name}:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    assert below(tmp_path) == sorted(f"{name}/a.png" for name in names)


def test_pipes_and_sockets_are_no_images(tmp_path, monkeypatch):
    touch(tmp_path, "a.PNG", "b.JpEg")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # paths of sockets are at most 108 bytes long
        server.bind("socket.jpg")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    left_out = LeftOut()
    assert [file.name for file in image_files(tmp_path, left_out)] == ["a.PNG", "b.JpEg"]
    assert sum(map(len, left_out.paths.values())) == 3


def test_images_that_cannot_be_read_here_are_named(tmp_path):
    known = [ending for ending, name in Image.registered_extensions().items() if name in ("PNG", "JPEG", "GIF", "TIFF")]
    touch(tmp_path, *(f"a{ending.upper()}" for ending in known))
    touch(tmp_path, "a.HEIC", "b.heic", "c.NEF", "d.eps", "e.h5", "f.txt", "g")
    left_out = LeftOut()
    assert len(image_files(tmp_path, left_out)) == len(known)
    for words in ("2 x .heic images", "1 x .nef images", "1 x .eps images", "3 x files that are not images"):
        assert words in str(left_out), left_out


def test_the_folder_in_an_unpacked_archive(tmp_path):
    touch(tmp_path / "a", "outer/README.md", "outer/inner/cat/1.png", "outer/inner/dog/2.png", "__MACOSX/x")
    assert inner_folder(tmp_path / "a", LeftOut()) == tmp_path / "a" / "outer" / "inner"
    touch(tmp_path / "b", "cat/1.png")  # one class
    touch(tmp_path / "c", "train/cat/1.png")  # one split
    touch(tmp_path / "d", "data/cat/1.png", "loose.png")
    for name in "bcd":
        assert inner_folder(tmp_path / name, LeftOut()) == tmp_path / name
