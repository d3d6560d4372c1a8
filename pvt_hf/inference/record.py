"""The record of what has been predicted into a folder, and the tables that are made of it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TextIO


NAME = "predictions.jsonl"
BOX = ("left", "top", "right", "bottom")


def read_lines(file: Path) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """
    (offset, line, entry) of each line of a JSON lines file that is a dict. A last line that was cut off by a crash, and
    lines that are no JSON, are passed over.
    """
    with open(file, "rb") as lines:
        offset = 0
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if isinstance(entry, dict) and line.endswith(b"\n"):
                yield offset, line, entry
            offset += len(line)


class Record:
    """
    `predictions.jsonl` in a folder for results: one line for each image or video, written once its files are there.

    Args:
        folder: may not exist yet.

    Attributes:
        entries: what is known about each source, by its absolute path: the entry without its answers.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / NAME
        self.entries: dict[str, dict[str, Any]] = {}
        self.offsets: dict[str, int] = {}
        self.file: Any = None
        for offset, _, entry in read_lines(self.path) if self.path.is_file() else ():
            self._add(offset, entry)

    def _add(self, offset: int, entry: dict[str, Any]) -> None:
        source, files = entry.get("image") or entry.get("video"), entry.get("files")
        # The file may come from anywhere: it must not lead out of the folder.
        if isinstance(source, str) and isinstance(files, list) and all(map(_is_below, files)):
            known = ("made_with", "problem", "files")
            self.entries[source] = {name: entry[name] for name in known if name in entry}
            self.offsets[source] = offset

    def results(self) -> set[Path]:
        """All files that the record names, and itself, as absolute paths."""
        folder = Path(os.path.abspath(self.folder))
        return {folder / name for entry in self.entries.values() for name in (*entry["files"], NAME)}

    def name_of(self, source: str) -> str | None:
        """The name of a source's earlier results, without their endings."""
        files = self.entries.get(source, {}).get("files")
        return files[0].rsplit(".", 2)[0] if files else None

    def has(self, source: str, made_with: dict[str, Any]) -> bool:
        """Whether a source was predicted without a problem, with these settings, and its files are still there."""
        entry = self.entries.get(source, {})
        there = all((self.folder / name).is_file() for name in entry.get("files", []))
        return entry.get("made_with") == made_with and "problem" not in entry and there

    def begin(self, again: set[str]) -> None:
        """Takes the lines of the sources that are predicted `again` out of the file, if there is one."""
        if self.path.is_file():
            dropped = {self.offsets[source] for source in again if source in self.offsets}
            sources = {offset: source for source, offset in self.offsets.items()}
            part = self.path.with_name(f".{NAME}.part")
            with open(part, "wb") as new:
                for offset, line, _ in read_lines(self.path):
                    if offset not in dropped:
                        if offset in sources:
                            self.offsets[sources[offset]] = new.tell()
                        new.write(line)
            os.replace(part, self.path)
        for source in again:
            self.entries.pop(source, None)
            self.offsets.pop(source, None)

    def write(self, entry: dict[str, Any]) -> None:
        """Adds a line: an entry with `image` or `video` (absolute path), `files` and `made_with`."""
        if self.file is None:
            self.file = open(self.path, "ab")
        offset = self.file.tell()
        self.file.write(json.dumps(entry).encode() + b"\n")
        self.file.flush()
        self._add(offset, entry)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def answers(self, sources: list[str]) -> Iterator[dict[str, Any]]:
        """The entries of these sources that have been predicted; of a video, one for each frame."""
        sources = [source for source in sources if source in self.offsets]
        with open(self.path if sources else os.devnull, "rb") as lines:
            for source in sources:
                lines.seek(self.offsets[source])
                entry = json.loads(lines.readline())
                hidden = ("made_with", "files", "problem", "frames")
                if "video" not in entry:
                    yield {name: value for name, value in entry.items() if name not in hidden}
                    continue
                frames = next((name for name in entry["files"] if name.endswith(".frames.jsonl")), None)
                for _, _, frame in read_lines(self.folder / frames) if frames else ():
                    yield {"video": source, **frame}


def _is_below(name: Any) -> bool:
    return isinstance(name, str) and ".." not in PurePosixPath(name).parts and not os.path.isabs(name)


def write_json(answers: Iterator[dict[str, Any]], file: TextIO, lines: bool) -> None:
    """A JSON list with an entry a line; with `lines`, one JSON value a line."""
    if lines:
        file.writelines(json.dumps(entry) + "\n" for entry in answers)
        return
    file.write("[")
    for index, entry in enumerate(answers):
        file.write(f"{',' * (index > 0)}\n{json.dumps(entry)}")
    file.write("\n]\n")


def write_csv(answers: Iterator[dict[str, Any]], file: TextIO) -> None:
    """
    A table with one row for each class or object. `score` is the share of the pixels in semantic segmentation; boxes
    are in pixels; `frame` and `time` (seconds) are empty for images. An image without objects has a row with no label.
    """
    table = csv.writer(file)
    table.writerow(("file", "frame", "time", "label", "score", *BOX))
    for entry in answers:
        found = entry.get("classes") or entry.get("shares") or entry.get("objects") or [{}]
        for one in found:
            row = (entry.get("image") or entry["video"], entry.get("frame"), entry.get("time"), one.get("label"))
            table.writerow((*row, one.get("score", one.get("share")), *one.get("box", [None] * 4)))
