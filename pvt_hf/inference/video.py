"""Reading frames of videos and writing annotated ones, with PyAV (FFmpeg's libraries). Sound is not read or written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from ..data.samples import set_pixel_limit


# FFmpeg's readers of files that hold their own frames. Others read playlists, which name further files and addresses.
FORMATS = "avi,asf,flv,matroska,mov,mpeg,mpegts,mpegvideo,ogg,webm"
TIME_BASE = Fraction(1, 90_000)  # of annotated videos: fits every usual frame rate
INTERRUPTED = "it was interrupted"


class Frame(NamedTuple):
    """
    Attributes:
        number: in the video, from 0, whatever frames are left out.
        time: in seconds since the first frame.
        image: upright RGB.
    """

    number: int
    time: float
    image: Image.Image


class VideoReader:
    """
    The frames of a video file.

    Args:
        path: a video file.
        every: take each `every`-th frame, from the first.
        fps: or take this many frames of each second, by the frames' own times; all where the video has fewer.
        stopped: asked at each decoded frame; if it is true, the frames end there.

    Attributes:
        expected: about how many frames will be taken; None if the file does not say.
        problem: once the frames have been read, why they may not be all or not right; None if all is well.

    Raises:
        ValueError: not a video that can be read, or one with too many pixels.
    """

    def __init__(
        self, path: Path, every: int = 1, fps: float | None = None, stopped: Callable[[], bool] = lambda: False
    ):
        self.path, self.every, self.fps, self.stopped = path, every, fps, stopped
        self.problem: str | None = None
        try:
            # Without the prefix, a name such as "concat:a.mp4" would be an instruction.
            options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
            self.container = av.open(f"file:{path}", container_options=options, metadata_errors="replace")
        except (FFmpegError, OSError) as error:
            raise ValueError(f"not a video that can be read: {error.strerror or error}") from error
        stream = self.container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            self.container.close()
            raise ValueError("it has no video, only sound or text.")
        set_pixel_limit()
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and stream.width * stream.height > limit:
            self.container.close()
            raise ValueError(f"a video of {stream.width}x{stream.height} pixels; at most {limit:,} are decoded.")
        stream.thread_type = "AUTO"
        self.stream = stream
        self.announced, self.seconds = stream.frames, self._seconds()
        self.expected = self._expected()

    def _seconds(self) -> float | None:
        """How long the video should be, as far as its file says so."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        if self.container.duration and len(self.container.streams) == 1:  # sound may be longer than the picture
            return self.container.duration / av.time_base
        return None

    def _expected(self) -> int | None:
        frames = self.announced or round((self.seconds or 0) * float(self.stream.average_rate or 0))
        if self.fps and self.seconds:
            by_time = math.ceil(self.seconds * self.fps)
            return min(by_time, frames or by_time)
        return math.ceil(frames / self.every) or None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[Frame]:
        index, start, due, time = 0, None, 0.0, 0.0
        rate = float(self.stream.average_rate or 25)
        for decoded in self._decode():
            if self.stopped():
                self.problem = INTERRUPTED
                return
            stamp = decoded.time if decoded.time is not None else index / rate
            start = stamp if start is None else start
            before, time = time, stamp - start
            if self.fps is None:
                wanted = index % self.every == 0
            else:
                # Half a thousandth: times are rounded to milliseconds in some formats.
                wanted = time >= due - 5e-4
                due = self._next(due, time, time - before) if wanted else due
            if wanted:
                yield Frame(index, round(time, 6), _upright(decoded))
            index += 1
        if index == 0:
            self.problem = "it has no frame that can be read."

    def _next(self, due: float, time: float, step: float) -> float:
        """
        When the next frame is due after one at `time`, which comes `step` after the frame before it. What it is late
        does not delay the next, or the rate would fall; but after a gap there is nothing to make up for.
        """
        assert self.fps is not None
        period = 1 / self.fps
        after_gap = step > period and time - due > period / 2
        return (time if after_gap else due) + period

    def _decode(self) -> Iterator[av.VideoFrame]:
        """All frames. What is wrong with the file does not stop it; it is in `problem` afterwards."""
        packets = frames = damaged = 0
        last = 0.0
        problems = []
        try:
            for packet in self.container.demux(self.stream):
                packets += packet.size > 0
                damaged += packet.is_corrupt
                try:
                    decoded = packet.decode()
                except FFmpegError:
                    damaged += 1
                    continue
                for frame in decoded:
                    assert isinstance(frame, av.VideoFrame)  # of this stream
                    frames += 1
                    damaged += frame.is_corrupt
                    last = frame.time or last
                    yield frame
        except FFmpegError as error:
            problems.append(f"it cannot be read beyond frame {frames} ({error.strerror})")
        if damaged:
            problems.append(f"{damaged} of its frames are damaged")
        rate = float(self.stream.average_rate or 25)
        if not problems and self.announced > packets:
            problems.append(f"it ends early: {frames} frames of {self.announced}")
        elif not problems and not self.announced and self.seconds and last + 2 / rate + 0.5 < self.seconds:
            problems.append(f"it ends early: {last:.1f} of {self.seconds:.1f} seconds")
        self.problem = f"{', '.join(problems)}." if problems else None


def _upright(frame: av.VideoFrame) -> Image.Image:
    """RGB, turned as the file says. (A telephone that is held upright films on its side.)"""
    pixels = frame.to_ndarray(format="rgb24")
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)))


class VideoWriter:
    """
    An MP4 file (H.264) of frames with times, to be used as a context. It appears under its name at the end, if it has
    any frames. After an error nothing is left of it.

    Args:
        path: ends with ".mp4".

    Raises:
        av.error.FFmpegError: the frames cannot be encoded or written, e.g. because they are too wide for H.264.
    """

    def __init__(self, path: Path):
        self.path, self.part = path, path.with_name(f".{path.name}.part")
        self.container = av.open(f"file:{self.part}", "w", format="mp4")
        self.stream: av.VideoStream | None = None
        self.size, self.last = (0, 0), -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        try:
            if error_type is None and self.stream is not None:
                self.container.mux(self.stream.encode())
                self.container.close()
                os.replace(self.part, self.path)
        finally:
            with suppress(FFmpegError):  # the first error says more
                self.container.close()
            self.part.unlink(missing_ok=True)

    def write(self, image: Image.Image, time: float) -> None:
        """
        Args:
            image: RGB. The first one's size counts: later ones are resized to it.
            time: in seconds.
        """
        if self.stream is None:
            self.size = image.size
            self.stream = self.container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "20"})
            # H.264 of the usual kind has even sides.
            self.stream.width, self.stream.height = (side + side % 2 for side in image.size)
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = TIME_BASE
        if image.size != self.size:
            image = image.resize(self.size)
        pixels = np.asarray(image.convert("RGB"))
        pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self.last = max(self.last + 1, round(time / TIME_BASE))
        frame.pts, frame.time_base = self.last, TIME_BASE
        self.container.mux(self.stream.encode(frame))
