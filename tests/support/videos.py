"""Small videos, and damage to them."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def clip(count: int, width: int = 64, height: int = 48) -> list[Image.Image]:
    """Frames from blue to red, with a white corner in the upper left."""
    frames = []
    for share in np.linspace(0, 1, count):
        frame = Image.new("RGB", (width, height), (int(240 * share), 40, int(240 * (1 - share))))
        frame.paste("white", (0, 0, width // 3, height // 4))
        frames.append(frame)
    return frames


def write_video(
    path: Path, frames: Sequence[Image.Image], times: Sequence[int] | None = None, codec: str = "libx264", **options
) -> None:
    """`times` are in milliseconds, by default ten frames a second. `options` are FFmpeg's, for the file."""
    base = Fraction(1, 1000) if times else Fraction(1, 10)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = (times[index] if times else index), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_sound(path: Path) -> None:
    """An MP4 file without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def turn(source: Path, target: Path) -> None:
    """A copy of an MP4 file that players turn by 90 degrees clockwise: its track's matrix (ISO 14496-12, 8.3.2)."""
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd") + 4
    assert data[header] == 0  # version 0: 32-bit times
    struct.pack_into(">9i", data, header + 40, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
