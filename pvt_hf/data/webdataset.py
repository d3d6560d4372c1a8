"""
Checks that webdataset tars are complete. `datasets` reads them, but does not notice if one was cut off.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

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
        with tarfile.open(file) as tar:  # also compressed
            for member in tar:
                last = member.name
                if member.isreg() and member.size:
                    tar.fileobj.seek(member.offset_data + member.size - 1)
                    if not tar.fileobj.read(1):
                        raise EOFError("unexpected end of data")
            # tarfile takes an incomplete header for the end of the tar, like blocks of zeros
            tar.fileobj.seek(tar.offset)
            end = tar.fileobj.read(2 * BLOCK)
            if any(end):
                raise EOFError("unexpected end of data")
            if not end:
                warn_once(
                    f"{file} has no end-of-archive marker: it may have been cut off after its last member, {last}."
                )
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{file} is not a complete tar: {type(error).__name__}: {error}; the last member that was found is {last}. "
            "Copy or write it again."
        ) from error
