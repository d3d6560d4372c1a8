"""
Mistakes in the arguments of every command are answered before anything heavy is imported.

    pytest tests/commands/test_argument_mistakes.py
"""

import os
import socket
import sys
from dataclasses import fields
from importlib import import_module

import pytest

from pvt_hf.commands import main
from pvt_hf.engine.arguments import read_fields, similar_names
from pvt_hf.engine.output_paths import check_output_file, check_output_folder
from pvt_hf.engine.recipes import find_recipe, read_recipe
from pvt_hf.families import FAMILIES
from pvt_hf.tasks.classification.settings import ClassificationEvaluationSettings
from pvt_hf.tasks.detection.settings import DetectionEvaluationSettings

from ..support.command_lines import answers_of


TRAIN = ["train-image-classification", "--dataset", "digits", "--output_dir", "{}/out"]
FINETUNE = ["finetune", "image-classification", "--model", "{}/model", "--dataset", "digits", "--output_dir", "{}/out"]
EVALUATE = ["evaluate", "image-classification", "--dataset", "digits", "--model"]
PREDICT = ["predict", "--model", "{}/model", "--output_dir", "{}/out"]
PUSH = ["push", "--dry_run", "--model", "{}/model", "--repo"]
# Words of a command line, "{}": a folder with the folders `empty`, `runs/model` and `model`, and with `file`
MISTAKES = [
    ([*TRAIN, "--dataset", ""], "--dataset '': there is no such folder"),
    (["train-image-classification", "--output_dir", "{}/out"], "required: --dataset. A recipe can set them, too."),
    (["train-semantic-segmentation", "--output_dir", "{}/out"], "required: --dataset"),
    (["train-object-detection", "--output_dir", "{}/out"], "required: --dataset"),
    ([*TRAIN, "--lr", "1"], "unknown argument --lr; did you mean --learning_rate?"),
    ([*FINETUNE, "--lr", "1"], "unknown argument --lr; did you mean --learning_rate, --local_rank or"),
    ([*FINETUNE, "--epoch", "1"], "unknown argument --epoch; did you mean --num_train_epochs?"),
    ([*EVALUATE, "{}/model", "--batchsize=2"], "unknown argument --batchsize; did you mean --batch_size?"),
    (["predict", "--modle", "{}/model", "{}/file"], "unknown argument --modle; did you mean --model?"),
    (["reproduce", "cost", "--outputdir", "o"], "unknown argument --outputdir; did you mean --output_dir?"),
    ([*TRAIN, "--config_overrides", "{{'depths': 1}}"], "--config_overrides is not valid JSON"),
    ([*TRAIN, "--config_overrides", '{{"depth": 1}}'], "PvtConfig does not have; did you mean depths?"),
    (
        ["train-object-detection", *TRAIN[1:], "--config_overrides", '{{"depths": [1]}}'],
        "PvtConfig has it: give it to --backbone_overrides",
    ),
    (
        ["train-object-detection", *TRAIN[1:], "--architecture", "detr", "--config_overrides", '{{"queries": 1}}'],
        "PvtDetrConfig does not have; did you mean num_queries?",
    ),
    ([*PREDICT, "{}/file", "--device", "gpu"], "--device gpu: expected cpu, cuda, cuda:0 (a number) or mps"),
    ([*TRAIN, "--dataset", "{}/file"], "--dataset {}/file is a file: give a folder"),
    (["train-object-detection", *TRAIN[1:], "--dataset", "{}/file"], "--dataset {}/file is a file: give a folder"),
    ([*TRAIN, "--model", "{}/empty"], "{}/empty has no config.json, so it is no model folder."),
    ([*TRAIN, "--model", "{}/runs"], "{}/runs has no config.json, so it is no model folder ({}/runs/model would do)."),
    ([*TRAIN, "--model", "{}/file"], "{}/file is a file: give a folder with config.json"),
    ([*TRAIN, "--variant", "pvt-tinny"], "invalid choice: 'pvt-tinny'"),
    ([*TRAIN, "--class_names", "{}/names.txt"], "--class_names {}/names.txt: there is no such file"),
    ([*TRAIN, "--report_to", "tensorbord"], "--report_to tensorbord is unknown"),
    ([*TRAIN, "--seed", "-1"], "--seed must not be negative"),
    ([*TRAIN, "--seed", "4294967296"], "--seed must be at most"),
    ([*TRAIN[:-1], ""], "--output_dir is empty"),
    ([*TRAIN[:-1], "{}/file/out"], "--output_dir {}/file/out cannot be created: {}/file is a file"),
    ([TRAIN[0], "{}/recipe.yaml", *TRAIN[1:]], "which this command does not have; did you mean epochs?"),
    ([TRAIN[0], "{}/empty", *TRAIN[1:]], "{}/empty is a folder and not a recipe: give it as --dataset {}/empty"),
    (["train-object-detection", *TRAIN[1:], "--variant", "pvt"], "invalid choice: 'pvt'"),
    (["train-semantic-segmentation", *TRAIN[1:], "--backbone", "{}/empty"], "{}/empty has no config.json"),
    (["train-object-detection", *TRAIN[1:], "--backbone", "{}/a.pth"], "--backbone {}/a.pth: there is no such file"),
    ([*FINETUNE, "--shuffle_window", "-5"], "--shuffle_window must not be negative"),
    ([*FINETUNE, "--lora_rank", "-1"], "--lora_rank must not be negative"),
    ([*FINETUNE, "--learning_rate", "nan"], "--learning_rate must be finite"),
    ([*FINETUNE, "--max_steps", "many"], "invalid int value: 'many'"),
    ([*FINETUNE, "--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be at least 1"),
    ([*FINETUNE, "--resume_from_checkpoint", "checkpoint-9"], "checkpoint-9: there is no such folder"),
    ([*FINETUNE[:-1], "{}/file"], "--output_dir {}/file is a file"),
    ([*EVALUATE, "{}/empty"], "{}/empty has no config.json"),
    ([*EVALUATE, "{}/model", "--output", "{}/empty"], "--output {}/empty is a folder: give the name of a file"),
    ([*TRAIN, "--dataset", "digit"], "--dataset digit: there is no such folder, and the Hub cannot be asked: "),
    ([*TRAIN, "--dataset", "digit"], "Did you mean digits?"),
    ([*EVALUATE, "{}/model", "--dataset", "org/photoz"], "looking for the data set org/photoz on the Hub.\n"),
    ([*FINETUNE, "--dataset", "org/photoz"], "Give a folder, or a Hub id such as org/name."),
    ([*PREDICT, "{}/photo.jpg"], "error: {}/photo.jpg: there is no such file."),
    ([*PREDICT, "{}/*.webp"], "error: {}/*.webp: there are no images or videos."),
    ([*PREDICT, "{}/empty"], "error: {}/empty: there are no images or videos."),
    ([*PREDICT, "{}/file", "--every", "2", "--fps", "3"], "not allowed with argument"),
    ([*PREDICT, "{}/file", "--json", "{}/photo.jpg"], "give a name that ends with .json or .jsonl"),
    ([*PREDICT[:-1], "{}/file", "{}/file"], "--output_dir {}/file is a file"),
    (["convert", "--checkpoint", "{}/file", "--output", "{}/file"], "--output {}/file is a file"),
    (["convert", "--checkpoint", "{}/file", "--push", "one two"], "'one two' is not a repository name"),
    (["convert", "--checkpoint", "{}/file", "--output", "{}/o", "--image_size", "0"], "--image_size: expected one or"),
    (["convert", "--checkpoint", "{}/file", "--output", "{}/o", "--num_attention_heads", "1", "2"], "four numbers"),
    ([*PUSH, "me/fr uit"], "'me/fr uit' is not a repository name"),
    ([*PUSH, "me/fruit", "--evaluation", "{}/none.json"], "There is no JSON file {}/none.json"),
    (["check"], "the first argument is the data set"),
    (["check", "{}/file"], "DATA {}/file is a file: give a folder"),
    (["check", "{}/none"], "DATA '{}/none': there is no such folder"),
    (["check", "digit"], "DATA digit: there is no such folder, and the Hub cannot be asked: "),
    (["check", "digits", "--picture", "{}/empty"], "--picture {}/empty is a folder: give the name of a file"),
    (["check", "digits", "--task", "image-classification", "--mask_values", "0"], "unknown argument --mask_values"),
    (["info", "{}/empty"], "{}/empty has no config.json"),
    (["info", "--variant", "pvt-tiny", "--size", "99999999"], "a side may have at most 16,384 pixels"),
    (["app", "--model", "{}/empty"], "{}/empty has no config.json"),
    (["app", "--model", "{}/model", "--port", "99999"], "--port must be from 1 to 65535"),
    (["app", "--model", "{}/model", "--host", "a..b"], "--host 'a..b' is no address of this machine"),
    (["reproduce", "table2", "--models", "PVT-Smal"], "PVT-Large. Did you mean PVT-Small?"),
    (["reproduce", "table2", "--checkpoints", "{}/model"], "{}/model is one model: give the folder that has it, {}."),
    (["reproduce", "table2", "--checkpoints", "{}/file"], "{}/file is a file: give the folder that has it, {}."),
    (["reproduce", "table2", "--checkpoints", "{}/none"], "there is no such folder. Give a folder, or official."),
    (["reproduce", "table3", "--data", "{}/file"], "{}/file is a file: give the folder that has the data"),
    (
        ["reproduce", "table3", "--data", "{}/none"],
        "1 GB, and annotations, about 0.25 GB): there is no folder {}/none.",
    ),
    (["reproduce", "table9", "--data", "a", "b", "c"], "Table 9 needs imagenet-1k and coco only"),
    (["reproduce", "table5", "--workers", "-1"], "--workers must not be negative"),
    (["reproduce", "cost", "--output_dir", "{}/file/out"], "cannot be created: {}/file is a file"),
    (
        ["benchmark", "model"],
        "one of peers, export, models, training, loading, allocator, data; got model",
    ),
    (["benchmark", "--varant", "pvt-tiny"], "did you mean --variant?"),
    (["benchmark", "--image_size", "64"], "the related models are measured at 224"),
    (["benchmark", "--output", "{}/empty"], "--output {}/empty is a folder: give the name of a JSON file"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    for model in (folder / "model", folder / "runs" / "model"):
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
    (folder / "empty").mkdir()
    (folder / "file").write_bytes(b"x")
    (folder / "recipe.yaml").write_text("epoch: 3\n")
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    """Those of `MISTAKES`, from one process."""
    lines = [[word.format(*[folder] * word.count("{}")) for word in words] for words, _ in MISTAKES]
    return answers_of(*lines)


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_named_at_once(number, folder, answers):
    words, message = MISTAKES[number]
    status, text, heavy = answers[number]
    assert status not in (0, None) and heavy == []
    assert message.replace("{}", str(folder)) in f"{status} {text}"
    assert not (folder / "out").exists() and list((folder / "empty").iterdir()) == []


def test_a_port_that_is_in_use(monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["pvt-hf", "app", "--port", port])
        with pytest.raises(SystemExit):
            main()
    assert f"cannot serve at 127.0.0.1:{port} (Address already in use): choose another" in capsys.readouterr().err


def test_folders_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (".", "new", "new/inner", tmp_path, tmp_path / "a" / "b"):
        check_output_folder("output_dir", path)
        check_output_file("output", f"{path}/report.json")
    check_output_file("output", "report.json")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(NotADirectoryError, match="link"):  # a link that leads nowhere cannot be made a folder
        check_output_folder("output_dir", "link")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="nothing can be written in"):
        check_output_folder("output_dir", "new")


def test_a_name_that_a_recipe_sets_twice_is_an_error(tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 10\nseed: 1\nepochs: 20\n")
    with pytest.raises(ValueError, match="recipe.yaml sets epochs more than once: keep one of the lines"):
        read_recipe(tmp_path / "recipe.yaml")
    assert read_recipe(find_recipe("digits_pvt"))


def test_a_yaml_file_stands_for_a_yolo_data_set(tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text("names: [a]")
    assert DetectionEvaluationSettings(model="org/model", dataset=str(file)).dataset == str(file)
    with pytest.raises(NotADirectoryError, match="data.yaml is a file"):
        ClassificationEvaluationSettings(model="org/model", dataset=str(file))


@pytest.mark.parametrize("path", [*(family.config for family in FAMILIES.values()), "transformers"])
def test_fields_that_are_read_from_source(path):
    file, _, name = path.partition(".")
    module, name = (f"pvt_hf.models.{file}", name) if name else ("transformers.training_args", "TrainingArguments")
    assert set(read_fields(module, name)) == {field.name for field in fields(getattr(import_module(module), name))}


def test_similar_arguments():
    names = ["learning_rate", "learning-rate", "batch_size", "eval_batch_size", "epochs", "photometric", "no_flip"]
    for word, expected in {
        "--lr": ["learning_rate"], "--bs": ["batch_size"], "--batchsize": ["batch_size"], "--batch-size": names[2:4],
        "--no_flips": ["no_flip"], "--flip": [], "--zzz": [], "--epoch": ["epochs"],
    }.items():  # fmt: skip
        assert similar_names(word, names) == expected, word
