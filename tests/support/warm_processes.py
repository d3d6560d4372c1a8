"""
Runs scripts as real processes that need not import everything again: forks of a server that has (multiprocessing's
"forkserver"), which saves ten seconds a process. `torchrun`'s own agent starts several, by forking too.

What a fork shares with its siblings and a cold start does not (the hashing of strings, say) is left to those slow tests
that start cold (`warm=False`), as users do.
"""

import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import accelerate  # noqa: F401  (all that the scripts import, so that the server has it)
import numpy as np
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pvt_hf.tasks.classification import task as classification  # noqa: F401


ROOT = Path(__file__).parents[2]


def run_program(arguments: list[str]) -> None:
    """`python ARGUMENTS` in this process, with generators that know nothing of the server's."""
    random.seed()
    np.random.seed()
    torch.seed()
    torch.set_num_threads(1)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))  # as `python FILE` does
        runpy.run_path(arguments[0], run_name="__main__")


def _child(arguments: list[str], processes: int, cwd: Path, stdout: str, stderr: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if pytest runs in the background
    multiprocessing.set_start_method("fork", force=True)  # a process that starts cold has this default
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    os.chdir(cwd)
    if processes == 1:
        run_program(arguments)
    else:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            run_id=str(os.getpid()), start_method="fork", max_restarts=0,
        )  # fmt: skip
        elastic_launch(config, _worker)(arguments)


def _worker(arguments: list[str]) -> None:
    """torchrun's agent waits for a function to return, so an `exit(0)` has to."""
    try:
        run_program(arguments)
    except SystemExit as end:
        if end.code:
            raise


class Launched:
    """A program that runs, in one process or under torchrun. Its output goes to files, which never fill up."""

    def __init__(self, arguments: list[str], processes: int = 1, warm: bool = True, cwd: Path = ROOT):
        self.arguments = [str(argument) for argument in arguments]
        self._files = [tempfile.NamedTemporaryFile("w+", suffix=name) for name in (".out", ".err")]
        self._warm = warm
        if warm:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["tests.support.warm_processes"])
            self._process = context.Process(
                target=_child, args=(self.arguments, processes, cwd, *(file.name for file in self._files))
            )
            self._process.start()
        else:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            self._process = subprocess.Popen(
                [sys.executable, *(torchrun if processes > 1 else []), *self.arguments],
                cwd=cwd, stdout=self._files[0], stderr=self._files[1], start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode if self._warm else self._process.poll()

    def output(self) -> tuple[str, str]:
        return tuple(Path(file.name).read_text() for file in self._files)

    def wait(self, timeout: float = 500) -> subprocess.CompletedProcess:
        """Its status and output. Killed with all that it started, and an AssertionError, after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"{self.arguments} took more than {timeout} s: {self.output()[1][-3000:]}")
            time.sleep(0.02)
        return subprocess.CompletedProcess(self.arguments, self.poll(), *self.output())

    def wait_for(self, path: Path, timeout: float = 500) -> None:
        """Until `path` exists; an AssertionError if the program ends before."""
        deadline = time.monotonic() + timeout
        while not path.exists():
            assert self.poll() is None, self.output()[1][-3000:]
            assert time.monotonic() < deadline, f"no {path} within {timeout} s: {self.output()[1][-3000:]}"
            time.sleep(0.01)


def run(
    arguments: list[str],
    processes: int = 1,
    check: bool = True,
    timeout: float = 500,
    warm: bool = True,
    cwd: Path = ROOT,
) -> subprocess.CompletedProcess:
    """Runs a program in the folder `cwd` to its end; `check` asserts success."""
    result = Launched(arguments, processes, warm, cwd).wait(timeout)
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result
