"""
A full disk is named, with the room that is needed and free, whatever the library that wrote has made of it.

    pytest tests/engine/test_disk.py
"""

import errno
import os
import shutil
import types

import pytest
import torch

from pvt_hf.engine import disk
from pvt_hf.engine.checkpoints import list_checkpoints
from pvt_hf.engine.disk import describe_write_error, tensor_bytes

from ..support.training_runs import make_photos, train_here


ASSERTION = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nframe #0: ...")


def test_reasons(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert describe_write_error(tmp_path, full, 5_000_000).startswith("the disk is full: ")
    # There is room, and writing works: it is something else.
    other = describe_write_error(tmp_path, ASSERTION, 0)
    assert other.startswith("RuntimeError: [enforce fail") and "free" in other and "full" not in other
    for number, words in ((errno.EDQUOT, "the disk quota is used up"), (errno.ENOSPC, "the disk is full")):
        monkeypatch.setattr(disk, "_probe", lambda folder, number=number: number)
        assert describe_write_error(tmp_path, ASSERTION, 0).startswith(f"{words}: ")
        assert "frame" not in describe_write_error(tmp_path, ASSERTION, 0)
    # The rest of a disk that is too small may take the probe: what is there already counts as free.
    monkeypatch.setattr(disk, "_probe", lambda folder: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2_000_000))
    (tmp_path / "part").write_bytes(bytes(1_000_000))
    message = describe_write_error(tmp_path, ASSERTION, 5_000_000)
    assert message.startswith("the disk is full: 3.0 MB are free, 5.0 MB are needed (RuntimeError")


def test_the_bytes_of_nested_tensors():
    assert tensor_bytes({"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.float64), {"c": 1}]}) == 12 + 16


def test_a_checkpoint_on_a_full_disk(tmp_path, monkeypatch):
    """torch's writer fails in the second save. The first checkpoint stays, and going on from it works."""
    photos = make_photos(tmp_path / "photos", 16)
    real, saves = torch.save, []

    def save(value, file, *given, **options):
        saves.append(file)
        if sum(str(name).endswith("stream_0.pt") for name in saves) == 2:
            raise ASSERTION
        return real(value, file, *given, **options)

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(disk, "_probe", lambda folder: errno.ENOSPC)
    with pytest.raises(OSError, match="the disk is full: .* are free, .* are needed .*checkpoint-00000002") as error:
        train_here(photos, tmp_path / "run", save_every_steps=2)
    needed = float(str(error.value).partition(" are free, ")[2].split()[0].replace(",", ""))
    kept = list_checkpoints(tmp_path / "run")
    written = sum(file.stat().st_size for file in kept[0].iterdir()) / 1e6
    assert [path.name for path in kept] == ["checkpoint-00000002"] and not list((tmp_path / "run").glob(".checkpoint*"))
    assert 0.5 * written < needed <= written  # tensors alone
    monkeypatch.setattr(torch, "save", real)
    _, report = train_here(photos, tmp_path / "run", resume_from_checkpoint="latest")
    assert report["steps"] == 8


def test_a_lower_limit_of_checkpoints_frees_room_before_the_next_save(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos", 16)
    train_here(photos, tmp_path / "run", save_every_steps=1, save_total_limit=0, epochs=1)
    assert len(list_checkpoints(tmp_path / "run")) == 4
    real, there = torch.save, []

    def save(value, file, *given, **options):
        if str(file).endswith("stream_0.pt"):
            there.append(len(list_checkpoints(tmp_path / "run")))
        return real(value, file, *given, **options)

    monkeypatch.setattr(torch, "save", save)
    train_here(
        photos, tmp_path / "run", save_total_limit=1, epochs=2, resume_from_checkpoint="latest", eval_every_epochs=2
    )
    assert set(there) == {1} and len(list_checkpoints(tmp_path / "run")) == 1
