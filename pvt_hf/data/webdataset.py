"""
Webdataset tars. `datasets` does not notice if one was cut off, and reads only the first of tars that were joined with
`cat`.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .log import warn_once


# Tars are written in blocks of 512 bytes, end with two blocks of zeros, and are usually filled up to 20 blocks.
BLOCK = 512
RECORD = 20 * BLOCK


def check_complete(file: Path) -> None:
    """
    Checks that a tar was not cut off. If the file ends in the usual way, nothing else is read; otherwise all members
    are visited. A tar that ends after a member, but without the end-of-archive marker, causes only a warning, because
    some programs do not write the marker.

    Raises:
        ValueError: it ends in the middle of a member, has no members, or is not a tar.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(size - 2 * BLOCK, 0))
        if size and size % RECORD == 0 and not any(opened.read()):
            return
    last = "nothing"
    try:
        for tar in archives(file):
            stream = stream_of(tar)
            for member in tar:
                last = member.name
                if member.isreg() and member.size:
                    stream.seek(member.offset_data + member.size - 1)
                    if not stream.read(1):
                        raise EOFError("unexpected end of data")
            stream.seek(tar.offset)
            if not stream.read(1):
                warn_once(
                    f"{file} has no end-of-archive marker: it may have been cut off after its last member, {last}."
                )
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{file} is not a complete tar: {type(error).__name__}: {error}; the last member that was found is {last}. "
            "Copy or write it again."
        ) from error


class TarFiles:
    """
    The files in a tar, and in those that were joined to it, as (name, opened file): what `datasets` calls an archive's
    iterator. As there, hidden files are left out.

    Args:
        path: of a tar, perhaps compressed.
    """

    def __init__(self, path: str):
        self.path = path

    def __iter__(self) -> Iterator[tuple[str, IO[bytes]]]:
        for tar in archives(self.path):
            for member in tar:
                opened = tar.extractfile(member) if member.isreg() else None
                if opened is not None and not os.path.basename(member.name).startswith((".", "__")):
                    yield member.name, opened
                tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps them all


def archives(file: str | Path) -> Iterator[tarfile.TarFile]:
    """
    The tars in a file, one after the other: several if they were joined. Read the members of one before asking for the
    next.

    Raises:
        tarfile.TarError: the file does not begin with a tar, or something else follows one.
        EOFError, OSError: it cannot be read.
    """
    with tarfile.open(file) as first:
        tar, stream = first, stream_of(first)
        while True:
            yield tar
            position = tar.offset
            stream.seek(position)
            while block := stream.read(RECORD):
                if any(block):
                    break
                position += len(block)
            if not block:
                return
            position += (len(block) - len(block.lstrip(b"\0"))) // BLOCK * BLOCK
            stream.seek(position)
            tar = tarfile.open(fileobj=stream, mode="r:")
            # tarfile takes an incomplete or damaged header for the end of the tar
            if tar.firstmember is None:  # type: ignore[attr-defined]  # an attribute that typeshed does not list
                raise tarfile.ReadError(f"unexpected end of data, or no tar, at byte {position:,}")


def stream_of(tar: tarfile.TarFile) -> IO[bytes]:
    """The bytes of a tar that is open, uncompressed."""
    assert tar.fileobj is not None
    return tar.fileobj  # type: ignore[return-value]  # of a class of tarfile's
