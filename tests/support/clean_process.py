"""Runs code in a new Python process and reads what it wrote to stderr."""

import atexit
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from textwrap import dedent


# One state of a tqdm bar of Transformers, such as "Loading weights: 100%|####| 121/121 [00:00<00:00, 8036.21it/s]"
_PROGRESS = re.compile(r"(Loading weights|Writing model shards): +\d+%\|[^|]*\| \d+/\d+ \[[^\]]*\]")


REPOSITORY = Path(__file__).parents[2]

# For each line of JSON that it reads, forks a process and answers with its exit status. It has imported the libraries
# of all tests but not this package, which each process imports for itself.
_SERVER = """
import json, os, sys
import torch, torchvision.transforms.v2, transformers
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

assert "pvt_hf" not in sys.modules
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, path in enumerate([os.devnull, request["stdout"], request["stderr"]]):
            os.dup2(os.open(path, os.O_RDWR), descriptor)
        os.chdir(request["cwd"])
        sys.argv, sys.path[:0] = ["-c", *request["arguments"]], request["path"]
        status = 1
        try:
            exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_python(
    code: str,
    *arguments: object,
    python: str | Path = sys.executable,
    cwd: str | Path = REPOSITORY,
    environment: dict[str, str] | None = None,
    installed: bool = True,
    warm: bool = False,
) -> subprocess.CompletedProcess:
    """
    Runs `code` with `sys.argv[1:] == arguments`, offline and with Transformers' own log level.

    Args:
        code: what `python -c` gets, indented as it may be.
        arguments: passed as text.
        python: the interpreter.
        cwd: the working directory, and the first place where modules are looked for.
        environment: variables to set.
        installed: False hides editable installations, of which pvt_hf is one, and modules in the working directory.
        warm: forks a process that has imported torch and Transformers but not pvt_hf, which saves some seconds. Not for
            tests of how these are imported.

    Returns:
        The process with `stdout` and `stderr` as text.

    Raises:
        AssertionError: it failed; the message holds what it wrote.
    """
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for name in ("TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "PYTHONWARNINGS", "PYTHONPATH"):
        variables.pop(name, None)
    variables.pop("PYTEST_CURRENT_TEST", None)  # changes with every test, and a server keeps its variables
    variables.update(environment or {})
    options = []
    if not installed:
        # Without Python's module `site`, nobody reads the files that refer to packages elsewhere
        options, variables["PYTHONPATH"] = ["-S", "-P"], sysconfig.get_path("purelib")
    arguments = [str(argument) for argument in arguments]
    if warm:
        process = _fork(tuple(sorted(variables.items())), tuple(options), dedent(code), arguments, cwd)
    else:
        process = subprocess.run(
            [str(python), *options, "-c", dedent(code), *arguments],
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    assert process.returncode == 0, f"exit status {process.returncode}\n{process.stdout}\n{process.stderr}"
    return process


@cache
def _server(variables: tuple[tuple[str, str], ...], options: tuple[str, ...]) -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, *dict.fromkeys([*options, "-P"]), "-c", _SERVER],
        env=dict(variables), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def _fork(
    variables: tuple[tuple[str, str], ...], options: tuple[str, ...], code: str, arguments: list[str], cwd: str | Path
) -> subprocess.CompletedProcess:
    server = _server(variables, options)
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        request = {"code": code, "arguments": arguments, "cwd": str(cwd), "stdout": stdout.name, "stderr": stderr.name}
        request["path"] = [] if "-P" in options else [""]  # as `python -c` has it
        print(json.dumps(request), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, f"the server of warm processes ended with status {server.wait()}"
        return subprocess.CompletedProcess(["python", *arguments], int(answer), stdout.read(), stderr.read())


def without_progress_bars(stderr: str) -> str:
    """`stderr` without Transformers' progress bars for reading and writing weights."""
    return _PROGRESS.sub("", stderr).replace("\r", "").strip()
