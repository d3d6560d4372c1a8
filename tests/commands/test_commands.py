"""
`pvt-hf` lists its commands and runs the one that is named. Help and wrong arguments are answered before anything heavy
is imported.

    pytest tests/commands/test_commands.py
"""

import re
import signal
import sys
import tempfile
import tomllib

import pytest

import pvt_hf
from pvt_hf.commands import COMMANDS, EXTRAS, main

from ..support.clean_process import REPOSITORY, run_python
from ..support.command_lines import answers_of


def test_help_of_every_command_imports_nothing_heavy():
    with_task = {"evaluate": ["object-detection"]}
    lines = [[], ["--version"], *([name, *with_task.get(name, []), "--help"] for name in COMMANDS)]
    (_, overview, _), (_, version, _), *helps = answers = answers_of(*lines)
    assert all(status in (0, None) and heavy == [] for status, _, heavy in answers)
    assert all(name in overview and command.help in overview for name, command in COMMANDS.items())
    assert version.strip() == pvt_hf.__version__
    for (name, *_), (_, text, _) in zip(lines[2:], helps):
        assert text.startswith(f"usage: pvt-hf {name}"), text[:100]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian-image-classification"], None),
        (
            ["train-image-classification", "--dataset", "digits", "--epochs", "0", "--output_dir", "o"],
            "--epochs must be at least 1, got 0",
        ),
        (["train-image-classification", "--eppochs", "3", "--output_dir", "o"], "did you mean --epochs?"),
        (["train-object-detection", "coco_retinanet_pvt_smal_1x"], "did you mean coco_retinanet_pvt_small_1x?"),
        (["train-semantic-segmentation", "missing.yaml"], "there is no recipe missing.yaml"),
        (["evaluate", "segmentation", "--model", "m"], "the first argument is the task, one of image-classification"),
        (["evaluate", "semantic-segmentation", "--model", "m"], "required: --dataset"),
        (["finetune", "object-detection", "--dataset", "d"], "nothing to fine-tune"),
        (["predict", "a.jpg"], "required: --model"),
        (["benchmark", "--repeats", "1"], "--repeats must be at least 3, got 1"),
        (["convert", "--output", "o"], "give either --checkpoint FILE or --variant NAME"),
        (["push", "--model", "m"], "required: --repo"),
    ],
)
def test_wrong_arguments_are_named(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pvt-hf", *words])
    with pytest.raises(SystemExit) as end:
        main()
    if message is None:
        assert "did you mean train-image-classification?" in end.value.code
    else:
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_wrong_arguments_import_nothing_heavy():
    answers = answers_of(
        ["train-image-classification", "--dataset", "digits", "--epochs", "0", "--output_dir", "o"],
        ["train-object-detection", "coco_retinanet_pvt_small_1x", "--batch_size", "0", "--output_dir", "o"],
        ["evaluate", "image-classification", "--model", "m", "--dataset", "d", "--crop_ratio", "2"],
        ["finetune", "semantic-segmentation", "--dataset", "d", "--output_dir", "o"],
        ["predict", "a.jpg"],
    )
    assert [(status, heavy) for status, _, heavy in answers] == [(2, [])] * 5, answers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_push_leaves_no_temporary_files(number, tmp_path, monkeypatch, capsys):
    def upload(*arguments, **options):
        with tempfile.TemporaryDirectory(dir=tmp_path):
            signal.raise_signal(number)

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    monkeypatch.setattr("pvt_hf.hub.upload.push_folder", upload)
    monkeypatch.setattr(sys, "argv", ["pvt-hf", "push", "--model", str(model), "--repo", "me/model"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 128 + number and [*tmp_path.iterdir()] == [model]
    assert capsys.readouterr().err == ("interrupted\n" if number == signal.SIGINT else "")


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["train-image-classification", "--dataset", "digits", "--output_dir", "o"], "datasets", "train"),
        (["app"], "gradio", "demo"),
    ],
)
def test_a_missing_extra_is_named(words, package, extra, tmp_path):
    code = f"""
        import sys
        sys.modules[{package!r}] = None  # as if it were not installed
        sys.argv = ["pvt-hf", *{words!r}]
        from pvt_hf.commands import main
        try:
            main()
        except SystemExit as end:
            print(end.code)
    """
    assert f'needs {package}, which is not installed: pip install "pvt-hf[{extra}]"' in run_python(code).stdout


def test_the_extras_are_those_of_the_package():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        names = {
            re.split(r"[><=\[ ]", requirement)[0].replace("scikit-learn", "sklearn") for requirement in project[extra]
        }
        assert package in names, (package, extra)


def test_a_module_runs_for_launchers():
    code = "import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module('pvt_hf', run_name='__main__')"
    assert run_python(code).stdout.strip() == pvt_hf.__version__
