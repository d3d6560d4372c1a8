"""What `pvt-hf reproduce` needs to evaluate the paper's models, and how to get it. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data import paths


MISSING = 2  # exit status if data or checkpoints are missing


@dataclass(frozen=True)
class NeededData:
    """
    Attributes:
        title: for readers.
        images: that the paper's figures are for.
        size: of the part that evaluation needs.
        layouts: what the folder may hold.
        advice: how to get it.
        hub_id: the data set on the Hub that its short name stands for; "" if none can be read from there.
    """

    title: str
    images: int
    size: str
    layouts: str
    advice: str
    hub_id: str = ""


DATA = {
    "imagenet-1k": NeededData(
        "ImageNet-1K, validation", 50_000, "50,000 images, about 7 GB",
        "validation-*.parquet, or validation/CLASS/*.JPEG with the 1000 WordNet ids (n01440764 ...) as CLASS",
        "accept the terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k and log in with `hf auth login`. Then\n"
        "  --data imagenet-1k reads it from the Hub, or download it:\n"
        "    hf download ILSVRC/imagenet-1k --repo-type dataset --include 'data/validation*' --local-dir imagenet-1k",
        hub_id="ILSVRC/imagenet-1k",
    ),
    "coco": NeededData(
        "COCO 2017, val2017", 5_000, "5,000 images, about 1 GB, and annotations, about 0.25 GB",
        "val2017/*.jpg and annotations/instances_val2017.json",
        "from https://cocodataset.org/#download:\n"
        "    mkdir coco && cd coco\n"
        "    curl -O http://images.cocodataset.org/zips/val2017.zip && unzip val2017.zip\n"
        "    curl -O http://images.cocodataset.org/annotations/annotations_trainval2017.zip\n"
        "    unzip annotations_trainval2017.zip",
    ),
    "ade20k": NeededData(
        "ADE20K, scene parsing benchmark, validation", 2_000,
        "2,000 images with masks; the archive with training is 1 GB",
        "images/validation/*.jpg and annotations/validation/*.png, or validation-*.parquet with image and annotation",
        "from http://sceneparsing.csail.mit.edu (the Hub's zhoubolei/scene_parse_150 is a script, which `datasets` no\n"
        "  longer runs):\n"
        "    curl -O http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip\n"
        "    unzip ADEChallengeData2016.zip      # --data ADEChallengeData2016",
    ),
}  # fmt: skip
TABLE_DATA = {
    2: ("imagenet-1k",), 3: ("coco",), 4: ("coco",), 5: ("ade20k",), 6: ("coco",), 7: ("ade20k",), 8: ("coco",),
    9: ("imagenet-1k", "coco"), 10: ("coco",), 11: ("coco",),
}  # fmt: skip
# Final AP of RetinaNet in Figure 5, by the name of the run
FIGURE_5 = {
    "pretrained-1x": 40.4, "scratch-1x": 26.6, "pretrained-3x": 42.2, "scratch-3x": 33.8,
    "resnet50-1x": 36.3, "resnet50-3x": 39.0,
}  # fmt: skip
HOW_TO_TRAIN = """Figure 5 needs runs of RetinaNet on COCO (train2017 and val2017, about 19 GB):
    pvt-hf train-object-detection coco_retinanet_pvt_small_1x --backbone pvt_small.pth --output_dir pretrained-1x
    pvt-hf train-object-detection coco_retinanet_pvt_small_1x --backbone '' --output_dir scratch-1x
    pvt-hf train-object-detection coco_retinanet_pvt_small_3x --backbone pvt_small.pth --output_dir pretrained-3x
    pvt-hf train-object-detection coco_retinanet_pvt_small_3x --backbone '' --output_dir scratch-3x
    pvt-hf reproduce figure5 --runs pretrained-1x=pretrained-1x scratch-1x=scratch-1x"""


def find_sources(table: int, names: Sequence[str]) -> dict[str, str]:
    """
    What to open for each data set of a table, by its name in [`TABLE_DATA`]: a folder, or a data set on the Hub; "" if
    `names`, the values of `--data`, are too few.
    """
    sources = dict.fromkeys(TABLE_DATA[table], "")
    for key, name in zip(sources, names):
        sources[key] = (DATA[key].hub_id or name) if name == key and not Path(name).exists() else name
    return sources


def missing_data(table: int, sources: dict[str, str]) -> str:
    """
    Says which data of a table are missing, how large they are and how to get them; "" if all folders are there, and
    the Hub has the others.
    """
    reasons = {key: _why_missing(key, source) for key, source in sources.items()}
    return "\n".join(missing_text(table, key, reason) for key, reason in reasons.items() if reason)


def _why_missing(key: str, source: str) -> str:
    if not source:
        return "--data gives no folder for it"
    if Path(source).is_dir():
        return ""
    if Path(source).exists():
        return f"{source} is a file: give the folder that has the data"
    if source == key or source.count("/") > 1 or source.startswith((".", "/", "~")):
        return f"there is no folder {source}"
    try:
        paths.check_on_hub(source, "data")
    except FileNotFoundError as error:
        return str(error)
    return ""


def missing_text(table: int, key: str, reason: str) -> str:
    """Which data are missing and why, how large they are and how to get them."""
    needed = DATA[key]
    return (
        f"Table {table} needs {needed.title} ({needed.size}): {reason.rstrip('.')}.\n"
        f"  Layout: {needed.layouts}.\n  To get it: {needed.advice}"
    )


def missing_runs(runs: dict[str, Path]) -> str:
    """Says which `run.json` files are missing and how to get them; "" if all are there."""
    lacking = [f"there is no {folder / 'run.json'} ({name})" for name, folder in runs.items()
               if not (folder / "run.json").is_file()]  # fmt: skip
    return "" if runs and not lacking else "\n".join([*lacking, HOW_TO_TRAIN])
