"""
The examples of README.md run, all of them: blocks of Python in new processes, commands with less data and smaller
images, in one folder and in the order of the page, so that an example finds what those before it have written.

    python -m pytest tests/scripts/test_readme.py            # every example is known; some are only checked
    python -m pytest tests/scripts/test_readme.py -m slow    # runs them
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from PIL import Image

from pvt_hf import PvtForImageClassification, PvtImageProcessor
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.hub.repository import save_repository
from pvt_hf.tasks.classification.settings import ClassificationSettings
from pvt_hf.weights.official_layout import convert_to_official_state_dict
from pvt_hf.weights.variants import get_config, get_variant

from ..support.clean_process import run_python
from ..support.common import tiny_pvt_config
from ..support.detection_files import noise, write_coco
from ..support.distributions import tracked_files
from ..support.hub_fixtures import TOKEN
from ..support.training_runs import make_photos
from ..support.warm_processes import ROOT, run


pytest_plugins = ["tests.support.hub_fixtures"]

README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Examples with one of these names are run elsewhere
ELSEWHERE = {
    "models/upernet": "models/test_segmentation_frameworks.py",
    "outputs/mask2former": "models/test_segmentation_frameworks.py",
    "models/deformable_detr": "models/test_detection_frameworks.py",
    "outputs/mask2former_instances": "models/test_detection_frameworks.py",
}

# How commands begin that are run here, and the arguments that are added to make them small: they win over those before
# them. The longest beginning counts. A command that is neither here nor in CHECKED is an error.
CPU = "--num_workers 0 --cpu"
SHORT = f"--epochs 1 --samples_per_epoch 4 --batch_size 2 --warmup_epochs 0 {CPU}"
PAIRS = "--repeats 3 --row_seconds 0"
RUN = {
    "python scripts/convert_checkpoint.py": "",
    "python scripts/train_image_classification.py": f"{SHORT} --image_size 64",
    "torchrun --nproc_per_node 2 scripts/train_image_classification.py": f"{SHORT} --image_size 64",
    "python scripts/predict.py": "",
    "python scripts/evaluate_image_classification.py": f"--image_sizes 64 96 --batch_size 4 {CPU}",
    "python scripts/finetune.py image-classification": (
        "--max_steps 2 --per_device_train_batch_size 2 --eval_steps 2 --save_steps 2 --use_cpu"
    ),
    "python scripts/train_semantic_segmentation.py": (
        f"{SHORT} --shortest_edge 64 --longest_edge 128 --crop_size 64 --max_class_share 1"
    ),
    "python scripts/evaluate_semantic_segmentation.py": f"--window 64 --stride 43 {CPU}",
    "python scripts/train_object_detection.py": (
        f"{SHORT} --shortest_edges 64 --eval_shortest_edge 64 --longest_edge 128"
    ),
    "python scripts/evaluate_object_detection.py": CPU,
    "hf auth login": f"--token {TOKEN}",
    "python scripts/push_to_hub.py": "",
    "python scripts/make_model_cards.py": "",
    "python scripts/benchmark.py models": (
        f"--variant pvt-tiny --device cpu --sections native --skip_compile --image_size 32 --batch_sizes 1 {PAIRS}"
    ),
    "python scripts/benchmark.py training": (
        "--variant pvt-tiny --device cpu --dtype float32 --batch_size 2 --image_size 32 --steps 1 --modes plain "
        + PAIRS
    ),
    "python scripts/benchmark.py data": f"--images 8 --batch_size 4 --rows crop {PAIRS}",
}


def check_make(words: list[str]) -> None:
    """The target exists and its commands expand."""
    process = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0 and process.stdout, process.stderr


def check_installation(words: list[str]) -> None:
    """The extras exist. (tests/package/ installs the package.)"""
    extras = re.fullmatch(r"\.(?:\[(.+)\])?", words[2])[1]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[:2] == ["pip", "install"] and len(words) == 3
    assert set(extras.split(",") if extras else []) <= set(known)


def check_launch(words: list[str]) -> None:
    """Accelerate's launcher and the script accept the arguments, and the recipe has only arguments that exist."""
    launcher = launch_command_parser().parse_args(words[2:])
    assert words[:2] == ["accelerate", "launch"]
    assert launcher.training_script == "scripts/train_image_classification.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert Path(launcher.training_script).is_file()
        settings = parse_arguments(ClassificationSettings, launcher.training_script_args)
    assert settings.output_dir and get_variant(settings.variant)


def check_download(words: list[str]) -> None:
    """The variant has a URL. (tests/weights/test_convert_checkpoint.py downloads from a local server.)"""
    assert words[1:3] == ["scripts/convert_checkpoint.py", "--variant"] and words[4] == "--output" and len(words) == 6
    assert get_variant(words[3]).checkpoint_url


# What cannot be run here as it is printed, because of what it needs: exactly these commands, and how they are checked
CHECKED = {
    "make demo": check_make,  # minutes
    "make app": check_make,  # until somebody stops it
    "make test": check_make,  # itself
    "pip install .": check_installation,  # a network
    "pip install .[train]": check_installation,
    "pip install .[detection]": check_installation,
    "python scripts/convert_checkpoint.py --variant pvt-small --output models/pvt-small": check_download,  # a network
    "accelerate launch --multi_gpu --num_processes 8 scripts/train_image_classification.py "
    "scripts/recipes/imagenet_pvt_small.yaml --output_dir outputs/imagenet_pvt_small": check_launch,  # eight GPUs
}


def blocks() -> list[tuple[int, str, str]]:
    """Line number, language and content of every code block."""
    return [(README.count("\n", 0, one.start()) + 1, one[1], one[2]) for one in FENCE.finditer(README)]


def commands(code: str) -> list[list[str]]:
    """The words of every command in a block of bash, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def added_arguments(words: list[str]) -> list[str]:
    """The arguments that RUN adds to a command."""
    beginnings = [one for one in RUN if words[: len(one.split())] == one.split()]
    assert beginnings, f"a command of README.md that no test knows: {shlex.join(words)}"
    return RUN[max(beginnings, key=len)].split()


def test_every_example_is_run_or_checked():
    assert README.count("\n```") == 2 * len(blocks())  # none that the pattern overlooks
    seen, beginnings = [], set()
    for line, language, code in blocks():
        assert language in ("python", "bash", ""), f"README.md:{line}"
        if language == "python":
            compile(code, f"README.md:{line}", "exec")
        elif language == "":  # a listing of files
            assert re.match(r"\w+/\n(  \S.*\n)+$", code), f"README.md:{line} is neither a listing nor marked as code"
        else:
            for words in commands(code):
                if (command := " ".join(words)) in CHECKED:
                    CHECKED[command](words)
                    seen.append(command)
                else:
                    added_arguments(words)
                    beginnings |= {one for one in RUN if words[: len(one.split())] == one.split()}
    assert sorted(seen) == sorted(CHECKED) and beginnings == set(RUN)  # the tables have nothing else
    for name, file in ELSEWHERE.items():
        assert any(name in code for _, _, code in blocks()) and (ROOT / "tests" / file).is_file(), name


def test_the_list_of_files_is_complete():
    """Every file of the package is in a row of the table, and every name in the table exists."""
    table = README.partition("\n## Where everything is\n")[2].partition("\n## ")[0]
    patterns = set()
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`(.*?)`", row):
            folder = name[: name.rindex("/") + 1] if "/" in name else folder
            parts = [one.split(",") for one in re.split(r"[{}]", name if "/" in name else folder + name)]
            patterns |= {"".join(one) for one in product(*parts)}
    files = [path.as_posix() for path in tracked_files()]
    named = {one: [file for file in files if fnmatch(file, one + "*" * one.endswith("/"))] for one in patterns}
    assert [one for one, found in named.items() if not found] == []
    listed = {file for found in named.values() for file in found} | {"pvt_hf/__init__.py", "pvt_hf/py.typed"}
    assert [file for file in files if file.startswith(("pvt_hf/", "scripts/", "tests/")) and file not in listed] == []


@pytest.fixture
def workspace(tmp_path):
    """A folder with what the page assumes: the checkout, the reader's data, and models under made-up names."""
    for name in ("scripts", "pvt_hf"):
        (tmp_path / name).symlink_to(ROOT / name)
    torch.manual_seed(0)
    model = PvtForImageClassification(tiny_pvt_config(image_size=224))
    save_repository(model, PvtImageProcessor(), tmp_path / "path/to/model")
    small = PvtForImageClassification(get_config("pvt-small"))
    torch.save(convert_to_official_state_dict(small.state_dict()), tmp_path / "pvt_small.pth")

    Image.fromarray(noise(0, 90, 120)).save(tmp_path / "photo.jpg")
    Image.fromarray(noise(1, 70, 50)).save(tmp_path / "other.png")
    make_photos(tmp_path / "photos", 5)
    for split, count in (("train", 4), ("validation", 2)):
        make_photos(tmp_path / "photos_with_splits" / split, count)
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (tmp_path / "streets" / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.random.default_rng(index).integers(0, 4, (6, 8), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
            mask[0] = 255
            Image.fromarray(mask).save(tmp_path / "streets" / "annotations" / split / f"{index}.png")
            Image.fromarray(noise(index, *mask.shape)).save(tmp_path / "streets" / "images" / split / f"{index}.jpg")
    coco = tmp_path / "path/to/coco"
    for split, count in (("train2017", 4), ("val2017", 2)):
        sizes = {f"{index}.png": (60, 80) for index in range(count)}
        write_coco(coco / "annotations" / f"instances_{split}.json", coco / split, sizes)
    return tmp_path


@pytest.mark.slow
def test_examples_run_in_their_order(workspace, hub, client, script, monkeypatch):
    """Examples of the Hub use one on localhost."""
    monkeypatch.chdir(workspace)
    token_file = workspace / "token"
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(token_file))
    environment = {"HF_MODULES_CACHE": str(workspace / "modules")}

    def run_command(words: list[str]) -> None:
        words = [*words, *added_arguments(words)]
        if words[0] == "hf":
            program = Path(sys.executable).with_name("hf")
            variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": str(token_file), "HF_HUB_OFFLINE": "0"}
            process = subprocess.run([program, *words[1:]], env=variables, capture_output=True, text=True)
            assert process.returncode == 0, process.stdout + process.stderr
        elif words[1] == "scripts/push_to_hub.py":
            code, _, errors = script("push_to_hub", *words[2:])
            assert code == 0, errors
        else:
            processes = 1
            if words[0] == "torchrun":
                assert words[1] == "--nproc_per_node"
                processes, words = int(words[2]), words[2:]
            run(words[1:], processes=processes, cwd=workspace)

    for line, language, code in blocks():
        if any(name in code for name in ELSEWHERE):
            continue
        try:
            if language == "python":
                run_python(code, cwd=workspace, environment=environment, warm=True)
            elif language == "bash":
                for words in commands(code):
                    if " ".join(words) not in CHECKED:
                        run_command(words)
        except AssertionError as error:
            raise AssertionError(f"the example at README.md:{line} fails: {error}") from error

    assert len(json.loads(Path("detections.json").read_text())) > 0
    assert json.loads(Path("outputs/fruit.json").read_text())
    names = {path.name for path in Path("predictions").iterdir()}
    assert {
        "1.classes.png",
        "photo.overlay.png",
        "photo.labels.png",
        "other.objects.png",
        "other.objects.json",
    } <= names
    assert len(list(Path("model_cards").glob("*.md"))) == len(list((ROOT / "model_cards").glob("*.md")))
    pushed = hub.repositories["me/fruit"]
    assert (
        pushed.private
        and {"README.md", "model.safetensors", "modeling_pvt.py"} <= pushed.commits[pushed.branches["main"]].keys()
    )
