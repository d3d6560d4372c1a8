"""
Signals are handled after OpenVINO has run, and wait while its converter runs.

    pytest tests/weights/test_openvino_signals.py
"""

import signal

import pytest

from pvt_hf.weights.openvino_signals import signals_at_the_end

from ..support.clean_process import run_python


# Two programs that are released in the order in which they were opened, then a signal
INTERRUPT_AFTER_TWO = """
import signal
from types import SimpleNamespace
import numpy, openvino
from openvino import opset13
from torch.utils import _pytree
from pvt_hf.weights.openvino_programs import OneSizeRunner

def open_program():
    parameter = opset13.parameter([1, 4], numpy.float32)
    output = _pytree.treespec_dumps(_pytree.tree_structure([0]))
    metadata = SimpleNamespace(out_spec=output, out_constants={})
    return OneSizeRunner.from_program(openvino.Model([opset13.relu(parameter)], [parameter]), metadata)

first, second = open_program(), open_program()
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


def test_signals_are_handled_after_openvino_programs_were_released():
    assert run_python(INTERRUPT_AFTER_TWO, warm=True).stdout == "handled\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_openvinos_conversion_waits_for_its_end(number, capsys):
    """An exception in a callback of C++ would abort the process."""
    steps = []

    class Ended(Exception):
        pass

    def end(*_):
        raise Ended

    before = signal.signal(number, end)
    try:
        with pytest.raises(Ended), signals_at_the_end():
            signal.raise_signal(number)
            signal.raise_signal(number)
            steps.append("converted")
        assert steps == ["converted"] and signal.getsignal(number) is end
        assert capsys.readouterr().err == "interrupted: ends as soon as OpenVINO returns\n"
    finally:
        signal.signal(number, before)
