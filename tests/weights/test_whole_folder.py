"""
Folders that are replaced are whole at any time, also after Ctrl-C.

    python -m pytest tests/weights/test_whole_folder.py
"""

import pytest

import pvt_hf.weights.whole_folder as whole_folder


@pytest.mark.parametrize("renames", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_old_folder_returns_after_an_interruption(tmp_path, monkeypatch, renames, error):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    rename, done = whole_folder.os.rename, []

    def interrupted(source, target):
        rename(source, target)
        done.append(target)
        if len(done) == renames:
            raise error

    monkeypatch.setattr(whole_folder.os, "rename", interrupted)
    with pytest.raises(error), whole_folder.folder_written_whole(output) as folder:
        (folder / "new.txt").touch()
    assert [*tmp_path.rglob("*")] == [output, output / "notes.txt"]


def test_no_folder_is_left_where_there_was_none(tmp_path, monkeypatch):
    rename = whole_folder.os.rename

    def interrupted(source, target):
        rename(source, target)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_folder.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder.folder_written_whole(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())
