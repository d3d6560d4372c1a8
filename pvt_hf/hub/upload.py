"""Pushing a model to the Hugging Face Hub: one repository, one commit, and errors that say what to do."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel

from ..weights.paths import check_repo_id
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
    check_repo_id(repo_id)
    if revision is not None and (re.fullmatch("[0-9a-f]{40}", revision) or not re.fullmatch(r"[\w./-]+", revision)):
        raise ValueError(f"revision {revision!r} is not a branch: give the name of the branch to commit to.")
    if not dry_run:
        token = check_target(repo_id, token)
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
        paths = sorted(Path(folder).iterdir())
        files = {path.name: path.stat().st_size for path in paths}
        if dry_run:
            return Push(files, None, str(card))
        api = HfApi(token=token, library_name="pvt_hf")
        with _explained(repo_id, api.endpoint):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.model_info(repo_id).private:
                raise ValueError(
                    f"{repo_id} is public already. Make it private in its settings on the Hub, give another name, or "
                    "push without `private`."
                )
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            replaced = [
                name
                for name in api.list_repo_files(repo_id, revision=revision)
                if name not in files and any(fnmatch(name, pattern) for pattern in _OURS)
            ]
            # Not upload_folder, which may make several commits
            commit = api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(path.name, path) for path in paths),
                    *(CommitOperationDelete(name) for name in replaced),
                ],
                commit_message="Upload model",
                revision=revision,
            )
    return Push(files, commit.commit_url, str(card))


def push_folder(folder: str | Path, repo_id: str, *, evaluation_file: str | Path | None = None, **options: Any) -> Push:
    """
    Pushes the model in a folder that training, conversion or `save_pretrained` wrote. Its card has what `run.json` and
    `conversion.json` in the folder say.

    Args:
        folder: as for [`pvt_hf.hub.repository.open_folder`].
        evaluation_file: an evaluation command's `--output`, for the card.
        options: as for [`push`].

    Raises:
        as [`push`] and [`pvt_hf.hub.repository.open_folder`]; also ValueError for a JSON file that cannot be read.
    """
    check_repo_id(repo_id)
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
