"""Progress in a log and on a terminal."""

import io
import sys

import pytest

from worldmodel.runs import display
from worldmodel.runs.display import Display


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_at_most_every_ten_seconds(clock, capsys):
    with Display("collecting X", 400, done=100, more=lambda: "3 on disk") as shown:
        for seconds, done in ((1, 110), (9.9, 150), (10, 200), (15, 210), (20, 300)):
            clock[0] = 100 + seconds
            shown.update(done)
        shown.advance(20)
        shown.update(shown.done, now=True)
    assert capsys.readouterr().out.splitlines() == [
        "collecting X: 200/400 steps (50%)  3 on disk  10.0 steps/s  0:20 left",
        "collecting X: 300/400 steps (75%)  3 on disk  10.0 steps/s  0:10 left",
        "collecting X: 320/400 steps (80%)  3 on disk  11.0 steps/s  0:07 left",
    ]


def test_without_a_total_or_a_unit_it_says_what_it_knows(clock, capsys):
    for total, unit in ((None, "episodes"), (2, None)):
        with Display("converting", total, unit=unit) as shown:
            clock[0] += 7200
            shown.update(1)
    out = capsys.readouterr().out.splitlines()
    assert out == ["converting: 1 episodes  0.0 episodes/s", "converting: 50%  2:00:00 left"]


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with Display("evolving", 4, more=lambda: "loss 1") as shown:
        assert shown.is_bar
        shown.print("[a line]")
        shown.advance(4)
    text = screen.getvalue()
    assert "[a line]\n" in text and "evolving" in text and "4/4 steps (100%)  loss 1" in text
