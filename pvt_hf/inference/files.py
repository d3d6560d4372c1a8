"""Predicts image and video files and writes the results into a folder."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from PIL import Image
from transformers import Pipeline
from transformers.utils import logging

from ..data.samples import decode_rgb
from ..engine.state import StopSignal
from ..weights.paths import folder_or_id
from ..weights.trust import UntrustedProgram
from .inputs import Input, Inputs, is_video, unique_names
from .prediction import open_pipeline
from .predictors import ClassPredictor, ObjectPredictor, Predictor, SharePredictor, describe
from .progress import Progress, StandardOutput, say
from .record import Record, write_csv, write_json


if TYPE_CHECKING:
    from .video import VideoReader

ENDINGS = (
    "annotated.mp4", "classes.png", "frames.jsonl", "labels.png", "objects.json", "objects.png", "overlay.png",
)  # fmt: skip


def open_predictor(arguments: argparse.Namespace) -> tuple[Predictor, dict[str, Any]]:
    """
    Opens the model.

    Returns:
        The predictor, and what its answers depend on, for the record.

    Raises:
        SystemExit: with one line of text, if the model cannot be opened or a package is missing.
    """
    try:
        task, pipeline = open_pipeline(
            arguments.model,
            arguments.task,
            device=arguments.device,
            trust_remote_code=arguments.trust_remote_code or None,  # None asks
        )
        if task == "instance-segmentation":
            import pycocotools.mask  # noqa: F401  a missing package should show before the first image is predicted
    except ImportError:
        raise SystemExit('Masks are written with pycocotools: `pip install "pvt-hf[detection]"`.') from None
    except UntrustedProgram as error:  # its message has both ways
        raise SystemExit(str(error)) from None
    except ValueError as error:
        raise SystemExit(str(error).replace("trust_remote_code=True", "--trust_remote_code")) from None
    predictor: Predictor
    if task == "image-classification":
        predictor = ClassPredictor(pipeline, arguments.top_k)
    elif task == "semantic-segmentation":
        predictor = SharePredictor(pipeline)
    else:
        predictor = ObjectPredictor(pipeline, arguments.threshold, task == "instance-segmentation")
    return predictor, {**_model_version(arguments.model, pipeline), "task": task, **predictor.settings}


def _model_version(model: str, pipeline: Pipeline) -> dict[str, Any]:
    """The model's name and version: the commit on the Hub, or when the newest file of its folder was written."""
    folder = Path(folder_or_id(model))
    if not folder.is_dir():
        return {"model": model, "version": getattr(pipeline.model.config, "_commit_hash", None)}
    newest = max(file.stat().st_mtime_ns for file in folder.iterdir() if file.is_file())
    return {"model": os.path.abspath(folder), "version": newest}


def predict_files(arguments: argparse.Namespace, inputs: Inputs, record: Record) -> None:
    """
    Predicts what the `arguments` of `pvt-hf predict` name, prints a line for each file and writes the results.

    Args:
        inputs: what was found; at least one file.
        record: of `arguments.output_dir`.

    Raises:
        SystemExit: with one line of text, if the model or the output folder cannot be used, an input could not be
            predicted, or the run was interrupted; with 1 if standard output was closed.
    """
    logging.disable_progress_bar()
    predictor, made_with = open_predictor(arguments)
    try:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        run = Run(arguments, predictor, made_with, record, inputs.found)
        with StopSignal() as stop:
            run.predict(lambda: stop.received is not None)
            write_tables(arguments, record, [_source(one.path) for one in inputs.found], run.output)
    except KeyboardInterrupt:  # the second Ctrl-C
        raise SystemExit(130) from None
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        raise SystemExit(f"{reason} Give a smaller --batch_size than {arguments.batch_size}.") from None
    except OSError as error:
        raise SystemExit(f"The results cannot be written to {arguments.output_dir}: {error}") from None
    finally:
        record.close()
    total = len(inputs.found) + len(inputs.problems)
    if stop.received:
        done = run.done + run.skipped
        say(f"Stopped by {stop.received} after {done} of {total} files. --resume goes on with the others.", True)
        raise SystemExit(130)
    failures = run.failures + len(inputs.problems)
    if failures:
        what = "files" if any(is_video(one.path) for one in inputs.found) else "images"
        raise SystemExit(f"{failures} of {total} {what} could not be predicted.")
    if run.output.closed:
        raise SystemExit(1)


class Run:
    """
    One call of `pvt-hf predict`.

    Attributes:
        done, skipped, failures: numbers of files: predicted now, predicted by an earlier run (`--resume`), and those
            that could not be predicted, or not completely.
        output: where lines and tables are printed.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        predictor: Predictor,
        made_with: dict[str, Any],
        record: Record,
        found: list[Input],
    ):
        self.arguments, self.predictor, self.made_with, self.record = arguments, predictor, made_with, record
        self.folder: Path = arguments.output_dir
        self.batch_size: int = arguments.batch_size
        self.to_errors = "-" in (arguments.json, arguments.csv)
        self.done = self.skipped = self.failures = 0
        self.output = StandardOutput()
        self.todo = self._plan(found)

    def _plan(self, found: list[Input]) -> list[Input]:
        """What is to be predicted, with the names of the results. Starts the record."""
        waiting = [one for one in found if not (self.arguments.resume and self._is_done(one))]
        self.skipped = len(found) - len(waiting)
        if self.arguments.resume:
            self.say(f"{self.skipped} of {len(found)} files are done already.")
        # Results of earlier runs are written over by those of the same file only.
        again = {_source(one.path) for one in waiting}
        own = {self.record.name_of(source) for source in again}
        waiting = [one._replace(name=self.record.name_of(_source(one.path)) or one.name) for one in waiting]
        names = {name for source in self.record.entries if (name := self.record.name_of(source)) not in own}
        kept = {name.casefold() for name in names if name}
        inputs, real = {os.path.realpath(one.path) for one in found}, os.path.realpath(self.folder)

        def taken(name: str) -> bool:
            return name.casefold() in kept or any(f"{real}/{name}.{ending}" in inputs for ending in ENDINGS)

        self.record.begin(again)
        return [one._replace(name=name) for one, name in zip(waiting, unique_names(waiting, taken), strict=True)]

    def _is_done(self, one: Input) -> bool:
        try:
            return self.record.has(_source(one.path), self._made_with(one.path))
        except OSError:  # deleted meanwhile: reported when its turn comes
            return False

    def _made_with(self, path: Path) -> dict[str, Any]:
        """What the results of a file depend on."""
        frames = {"every": self.arguments.every, "fps": self.arguments.fps} if is_video(path) else {}
        file = path.stat()
        return {**self.made_with, **frames, "bytes": file.st_size, "modified": file.st_mtime_ns}

    def say(self, text: str) -> None:
        with self.output.until_closed():
            say(text, self.to_errors)

    def fail(self, path: Path, reason: object) -> None:
        with self.output.until_closed():
            say(f"{path}: {reason}", to_errors=True)
        self.failures += 1

    def predict(self, stopped: Callable[[], bool]) -> None:
        """Predicts all files, in order, until `stopped`."""
        batch: list[tuple[Input, dict[str, Any], Image.Image]] = []
        with Progress(len(self.todo), "files", "predict") as progress:
            for number, one in enumerate(self.todo, 1):
                if stopped():
                    return
                try:
                    made_with = self._made_with(one.path)  # before reading: a file that changes later is not done
                    if not is_video(one.path):
                        # Decoded here: the pipeline's own loader saturates 16-bit images and drops transparency.
                        batch.append((one, made_with, decode_rgb({"path": str(one.path), "bytes": None})))
                except OSError as error:
                    self.fail(one.path, f"it cannot be read: {error.strerror}")
                except ValueError as error:
                    self.fail(one.path, error)
                else:
                    if is_video(one.path):
                        self.predict_images(batch)
                        batch = []
                        self.predict_video(one, made_with, stopped)
                if len(batch) == self.batch_size or number == len(self.todo):
                    self.predict_images(batch)
                    batch = []
                progress.advance()

    def predict_images(self, batch: list[tuple[Input, dict[str, Any], Image.Image]]) -> None:
        for (one, made_with, image), answer in zip(batch, self.answers([image for *_, image in batch]), strict=True):
            if isinstance(answer, ValueError):
                self.fail(one.path, answer)
                continue
            entry = self.predictor.entry(answer)
            files = self.predictor.files(image, answer)
            for ending, content in files.items():
                write_whole(self.folder / f"{one.name}.{ending}", content)
            size = {"width": image.width, "height": image.height}
            entry = {"image": _source(one.path), **size, **entry}
            self.finish(one, made_with, entry, list(files), describe(entry))

    def answers(self, images: list[Image.Image]) -> list[Any]:
        """The answer for each image, or the ValueError that says why there is none."""
        if not images:
            return []
        try:
            return self.predictor.answers(images)
        except ValueError as error:  # an image that cannot be taken, an answer that is not finite
            if len(images) == 1:
                return [error]
        return [answer for image in images for answer in self.answers([image])]

    def predict_video(self, one: Input, made_with: dict[str, Any], stopped: Callable[[], bool]) -> None:
        from av.error import FFmpegError

        from .video import VideoReader

        try:
            reader = VideoReader(one.path, self.arguments.every, self.arguments.fps, stopped)
        except ValueError as error:
            self.fail(one.path, error)
            return
        lines_path, video_path = (self.folder / f"{one.name}.{ending}" for ending in ("frames.jsonl", "annotated.mp4"))
        try:
            answered, problem = self.predict_frames(reader, lines_path, video_path)
        except FFmpegError as error:
            if isinstance(error, OSError):  # such as a full disk, which is not this file's fault
                raise
            width, height = reader.stream.width, reader.stream.height
            reason = f"its frames of {width}x{height} pixels cannot be written as a video: {error.strerror}"
            self.fail(one.path, reason)
            return
        if not answered:
            lines_path.unlink()
            self.fail(one.path, problem)
            return
        entry = {"video": _source(one.path), "frames": answered}
        if problem:
            self.fail(one.path, problem)
            entry["problem"] = problem
        self.finish(one, made_with, entry, ["frames.jsonl", "annotated.mp4"], f"{answered} frames")

    def predict_frames(self, reader: VideoReader, lines_path: Path, video_path: Path) -> tuple[int, str | None]:
        """
        Frames in batches; their answers and the annotated frames are written as they come.

        Returns:
            How many frames were answered, and why these are not all; None if they are.
        """
        from .video import INTERRUPTED, Frame, VideoWriter

        answered = 0
        problem: str | None = None
        with (
            reader,
            written_whole(lines_path) as part,
            open(part, "w") as lines,
            VideoWriter(video_path) as writer,
            Progress(reader.expected, "frames", reader.path.name) as progress,
        ):

            def predict_batch(batch: list[Frame]) -> None:
                nonlocal answered, problem
                for frame, answer in zip(batch, self.answers([frame.image for frame in batch]), strict=True):
                    if isinstance(answer, ValueError):
                        problem = f"frame {frame.number}: {answer}"
                        continue
                    size = {"width": frame.image.width, "height": frame.image.height}
                    entry = {"frame": frame.number, "time": frame.time, **size, **self.predictor.entry(answer)}
                    lines.write(json.dumps(entry) + "\n")
                    writer.write(self.predictor.frame(frame.image, answer), frame.time)
                    answered += 1
                lines.flush()
                progress.advance(len(batch))

            batch: list[Frame] = []
            for frame in reader:
                batch.append(frame)
                if len(batch) == self.batch_size:
                    predict_batch(batch)
                    batch = []
            if batch and reader.stopped():
                problem = problem or INTERRUPTED
            else:
                predict_batch(batch)
        return answered, problem or reader.problem

    def finish(
        self, one: Input, made_with: dict[str, Any], entry: dict[str, Any], endings: list[str], text: str
    ) -> None:
        """Records a file whose results have been written, and prints its line."""
        files = [f"{one.name}.{ending}" for ending in endings]
        self.record.write({**entry, "files": files, "made_with": made_with})
        self.done += "problem" not in entry
        self.say(f"{one.path}: {text}  -> {', '.join(str(self.folder / file) for file in files)}")


def _source(path: Path) -> str:
    """The name of a file in the record."""
    return os.path.abspath(path)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yields where to write a file. It appears under its name at the end, or is removed after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_whole(target: Path, content: Image.Image | str) -> None:
    """Writes a file that appears under its name when it is complete."""
    with written_whole(target) as part:
        if isinstance(content, Image.Image):
            content.save(part, format="PNG")
        else:
            part.write_text(content)


def write_tables(arguments: argparse.Namespace, record: Record, sources: list[str], output: StandardOutput) -> None:
    """Writes `--json` and `--csv`: the answers for these sources, also of earlier runs that were resumed."""
    for name in ("json", "csv"):
        target = getattr(arguments, name)
        if target is None:
            continue
        if target == "-":
            with output.until_closed():
                _write_table(name, target, record, sources, sys.stdout)
                sys.stdout.flush()
            continue
        part = Path(f"{target}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", newline="", errors="surrogateescape") as text:
            _write_table(name, target, record, sources, text)
        os.replace(part, target)


def _write_table(name: str, target: str, record: Record, sources: list[str], file: TextIO) -> None:
    if name == "json":
        write_json(record.answers(sources), file, lines=target.endswith(".jsonl"))
    else:
        write_csv(record.answers(sources), file)
