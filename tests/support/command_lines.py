"""Runs command lines of `pvt-hf` in one clean process."""

import json

from .clean_process import run_python


# Runs `pvt-hf` with each of the command lines and notes status, output and what was imported.
PROGRAM = """
import contextlib, io, json, sys
from pvt_hf.commands import main

answers = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["pvt-hf", *words]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code
    heavy = sorted({"torch", "datasets", "accelerate", "gradio", "timm"} & set(sys.modules))
    answers.append([status, output.getvalue(), heavy])
print(json.dumps(answers))
"""


def answers_of(*command_lines):
    return json.loads(run_python(PROGRAM, json.dumps(command_lines)).stdout)
