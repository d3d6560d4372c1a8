"""A short name for the data of a run, so that a run on other data can be recognised."""

from __future__ import annotations

import hashlib
import json
import zlib
from itertools import islice
from typing import Any

from .samples import sample_id, short_name
from .streams import Stream


FIRST_EXAMPLES = 64


def stream_fingerprint(stream: Stream) -> str:
    """
    16 hexadecimal digits from a stream's length, shards and class names, and from the first 64 examples: their names
    and what is in the stream's columns.

    The same data in another folder with the same file names have the same fingerprint. Of images that are files, only
    the names are read. Changes beyond the first examples are not noticed unless the length changes.
    """
    facts: list[Any] = [stream.num_samples, stream.dataset.num_shards, stream.class_names]
    for example in islice(iter(stream.dataset), FIRST_EXAMPLES):
        facts.append(short_name(sample_id(example, stream.image_column)))
        facts += [_describe(example[column]) for column in stream.columns.values()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _describe(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return [short_name(value["path"] or ""), zlib.crc32(value["bytes"] or b"")]
    return zlib.crc32(repr(value).encode())
