"""A short name for the data that a run has seen, so that another run can be told apart."""

from __future__ import annotations

import hashlib
import json
import zlib
from itertools import islice

from .samples import sample_id
from .streams import Stream


FIRST_EXAMPLES = 64


def stream_fingerprint(stream: Stream) -> str:
    """
    16 hexadecimal digits of what a stream says of itself (length, shards, classes) and of the names, labels and bytes
    (where images are not files of their own) of its first 64 examples in order, masks and objects included. Equal
    for equal data in another folder with the same file names; a change that leaves all of these alone is not noticed.
    """
    told = [stream.num_samples, stream.dataset.num_shards, stream.class_names]
    for example in islice(iter(stream.dataset), FIRST_EXAMPLES):
        name = "/".join(sample_id(example, stream.image_column).split("/")[-2:])
        checksum = zlib.crc32((example[stream.image_column] or {}).get("bytes") or b"")
        told.append([name, str(example[stream.label_column]) if stream.label_column else None, checksum])
        if stream.mask_column:
            mask = example[stream.mask_column] or {}
            told[-1] += ["/".join((mask.get("path") or "").split("/")[-2:]), zlib.crc32(mask.get("bytes") or b"")]
        if stream.objects_column:
            told[-1].append(zlib.crc32(repr(example[stream.objects_column]).encode()))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
