"""Downloads official PVT checkpoints, reads them safely, and unwraps their weights."""

from __future__ import annotations

import argparse
import errno
import hashlib
import http.client
import os
import pickle
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import cached_assets_path, is_offline_mode
from huggingface_hub.utils import WeakFileLock, tqdm
from safetensors import SafetensorError
from transformers.utils import logging

from .variants import Variant


logger = logging.get_logger(__name__)

_TIMEOUT = 30  # seconds without any data
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_CHUNK = 1 << 20  # bytes


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_checkpoint(variant: Variant, cache_dir: str | Path | None = None) -> Path:
    """
    Downloads the official checkpoint of a variant, with a progress bar, unless it is in the cache.

    The download goes to a `.part` file. It gets its final name if it is complete, has the expected SHA-256 (if known)
    and can be read as a checkpoint; otherwise it is removed. (`torch.hub.download_url_to_file` accepts truncated files
    and waits forever for a silent server.) Of several processes, one downloads, and the others wait for the file.

    The environment variable `PVT_HF_RELEASE_URL` names another server with the files of the release, such as a mirror:
    "https://mirror.example/pvt" for "https://mirror.example/pvt/pvt_small.pth".

    Args:
        variant: a row of `pvt_hf.weights.variants`.
        cache_dir: folder for the file; by default in the asset cache of `huggingface_hub`.

    Returns:
        The path of the file.

    Raises:
        ConnectionError: the download failed or was incomplete, or HF_HUB_OFFLINE=1 forbids it.
        OSError: the file cannot be written, for example because the disk is full.
        ValueError: no weights were released for the variant, or the downloaded file is not the expected one.
    """
    if variant.checkpoint_url is None:
        raise ValueError(f"No weights were released for {variant.name}: convert a file of your own with --checkpoint.")
    if cache_dir is None:
        cache_dir = cached_assets_path("pvt_hf", subfolder="official-checkpoints")
    name = variant.checkpoint_url.rpartition("/")[2]
    path = Path(cache_dir) / name
    if _is_complete(path, variant):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_name(f".{name}.lock")):
        if not _is_complete(path, variant):
            mirror = os.environ.get("PVT_HF_RELEASE_URL")
            _download(f"{mirror.rstrip('/')}/{name}" if mirror else variant.checkpoint_url, path, variant)
    return path


def _is_complete(path: Path, variant: Variant) -> bool:
    return path.is_file() and variant.checkpoint_sha256 in (None, sha256_of(path))


def _download(url: str, path: Path, variant: Variant) -> None:
    if is_offline_mode():
        raise ConnectionError(
            f"{url} is not in the cache, and HF_HUB_OFFLINE forbids downloads: unset it once, or copy the file to "
            f"{path}."
        )
    part = path.with_name(f"{path.name}.part")  # that of a process which was killed is overwritten
    try:
        _fetch(url, part, path)
        digest = sha256_of(part)
        if variant.checkpoint_sha256 not in (None, digest):
            raise ValueError(
                f"{url} has SHA-256 {digest}, expected {variant.checkpoint_sha256}: the file was damaged or replaced. "
                "Nothing was kept; try again later."
            )
        read_checkpoint(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, part: Path, path: Path) -> None:
    """Downloads `url` to the file `part`. The advice of an error names `path`."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, part.open("wb") as file:
            length = response.headers.get("Content-Length")
            total = None if length is None else int(length)
            with tqdm(total=total, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as progress:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
            if total is not None and file.tell() != total:
                raise http.client.IncompleteRead(b"", total - file.tell())
    # OSError includes urllib's URLError and HTTPError, timeouts, resets, and a full disk.
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            raise OSError(
                f"Could not write {url} to {part.parent}: {error.strerror}. Nothing was kept. Make room there, or "
                "choose another folder: cache_dir in Python, or the environment variable HF_ASSETS_CACHE."
            ) from error
        raise ConnectionError(
            f"Could not download {url}: {type(error).__name__}: {error}. Nothing was kept. Try again, or download the "
            f"file by other means and copy it to {path}."
        ) from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """
    Reads a checkpoint file to the CPU without running any code in it.

    `.safetensors` files are read with safetensors, all others with `torch.load(weights_only=True)`, which builds only
    tensors and plain containers. `argparse.Namespace` is allowed, too: the official trainer saves its arguments in one,
    and it runs no code.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: because of the path.
        ValueError: the file is empty, damaged, of another kind, or would run code.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"No checkpoint at {path}: check the path, or download an official file (pvt_hf.weights.variants has the "
            "URLs; `scripts/convert_checkpoint.py --variant pvt-small` downloads and converts)."
        )
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder, expected one .pth or .safetensors file: a folder written by save_pretrained opens "
            "with PvtForImageClassification.from_pretrained."
        )
    with path.open("rb") as file:  # unreadable files raise their own OSError here
        if not file.read(1):
            raise ValueError(f"{path} is empty: download or copy it again.")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a complete safetensors file ({error}): download or copy it again."
            ) from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # torch documents no set of exceptions for damaged files: their bytes may lead anywhere.
    except Exception as error:
        requested = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if requested is None:
            raise ValueError(
                f"{path} is not a complete torch.save file: it is truncated or of another kind, such as a plain pickle "
                "(no code in it was run). Download or copy it again."
            ) from error
        raise ValueError(
            f"{path} was refused and no code in it was run: besides tensors it wants to load {requested[1]}, and a "
            "pickle that may load anything can run any code. If you trust its author, open it in an isolated "
            "environment with torch.load(..., weights_only=False) and save only its state dict."
        ) from error


def unwrap_checkpoint(checkpoint: Any) -> dict[str, torch.Tensor]:
    """
    Returns the flat official state dict inside a checkpoint.

    Known wrappings: none (the official release); `{"model": ...}` (the official trainer); `{"state_dict": ...}` (mmcv);
    the prefix `module.` on every key (DistributedDataParallel); and the prefix `backbone.` (detectors of mmdetection,
    segmentors of mmsegmentation). In the last case only the backbone is returned, and a warning names what was left
    out (neck and heads).

    Raises:
        ValueError: not a dictionary, or ambiguous: two wrappings, or two PVTs.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"The file holds a {type(checkpoint).__name__}, expected a dictionary of tensors (directly, or under "
            "'model' or 'state_dict'): save model.state_dict() instead."
        )
    wrapped = [name for name in ("model", "state_dict") if isinstance(checkpoint.get(name), Mapping)]
    if len(wrapped) == 2:
        raise ValueError(
            "The file has weights under both 'model' and 'state_dict': pass the one you want to "
            "pvt_hf.weights.official.model_from_official_state_dict."
        )
    state_dict = dict(checkpoint[wrapped[0]] if wrapped else checkpoint)
    if state_dict and all(str(key).startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}

    rest = [key for key in state_dict if not str(key).startswith("backbone.")]
    if len(rest) == len(state_dict):
        return state_dict
    if any(re.match(r"(pos_embed|patch_embed|block)\d", str(key)) for key in rest):
        raise ValueError(
            "The file has a PVT under 'backbone.' and another one beside it: pass the one you want to "
            "pvt_hf.weights.official.model_from_official_state_dict."
        )
    if rest:
        parts = sorted({str(key).split(".")[0] for key in rest})
        logger.warning(f"Only the backbone is used; {len(rest)} tensors of {', '.join(parts)} are left out.")
    return {key.removeprefix("backbone."): value for key, value in state_dict.items() if key not in rest}
