"""
The last part of `make demo`, with the models in the wheel in place of trained ones.

    python -m pytest tests/scripts/test_demo.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import set_seed

import pvt_hf
from pvt_hf import PvtConfig, PvtForImageClassification, PvtImageProcessor
from pvt_hf.data.digits import DIGIT_NAMES
from pvt_hf.tasks.labels import label_fields
from tests.support.common import TINY


SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_answers_and_picture(tmp_path):
    """
    On scenes of their own the segmentation model has a mean IoU of 0.67 and the detector an AP50 of 0.89; the demo's
    scenes are no harder. A classifier with random weights is right about a tenth of the digits.
    """
    set_seed(0)
    classifier = PvtForImageClassification(PvtConfig(**{**TINY, "image_size": 32}, **label_fields(DIGIT_NAMES)))
    classifier.save_pretrained(tmp_path / "classifier")
    size = {"height": 32, "width": 32}
    PvtImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path / "classifier")
    shutil.copytree(pvt_hf.sample("digits-segmenter"), tmp_path / "segmenter")
    shutil.copytree(pvt_hf.sample("digits-detector"), tmp_path / "detector")
    subprocess.run([sys.executable, SCRIPTS / "demo_answers.py", tmp_path], check=True)
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["digits"] == 355 and answers["scenes"] == 200
    assert answers["mean_iou"] > 0.6 and answers["ap50"] > 0.85 and answers["accuracy"] < 0.3
    picture = tmp_path / "demo.png"
    assert Image.open(picture).size == (1440, 1560) and picture.stat().st_size < 400_000


@pytest.mark.slow
def test_wrong_folders_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for words, message in (
        (["demo.py", "--output_dir", tmp_path / "file"], "is a file: give a folder."),
        (["demo_answers.py", tmp_path], "has no trained classifier, segmenter, detector: run make demo first."),
    ):
        ended = subprocess.run([sys.executable, SCRIPTS / words[0], *words[1:]], capture_output=True, text=True)
        assert ended.returncode == 2 and message in ended.stderr and "Traceback" not in ended.stderr
