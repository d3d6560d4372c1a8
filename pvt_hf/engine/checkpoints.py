"""
Training checkpoints, from which a run resumes exactly. A checkpoint is either complete or absent.

It is written to a hidden folder, which is renamed once every process has finished. So a kill or a full disk leaves the
earlier checkpoints intact. Accelerate writes the model, the optimiser, the gradient scaler and each process's random
states; each process's position in the stream and the loop's state are added here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch.distributed.checkpoint import CheckpointException

from .processes import any_process


STATE_FILE = "loop_state.json"
# Settings that must stay the same, or the resume would not be exact
FIXED_SETTINGS = (
    "batch_size", "gradient_accumulation_steps", "num_workers", "seed", "shuffle_window", "repeated_augmentation",
    "samples_per_epoch", "mixed_precision", "ema_decay", "compile_backend",
)  # fmt: skip
# Settings that do not affect the result; others that differ are printed
FREE_SETTINGS = {"output_dir", "resume_from_checkpoint", "save_every_steps", "save_total_limit", "report_to"}


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints in `output_dir`, by step."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and (path / STATE_FILE).is_file():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step in `output_dir`; None if there is none."""
    return next(reversed(list_checkpoints(output_dir)), None)


def ensure_output_dir(output_dir: str | Path, resume_from_checkpoint: str) -> Path:
    """Creates the folder. Raises a FileExistsError if it has checkpoints and the run does not resume."""
    folder = Path(output_dir)
    if list_checkpoints(folder) and not resume_from_checkpoint:
        raise FileExistsError(
            f"{folder} has checkpoints of an earlier run: continue it with --resume_from_checkpoint latest, or choose "
            "another --output_dir."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_checkpoint(output_dir: str | Path, wanted: str) -> Path | None:
    """
    The checkpoint that `--resume_from_checkpoint` names.

    Args:
        wanted: a folder, or "latest" for the newest in `output_dir`; None is returned if there is none yet.

    Raises:
        FileNotFoundError: the folder is not a complete checkpoint.
    """
    if wanted == "latest":
        return latest_checkpoint(output_dir)
    if not (Path(wanted) / STATE_FILE).is_file():
        known = ", ".join(str(path) for path in list_checkpoints(output_dir)) or "none"
        raise FileNotFoundError(
            f"{wanted} is not a complete checkpoint (it has no {STATE_FILE}). Checkpoints in {output_dir}: {known}."
        )
    return Path(wanted)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | Path,
    loop_state: dict[str, Any],
    stream_state: dict[str, Any] | None,
    save_total_limit: int,
) -> Path:
    """
    Saves `checkpoint-<step>`, and deletes the oldest ones beyond `save_total_limit` (0 keeps all). Every process has to
    call this.

    Args:
        loop_state: can be written as JSON; has "step".
        stream_state: this process's loader state; None at the end of an epoch.

    Raises:
        OSError: on every process, if one of them could not write, for example because the disk is full. Earlier
            checkpoints are untouched and nothing partial is left.
    """
    final = Path(output_dir) / f"checkpoint-{loop_state['step']:08d}"
    partial = final.with_name(f".{final.name}.partial")

    def prepare() -> None:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> None:
        accelerator.save_state(str(partial))
        torch.save(stream_state, partial / f"stream_{accelerator.process_index}.pt")
        if accelerator.is_main_process:
            (partial / STATE_FILE).write_text(json.dumps(loop_state, indent=2))

    def flush() -> None:
        if accelerator.is_main_process:
            for file in partial.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())

    for part in (prepare, write, flush):
        error = None
        try:
            part()
        except CheckpointException as caught:  # FSDP: raised on every process, with the error of the one that failed
            error = next(iter(caught.failures.values()))[0]
        except Exception as caught:  # a full disk is an OSError, a RuntimeError (torch) or a SafetensorError
            error = caught
        # All processes continue or none: one that raised alone would leave the others waiting.
        if any_process(error is not None):
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            kept = latest_checkpoint(output_dir) or "none"
            reason = f"{type(error).__name__}: {error}" if error else "another process failed"
            room = shutil.disk_usage(output_dir).free / 1e6
            raise OSError(
                f"Could not save {final}: {reason}. {room:.1f} MB are free there. Last good checkpoint: {kept}. "
                "Free some space (a lower --save_total_limit keeps fewer checkpoints) and continue with "
                "--resume_from_checkpoint latest."
            )
    if accelerator.is_main_process:
        replaced = None
        if final.exists():  # the run was resumed from an earlier step and has reached this one again
            replaced = final.rename(final.with_name(f".{final.name}.replaced"))
        partial.rename(final)
        old = list_checkpoints(output_dir)[:-save_total_limit] if save_total_limit else []
        for folder in [*old, *filter(None, [replaced])]:
            shutil.rmtree(folder)
    accelerator.wait_for_everyone()
    return final


def remove_leftovers(output_dir: str | Path) -> None:
    """Deletes the hidden folders of saves that were killed."""
    for path in Path(output_dir).glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, begun: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """
    Restores model, optimiser, gradient scaler and random states.

    Args:
        begun: loop state of the new run; has "data_fingerprint" and "settings".

    Returns:
        The saved loop state and this process's loader state (None at the end of an epoch).

    Raises:
        ValueError: the checkpoint was written with other data, other settings, another number of processes, or with
            `--fsdp` where this run is without it (or the reverse).
        OSError: a file of the checkpoint is missing or damaged.
    """
    try:
        loop_state = json.loads((checkpoint / STATE_FILE).read_text())
    except ValueError as error:
        raise _unreadable(checkpoint, error) from error
    if loop_state["world_size"] != accelerator.num_processes:
        raise ValueError(
            f"{checkpoint} was written by {loop_state['world_size']} process(es) and cannot be resumed exactly by "
            f"{accelerator.num_processes}: start as many as before."
        )
    changed = _check_same_run(checkpoint, loop_state, begun)
    if changed:
        accelerator.print(f"Settings changed since {checkpoint.name}: {'; '.join(changed)}.")
    sharded = (checkpoint / f"{FSDP_MODEL_NAME}_0").is_dir()
    if sharded != accelerator.is_fsdp2:
        raise ValueError(f"{checkpoint} was written {'with' if sharded else 'without'} --fsdp: resume it the same way.")
    try:
        random_states = f"random_states_{accelerator.process_index}.pkl"
        if not zipfile.is_zipfile(checkpoint / random_states):  # Accelerate would continue without them
            raise OSError(f"{random_states} is missing or cut off")
        accelerator.load_state(str(checkpoint))
        stream_state = torch.load(checkpoint / f"stream_{accelerator.process_index}.pt", weights_only=True)
    except Exception as error:  # every library raises its own error for a damaged file
        raise _unreadable(checkpoint, error) from error
    return loop_state, stream_state


def _unreadable(checkpoint: Path, error: Exception) -> OSError:
    others = [str(path) for path in list_checkpoints(checkpoint.parent) if path != checkpoint]
    return OSError(
        f"{checkpoint} is damaged and cannot be resumed ({type(error).__name__}: {error}). Give another one to "
        f"--resume_from_checkpoint: {', '.join(others) or 'there is none'}."
    )


def _check_same_run(checkpoint: Path, saved: dict[str, Any], begun: dict[str, Any]) -> list[str]:
    """
    Compares a checkpoint with the new run, and describes the settings that differ but may.

    Raises:
        ValueError: the data or one of `FIXED_SETTINGS` differ, or the checkpoint is beyond the last epoch.
    """
    if saved["data_fingerprint"] != begun["data_fingerprint"]:
        raise ValueError(
            f"{checkpoint} was trained on other data: its fingerprint is {saved['data_fingerprint']}, that of the data "
            f"now is {begun['data_fingerprint']}. Give the same --dataset and split, or start in another --output_dir."
        )
    changed = {
        name: f"--{name} was {value!r}, is {begun['settings'][name]!r}"
        for name, value in saved["settings"].items()
        if value != begun["settings"][name] and name not in FREE_SETTINGS
    }
    fixed = [text for name, text in changed.items() if name in FIXED_SETTINGS]
    if fixed:
        raise ValueError(f"{checkpoint} cannot be resumed exactly with other settings: {'; '.join(fixed)}.")
    epochs = begun["settings"]["epochs"]
    if not begun["settings"]["max_steps"] and saved["epoch"] > epochs:
        raise ValueError(f"{checkpoint} was trained for {saved['epoch']} epochs, beyond --epochs {epochs}.")
    return list(changed.values())
