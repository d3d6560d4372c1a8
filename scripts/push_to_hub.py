"""
Pushes a trained or converted model to the Hugging Face Hub, with its image processor and a model card.

    python scripts/push_to_hub.py --model outputs/fruit --repo me/fruit --dry_run
    python scripts/push_to_hub.py --model outputs/fruit --repo me/fruit --with_code --evaluation outputs/fruit.json

Needs `hf auth login` or HF_TOKEN, unless it is a dry run. After a connection was cut, the same command uploads what is
still missing. Exit code 0 if the repository is complete (or a dry run went through); 1 with the reason on stderr.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from pvt_hf.hub.upload import push_folder


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Folder of the model: a training's or the converter's output."})
    repo: str = field(metadata={"help": "Where to: org/name. Created if it does not exist."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch to commit to, created if it does not exist; by default the main one."}
    )
    private: bool = field(
        default=False, metadata={"help": "Create a repository that only you see; a public one is refused."}
    )
    with_code: bool = field(
        default=False,
        metadata={"help": "Add the code, for those who have not installed this package (trust_remote_code=True)."},
    )
    evaluation: str | None = field(
        default=None, metadata={"help": "JSON file of an evaluation script's --output, for the model card."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Of the weights, as the Hub calls it, such as apache-2.0; for the model card."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Say what would be uploaded, and upload nothing."})


def main() -> int:
    parser = HfArgumentParser(Arguments, description=__doc__.split("\n\n")[0])
    (arguments,) = parser.parse_args_into_dataclasses()
    try:
        result = push_folder(
            arguments.model,
            arguments.repo,
            revision=arguments.revision,
            private=arguments.private,
            with_code=arguments.with_code,
            evaluation_file=arguments.evaluation,
            license=arguments.license,
            dry_run=arguments.dry_run,
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, size in result.files.items():
        print(f"{size:>14,}  {name}")
    print(f"{sum(result.files.values()):>14,}  bytes in {len(result.files)} files")
    print(f"pushed    {result.url}" if result.url else f"dry run   nothing went to {arguments.repo}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
