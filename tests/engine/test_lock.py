"""
Two trainings into one folder: the second is refused, until the first has ended in whatever way.

    pytest tests/engine/test_lock.py
"""

import errno
import fcntl
import os
import signal

import pytest
from accelerate import PartialState

from pvt_hf.engine.lock import LOCK_FILE, lock_output_dir
from pvt_hf.engine.run import train
from pvt_hf.tasks import get_task

from ..support.training_runs import forget_accelerate


@pytest.fixture
def state():
    yield PartialState(cpu=True)
    forget_accelerate()


class Holder:
    """Another process that holds the lock, and one that it has started, as loaders are."""

    def __init__(self, folder):
        self.readable, writable = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with lock_output_dir(folder, PartialState(cpu=True)):
                loader = os.fork()
                if loader:
                    os.write(writable, str(loader).encode().ljust(20))
                while True:
                    signal.pause()
        self.loader = int(os.read(self.readable, 20))

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)
        if pid == self.pid:
            os.waitpid(pid, 0)


@pytest.fixture
def holder(tmp_path, state):
    held = Holder(tmp_path)
    yield held
    for pid in (held.loader, held.pid):
        try:
            held.kill(pid)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, state, holder):
    message = rf"Another training writes into .* \(process {holder.pid} on .*another --output_dir"
    for _ in range(2):  # a refusal leaves the lock with its holder
        with pytest.raises(BlockingIOError, match=message):
            with lock_output_dir(tmp_path, state):
                pass
    holder.kill(holder.pid)  # its loader process lives
    with lock_output_dir(tmp_path, state):
        assert f"process {os.getpid()} " in (tmp_path / LOCK_FILE).read_text()


def test_training_and_fine_tuning_are_refused_before_anything_is_read(tmp_path, state, holder):
    from pvt_hf.commands.finetune import parse_arguments
    from pvt_hf.engine.finetuning import finetune

    task = get_task("image-classification")
    settings = task.training_settings(output_dir=str(tmp_path), dataset="no-such/data", cpu=True)
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} "):
        train(task, settings)
    words = ["--model", "org/none", "--dataset", "no-such/data", "--output_dir", str(tmp_path), "--use_cpu"]
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} "):
        finetune(*parse_arguments(task.name, words))


def test_a_process_refuses_itself_and_keeps_its_lock(tmp_path, state):
    with lock_output_dir(tmp_path, state):
        with pytest.raises(BlockingIOError, match="this process"):
            with lock_output_dir(tmp_path, state):
                pass
        child = os.fork()
        if child == 0:
            with open(tmp_path / LOCK_FILE, "r+") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    with lock_output_dir(tmp_path, state):  # free again
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(tmp_path, state, monkeypatch, capsys, number):
    def lockf(*given):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with lock_output_dir(tmp_path, state):
        assert "warning: " in (printed := capsys.readouterr().out) and "would not be refused" in printed
