"""
The annotations, as a user's type checker sees them: mypy in its strict mode, outside of this checkout, with the package
installed as a wheel, whose `py.typed` it has to find.

    python -m pytest tests/package/test_typing.py
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pvt_hf


TESTS = Path(__file__).parents[1] / "support"
# One line each, behind a declaration of every public name
REVEALED = {
    'pvt_hf.PvtForImageClassification.from_pretrained("a")': "pvt_hf.models.modeling_pvt.PvtForImageClassification",
    'pvt_hf.PvtImageProcessor.from_pretrained("folder")': "pvt_hf.models.image_processing_pvt.PvtImageProcessor",
    'pvt_hf.RetinaNetConfig.from_pretrained("folder")': "pvt_hf.models.configuration_retinanet.RetinaNetConfig",
    'pvt_hf.load_official_checkpoint("file").config': "pvt_hf.models.configuration_pvt.PvtConfig",
    "pvt_hf.PvtConfig().num_labels": "int",
    "pvt_hf.SemanticFpnConfig().fpn_channels": "int",
    "pvt_hf.BackboneLoadReport().resized": "list[str]",
}


@pytest.fixture(scope="module")
def answers(wheel_python, tmp_path_factory, pytestconfig):
    """mypy's messages for each file by line number, with their codes; and the revealed expressions."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("typing_example.py", "typing_errors.py"):
        shutil.copy(TESTS / name, folder)
    expressions = [*(f"pvt_hf.{name}" for name in pvt_hf.__all__), *REVEALED]
    names = folder / "names.py"
    names.write_text("import pvt_hf\n" + "".join(f"reveal_type({expression})\n" for expression in expressions))
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--python-executable", wheel_python,
         "--cache-dir", pytestconfig.cache.mkdir("mypy"), "typing_example.py", "typing_errors.py", "names.py"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 1, process.stdout + process.stderr  # there are errors, and mypy came to its end
    found = {"typing_example.py": {}, "typing_errors.py": {}, "names.py": {}}
    for file, line, message in re.findall(r"^(\S+\.py):(\d+): (.*)$", process.stdout, flags=re.MULTILINE):
        found[file].setdefault(int(line), []).append(message)
    return found, expressions


@pytest.mark.slow
def test_a_typed_program_is_accepted(answers):
    assert answers[0]["typing_example.py"] == {}


@pytest.mark.slow
def test_wrong_uses_are_errors(answers):
    lines = (TESTS / "typing_errors.py").read_text().splitlines()
    expected = {
        number: set(re.findall(r"[a-z-]+", line.partition("# error: ")[2]))
        for number, line in enumerate(lines, start=1)
        if "# error: " in line
    }
    found = {
        number: {code for message in messages for code in re.findall(r"^error: .*\[([a-z-]+)\]$", message)}
        for number, messages in answers[0]["typing_errors.py"].items()
    }
    assert len(expected) > 10 and found == expected


@pytest.mark.slow
def test_public_names_have_types(answers):
    found, expressions = answers
    revealed = {}
    for number, messages in found["names.py"].items():
        (message,) = messages
        revealed[expressions[number - 2]] = re.fullmatch(r'note: Revealed type is "(.*)"', message)[1]
    assert set(revealed) == set(expressions)
    untyped = [name for name, kind in revealed.items() if kind == "Any" or kind.startswith("def (*args: Any")]
    assert untyped == []
    for expression, kind in REVEALED.items():
        assert revealed[expression].replace("builtins.", "") == kind, expression
