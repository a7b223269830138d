"""A stop from the keyboard or a scheduler, also where Python ignores what it raises."""

import os
import signal
import time
from contextlib import suppress

import pytest

from worldmodel.runs.signals import LOST, ended_at_once, insistent, interruptible


class Deaf:
    """Gets the signal where an exception is ignored, as in Ray's references that go out of use."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        signal.getsignal(self.number)  # the handler runs between two instructions, of which this is one


def test_whatever_a_library_makes_of_a_stop_the_status_is_the_signals(capsys):
    with pytest.raises(SystemExit) as end, interruptible(lambda: "two of three"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.getsignal(signal.SIGTERM)
        except SystemExit:
            raise SystemExit(1) from None  # as Ray does
    assert end.value.code == 143 and "interrupted: two of three" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no stop"), interruptible(str):
        raise ValueError("no stop")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_that_was_ignored_is_raised_again(number, status, capsys):
    before, went_on = signal.getsignal(number), False
    with pytest.raises(SystemExit) as end, interruptible(lambda: "two of three") as stop_if_asked:
        stop_if_asked()  # nobody has asked yet
        Deaf(number)
        went_on = True
        stop_if_asked()
    assert went_on and end.value.code == status
    assert "interrupted: two of three; the same command goes on from there" in capsys.readouterr().out
    assert signal.getsignal(number) is before


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize("lose", [lambda: Deaf(signal.SIGINT), lambda: suppressed(press_ctrl_c)])
def test_a_ctrl_c_that_was_lost_comes_again(lose, capsys):
    before, went_on = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), insistent():
        lose()
        went_on = True
        while True:
            time.sleep(0.01)
    assert went_on and signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "", "no traceback of what was ignored"


def suppressed(call):
    with suppress(BaseException):
        call()


def test_what_saves_after_a_ctrl_c_is_not_interrupted_again():
    saved = []
    with pytest.raises(KeyboardInterrupt), insistent():
        try:
            press_ctrl_c()
        except KeyboardInterrupt:
            time.sleep(3 * LOST)
            saved.append("whole")
            raise
    assert saved == ["whole"]


def test_a_ctrl_c_that_the_shell_has_ignored_stays_ignored():
    """A script's `worldmodel ... &` isn't meant by the Ctrl-C that ends the script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_at_once(), insistent():
            press_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
