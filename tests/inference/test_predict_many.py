"""
`pvt-hf predict` on folders, lists and videos: batches answer like single images, nothing is written over, what is done
is kept, and tables say what the pictures show.

    python -m pytest tests/inference/test_predict_many.py
"""

import csv
import io
import json
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.mask import decode

import pvt_hf.inference.files as files
import pvt_hf.inference.video as video
from pvt_hf.commands import main
from pvt_hf.data.digits import digit_scenes
from pvt_hf.inference import progress
from pvt_hf.inference.video import VideoReader

from ..support.hub_kinds import KINDS
from ..support.videos import clip, turn, write_sound, write_video


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Smooth random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("classifier", "semantic_fpn", "mask_rcnn"):
        KINDS[name].model().save_pretrained(folder / name)
        KINDS[name].make_processor().save_pretrained(folder / name)
    return folder


@pytest.fixture
def predict(models, tmp_path, monkeypatch, capsys):
    """Runs `pvt-hf predict` in `tmp_path` with a model; returns exit status or message, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(model: str, *arguments: object):
        name = model if model.startswith("sample:") else str(models / model)
        monkeypatch.setattr(sys, "argv", ["pvt-hf", "predict", "--model", name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def photos(tmp_path):
    """Two sizes, in folders, with the same file name in each."""
    for number, (folder, size) in enumerate(
        [("cat", (60, 40)), ("cow", (40, 60)), ("dog", (60, 40)), ("pig", (60, 40))]
    ):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        picture(*size, seed=number).save(tmp_path / "photos" / folder / "1.png")
    return tmp_path / "photos"


class SimilarMask:
    """Equals COCO's RLE of the same mask but for two pixels."""

    def __init__(self, rle):
        self.mask = decode(rle).astype(int)

    def __eq__(self, rle):
        return np.abs(self.mask - decode(rle)).sum() <= 2


def rounded(value):
    """JSON with its numbers rounded: sums in another order differ in the last bits, which may flip a mask's pixel."""
    if isinstance(value, dict) and "counts" in value:
        return SimilarMask(value)
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value


@pytest.mark.parametrize("model", ["classifier", "semantic_fpn", "mask_rcnn"])
def test_batches_answer_like_single_images(predict, photos, tmp_path, model):
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "notes.txt").touch()
    arguments = (model, "photos", "--threshold", 0.01)
    end, out, errors = predict(*arguments, "--json", "single.json", "--output_dir", "single")
    assert end == "1 of 5 images could not be predicted." and "photos/broken.png: " in errors
    assert "left out 1 x files that are not images (photos/notes.txt)" in errors
    end, batched, _ = predict(*arguments, "--json", "batch.json", "--batch_size", 3, "--output_dir", "batch")
    assert end == "1 of 5 images could not be predicted."
    single, batch = (json.loads((tmp_path / name).read_text()) for name in ("single.json", "batch.json"))
    assert len(single) == 4 and single == rounded(batch)
    key = {"classifier": "classes", "semantic_fpn": "shares", "mask_rcnn": "objects"}[model]
    assert all(entry[key] for entry in single) and single[0][key] != single[2][key]
    made, made_in_batches = ({str(file.relative_to(tmp_path / name)) for file in (tmp_path / name).rglob("*.*")}
                             for name in ("single", "batch"))  # fmt: skip
    assert made == made_in_batches and all(any(name.startswith(f"{one}/1.") for name in made) for one in ("cat", "pig"))
    assert out.replace("single/", "batch/").count("\n") == batched.count("\n") == 4


def test_the_models_of_the_package_are_right_about_its_scene(predict, tmp_path):
    """Counted against the digits that the scene was drawn from, which no training has seen."""
    truth = list(digit_scenes("test", 192, 256, digit_sizes=(60, 100), length=4))[3]
    end, out, _ = predict("sample:digits-detector", "photo:digits", "photo:china")
    assert end is None and "digits" in out
    found = json.loads((tmp_path / "predictions/digits.objects.json").read_text())
    assert sorted(one["label"] for one in found) == sorted(map(str, truth["objects"]["category"]))
    assert all(decode(one["segmentation"]).sum() > 500 for one in found)
    assert len(json.loads((tmp_path / "predictions/china.objects.json").read_text())) < 3  # a temple has no digits
    assert predict("sample:digits-segmenter", "photo:digits")[0] is None
    labels = np.asarray(Image.open(tmp_path / "predictions/digits.labels.png"))
    assert (labels == np.asarray(truth["semantic_map"])).mean() > 0.9


def test_tables_say_what_the_results_say(predict, photos, tmp_path):
    end, out, _ = predict("mask_rcnn", "photos", "--threshold", 0.01, "--csv", "-", "--json", "all.jsonl")
    assert end is None
    rows = list(csv.DictReader(io.StringIO(out)))
    expected = []
    for folder in sorted(photos.iterdir()):
        for one in json.loads((tmp_path / "predictions" / folder.name / "1.objects.json").read_text()):
            expected.append([str(folder / "1.png"), "", "", one["label"], *map(str, (one["score"], *one["box"]))])
    assert [list(row.values()) for row in rows] == expected and len(rows) > 4
    assert list(rows[0]) == ["file", "frame", "time", "label", "score", "left", "top", "right", "bottom"]
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(line["image"], line["width"]) for line in lines] == [
        (str(photos / name / "1.png"), width) for name, width in (("cat", 60), ("cow", 40), ("dog", 60), ("pig", 60))
    ]
    end, out, _ = predict("mask_rcnn", "photos/cat", "--threshold", 1, "--csv", "-")
    assert end is None and list(csv.reader(io.StringIO(out)))[1][1:] == [""] * 8  # no objects, but an answer


@pytest.mark.parametrize("tables", [[], ["--json", "-", "--csv", "all.csv"]])
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_of_the_output_may_end(predict, photos, tmp_path, monkeypatch, tables, both):
    """As in `pvt-hf predict ... | head -c 10`, and with `2>&1 | head`: the files are all written."""
    for name in ("stdout", "stderr") if both else ("stdout",):
        reading, writing = os.pipe()
        os.close(reading)
        monkeypatch.setattr(sys, name, os.fdopen(writing, "w"))
    end, _, errors = predict("classifier", "photos/cat", "photos/dog", "--batch_size", 1, *tables)
    assert end == 1 and {path.name for path in (tmp_path / "predictions").glob("*.png")} == {
        "1.classes.png", "1-2.classes.png"
    }  # fmt: skip
    assert (tmp_path / "all.csv").exists() == bool(tables)
    if not both:
        assert errors.count("Standard output was closed") == 1 and "cannot be written" not in errors


def test_an_interrupted_run_goes_on(predict, photos, tmp_path, monkeypatch):
    written, write = [], files.write_whole

    def interrupted(target, content):
        write(target, content)
        written.append(target.relative_to("predictions").as_posix())
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(files, "write_whole", interrupted)
    end, _, errors = predict("classifier", "photos", "--json", "all.json")
    assert end == 130 and "Stopped by SIGINT after 2 of 4 files. --resume" in errors
    assert written == ["cat/1.classes.png", "cow/1.classes.png"]
    assert len(json.loads((tmp_path / "all.json").read_text())) == 2
    with open(tmp_path / "predictions/predictions.jsonl", "a") as record:
        record.write('{"image": "/cut')  # as a crash leaves it
    del written[:2]
    written += ["", "", ""]  # not again
    end, out, _ = predict("classifier", "photos", "--json", "all.json", "--resume")
    assert end is None and out.startswith("2 of 4 files are done already.\n")
    assert written[3:] == ["dog/1.classes.png", "pig/1.classes.png"]
    assert len(json.loads((tmp_path / "all.json").read_text())) == 4
    # What has changed is predicted again: the image, the settings, a result that is gone.
    picture(50, 50, seed=9).save(photos / "cat/1.png")
    (tmp_path / "predictions/pig/1.classes.png").unlink()
    _, out, _ = predict("classifier", "photos", "--resume")
    assert out.startswith("2 of 4 files") and written[5:] == ["cat/1.classes.png", "pig/1.classes.png"]
    _, out, _ = predict("classifier", "photos", "--resume", "--top_k", 1)
    assert (
        out.startswith("0 of 4 files")
        and len((tmp_path / "predictions/predictions.jsonl").read_text().splitlines()) == 4
    )


def test_later_runs_do_not_write_over_results_of_other_files(predict, photos, tmp_path):
    assert predict("classifier", "photos/cat/1.png")[0] is None
    first = (tmp_path / "predictions/1.classes.png").read_bytes()
    assert predict("classifier", "photos/dog/1.png")[0] is None
    assert (tmp_path / "predictions/1.classes.png").read_bytes() == first
    assert predict("classifier", "photos/cat/1.png", "photos/dog/1.png")[0] is None  # each over its own
    names = {file.name for file in (tmp_path / "predictions").iterdir()}
    assert names == {"1.classes.png", "1-2.classes.png", "predictions.jsonl"}
    # A folder that holds its own results
    assert predict("classifier", "photos", "--output_dir", "photos")[0] is None
    before = sorted(photos.rglob("*"))
    end, _, errors = predict("classifier", "photos", "--output_dir", "photos")
    assert end is None and "results of pvt-hf predict" in errors and sorted(photos.rglob("*")) == before


def test_a_record_from_elsewhere_leads_nowhere(predict, photos, tmp_path):
    image = str(photos / "cat/1.png")
    (tmp_path / "predictions").mkdir()
    lines = [
        {"image": image, "files": ["../../stolen.classes.png"]},
        {"image": image, "files": ["/stolen.classes.png"]},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "predictions/predictions.jsonl").write_text(text)
    assert predict("classifier", image)[0] is None
    assert (tmp_path / "predictions/1.classes.png").is_file()


@pytest.mark.parametrize("model", ["classifier", "semantic_fpn", "mask_rcnn"])
def test_a_video(predict, tmp_path, monkeypatch, model):
    """Each frame is answered as a picture of it would be."""
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    write_video(tmp_path / "upright.mp4", clip(9, 64, 48))
    turn(tmp_path / "upright.mp4", tmp_path / "clip.mp4")
    names = ["predictions/clip.frames.jsonl", "predictions/clip.annotated.mp4"]
    arguments = ("--every", 2, "--batch_size", 3, "--threshold", 0.01)
    end, out, errors = predict(model, "clip.mp4", *arguments, "--json", "all.json")
    assert end is None and out == f"clip.mp4: 5 frames  -> {', '.join(names)}\n"
    assert "clip.mp4: 5 of 5 frames, " in errors and "predict: 1 of 1 files, " in errors  # no terminal: lines
    lines = [json.loads(line) for line in (tmp_path / "predictions/clip.frames.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["time"], line["width"]) for line in lines] == [
        (i, i / 10, 48) for i in (0, 2, 4, 6, 8)
    ]
    with VideoReader(tmp_path / "clip.mp4", every=2) as reader:
        for frame in reader:
            frame.image.save(tmp_path / f"frame{frame.number}.png")
    arguments = ("frame*.png", "--threshold", 0.01, "--output_dir", "stills", "--json", "stills.json")
    assert predict(model, *arguments)[0] is None
    stills = json.loads((tmp_path / "stills.json").read_text())
    hidden = ("image", "video", "frame", "time")
    assert [strip(line, hidden) for line in stills] == rounded([strip(line, hidden) for line in lines])
    assert [strip(line, ("video",)) for line in json.loads((tmp_path / "all.json").read_text())] == lines
    with VideoReader(tmp_path / "predictions/clip.annotated.mp4") as reader:
        annotated = list(reader)
    assert [frame.time for frame in annotated] == [0, 0.2, 0.4, 0.6, 0.8]
    assert {frame.image.size for frame in annotated} == {(48, 64)}


def strip(entry: dict, names) -> dict:
    return {name: value for name, value in entry.items() if name not in names}


def test_videos_that_are_not_whole(predict, photos, tmp_path):
    noise = [Image.effect_noise((64, 48), 90).convert("RGB") for _ in range(12)]
    write_video(tmp_path / "whole.webm", noise, codec="libvpx-vp9")
    data = (tmp_path / "whole.webm").read_bytes()
    (tmp_path / "photos/cut.webm").write_bytes(data[: len(data) // 2])
    write_sound(tmp_path / "photos/sound.mp4")
    (tmp_path / "photos/empty.avi").touch()
    end, out, errors = predict("classifier", "photos")
    assert end == "3 of 7 files could not be predicted." and out.count("\n") == 5
    assert (
        "cut.webm: it ends early" in errors and "sound.mp4: it has no video" in errors and "empty.avi: not a" in errors
    )
    made = {file.name for file in (tmp_path / "predictions").iterdir()}
    assert made == {"cat", "cow", "dog", "pig", "cut.frames.jsonl", "cut.annotated.mp4", "predictions.jsonl"}
    _, out, errors = predict("classifier", "photos", "--resume")
    assert out.startswith("4 of 7 files are done already.") and errors.count("\n") == 3  # the others are tried again


def test_an_interrupted_video_keeps_what_is_done(predict, tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", clip(9))
    decoded, upright = [], video._upright

    def interrupted(frame):
        decoded.append(frame)
        if len(decoded) == 5:  # the first of the third batch
            os.kill(os.getpid(), signal.SIGINT)
        return upright(frame)

    monkeypatch.setattr(video, "_upright", interrupted)
    end, _, errors = predict("classifier", "clip.mp4", "--batch_size", 2)
    assert end == 130 and "clip.mp4: it was interrupted" in errors and len(decoded) == 5
    made = {file.name for file in (tmp_path / "predictions").iterdir()}
    assert made == {"clip.frames.jsonl", "clip.annotated.mp4", "predictions.jsonl"}
    assert len((tmp_path / "predictions/clip.frames.jsonl").read_text().splitlines()) == 4
    with VideoReader(tmp_path / "predictions/clip.annotated.mp4") as reader:
        assert len(list(reader)) == 4


def test_an_error_leaves_no_half_of_a_video(predict, tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", clip(3))
    upright = video._upright

    def full(frame):
        if frame.time:
            raise OSError("disk trouble")
        return upright(frame)

    monkeypatch.setattr(video, "_upright", full)
    end, _, _ = predict("classifier", "clip.mp4", "--batch_size", 1)
    assert end.endswith("disk trouble") and not list((tmp_path / "predictions").iterdir())


def test_a_video_that_cannot_be_annotated_fails_alone(predict, photos, tmp_path):
    write_video(tmp_path / "photos/a.mkv", [Image.new("RGB", (20000, 16))], codec="ffv1")
    end, out, errors = predict("classifier", "photos/a.mkv", "photos/cat")
    assert end == "1 of 2 files could not be predicted." and out.count("\n") == 1
    assert "a.mkv: its frames of 20000x16 pixels cannot be written as a video: " in errors
    assert {file.name for file in (tmp_path / "predictions").iterdir()} == {"1.classes.png", "predictions.jsonl"}


def test_files_deleted_during_the_run_fail_alone(predict, photos, tmp_path, monkeypatch):
    write = files.write_whole

    def delete_two(target, content):
        write(target, content)
        (photos / "cat/1.png").unlink(missing_ok=True)  # read already
        (photos / "cow/1.png").unlink(missing_ok=True)

    monkeypatch.setattr(files, "write_whole", delete_two)
    end, out, errors = predict("classifier", "photos", "--batch_size", 1)
    assert end == "1 of 4 images could not be predicted." and out.count("\n") == 3
    assert "cow/1.png: it cannot be read: No such file or directory" in errors


def test_videos_without_their_extra(predict, tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    end, _, _ = predict("classifier", "clip.mp4")
    assert end == 'error: videos need PyAV, which is not installed: pip install "pvt-hf[video]"'
