"""
Converts an official PVT checkpoint to a folder that `from_pretrained` opens, and verifies that it computes the same.

    pvt-hf convert --checkpoint pvt_small.pth --output out/pvt-small
    pvt-hf convert --variant pvt-small --output out/pvt-small    # downloads the official file
    pvt-hf convert --variant pvt-small --push me/pvt-small       # pushes the result to the Hub

The exit status is 0 on success, and 1 after an error, with the reason on stderr. A conversion that fails or is stopped
(Ctrl-C, SIGTERM) writes nothing: with --overwrite, the old folder stays. A failed push leaves the --output folder,
which `pvt-hf push` can push again. Classifiers with 1000 classes need the extra `train`, for the names of the classes:
`pip install "pvt-hf[train]"`.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.output_paths import check_output_folder
from ..engine.settings import DataclassParser
from ..weights.paths import check_repo_id
from ..weights.variants import RELEASED, get_variant
from . import clean_up_on_sigterm
from .push import PushOptions


@dataclass(kw_only=True)
class Arguments(PushOptions):
    checkpoint: str | None = field(
        default=None,
        metadata={"help": "Official .pth or .safetensors file of a classifier or detector, e.g. pvt_small.pth."},
    )
    variant: str | None = field(
        default=None,
        metadata={
            "help": "Download the official checkpoint of this model instead, e.g. pvt-small.",
            "choices": [*RELEASED],
        },
    )
    output: str | None = field(
        default=None,
        metadata={"help": "Folder to create, e.g. out/pvt-small. With --push, a temporary folder is the default."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an older conversion. A folder with other files is refused."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for downloads, e.g. downloads. By default, the assets cache of huggingface_hub."},
    )
    num_attention_heads: list[int] | None = field(
        default=None,
        metadata={
            "help": "Attention heads of the four stages, e.g. 1 2 5 8. By default 1 2 5 8 if these divide the widths, "
            "else one head per 64 channels."
        },
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={
            "help": "Height and width, in pixels, that the model was built for, e.g. 512 2048, or one number for a "
            "square. By default, the square that fits the position tables."
        },
    )
    push: str | None = field(
        default=None, metadata={"help": "Push the result to this repository on the Hub, e.g. me/pvt-small."}
    )
    license: str | None = field(
        default=None,
        metadata={
            "help": "License of the weights for the model card of --push, e.g. apache-2.0. By default, with --variant, "
            "that of the official release."
        },
    )


def convert(arguments: Arguments, output: Path) -> None:
    """Converts into the folder `output` and prints a report."""
    from ..weights.convert import convert_checkpoint
    from ..weights.official_files import download_checkpoint

    overrides: dict[str, Any] = {}
    if arguments.num_attention_heads:
        overrides["num_attention_heads"] = arguments.num_attention_heads
    if arguments.image_size:
        sides = arguments.image_size
        overrides["image_size"] = sides[0] if len(sides) == 1 else sides
    checkpoint: Any = arguments.checkpoint
    url = None
    if arguments.variant:
        variant = get_variant(arguments.variant)
        checkpoint, url = download_checkpoint(variant, arguments.cache_dir), variant.checkpoint_url
        overrides = {**variant.config, **overrides}  # a file with another architecture is then refused
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


def parse_arguments() -> Arguments:
    parser = DataclassParser(Arguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses()
    if (arguments.checkpoint is None) == (arguments.variant is None):
        parser.error("give either --checkpoint FILE or --variant NAME")
    if arguments.output is None and arguments.push is None:
        parser.error("give --output FOLDER, --push REPOSITORY, or both")
    if arguments.num_attention_heads and (
        len(arguments.num_attention_heads) != 4 or min(arguments.num_attention_heads) < 1
    ):
        parser.error(f"--num_attention_heads: expected four numbers from 1, got {arguments.num_attention_heads}")
    if arguments.image_size and (len(arguments.image_size) > 2 or min(arguments.image_size) < 1):
        parser.error(f"--image_size: expected one or two numbers from 1, got {arguments.image_size}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.checkpoint is not None and not Path(arguments.checkpoint).is_file():
        print(f"error: No checkpoint at {arguments.checkpoint}.", file=sys.stderr)
        return 1
    try:
        if arguments.output:
            check_output_folder("output", arguments.output)
        if arguments.push:
            check_repo_id(arguments.push)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    from safetensors import SafetensorError

    from ..hub.upload import check_target, push_folder

    clean_up_on_sigterm()
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(arguments.output or f"{temporary}/model")
        try:
            if arguments.push:
                check_target(arguments.push)  # fails before the download and the conversion, not after
            convert(arguments, output)
            if arguments.push:
                options: dict[str, Any] = {"private": arguments.private, "license": arguments.license}
                options["with_code"] = not arguments.without_code
                print(f"pushed    {push_folder(output, arguments.push, **options).url}")
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0
