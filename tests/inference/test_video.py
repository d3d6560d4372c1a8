"""
Reading videos: times of frames, choice of frames, rotation, damage; writing them.

    python -m pytest tests/inference/test_video.py
"""

import av
import numpy as np
import pytest
from PIL import Image

from pvt_hf.inference.video import VideoReader, VideoWriter

from ..support.videos import clip, turn, write_sound, write_video


def read(path, **options):
    with VideoReader(path, **options) as reader:
        return list(reader), reader


def numbers_and_times(frames):
    return [(frame.number, frame.time) for frame in frames]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "even.mp4", clip(20))
    write_video(folder / "uneven.mp4", clip(6), times=[0, 100, 150, 900, 1000, 3000])
    write_video(folder / "ntsc.mp4", clip(100), times=[round(index * 1001 / 30) for index in range(100)])
    return folder


def test_every_frame_in_order(folder):
    frames, reader = read(folder / "even.mp4")
    assert numbers_and_times(frames) == [(index, index / 10) for index in range(20)]
    assert reader.expected == 20 and reader.problem is None
    reds = [np.asarray(frame.image)[30, 40, 0] for frame in frames]
    assert reds == sorted(reds) and np.abs(np.asarray(frames[0].image)[30, 40] - [0.0, 40, 240]).max() < 12  # H.264


def test_some_frames(folder):
    frames, reader = read(folder / "even.mp4", every=7)
    assert [frame.number for frame in frames] == [0, 7, 14] and reader.expected == 3
    frames, reader = read(folder / "even.mp4", fps=5)
    assert [frame.number for frame in frames] == list(range(0, 20, 2)) and reader.expected == 10
    frames, reader = read(folder / "even.mp4", fps=100)
    assert len(frames) == 20 and reader.expected == 20


def test_a_variable_frame_rate(folder):
    frames, _ = read(folder / "uneven.mp4")
    assert [frame.time for frame in frames] == [0, 0.1, 0.15, 0.9, 1, 3]
    frames, _ = read(folder / "uneven.mp4", fps=1)
    assert [frame.time for frame in frames] == [0, 1, 3]


def test_frames_per_second_after_a_gap(tmp_path):
    write_video(tmp_path / "gap.mp4", clip(27), times=[0, 100, *range(10_000, 11_250, 50)])
    assert [frame.time for frame in read(tmp_path / "gap.mp4", fps=1)[0]] == [0, 10, 11]
    write_video(tmp_path / "gaps.mp4", clip(9), times=[0, 100, 120, 900, 1000, 1500, 3000, 3100, 3200])
    assert [frame.time for frame in read(tmp_path / "gaps.mp4", fps=2)[0]] == [0, 0.9, 1.5, 3]


@pytest.mark.parametrize("fps", [7, 10, 20, 29])
def test_frames_per_second_that_do_not_divide_the_frame_rate(folder, fps):
    taken = [frame.time for frame in read(folder / "ntsc.mp4", fps=fps)[0]]
    # Each is the first frame after its turn, by the times in milliseconds
    assert np.abs(np.array(taken) - np.arange(len(taken)) / fps - 0.017).max() < 0.018
    assert len(taken) == int(99 / 29.97 * fps) + 1


def test_a_rotation(folder):
    turn(folder / "even.mp4", folder / "turned.mp4")
    (upright, *_), _ = read(folder / "even.mp4", every=20)
    (turned, *_), _ = read(folder / "turned.mp4", every=20)
    assert turned.image.size == (48, 64)
    assert turned.image.tobytes() == upright.image.transpose(Image.Transpose.ROTATE_270).tobytes()  # counterclockwise


@pytest.mark.parametrize(("ending", "codec"), [("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("mkv", "libx264")])
def test_other_formats(tmp_path, ending, codec):
    write_video(tmp_path / f"clip.{ending}", clip(6), codec=codec)
    frames, reader = read(tmp_path / f"clip.{ending}")
    assert [frame.time for frame in frames] == pytest.approx(np.arange(6) / 10) and reader.problem is None


def test_a_video_that_ends_early(tmp_path):
    noise = [Image.effect_noise((64, 48), 90).convert("RGB") for _ in range(20)]
    write_video(tmp_path / "whole.mp4", noise, movflags="+faststart")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    frames, reader = read(tmp_path / "cut.mp4")
    assert 0 < len(frames) < 20 and reader.problem
    write_video(tmp_path / "whole.webm", noise, codec="libvpx-vp9")
    data = (tmp_path / "whole.webm").read_bytes()
    (tmp_path / "cut.webm").write_bytes(data[: len(data) // 2])
    frames, reader = read(tmp_path / "cut.webm")
    assert 0 < len(frames) < 20 and "it ends early" in reader.problem


def test_damage_in_the_middle(tmp_path):
    write_video(tmp_path / "clip.ts", [Image.effect_noise((64, 48), 90).convert("RGB") for _ in range(20)])
    data = bytearray((tmp_path / "clip.ts").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "clip.ts").write_bytes(data)
    frames, reader = read(tmp_path / "clip.ts")
    assert 10 <= len(frames) <= 20 and "damaged" in reader.problem


def test_what_is_no_video(folder):
    write_sound(folder / "sound.mp4")
    (folder / "empty.mp4").touch()
    (folder / "head.mp4").write_bytes((folder / "even.mp4").read_bytes()[:500])
    # Lists that FFmpeg would follow to other files
    (folder / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\neven.mp4\n#EXT-X-ENDLIST\n")
    (folder / "concat.mp4").write_text("ffconcat version 1.0\nfile even.mp4\n")
    for name in ("empty", "head", "hls", "concat"):
        with pytest.raises(ValueError, match="not a video that can be read"):
            VideoReader(folder / f"{name}.mp4")
    with pytest.raises(ValueError, match="it has no video, only sound"):
        VideoReader(folder / "sound.mp4")


def test_too_many_pixels(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    with pytest.raises(ValueError, match="64x48 pixels; at most 3,071"):
        VideoReader(folder / "even.mp4")


def test_a_video_is_written_at_its_times(tmp_path):
    times = [0, 0.1, 0.5, 2.25]
    with VideoWriter(tmp_path / "out.mp4") as writer:
        for image, time in zip(clip(4, 33, 21), times):  # odd sides, which H.264 lacks
            writer.write(image, time)
        writer.write(clip(1, 80, 80)[0], 2.25)  # another size, and a time that is not later
        assert not (tmp_path / "out.mp4").exists()
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [round(frame.time, 4) for frame in frames[:4]] == times and len(frames) == 5
    assert (frames[0].width, frames[0].height) == (34, 22)
    assert np.abs(frames[0].to_ndarray(format="rgb24")[15, 20] - [0.0, 40, 240]).max() < 30
    with VideoWriter(tmp_path / "none.mp4"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_no_video(tmp_path, error):
    with pytest.raises(error), VideoWriter(tmp_path / "out.mp4") as writer:
        writer.write(clip(1)[0], 0)
        raise error
    assert not list(tmp_path.iterdir())


def test_reading_stops_at_frames_that_are_left_out(folder):
    asked = []

    def stopped():
        asked.append(None)
        return len(asked) == 3

    with VideoReader(folder / "even.mp4", every=100, stopped=stopped) as reader:
        assert [frame.number for frame in reader] == [0]
    assert len(asked) == 3 and reader.problem == "it was interrupted"
