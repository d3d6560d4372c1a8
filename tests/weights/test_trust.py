"""
Exported programs that hold code run only if somebody says so.

    python -m pytest tests/weights/test_trust.py
"""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from pvt_hf import open_pipeline
from pvt_hf.commands import predict
from pvt_hf.weights.export_formats import EXPORT_FORMATS
from pvt_hf.weights.trust import UntrustedProgram, check_trust

from ..support.exports import save_model


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=["torch", "aotinductor"])
def export(request, tmp_path):
    """The folder of an export with code, as far as it is read before the code runs."""
    folder = save_model("pvt", tmp_path / "model")
    (folder / "model.pt2").write_bytes(b"code")
    component = {"file": "model.pt2", "metadata": {"export_dtype": "float32"}}
    name = EXPORT_FORMATS[request.param].transformers_name
    manifest = {"schema_version": 1, "export_format": name, "components": {"model": component}}
    (folder / "export.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("trusted", [None, False])
def test_code_is_refused_where_nobody_can_be_asked(export, trusted, capsys):
    with pytest.raises(UntrustedProgram) as refused:
        open_pipeline(str(export), trust_remote_code=trusted)
    what = {"dynamo": "pickle", "aotinductor": "native code"}
    kind = json.loads((export / "export.json").read_text())["export_format"]
    for words in (str(export), what[kind], "--trust_remote_code ", "trust_remote_code=True"):
        assert words in str(refused.value), words
    assert "hf.co" not in str(refused.value) and "[y/N]" not in "".join(capsys.readouterr())


def test_predict_names_what_it_refuses(export, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    words = ["pvt-hf predict", tmp_path / "photo.png", "--model", export, "--output_dir", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit, match="allow it: --trust_remote_code .*, trust_remote_code=True in Python"):
        predict.main()


@pytest.mark.parametrize(
    ("answer", "runs"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_on_a_terminal_there_is_a_question(answer, runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", asked := Terminal())
    kind, folder = EXPORT_FORMATS["aotinductor"], Path("some/export")
    if runs:
        check_trust(kind, folder, None)
    else:
        with pytest.raises(UntrustedProgram):
            check_trust(kind, folder, None)
    assert asked.getvalue() == "some/export holds native code. Run it? [y/N] "
    assert not capsys.readouterr().out  # which may be `--json -`
    check_trust(EXPORT_FORMATS["onnx"], folder, False)
