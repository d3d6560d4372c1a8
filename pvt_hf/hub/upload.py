"""Pushing a model to the Hugging Face Hub: one repository, one commit, and errors that say what to do."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..weights.export_files import LABELS, program_files, read_manifest
from ..weights.export_formats import EXPORT_FILES
from ..weights.paths import EXPORT_MANIFEST, EXPORT_REPORT, check_repo_id, is_exported
from .card import build_card
from .repository import open_folder, read_object, save_repository


# What an earlier push may have left, and this one deletes unless it writes it again: weights and code
_OURS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "configuration_*.py",
    "image_processing_*.py",
    "modeling_*.py",
)
CARD = "README.md"


@dataclass(frozen=True)
class Push:
    """
    What [`push`] did, or would do.

    Attributes:
        files: size in bytes of each uploaded file, by name.
        url: of the commit; None after a dry run.
        card: the text of the model card, which is the file README.md.
    """

    files: dict[str, int]
    url: str | None
    card: str


def push(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    with_code: bool = True,
    token: str | None = None,
    dry_run: bool = False,
    run: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    conversion: dict[str, Any] | None = None,
    license: str | None = None,
    max_shard_size: int | str = "50GB",
) -> Push:
    """
    Uploads a model and its image processor, with a model card, in one commit.

    Weights and code of an earlier push that are no longer needed are deleted in the same commit. Other files stay.
    After a lost connection, the same call uploads only what is still missing.

    Args:
        model, processor, max_shard_size: as for [`pvt_hf.hub.repository.save_repository`].
        repo_id: "organisation-or-user/name". The repository is created if it does not exist.
        revision: branch to commit to, created from the main one if it does not exist; by default the main one.
        private: create the repository as a private one. A public one that exists already is refused.
        with_code: also upload the code of the model, so that `trust_remote_code=True` opens it without this package.
        token: of a Hub account with write access; by default that of `hf auth login` or `HF_TOKEN`.
        dry_run: build everything and upload nothing. Needs no token and no network.
        run, evaluation, conversion, license: for the card, as [`pvt_hf.hub.card.build_card`] takes them.

    Raises:
        ValueError: `repo_id` is not a valid name, `revision` is a commit, the model or the processor cannot be pushed,
            `private` was given for a public repository, or the Hub refuses the content.
        PermissionError: no token, one that the Hub does not know, or one without write access.
        FileNotFoundError: the repository does not exist, or is private and not visible to the token.
        ConnectionError: offline mode, no connection, or the Hub failed.
    """
    token = check_push(repo_id, revision, token, dry_run)
    with tempfile.TemporaryDirectory() as folder:
        card = build_card(
            model,
            processor,
            repo_id=repo_id,
            run=run,
            evaluation=evaluation,
            conversion=conversion,
            license=license,
            with_code=with_code,
        )
        save_repository(model, processor, folder, with_code=with_code, card=card, max_shard_size=max_shard_size)
        files = sorted(Path(folder).iterdir())
        url = None if dry_run else upload(files, _OURS, repo_id, revision=revision, private=private, token=token)
        return Push({path.name: path.stat().st_size for path in files}, url, str(card))


def check_push(repo_id: str, revision: str | None, token: str | None, dry_run: bool) -> str | None:
    """Checks the name, the branch and, but for a dry run, the token. Returns the token. Raises as [`push`]."""
    check_repo_id(repo_id)
    if revision is not None and (re.fullmatch("[0-9a-f]{40}", revision) or not re.fullmatch(r"[\w./-]+", revision)):
        raise ValueError(f"revision {revision!r} is not a branch: give the name of the branch to commit to.")
    return token if dry_run else check_target(repo_id, token)


def upload(
    files: Sequence[Path], ours: Sequence[str], repo_id: str, *, revision: str | None, private: bool, token: str | None
) -> str:
    """
    Commits files to a repository, which is created if it does not exist. Returns the URL of the commit.

    Args:
        ours: patterns for names that an earlier push may have left; what matches and is not in `files` is deleted.

    Raises:
        as [`push`]; also a ValueError for an export in the repository of a model, or the other way round.
    """
    api, names = HfApi(token=token, library_name="pvt_hf"), [path.name for path in files]
    with _explained(repo_id, api.endpoint):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id} is public already. Make it private in its settings on the Hub, give another name, or "
                "push without `private`."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        if EXPORT_MANIFEST in names and any(fnmatch(name, "model*.safetensors*") for name in there):
            raise ValueError(f"{repo_id} holds a model: give the export a repository of its own.")
        if EXPORT_MANIFEST in there and EXPORT_MANIFEST not in names:
            raise ValueError(f"{repo_id} holds an export: give the model a repository of its own.")
        replaced = [name for name in there if name not in names and any(fnmatch(name, one) for one in ours)]
        # Not upload_folder, which may make several commits
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path.name, path) for path in files),
                *(CommitOperationDelete(name) for name in replaced),
            ],
            commit_message="Upload model",
            revision=revision,
        )
    return commit.commit_url


def push_folder(folder: str | Path, repo_id: str, *, evaluation_file: str | Path | None = None, **options: Any) -> Push:
    """
    Pushes the model in a folder that training, conversion or `save_pretrained` wrote. Its card has what `run.json` and
    `conversion.json` in the folder say. Or pushes an export, see [`push_export`].

    Args:
        folder: as for [`pvt_hf.hub.repository.open_folder`], or written by `pvt-hf export`.
        evaluation_file: an evaluation command's `--output`, for the card of a model.
        options: as for [`push`].

    Raises:
        as [`push`] and [`pvt_hf.hub.repository.open_folder`]; also ValueError for a JSON file that cannot be read.
    """
    check_repo_id(repo_id)
    if is_exported(folder):
        if evaluation_file:
            raise ValueError(
                f"{folder} is an export, whose card `pvt-hf export --dataset` writes: leave the evaluation out."
            )
        options.pop("with_code", None)  # an export has none
        return push_export(Path(folder), repo_id, **options)
    model, processor = open_folder(folder)
    run, conversion = (Path(folder) / name for name in ("run.json", "conversion.json"))
    return push(
        model,
        processor,
        repo_id,
        run=read_object(run) if run.is_file() else None,
        conversion=read_object(conversion) if conversion.is_file() else None,
        evaluation=read_object(Path(evaluation_file)) if evaluation_file else None,
        **options,
    )


def push_export(
    folder: Path,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    token: str | None = None,
    dry_run: bool = False,
    license: str | None = None,
) -> Push:
    """
    Uploads an export, with its card, in one commit: the files that `pvt-hf export` writes, and no others.

    Args:
        folder: written by `pvt-hf export`.
        repo_id, revision, private, token, dry_run, license: as for [`push`].

    Raises:
        as [`push`]; also FileNotFoundError or ValueError for a folder that is incomplete or damaged.
    """
    token = check_push(repo_id, revision, token, dry_run)
    _, programs, _ = read_manifest(folder)
    wanted = [CONFIG_NAME, IMAGE_PROCESSOR_NAME, EXPORT_MANIFEST, EXPORT_REPORT, LABELS, CARD]
    absent = [name for name in (CONFIG_NAME, EXPORT_REPORT, CARD, *programs) if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder} has no {' and no '.join(absent)}: export the model again.")
    report = read_object(folder / EXPORT_REPORT)
    task = report.get("task")
    data = ModelCardData(
        library_name="pvt_hf",
        pipeline_tag="image-segmentation" if task in ("semantic-segmentation", "instance-segmentation") else task,
        license=license,
        tags=["pvt", "export", str(report.get("format"))],
    )
    text = ModelCard((folder / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True).text.lstrip()
    card = f"---\n{data.to_yaml()}\n---\n\n{text}"
    files = [folder / name for name in wanted if name != CARD and (folder / name).is_file()]
    with tempfile.TemporaryDirectory() as temporary:
        changed = Path(temporary, CARD)
        changed.write_text(card, encoding="utf-8")
        files = sorted([*files, *program_files(folder, programs), changed], key=lambda file: file.name)
        url = None if dry_run else upload(files, EXPORT_FILES, repo_id, revision=revision, private=private, token=token)
        return Push({file.name: file.stat().st_size for file in files}, url, card)


def check_target(repo_id: str, token: str | None = None) -> str:
    """
    Checks the name, offline mode and the token, without asking the Hub. Returns the token.

    Raises:
        ValueError, ConnectionError, PermissionError: as [`push`].
    """
    check_repo_id(repo_id)
    if is_offline_mode():
        raise ConnectionError(
            f"HF_HUB_OFFLINE is set, so nothing can be pushed to {repo_id}: unset it, or try a dry run."
        )
    token = token.strip() if token else get_token()  # the client strips its own, too
    if not token:
        raise PermissionError(
            f"There is no token to push to {repo_id} with: run `hf auth login`, or set HF_TOKEN to a token with write "
            "access."
        )
    return token


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turns the errors of the Hub's client into errors that say what happened and what to do."""
    try:
        yield
    except RuntimeError as error:  # from the upload of a weights file, with the reason as its cause
        raise _explanation(error.__cause__ or error, repo_id, endpoint) from error
    except httpx.HTTPError as error:
        raise _explanation(error, repo_id, endpoint) from error


def _explanation(error: BaseException, repo_id: str, endpoint: str) -> Exception:
    again = "The same command uploads only what is still missing."
    if not isinstance(error, HfHubHTTPError):
        reason = f"{type(error).__name__}: {error}"
        return ConnectionError(f"No connection to {endpoint} ({reason}). {again}")
    status = error.response.status_code
    said = f"{status}, {error.server_message}" if error.server_message else str(status)
    if status == 401:
        return PermissionError(
            f"The Hub does not accept the token for {repo_id} ({said}): run `hf auth login`, or set HF_TOKEN to a "
            "token with write access."
        )
    if status == 403:
        return PermissionError(
            f"No permission to write to {repo_id} ({said}): use a token with write access to "
            f"{repo_id.split('/')[0]}, or another name."
        )
    if status == 404:
        return FileNotFoundError(
            f"There is no repository {repo_id}, or it is private and not visible to this token ({said})."
        )
    if status >= 500 or status in (408, 429):
        return ConnectionError(f"{endpoint} failed ({said}). Try again later. {again}")
    return ValueError(f"The Hub refused the change of {repo_id} ({said}).")
