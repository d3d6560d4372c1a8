"""
Reading a recipe: its own arguments, those of its base, and what is refused.

    pytest tests/engine/test_recipes.py
"""

import pytest

from pvt_hf.engine.recipes import read_recipe
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks.classification.settings import ClassificationSettings


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_recipe_overrides_its_base(tmp_path):
    (tmp_path / "inner").mkdir()
    write(
        tmp_path,
        first="epochs: 3\nseed: 1\nconfig_overrides: {depths: [1, 1, 1, 1], image_size: 32}",
        last="base: inner/middle.yaml",
    )
    write(tmp_path / "inner", middle="base: ../first.yaml\nseed: 2\nconfig_overrides: {image_size: 64}\nauto_augment:")
    expected = {"epochs": 3, "seed": 2, "config_overrides": {"image_size": 64}, "auto_augment": None}
    assert read_recipe(tmp_path / "last.yaml") == read_recipe(str(tmp_path / "inner" / "middle.yaml")) == expected
    settings = parse_arguments(
        ClassificationSettings, [str(tmp_path / "last.yaml"), "--output_dir", "o", "--dataset", "d", "--seed", "4"]
    )
    assert (settings.epochs, settings.seed, settings.auto_augment) == (3, 4, "")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("base: none.yaml", FileNotFoundError, r"no recipe .*none\.yaml, the base of .*recipe\.yaml"),
        ("base: other.yaml", ValueError, r"circle: recipe\.yaml -> other\.yaml -> recipe\.yaml"),
        ("base: recipe.yaml", ValueError, r"circle: recipe\.yaml -> recipe\.yaml"),
        ("base: [other.yaml]", ValueError, r"base: \['other\.yaml'\]`; expected a recipe's path"),
        ("- 1", ValueError, "must have `argument: value` lines"),
        ("", ValueError, "must have `argument: value` lines"),
        ("a: [", ValueError, r"recipe\.yaml is not valid YAML"),
        ("base: text.yaml", ValueError, r"text\.yaml must have"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, capsys, text, error, words):
    write(tmp_path, recipe=text, other="base: recipe.yaml", text="epochs 3")
    with pytest.raises(error, match=words):
        read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(SystemExit):
        parse_arguments(ClassificationSettings, [str(tmp_path / "recipe.yaml"), "--output_dir", "out"])
    assert ".yaml" in capsys.readouterr().err


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no recipe .*missing\.yaml\."):
        read_recipe(tmp_path / "missing.yaml")
