"""
Writes the model cards of the paper's checkpoints, from `pvt_hf/hub/published.py` and evaluations of ours.

    python scripts/make_model_cards.py            # writes model_cards/*.md
    python scripts/make_model_cards.py --check    # writes nothing; exit code 1 if a card is out of date

To add an evaluation to the card NAME.md, let an evaluation script write it with `--output model_cards/NAME.json`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from pvt_hf.hub.published import PUBLISHED
from pvt_hf.hub.published_card import build_published_card


REPOSITORY = Path(__file__).parents[1]


@dataclass
class Arguments:
    output_dir: str = field(
        default=str(REPOSITORY / "model_cards"), metadata={"help": "Folder of the cards and of evaluations."}
    )
    check: bool = field(
        default=False, metadata={"help": "Compare the cards with what would be written, and write nothing."}
    )


def main() -> int:
    parser = HfArgumentParser(Arguments, description=__doc__.split("\n\n")[0])
    (arguments,) = parser.parse_args_into_dataclasses()
    folder, outdated = Path(arguments.output_dir), []
    unknown = {file.stem for ending in ("md", "json") for file in folder.glob(f"*.{ending}")} - set(PUBLISHED)
    unknown -= {"ablations"}  # the report of `pvt-hf reproduce ablations`
    if unknown:
        print(
            f"error: {folder} has files for {', '.join(sorted(unknown))}: there are no such checkpoints",
            file=sys.stderr,
        )
        return 1
    for name, published in PUBLISHED.items():
        evaluation = folder / f"{name}.json"
        try:
            content = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.exists() else None
            card = str(build_published_card(published, content))
        except (OSError, ValueError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
        file = folder / f"{name}.md"
        if arguments.check:
            if not file.exists() or file.read_bytes() != card.encode():
                outdated.append(str(file))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_bytes(card.encode())
    if outdated:
        print(f"error: out of date: {', '.join(outdated)}. Run scripts/make_model_cards.py.", file=sys.stderr)
        return 1
    print(f"{len(PUBLISHED)} cards in {folder}{' are up to date' if arguments.check else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
