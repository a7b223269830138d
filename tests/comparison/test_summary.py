"""What the summary says of hidden states and of episodes that are too short; the rest is test_verdict's."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from comparison.by_hand import T as SHORT
from comparison.by_hand import comparison_of
from comparison.made_up import HORIZONS, STEPS, T, make_comparison

from worldmodel.comparison.report import write_report
from worldmodel.comparison.results import Comparison, read_curves, write_curves
from worldmodel.comparison.verdict import judge

CALM = "gated_norm, carry"
TWO = (CALM, "residual, carry")


def growth_of(comparison: Comparison, norm: Callable[[int], np.ndarray], variant: str = CALM) -> str:
    """The sentence, once the variant's state has `norm(seed)` in closed loop and the others' stays as it is."""
    for path in comparison.folder.glob("runs/v*/s*/curves.csv"):
        number, seed = int(path.parts[-3][1:]), int(path.parts[-2][1:])
        curves = read_curves(path)
        of = norm(seed) if comparison.variants[number] == variant else np.full(len(STEPS), 5.0)
        write_curves(path, curves | {"closed": replace(curves["closed"], hidden_norm=of)})
    (sentence,) = (sentence for sentence in judge(comparison).summary if "hidden state" in sentence)
    return sentence


@pytest.mark.parametrize(
    ("norm", "said"),
    [
        (lambda seed: 1 + STEPS / T * 2.0, "The hidden state grows"),  # 101 / 3
        (lambda seed: 1e-3 * (1 + STEPS / T * 2.0), "The hidden state grows"),  # as much, of a narrow state
        (lambda seed: 1000.0 + 0.1 * STEPS, "No hidden state"),  # by 80, a wide one: that is 8%
        (lambda seed: 40.0 * (1 - np.exp(-STEPS / 4)), "No hidden state"),  # fills up within T
        (lambda seed: np.where(STEPS > T, [9.0, 0.2, 2.0][seed], 1.0), "No hidden state"),  # seeds disagree
        (lambda seed: np.where((STEPS > 99) & (seed == 1), np.nan, 1.0), "The hidden state grows"),
        (lambda seed: np.where(STEPS > T // 2, np.inf, 1.0), "The hidden state grows"),
        (lambda seed: np.where(STEPS > T, 1.6, 1.0), "The hidden state grows"),
        (lambda seed: np.where(STEPS > T, 1.4, 1.0), "No hidden state"),
    ],
    ids=["grows", "narrow", "wide", "fills up", "chance", "overflows", "overflows before T", "by 60%", "by 40%"],
)
def test_growth_is_told_whatever_the_width(tmp_path, norm, said):
    sentence = growth_of(make_comparison(tmp_path, TWO), norm)
    assert sentence.startswith(said) and f"at {HORIZONS[-1]} steps / at {T}" in sentence
    assert (CALM in sentence) == said.startswith("The")


def test_how_much_it_grows_is_told(tmp_path):
    assert f"{CALM} (33.7)." in growth_of(make_comparison(tmp_path, TWO), lambda seed: 1 + STEPS / T * 2.0)


def test_an_overflow_is_counted(tmp_path):
    sentence = growth_of(make_comparison(tmp_path, TWO), lambda seed: np.where((STEPS > 99) & (seed == 1), np.nan, 1.0))
    assert f"{CALM} (overflows in 1 of 3 runs)" in sentence


def test_episodes_that_are_too_short_are_told():
    summary = judge(comparison_of({("a", 0): {}, ("b", 0): {}}, [SHORT, 5 * SHORT])).summary
    assert summary == [f"No episode is {SHORT} steps long: there is nothing to compare."]


def test_the_report_of_episodes_that_are_too_short_is_written(tmp_path):
    comparison = make_comparison(tmp_path, TWO, [0], references=False)
    for path in tmp_path.glob("runs/*/*/*.*"):
        path.unlink()
    runs = [replace(run, errors={}) for run in comparison.results]
    short = replace(comparison, results=runs)
    write_report(short, judge(short), tmp_path / "report.html")
    assert f"No episode is {T} steps long" in (tmp_path / "report.html").read_text()
