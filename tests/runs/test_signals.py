"""A stop from the keyboard or a scheduler, also where Python ignores what it raises."""

import os
import signal

import pytest

from worldmodel.runs.signals import interruptible


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
