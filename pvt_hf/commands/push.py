"""
Pushes a trained or converted model to the Hugging Face Hub, with its image processor, a model card and its code; or an
export, with its card, to a repository of its own.

    pvt-hf push --model outputs/fruit --repo me/fruit --dry_run --show_card
    pvt-hf push --model exports/fruit-onnx --repo me/fruit-onnx
    pvt-hf push --model outputs/fruit --repo me/fruit --evaluation outputs/fruit.json --private

Needs `hf auth login` or HF_TOKEN, except for a dry run. After a lost connection, the same command uploads only what is
still missing. Exit code 0 on success; 1 with the reason on stderr otherwise.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..engine.settings import DataclassParser
from ..weights.paths import OFFICIAL, check_model_path, check_repo_id
from . import clean_up_on_sigterm


@dataclass(kw_only=True)
class PushOptions:
    """Arguments of every command that pushes a model."""

    private: bool = field(
        default=False, metadata={"help": "Create a private repository; refuse one that is public already."}
    )
    without_code: bool = field(
        default=False,
        metadata={
            "help": "Do not upload the model's code. It is what opens the model where this package is not installed, "
            "with trust_remote_code=True."
        },
    )


@dataclass(kw_only=True)
class Arguments(PushOptions):
    model: str = field(
        metadata={"help": "Folder of a training, `pvt-hf convert` or `pvt-hf export`, e.g. outputs/fruit."}
    )
    repo: str = field(metadata={"help": "Repository on the Hub, e.g. me/fruit. Created if it does not exist."})
    revision: str | None = field(
        default=None,
        metadata={"help": "Branch to commit to, created if it does not exist, e.g. v2. Default: the main branch."},
    )
    evaluation: str | None = field(
        default=None,
        metadata={"help": "JSON file from --output of pvt-hf evaluate, for the model card, e.g. outputs/fruit.json."},
    )
    license: str | None = field(
        default=None, metadata={"help": "License of the weights for the model card, e.g. apache-2.0."}
    )
    dry_run: bool = field(default=False, metadata={"help": "List what would be uploaded, and upload nothing."})
    show_card: bool = field(
        default=False, metadata={"help": "Print the model card before the list of files, in a dry run too."}
    )


def main() -> int:
    parser = DataclassParser(Arguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses()
    if arguments.model.startswith(OFFICIAL):
        name = arguments.model.removeprefix(OFFICIAL)
        reason = f"the official release is converted first: pvt-hf convert --variant {name} --push {arguments.repo}"
        print(f"error: {reason}", file=sys.stderr)
        return 1
    if not Path(arguments.model).is_dir():
        print(f"error: there is no folder {arguments.model}: train a model, or convert one, first.", file=sys.stderr)
        return 1
    try:
        check_repo_id(arguments.repo)
        check_model_path(arguments.model)
        if arguments.evaluation and not Path(arguments.evaluation).is_file():
            raise FileNotFoundError(f"There is no JSON file {arguments.evaluation}.")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    from ..hub.upload import push_folder

    clean_up_on_sigterm()
    try:
        result = push_folder(
            arguments.model,
            arguments.repo,
            revision=arguments.revision,
            private=arguments.private,
            with_code=not arguments.without_code,
            evaluation_file=arguments.evaluation,
            license=arguments.license,
            dry_run=arguments.dry_run,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.show_card:
        print(result.card)
    for name, size in result.files.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(result.files.values()):>14,}  bytes in {len(result.files)} files")
    print(f"pushed    {result.url}" if result.url else f"dry run   nothing was uploaded to {arguments.repo}")
    return 0
