"""
What `pvt-hf predict` finds: files, folders, patterns and lists, without junk and without its own results.

    python -m pytest tests/inference/test_inputs.py
"""

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from pvt_hf.inference.inputs import Input, find_inputs, unique_names


FILES = [
    "a.png", "cat/1.jpg", "cat/clip.MP4", "dog/1.JPG", "dog/deep/2.webp", "notes.txt", ".DS_Store", "Thumbs.db",
    "__MACOSX/._a.png", "cat/._1.jpg", "raw.svg", "[1].png", "out/cat/1.classes.png",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    monkeypatch.chdir(tmp_path)
    return Path("photos")


def names(inputs):
    return {str(one.path): one.name for one in inputs.found}


def listed(monkeypatch, data: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return find_inputs(["-"], Path("predictions"))


def test_a_folder(photos):
    inputs = find_inputs(["photos"], photos / "out")
    assert names(inputs) == {
        "photos/a.png": "a", "photos/cat/1.jpg": "cat/1", "photos/cat/clip.MP4": "cat/clip",
        "photos/dog/1.JPG": "dog/1", "photos/dog/deep/2.webp": "dog/deep/2", "photos/[1].png": "[1]",
    }  # fmt: skip
    assert inputs.problems == []
    said = str(inputs.left_out)
    assert "4 x junk" in said and "1 x files that are not images (photos/notes.txt)" in said and "1 x .svg" in said
    assert "1 x results of pvt-hf predict" in said


def test_results_beside_the_images(photos):
    earlier = {Path(os.path.abspath(photos / "out/cat/1.classes.png"))}
    assert "photos/out/cat/1.classes.png" in names(find_inputs(["photos"], photos))
    assert "photos/out/cat/1.classes.png" not in names(find_inputs(["photos"], photos, earlier))


def test_patterns(photos):
    assert names(find_inputs(["photos/**/*.jpg"], Path("out"))) == {"photos/cat/1.jpg": "cat/1"}
    assert names(find_inputs(["photos/*/1.*"], Path("out"))) == {
        "photos/cat/1.jpg": "cat/1",
        "photos/dog/1.JPG": "dog/1",
    }
    folders = find_inputs(["photos/d*"], Path("out"))
    assert names(folders) == {"photos/dog/1.JPG": "dog/1", "photos/dog/deep/2.webp": "dog/deep/2"}
    assert names(find_inputs(["photos/[1].png"], Path("out"))) == {"photos/[1].png": "[1]"}  # a file, not a pattern
    nothing = find_inputs(["photos/*.gif", "photos/*.txt", "photos/none.png"], Path("out"))
    assert nothing.found == [] and [line.split(":")[0] for line in nothing.problems] == [
        "photos/*.gif", "photos/*.txt", "photos/none.png"
    ]  # fmt: skip


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_a_list(photos, monkeypatch, separator):
    inputs = listed(monkeypatch, separator.join([b"photos/a.png", b"", b"photos/dog", b"photos/none.png", b""]))
    assert names(inputs) == {"photos/a.png": "a", "photos/dog/1.JPG": "1", "photos/dog/deep/2.webp": "deep/2"}
    assert inputs.problems == ["photos/none.png: there is no such file."]


def test_an_image_instead_of_a_list(photos, monkeypatch):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    inputs = listed(monkeypatch, buffer.getvalue())
    assert inputs.found == [] and "standard input is a PNG image" in inputs.problems[0] and len(inputs.problems) == 1


def test_a_file_that_is_named_twice(photos):
    os.symlink(os.path.abspath(photos / "a.png"), "link.png")
    inputs = find_inputs(["photos/a.png", "photos", "link.png"], photos / "out")
    assert list(names(inputs))[0] == "photos/a.png" and "link.png" not in names(inputs)
    assert inputs.problems == [] and "2 x files named more than once" in str(inputs.left_out)


def test_photographs_of_installed_packages(photos):
    inputs = find_inputs(["photo:digits", "photo:china", "photo:coins", "photo:mars"], Path("out"))
    sizes = {one.name: Image.open(one.path).size for one in inputs.found}
    assert sizes == {"digits": (256, 192), "china": (640, 427), "coins": (384, 303)}
    (problem,) = inputs.problems
    assert problem.startswith("photo:mars: There is no photograph 'mars': choose one of digits, china, ")
    Path("photo:china").touch()  # a path that exists is nothing else
    assert names(find_inputs(["photo:china"], Path("out"))) == {"photo:china": "photo:china"}


def test_a_photograph_whose_package_is_missing(photos, monkeypatch):
    monkeypatch.setattr("pvt_hf.inference.photographs.find_spec", lambda name: None)
    assert find_inputs(["photo:coins"], Path("out")).problems == [
        "photo:coins: The photograph 'coins' is a file of scikit-image: pip install scikit-image"
    ]


def test_names_that_are_taken():
    inputs = [Input(Path("x"), name) for name in ("a", "A", "a", "a-2", "b", "b")]
    assert unique_names(inputs, taken=lambda name: name == "b") == ["a", "A-2", "a-3", "a-2-2", "b-2", "b-3"]
