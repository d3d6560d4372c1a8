"""
The table of docs/deployment.md: exports a small model of each class to each format that is installed, for any size and
for one, and says what came of it.

    python -m tests.support.export_table [--paper] [FORMAT ...]

With --paper, models of the size in the paper: PVT-Small and each head's default configuration, with random weights. An
export takes minutes.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pvt_hf.families import MODELS, Family, load
from pvt_hf.weights.export_formats import EXPORT_FORMATS
from pvt_hf.weights.variants import get_config

from .exports import export, save_model


def save_paper_model(family: Family, folder: Path) -> None:
    """Saves a model of the paper's size with its image processor, for the number of classes of ADE20K or COCO."""
    torch.manual_seed(0)
    config = get_config("pvt-small", **({"out_features": list(family.stages)} if family.stages else {}))
    if family.stages:
        classes = 150 if family.task == "segmentation" else 80
        config = load(family.config)(backbone_config=config, num_labels=classes)
    load(family.models[0].path)(config).save_pretrained(folder)
    load(family.processors["pil"])().save_pretrained(folder)


def outcome(model_class: str, kind: str, folder: Path) -> str:
    """Whether a class was exported for any size, or one size, or none; the largest difference of the comparison."""
    sizes: list[tuple[str, dict]] = [("any size", {}), ("one size", {"fixed_size": (128, 160)})]
    for words, size in sizes[not EXPORT_FORMATS[kind].dynamic :]:
        start = time.perf_counter()
        try:
            request = {"model_class": opened_as(model_class), "overwrite": True, **size}
            report = export(folder / "model", folder / "export", kind, **request)
        except (ImportError, ValueError) as error:
            print(f"{model_class}, {kind}, {words}: {error}", file=sys.stderr)
            continue
        difference = max(one["difference"] for one in report["comparison"])
        print(f"{model_class}, {kind}, {words}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        return f"{words}, {difference:.0e}"
    return "no"


def opened_as(model_class: str) -> str:
    """What `--model_class` is given to export this class: the classes of a PVT are read from a classifier's folder."""
    return model_class if MODELS[model_class][0].name == "pvt" else ""


def main(paper: bool, formats: list[str]) -> None:
    print("| |", *(f" `{kind}` |" for kind in formats))
    print("|---|", "---|" * len(formats))
    for model_class, (family, _) in MODELS.items():
        with TemporaryDirectory() as folder:
            if paper:
                save_paper_model(family, Path(folder) / "model")
            else:
                save_model(family.name, Path(folder) / "model")
            cells = [outcome(model_class, kind, Path(folder)) for kind in formats]
        print(f"| `{model_class}` |", *(f" {cell} |" for cell in cells), flush=True)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--paper"]
    main("--paper" in sys.argv, words or [name for name, kind in EXPORT_FORMATS.items() if not kind.missing()])
