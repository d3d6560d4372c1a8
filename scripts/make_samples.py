"""
Writes the models of `pvt_hf.sample` from trained folders: weights in bfloat16, image processor, run.json, evaluation,
card and a scene of digits that no training has seen.

    python scripts/make_samples.py outputs/digits_segmenter outputs/digits_detector

`MADE` has the commands that trained them. A folder has the name of its sample. The figures in a card are those of the
weights in bfloat16, which are computed with in float32.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image

from pvt_hf.data.digits import digit_scenes
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.hub.card import build_card
from pvt_hf.hub.repository import open_folder
from pvt_hf.tasks import get_task
from pvt_hf.tasks.detection.settings import DetectionEvaluationSettings
from pvt_hf.tasks.segmentation.settings import SegmentationEvaluationSettings
from pvt_hf.weights.paths import SAMPLES


EVALUATION = {
    "digits-segmenter": ("semantic-segmentation", SegmentationEvaluationSettings),
    "digits-detector": ("object-detection", DetectionEvaluationSettings),
}
SCENES = "--dataset digit-scenes --split test --scene_size 96 --digit_sizes 30 54 --cpu true --num_workers 0".split()
# What trained the weights in the package: part of their cards
BACKBONE = """\
python scripts/train_image_classification.py scripts/recipes/digits_backbone.yaml \\
    --output_dir outputs/digits_backbone
"""
MADE = {
    "digits-segmenter": f"""\
The commands that made these weights:

```bash
{BACKBONE}\
python scripts/train_semantic_segmentation.py scripts/recipes/digits_segmenter.yaml \\
    --backbone outputs/digits_backbone --output_dir outputs/digits_segmenter
```
""",
    "digits-detector": f"""\
These weights were trained in two parts. `run.json` records the command of the second part, the last one below, and the
history of both: the learning rate of the first 500 steps is that of a training of five epochs. So their command was
the one before, with `--epochs 5`, and it ended when `checkpoint-00000500` was there (Ctrl-C does that):

```bash
{BACKBONE}\
python scripts/train_object_detection.py scripts/recipes/digits_detector.yaml \\
    --backbone outputs/digits_backbone --output_dir outputs/digits_detector --epochs 5
python scripts/train_object_detection.py scripts/recipes/digits_detector.yaml \\
    --backbone outputs/digits_backbone --output_dir outputs/digits_detector \\
    --resume_from_checkpoint checkpoint-00000500
```

The recipe in one part gives other weights. Neither that nor a second run of these commands was tried.
""",
}
SHOWN = 3  # the first scene of the held-out digits with eight of them


def make_sample(trained: Path) -> None:
    """Writes the folder of one sample. Replaces an earlier one only when everything is there."""
    name = trained.name.replace("_", "-")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        model, processor = open_folder(trained)
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = "float32"  # what the weights are loaded as
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

        task, settings = EVALUATION[name]
        output = Path(temporary) / "evaluation.json"
        evaluate_checkpoint(
            get_task(task), parse_arguments(settings, ["--model", str(folder), *SCENES, "--output", str(output)])
        )
        evaluation = json.loads(output.read_text())
        run = json.loads((trained / "run.json").read_text().replace(f"{trained.parent}/", "./outputs/"))
        (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n")
        card = build_card(
            *open_folder(folder), repo_id=name, run=run, evaluation=evaluation, license="apache-2.0", with_code=False
        )
        text = str(card).replace(f"https://huggingface.co/{name}#evaluation", "#evaluation")
        text = text.replace(f'model="{name}"', f'model=pvt_hf.sample("{name}")')
        text = text.replace('"photo.jpg"', f'pvt_hf.sample("{name}") + "/scene.png"')
        text = text.replace("\n## Limits\n", f"\n{MADE[name]}\n## Limits\n")
        (folder / "README.md").write_text(text)
        scene().save(folder / "scene.png")
        shutil.rmtree(SAMPLES / name, ignore_errors=True)
        shutil.copytree(folder, SAMPLES / name)


def scene() -> Image.Image:
    """A scene of 192x256 pixels: another size and shape than those of the training."""
    example = list(digit_scenes("test", 192, 256, digit_sizes=(60, 100), length=SHOWN + 1))[SHOWN]
    return example["image"].convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="trained folders, e.g. outputs/digits_segmenter")
    for folder in parser.parse_args().folders:
        make_sample(folder)


if __name__ == "__main__":
    main()
