"""`datasets`' reader of webdataset tars, with another way to go through a tar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets.packaged_modules.webdataset.webdataset import WebDataset

from .webdataset import TarFiles


class TarDataset(WebDataset):
    """Examples of local webdataset tars. Reads tars that were joined with `cat` to the end."""

    def _generate_examples(self, tar_paths: list[str], tar_iterators: Any) -> Iterator[Any]:
        yield from super()._generate_examples(tar_paths, [TarFiles(path) for path in tar_paths])
