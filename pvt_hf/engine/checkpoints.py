"""
Training checkpoints, from which a run resumes exactly. A checkpoint is either complete or absent.

Exactly: with the same data, settings and number of processes, the run ends with the bits of an uninterrupted one. Data
are compared by a fingerprint ([`pvt_hf.data.fingerprint`]). Image files that were repaired under the same names have
the same one, so the run goes on at its sample, and reads them as they are now. Any other change of the data is refused;
with `--resume_with_changed_data` the run goes on with the same weights, optimiser and schedule, and its epoch begins
anew with the data as they are now.

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
from transformers.trainer import TRAINER_STATE_NAME

from .disk import describe_write_error, tensor_bytes
from .processes import any_process, gather_integers


STATE_FILE = "loop_state.json"
# Settings that must stay the same, or the resume would not be exact
FIXED_SETTINGS = (
    "batch_size", "gradient_accumulation_steps", "num_workers", "seed", "shuffle_window", "repeated_augmentation",
    "samples_per_epoch", "mixed_precision", "ema_decay", "compile_backend",
)  # fmt: skip
# Settings that do not affect the result; others that differ are printed
FREE_SETTINGS = {
    "output_dir", "resume_from_checkpoint", "resume_with_changed_data", "save_every_steps", "save_total_limit",
    "keep_best", "report_to",
}  # fmt: skip


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


def ensure_output_dir(output_dir: str | Path, resume_from_checkpoint: str, state_file: str = STATE_FILE) -> Path:
    """
    Returns the folder as a path.

    Args:
        state_file: in every checkpoint of this command.

    Raises:
        FileExistsError: it has checkpoints of another command, or of this one, and the run does not resume.
    """
    folder = Path(output_dir)
    names = {name for name in (STATE_FILE, TRAINER_STATE_NAME) if any(folder.glob(f"checkpoint-*/{name}"))}
    if names and state_file not in names:
        command = "pvt-hf train-..." if STATE_FILE in names else "pvt-hf finetune"
        raise FileExistsError(f"{folder} has checkpoints of {command}: choose another --output_dir.")
    if names and not resume_from_checkpoint:
        raise FileExistsError(
            f"{folder} has checkpoints of an earlier run: continue it with --resume_from_checkpoint latest, or choose "
            "another --output_dir."
        )
    return folder


def find_checkpoint(output_dir: str | Path, wanted: str) -> Path | None:
    """
    The checkpoint that `--resume_from_checkpoint` names.

    Args:
        wanted: a folder, or its name in `output_dir`; or "latest" for the newest one there. None is returned if there
            is none yet.

    Raises:
        FileNotFoundError: the folder is not a complete checkpoint.
    """
    if wanted == "latest":
        return latest_checkpoint(output_dir)
    found = next((path for path in (Path(wanted), Path(output_dir, wanted)) if (path / STATE_FILE).is_file()), None)
    if found is None:
        known = ", ".join(str(path) for path in list_checkpoints(output_dir)) or "none"
        raise FileNotFoundError(
            f"--resume_from_checkpoint {wanted}: there is no complete checkpoint (a folder with {STATE_FILE}). "
            f"Checkpoints in {output_dir}: {known}."
        )
    return found


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | Path,
    loop_state: dict[str, Any],
    stream_state: dict[str, Any] | None,
    save_total_limit: int,
) -> Path:
    """
    Saves `checkpoint-<step>`, and deletes the oldest ones beyond `save_total_limit` (0 keeps all), as well as those of
    later steps: the run was resumed before them and goes another way. Every process has to call this.

    Args:
        loop_state: can be written as JSON; has "step".
        stream_state: this process's loader state; None at the end of an epoch.

    Raises:
        OSError: on every process, if one of them could not write, for example because the disk is full. Earlier
            checkpoints are untouched and nothing partial is left.
    """
    final = Path(output_dir) / f"checkpoint-{loop_state['step']:08d}"
    partial = final.with_name(f".{final.name}.partial")

    needed = sum(size for (size,) in gather_integers(_checkpoint_bytes(accelerator)))

    def prepare() -> None:
        if accelerator.is_main_process:
            remove_leftovers(output_dir)
            _remove_old(output_dir, save_total_limit)  # the limit may be lower than that of the run before
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
            reason = "another process failed"
            if error is not None:
                reason = describe_write_error(partial if partial.is_dir() else Path(output_dir), error, needed)
            accelerator.wait_for_everyone()  # each process has looked at the disk
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            kept = latest_checkpoint(output_dir) or "none"
            raise OSError(
                f"Could not save {final}: {reason}. Last good checkpoint: {kept}. Free some space (a lower "
                "--save_total_limit keeps fewer checkpoints) and continue with --resume_from_checkpoint latest."
            )
    if accelerator.is_main_process:
        if final.exists():  # the run was resumed from an earlier step and has reached this one again
            final.rename(final.with_name(f".{final.name}.replaced"))
        partial.rename(final)
        for later in later_checkpoints(output_dir, final):
            shutil.rmtree(later)
        remove_leftovers(output_dir)
        _remove_old(output_dir, save_total_limit)
    accelerator.wait_for_everyone()
    return final


def later_checkpoints(output_dir: str | Path, checkpoint: Path) -> list[Path]:
    """The checkpoints in `output_dir` of later steps, if `checkpoint` is one of them."""
    found = list_checkpoints(output_dir)
    names = [path.name for path in found]
    if checkpoint.name not in names or checkpoint.resolve().parent != Path(output_dir).resolve():
        return []
    return found[names.index(checkpoint.name) + 1 :]


def _remove_old(output_dir: str | Path, save_total_limit: int) -> None:
    for path in list_checkpoints(output_dir)[:-save_total_limit] if save_total_limit else []:
        shutil.rmtree(path)


def _checkpoint_bytes(accelerator: Accelerator) -> int:
    """Bytes of this process's tensors in a checkpoint: those of the model count on the main process, or as shards."""
    own_model = accelerator.is_main_process or accelerator.is_fsdp2
    models = [model.state_dict() for model in accelerator._models] if own_model else []
    optimizers = [list(each.state.values()) for each in accelerator._optimizers] if own_model else []
    others = [each.state_dict() for each in accelerator._custom_objects] if accelerator.is_main_process else []
    return tensor_bytes([models, optimizers, others])


def remove_leftovers(output_dir: str | Path) -> None:
    """Deletes the hidden folders of saves that were killed."""
    for path in (*Path(output_dir).glob(".checkpoint-*"), *Path(output_dir).glob(".best.*")):
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, begun: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """
    Restores model, optimiser, gradient scaler and random states.

    Args:
        begun: loop state of the new run; has "data_fingerprint", "class_names", "num_samples" and "settings".

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
        ValueError: the data differ (unless only samples do, and `--resume_with_changed_data` is given), one of
            `FIXED_SETTINGS` differs, or the checkpoint is beyond the last epoch.
    """
    if saved["data_fingerprint"] != begun["data_fingerprint"]:
        same_classes = saved.get("class_names") == begun["class_names"]
        if not same_classes or not begun["settings"]["resume_with_changed_data"]:
            what = "the classes differ" if not same_classes else (
                f"{saved.get('num_samples')} samples then, {begun['num_samples']} now, with the same classes"
            )  # fmt: skip
            way = "" if not same_classes else (
                " If unusable samples were removed or repaired, add --resume_with_changed_data: the epoch then begins "
                "anew with the data as they are now."
            )  # fmt: skip
            raise ValueError(
                f"{checkpoint} was trained on other data: its fingerprint is {saved['data_fingerprint']}, that of the "
                f"data now is {begun['data_fingerprint']} ({what}). Give the same --dataset and split, or start in "
                f"another --output_dir.{way}"
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
        raise ValueError(
            f"{checkpoint} was trained for {saved['epoch']} epochs, beyond --epochs {epochs}: give a larger number, "
            "or an earlier checkpoint."
        )
    return list(changed.values())
