"""What `pvt-hf reproduce` needs to evaluate the paper's models, and how to get it. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


MISSING = 2  # exit status if data or checkpoints are missing


@dataclass(frozen=True)
class NeededData:
    """
    Attributes:
        title: for readers.
        size: of the part that evaluation needs.
        layouts: what the folder may hold.
        advice: how to get it.
    """

    title: str
    size: str
    layouts: str
    advice: str


DATA = {
    "imagenet-1k": NeededData(
        "ImageNet-1K, validation", "50,000 images, about 7 GB",
        "validation-*.parquet, or validation/CLASS/*.JPEG with the 1000 WordNet ids (n01440764 ...) as CLASS",
        "accept the terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k, log in with `hf auth login`, then:\n"
        "    hf download ILSVRC/imagenet-1k --repo-type dataset --include 'data/validation*' --local-dir imagenet-1k",
    ),
    "coco": NeededData(
        "COCO 2017, val2017", "5,000 images, about 1 GB, and annotations, about 0.25 GB",
        "val2017/*.jpg and annotations/instances_val2017.json",
        "from https://cocodataset.org/#download:\n"
        "    mkdir coco && cd coco\n"
        "    curl -O http://images.cocodataset.org/zips/val2017.zip && unzip val2017.zip\n"
        "    curl -O http://images.cocodataset.org/annotations/annotations_trainval2017.zip\n"
        "    unzip annotations_trainval2017.zip",
    ),
    "ade20k": NeededData(
        "ADE20K, scene parsing benchmark, validation", "2,000 images with masks; the archive with training is 1 GB",
        "images/validation/*.jpg and annotations/validation/*.png, or parquet files",
        "from http://sceneparsing.csail.mit.edu:\n"
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


def missing_data(table: int, folders: list[Path]) -> str:
    """
    Says which data of a table are missing, how large they are and how to get them; "" if all folders are there.

    Args:
        folders: for the data sets of [`TABLE_DATA`], in that order.
    """
    texts = []
    for index, key in enumerate(TABLE_DATA[table]):
        if index < len(folders) and folders[index].is_dir():
            continue
        where = f"there is no folder {folders[index]}" if index < len(folders) else "--data gives no folder for it"
        needed = DATA[key]
        texts.append(
            f"Table {table} needs {needed.title} ({needed.size}): {where}.\n"
            f"  Layout: {needed.layouts}.\n  To get it: {needed.advice}"
        )
    return "\n".join(texts)


def missing_runs(runs: dict[str, Path]) -> str:
    """Says which `run.json` files are missing and how to get them; "" if all are there."""
    lacking = [f"there is no {folder / 'run.json'} ({name})" for name, folder in runs.items()
               if not (folder / "run.json").is_file()]  # fmt: skip
    return "" if runs and not lacking else "\n".join([*lacking, HOW_TO_TRAIN])
