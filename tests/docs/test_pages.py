"""
The examples of README.md and docs/ work. Each command is started until its arguments have been read. Then the blocks
of Python, and the commands that no other test runs, run in the order of the pages, in one folder, with less data and
smaller images, so that an example finds what those before it have written.

    python -m pytest tests/docs/test_pages.py            # every example is known, and its arguments are read
    python -m pytest tests/docs/test_pages.py -m slow    # runs them
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from huggingface_hub import cached_assets_path
from PIL import Image
from torch.distributed.run import get_args_parser as torchrun_parser
from transformers import AutoConfig, AutoModelForImageClassification, PvtV2Config
from transformers.models.pvt import PvtForImageClassification as NativeClassifier

from pvt_hf import PvtForImageClassification, PvtImageProcessor
from pvt_hf.commands import COMMANDS, allocator, main
from pvt_hf.hub.repository import save_repository
from pvt_hf.weights.official_layout import convert_to_official_state_dict
from pvt_hf.weights.variants import get_config

from ..support.clean_process import run_python
from ..support.common import tiny_pvt_config
from ..support.detection_files import noise, write_coco
from ..support.hub_fixtures import TOKEN
from ..support.pages import DOCS, blocks, commands, commands_in_tables, pages
from ..support.training_runs import make_photos
from ..support.videos import clip, write_video
from ..support.warm_processes import ROOT, run


pytest_plugins = ["tests.support.hub_fixtures"]

# Blocks of Python with one of these names are run elsewhere
ELSEWHERE = {
    "models/upernet": "models/test_segmentation_frameworks.py",
    "outputs/mask2former": "models/test_segmentation_frameworks.py",
    "models/deformable_detr": "models/test_detection_frameworks.py",
    "outputs/mask2former_instances": "models/test_detection_frameworks.py",
    "torch.compile(model, fullgraph=True)": "models/test_modeling_pvt.py",
    "torchao.quantization": "models/test_fast_paths.py",
    "import fiftyone": "inference/test_other_tools.py",
}

# How commands begin that are run here, and the arguments that are added to make them small: they win over those before
# them. The longest beginning counts. What others need comes from these, or no other test runs it.
SHORT = "--epochs 1 --samples_per_epoch 4 --batch_size 2 --warmup_epochs 0 --num_workers 0 --cpu"
RUN = {
    "pvt-hf convert --checkpoint": "",
    "pvt-hf train-image-classification --dataset photos": f"{SHORT} --image_size 64",
    "pvt-hf evaluate image-classification --model outputs/fruit": "--image_sizes 64 96 --batch_size 4 --num_workers 0",
    "pvt-hf train-semantic-segmentation --dataset streets": (
        f"{SHORT} --shortest_edge 64 --longest_edge 128 --crop_size 64 --max_class_share 1"
    ),
    "pvt-hf train-object-detection --dataset path/to/coco": (
        f"{SHORT} --shortest_edges 64 --eval_shortest_edge 64 --longest_edge 128"
    ),
    "pvt-hf finetune semantic-segmentation --backbone": (
        "--max_steps 1 --per_device_train_batch_size 2 --shortest_edge 64 --longest_edge 128 --crop_size 64 --use_cpu"
    ),
    "pvt-hf predict": "",
    "pvt-hf export path/to/model --format onnx --output": "",
    "pvt-hf export sample:digits-detector": "",
    "pvt-hf push": "",
    "hf auth login": f"--token {TOKEN}",
}
# The functions that do the work of a command, once it has read its arguments: it calls one of them
WORK = {
    "train-image-classification": "pvt_hf.engine.run.train",
    "train-semantic-segmentation": "pvt_hf.engine.run.train",
    "train-object-detection": "pvt_hf.engine.run.train",
    "evaluate": "pvt_hf.engine.evaluation.evaluate_checkpoint",
    "finetune": "pvt_hf.engine.finetuning.finetune",
    "predict": "pvt_hf.inference.files.predict_files",
    "convert": "pvt_hf.commands.convert.convert",
    "export": "pvt_hf.export.folder.export_checkpoint",
    "push": "pvt_hf.hub.upload.push_folder",
    "app": "pvt_hf.commands.app_page.serve",
    "benchmark": "pvt_hf.commands.benchmark_{task}.benchmark_{task}",
    "check": "pvt_hf.engine.check.check_data pvt_hf.commands.check.guess_task",
    "info": "pvt_hf.hub.model_info.open_variant pvt_hf.hub.model_info.open_checkpoint",
    "reproduce": "pvt_hf.commands.reproduce_{task}.reproduce_{task}",
}


class Reached(Exception):
    """A command has read its arguments and begins to work."""


def make_paths(words: list[str]) -> None:
    """The folders and files that a command line, or its recipe, names: paths that do not exist are refused at once."""
    for folder in (Path(word.partition("=")[2]) for word in words if re.fullmatch(r"[\w-]+=[\w-]+(/[\w-]+)+", word)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").touch()  # of NAME=FOLDER
    for path in (Path(word) for word in [*words, "coco", "pvt_small.pth"] if re.fullmatch(r"[\w.-]+(/[\w.-]+)*", word)):
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        elif "/" in str(path) or str(path) == "coco":
            path.mkdir(parents=True, exist_ok=True)
            if "--checkpoints" not in words:  # the folder of many models
                (path / "config.json").touch()  # a folder without it is no model


def read_arguments(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """
    Runs `pvt-hf WORDS` in a new folder until its work begins. An AssertionError says which arguments it refuses.
    """
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        make_paths(words)
        _read_arguments(words, patch)


def _read_arguments(words: list[str], patch: pytest.MonkeyPatch) -> None:
    task = words[1] if len(words) > 1 else "peers"  # that of `pvt-hf benchmark`
    task = re.sub(r"^table\d+$", "accuracy", task)  # one function of `pvt-hf reproduce` for all tables

    def begin(*arguments: object, **options: object) -> None:
        raise Reached

    with patch.context() as inner:
        for function in WORK[words[0]].format(task=task).split():
            inner.setattr(function, begin)
        inner.setattr(sys, "argv", ["pvt-hf", *words])
        inner.setattr("pvt_hf.data.paths.check_on_hub", lambda *_: None)
        try:
            main()
        except Reached:
            return
        except SystemExit as end:
            raise AssertionError(f"pvt-hf {shlex.join(words)} ends with {end.code}") from end
    raise AssertionError(f"pvt-hf {shlex.join(words)} does not call {WORK[words[0]]}")


def check_make(words: list[str]) -> None:
    """The targets exist and their commands expand."""
    process = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0 and process.stdout, process.stderr


def check_installation(words: list[str]) -> None:
    """The extras exist. (tests/package/ installs the package.)"""
    extras = re.fullmatch(r"\.(?:\[(.+)\])?", words[2])[1]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[:2] == ["pip", "install"] and len(words) == 3
    assert set(extras.split(",") if extras else []) <= set(known)


def check_script(words: list[str]) -> None:
    """The script exists and is given its arguments. (tests/hub/ and tests/scripts/ run them.)"""
    reports = (["outputs/benchmark.json"], ["outputs/benchmark_export.json"])
    known = (["scripts/make_model_cards.py"], *(["scripts/make_performance_pages.py", *one] for one in reports))
    assert words[0] == "python" and words[1:] in known and (ROOT / words[1]).is_file()


def check_variables(words: list[str]) -> None:
    """The variables do what the commands do by themselves."""
    given = dict(word.split("=") for word in words[1:])
    assert given == {name: str(value) for name, (_, value) in allocator.SETTINGS.items()}


CHECKED = {"make": check_make, "pip": check_installation, "python": check_script, "export": check_variables}


def launched(words: list[str]) -> list[str]:
    """The words behind `pvt-hf` of a command that a launcher starts. The launcher's own arguments are read."""
    if words[0] == "accelerate":
        options = launch_command_parser().parse_args(words[2:])
    else:
        options = torchrun_parser().parse_args(words[1:])
    assert words[0] == "torchrun" or words[1] == "launch"
    assert options.module and options.training_script == "pvt_hf"
    return options.training_script_args


def added_arguments(words: list[str]) -> list[str] | None:
    """The arguments that RUN adds to a command; None for one that is not run."""
    beginnings = [one for one in RUN if words[: len(one.split())] == one.split()]
    return RUN[max(beginnings, key=len)].split() if beginnings else None


def all_commands() -> dict[str, list[str]]:
    """The words of every command on every page, by its text."""
    found = [words for page in pages() for words in commands_in_tables(page)]
    found += [words for page in pages() for block in blocks(page) if block.language == "bash"
              for words in commands(block.code)]  # fmt: skip
    return {shlex.join(words): words for words in found}


@pytest.mark.parametrize("command", all_commands())
def test_commands_accept_their_arguments(command, monkeypatch):
    words = all_commands()[command]
    if words[0] in CHECKED:
        CHECKED[words[0]](words)
    elif words[0] in ("accelerate", "torchrun"):
        read_arguments(launched(words), monkeypatch)
    elif words[0] == "pvt-hf":
        read_arguments(words[1:], monkeypatch)
    else:
        assert added_arguments(words) is not None, "a command that no test knows"


def test_every_block_is_known():
    languages = {"python", "bash", "bibtex", "nginx", ""}
    for block in (block for page in pages() for block in blocks(page)):
        assert block.language in languages, block.place
        if block.language == "python":
            compile(block.code, block.place, "exec")
        elif block.language == "":  # a listing of files
            listing = re.match(r"\w+/\n(  \S.*\n)+$", block.code)
            assert listing, f"{block.place} is neither a listing nor marked as code"


def test_the_tables_of_this_file_have_nothing_else():
    words = list(all_commands().values())
    assert [one for one in RUN if not any(line[: len(one.split())] == one.split() for line in words)] == []
    assert set(COMMANDS) <= set(WORK)
    code = [block.code for page in pages() for block in blocks(page)]
    for name, file in ELSEWHERE.items():
        assert any(name in one for one in code) and (ROOT / "tests" / file).is_file(), name


def test_every_command_and_recipe_is_on_a_page():
    text = "\n".join(page.read_text() for page in pages())
    assert [name for name in COMMANDS if f"pvt-hf {name}" not in text] == []
    recipes = (DOCS / "paper.md").read_text()
    assert [file.stem for file in (ROOT / "pvt_hf/recipes").glob("*.yaml") if f"`{file.stem}`" not in recipes] == []


def test_the_site_is_built_without_a_warning(tmp_path):
    """Zensical's strict mode refuses links to pages or headings that do not exist."""
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    zensical = Path(sys.executable).with_name("zensical")
    process = subprocess.run([zensical, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0 and "No issues found" in process.stderr, process.stdout + process.stderr
    site = tmp_path / "outputs/docs"
    assert {page.stem for page in pages()[2:]} | {"index"} <= {page.stem for page in site.glob("*.html")}
    assert sorted(page.name for page in DOCS.glob("*.md")) == sorted(page.name for page in pages()[1:])


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_readme_is_short():
    """The rest belongs in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.fixture
def workspace(tmp_path):
    """A folder with what the pages assume: the reader's data, and models under made-up names or names of the Hub."""
    torch.manual_seed(0)
    model = PvtForImageClassification(tiny_pvt_config(image_size=224))
    save_repository(model, PvtImageProcessor(), tmp_path / "path/to/model")
    native = NativeClassifier(NativeClassifier.config_class(depths=[1, 1, 1, 1]))
    native.save_pretrained(tmp_path / "Zetatech/pvt-tiny-224")
    PvtImageProcessor().save_pretrained(tmp_path / "Zetatech/pvt-tiny-224")
    version_2 = PvtV2Config(hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1])
    AutoModelForImageClassification.from_config(version_2).save_pretrained(tmp_path / "OpenGVLab/pvt_v2_b0")
    small = PvtForImageClassification(get_config("pvt-small"))
    torch.save(convert_to_official_state_dict(small.state_dict()), tmp_path / "pvt_small.pth")
    released = (
        cached_assets_path("pvt_hf", subfolder="official-checkpoints") / "pvt_small.pth"
    )  # as if downloaded before
    shutil.copy(tmp_path / "pvt_small.pth", released)

    make_photos(tmp_path / "photos", 5)
    make_photos(tmp_path / "more" / "night", 1)
    write_video(tmp_path / "clip.mp4", clip(5))
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
    yield tmp_path
    released.unlink()


@pytest.mark.slow
def test_examples_run_in_their_order(workspace, hub, client, script, monkeypatch):
    """Examples of the Hub use one on localhost."""
    monkeypatch.chdir(workspace)
    token_file = workspace / "token"
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(token_file))
    environment = {"HF_MODULES_CACHE": str(workspace / "modules")}

    def run_command(words: list[str]) -> None:
        if words[0] == "hf":
            program = Path(sys.executable).with_name("hf")
            variables = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": str(token_file), "HF_HUB_OFFLINE": "0"}
            process = subprocess.run([program, *words[1:]], env=variables, capture_output=True, text=True)
            assert process.returncode == 0, process.stdout + process.stderr
        elif words[:2] == ["pvt-hf", "push"]:
            code, _, errors = script("push_to_hub", *words[2:])
            assert code == 0, errors
        else:
            run(["-m", "pvt_hf", *words[1:]], cwd=workspace)

    for block in (block for page in pages() for block in blocks(page)):
        if any(name in block.code for name in ELSEWHERE):
            continue
        try:
            if block.language == "python":
                run_python(block.code, cwd=workspace, environment=environment, warm=True)
            elif block.language == "bash":
                for words in commands(block.code):
                    if (added := added_arguments(words)) is not None:
                        run_command([*words, *added])
        except AssertionError as error:
            raise AssertionError(f"the example at {block.place} fails: {error}") from error

    assert json.loads(Path("outputs/fruit.json").read_text())
    names = {path.name for path in Path("predictions").iterdir()}
    assert {
        "1.classes.png",
        "clip.annotated.mp4",
        "china.overlay.png",
        "china.labels.png",
        "astronaut.objects.png",
        "astronaut.objects.json",
    } <= names
    assert AutoConfig.from_pretrained("outputs/pvt_v2").backbone_config.model_type == "pvt_v2"
    pushed = hub.repositories["me/fruit"]
    assert (
        pushed.private
        and {"README.md", "model.safetensors", "modeling_pvt.py"} <= pushed.commits[pushed.branches["main"]].keys()
    )
