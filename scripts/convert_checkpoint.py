"""
Converts an official PVT checkpoint to a folder that `from_pretrained` opens, and verifies that it computes the same.

    python scripts/convert_checkpoint.py --checkpoint pvt_small.pth --output out/pvt-small
    python scripts/convert_checkpoint.py --variant pvt-small --output out/pvt-small    # downloads the official file
    python scripts/convert_checkpoint.py --variant pvt-small --push me/pvt-small       # and on to the Hugging Face Hub

Exit code 0 if everything was done; 1 with the reason on stderr if anything went wrong. A conversion that fails writes
nothing; a push that fails leaves the --output folder, from which `push_to_hub.py` can try again.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import HfArgumentParser

from pvt_hf.hub.upload import check_target, push_folder
from pvt_hf.weights.convert import convert_checkpoint
from pvt_hf.weights.official_files import download_checkpoint
from pvt_hf.weights.variants import VARIANTS, get_variant


@dataclass
class Arguments:
    output: str | None = field(
        default=None, metadata={"help": "Folder to make; with --push it may be left out, and is then a temporary one."}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "Official .pth or .safetensors file; a classifier or a dense-prediction model."}
    )
    variant: str | None = field(
        default=None,
        metadata={
            "help": "Published model whose official checkpoint is downloaded, instead of --checkpoint.",
            "choices": [variant.name for variant in VARIANTS.values() if variant.checkpoint_url],
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace a non-empty output folder."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where downloads are kept; by default in the assets cache of huggingface_hub."}
    )
    num_attention_heads: list[int] | None = field(
        default=None, metadata={"help": "Heads of the four stages; by default 1 2 5 8, or heads of 64 channels."}
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Height and width (or one side) in pixels of the model's construction; by default a square."},
    )
    push: str | None = field(
        default=None, metadata={"help": "Also push the result to this repository on the Hub, e.g. me/pvt-small."}
    )
    private: bool = field(
        default=False, metadata={"help": "--push creates a repository that only you see; a public one is refused."}
    )
    without_code: bool = field(
        default=False,
        metadata={
            "help": "--push does not upload the model's code. It is what opens the model where this package is not "
            "installed, with trust_remote_code=True."
        },
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Of the weights, for the card of --push; by default that of the release with --variant."},
    )


def convert(arguments: Arguments, output: Path) -> None:
    """Converts and says what came of it."""
    overrides: dict[str, Any] = {}
    if arguments.num_attention_heads:
        overrides["num_attention_heads"] = arguments.num_attention_heads
    if arguments.image_size:
        sides = arguments.image_size
        overrides["image_size"] = sides[0] if len(sides) == 1 else sides
    checkpoint, url = arguments.checkpoint, None
    if arguments.variant:
        variant = get_variant(arguments.variant)
        checkpoint, url = download_checkpoint(variant, arguments.cache_dir), variant.checkpoint_url
        overrides = {**variant.config, **overrides}  # a file of another architecture is refused
    report = convert_checkpoint(checkpoint, output, arguments.overwrite, url, **overrides)

    source, model, verification = report["source"], report["model"], report["verification"]
    sizes = ", ".join(f"{height}x{width}" for height, width in verification["image_sizes"])
    print(f"source    {checkpoint}: {source['keys']} tensors, sha256 {source['sha256']}")
    print(f"result    {model['class']}: {model['keys']} tensors, {model['parameters']:,} parameters, {model['dtype']}")
    if model["labels"]:
        print(f"labels    {model['labels']}")
    print(
        f"verified  at {sizes} pixels: max abs difference {verification['max_abs_difference']:.2g} in values of up to "
        f"{verification['max_abs_value']:.3g} (tolerance {verification['tolerance']:.2g})"
    )
    if arguments.output:
        print(f"written   {output}: model.safetensors, config.json, preprocessor_config.json, conversion.json")


def main() -> int:
    parser = HfArgumentParser(Arguments, description=__doc__.split("\n\n")[0])
    (arguments,) = parser.parse_args_into_dataclasses()
    if (arguments.checkpoint is None) == (arguments.variant is None):
        parser.error("give either --checkpoint FILE or --variant NAME")
    if arguments.output is None and arguments.push is None:
        parser.error("give --output FOLDER, --push REPOSITORY, or both")
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(arguments.output or f"{temporary}/model")
        try:
            if arguments.push:
                check_target(arguments.push)  # before the work
            convert(arguments, output)
            if arguments.push:
                options = {"private": arguments.private, "license": arguments.license}
                options["with_code"] = not arguments.without_code
                print(f"pushed    {push_folder(output, arguments.push, **options).url}")
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
