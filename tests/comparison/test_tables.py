import io
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from comparison.by_hand import T, compare, comparison_of
from comparison.made_up import STEPS, make_comparison
from rich.console import Console

from worldmodel import RULES
from worldmodel.comparison.results import Comparison
from worldmodel.comparison.tables import interval, markdown, number, print_verdict
from worldmodel.comparison.verdict import judge
from worldmodel.statistics import Estimate

NAN, INF = math.nan, math.inf


def printed(comparison: Comparison, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_verdict(judge(comparison), comparison, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "regret", "text"),
    [
        (0.31234, False, "0.312"),
        (0.3, False, "0.300"),
        (12.0, False, "12.0"),
        (123.4, False, "123"),
        (12345.0, False, "12,345"),
        (2.04e24, False, "2.0×10²⁴"),
        (-4e-6, False, "−4.0×10⁻⁶"),
        (0.0, False, "0.00"),
        (float("inf"), False, "∞"),
        (float("nan"), True, "–"),
        (1.0094, True, "1.009"),
        (12.0, True, "12.000"),
        (2.4e-5, True, "2.4×10⁻⁵"),
        (2.04e24, True, "2.0×10²⁴"),
    ],
)
def test_numbers(value, regret, text):
    assert number(value, regret) == text


@pytest.mark.parametrize(
    "estimate, full, side, bare",
    [
        (Estimate(0.31, 0.29, 0.33, 5), "0.310 [0.290, 0.330]", "0.310 ±6.5%", "0.310"),
        (Estimate(0.31, 0.001, 90.0, 3), "0.310 [0.00100, 90.0]", "0.310 ±>99%", "0.310"),
        (Estimate(0.31, NAN, NAN, 1), "0.310", "0.310", "0.310"),
        (Estimate(0.31, NAN, NAN, 1, 2), "0.310, diverged 2/3", "0.310, div. 2/3", "0.310, div. 2/3"),
        (Estimate(2e24, NAN, NAN, 0, 5), "2.0×10²⁴, diverged 5/5", "2.0×10²⁴, div. 5/5", "2.0×10²⁴, div. 5/5"),
        (Estimate(INF, NAN, NAN, 0, 5), "diverged 5/5", "div. 5/5", "div. 5/5"),
        (Estimate(NAN, NAN, NAN, 0), "-", "-", "-"),
    ],
)
def test_cells_say_mean_interval_and_divergence(estimate, full, side, bare):
    assert (interval(estimate), interval(estimate, detail="side"), interval(estimate, detail="bare")) == (
        full,
        side,
        bare,
    )


def test_the_terminal_shows_intervals_and_marks_the_winner():
    text = printed(compare({"a": [0.1, 0.101, 0.102], "b": [0.3, 0.303, 0.304], "c": [INF, INF, INF]}, floor=0.05))
    row = next(line for line in text.splitlines() if line.strip().startswith("a "))
    assert "0.101 [0.0985, 0.104] *" in row
    assert "diverged 3/3" in text
    assert "2.020 [" in text  # regret
    assert "a wins" in text


def fourteen() -> Comparison:
    """All rules, both starts, five horizons; two of them diverge."""
    rng = np.random.default_rng(0)
    errors = {}
    for rule, start, seed in product(RULES, ("carry", "zero"), range(3)):
        late = {50 * T: 2e24 * rng.random() if (rule, start) == ("residual", "zero") else 0.9}
        late |= {10 * T: INF if (rule, start, seed) == ("direct", "zero", 1) else 0.4}
        by_horizon = {h: late.get(h, 0.0123) * (1 + 0.1 * rng.random()) for h in (T, 2 * T, 5 * T, 10 * T, 50 * T)}
        errors[f"{rule}, {start}", seed] = {"closed": by_horizon, "open": by_horizon}
    return comparison_of(errors, [T, 2 * T, 5 * T, 10 * T, 50 * T])


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit(width):
    """On a wide terminal they still end at 120 columns."""
    comparison = fourteen()
    lines = printed(comparison, width).splitlines()
    assert max(map(len, lines)) <= width
    if width >= 120:
        rows = [line.rstrip() for line in lines if line.split()[:2] == ["gated_norm,", "carry"]]  # no name is wrapped
        assert len(rows) == 3  # open, closed, traits
        assert max(map(len, rows)) <= 120
        assert "±" in rows[0]


def test_names_from_users_are_no_markup():
    name = "[bold]x[/bold]|*y*"
    comparison = compare({name: [0.1, 0.2], "b": [0.1, 0.2]})
    assert f"No difference: {name} and b have equal runs" in printed(comparison, 200)
    assert "\\[bold]x\\[/bold]\\|\\*y\\*" in markdown(judge(comparison), comparison)


def rows_of(text: str, title: str) -> list[list[str]]:
    section = text.split(f"### {title}")[1].split("###")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"]


def test_markdown_has_every_table():
    table = {"a": [0.1, 0.101, 0.102], "b": [0.3, 0.303, 0.304]}
    comparison = compare(table, floor=0.05, baselines={"copy_last": 1.5})
    text = markdown(judge(comparison), comparison)
    headings, _, a, b, kalman, copy = rows_of(text, "Open loop")
    assert headings == ["steps (x trained)", f"{T} (1x)"]
    assert a == ["a", "**0.101 \\[0.0985, 0.104]**"]
    assert b[0] == "b" and not b[1].startswith("**")
    assert (kalman[1], copy) == ("0.0500", ["copy_last", "1.50"])
    assert rows_of(text, "Regret, open loop")[2][1].startswith("**2.020 ")
    assert rows_of(text, "Traits")[2][0] == "a"
    assert rows_of(text, "Sizes (--match params)")[2] == ["a", "12,345"]
    assert "worldmodel compare --out 'a folder'" in text
    assert "fit a\nfit b" in text
    assert rows_of(text, "Versions")[2] == ["python", "3.11"]
    assert "Holm" in text.split("### Method")[1]
    assert "### Closed loop" not in text  # nothing was measured there


def test_distributions_have_tables_where_there_are_any():
    scores = {"crps": {T: 0.5}, "conformal90": {T: 0.91}, "nll_regret": {T: -0.02}}
    comparison = compare({"a": [0.3, 0.31], "b": [0.2, 0.21]}, scores=lambda v, seed: scores if v == "a" else {})
    text = markdown(judge(comparison), comparison)
    assert rows_of(text, "CRPS, in deviations of the observations")[2:] == [["a", "**0.500 \\[0.500, 0.500]**"]]
    assert rows_of(text, "Share of the truth within 90% intervals, corrected")[2:] == [["a", "0.910 \\[0.910, 0.910]"]]
    assert "−0.0200" in text and "Width of the corrected" not in text
    assert "CRPS, in" in printed(comparison)
    assert "CRPS, in" not in printed(compare({"a": [0.3, 0.31], "b": [0.2, 0.21]}))


def test_markdown_without_a_floor_has_no_regret():
    comparison = compare({"a": [0.1], "b": [0.2]})
    assert "### Regret" not in markdown(judge(comparison), comparison)


def test_what_a_variant_did_not_reach_is_a_dash():
    errors = {("a", 0): {"open": {T: 0.1, 5 * T: 0.2}}, ("b", 0): {"open": {T: 0.3}}}
    comparison = comparison_of(errors, [T, 5 * T])
    assert rows_of(markdown(judge(comparison), comparison), "Open loop")[3] == ["b", "0.300", "-"]


def test_failures_and_one_seed_are_shown():
    comparison = compare({"a": [0.1], "b": [0.2]}, failing=[("c", 0)])
    assert "no verdict: one seed" in printed(comparison)
    text = markdown(judge(comparison), comparison)
    assert rows_of(text, "Open loop")[4] == ["c", "-"]
    assert rows_of(text, "Traits")[4][-3:] == ["0", "0", "1"]


def test_every_table_says_how_many_episodes_its_columns_rest_on(tmp_path):
    comparison = make_comparison(tmp_path)
    for reference in comparison.references:
        count = np.where(STEPS < 160, 75.0, 18.0)
        reference.curves["open"] = replace(reference.curves["open"], count=count)
    text = markdown(judge(comparison), comparison)
    assert rows_of(text, "Open loop")[2] == ["rollouts", "75", "75", "75", "18", "18"]
    assert rows_of(text, "Regret, open loop")[2][-1] == "18"
    assert rows_of(text, "Closed loop")[2] == ["episodes", *["75"] * 5]
    assert any(line.split() == ["rollouts", "75", "75", "75", "18", "18"] for line in printed(comparison).splitlines())


def test_the_matrix_says_who_wins_where_and_who_is_behind_a_baseline():
    table = {"a": [0.1, 0.101, 0.102], "b": [0.3, 0.303, 0.304], "c": [INF, 0.5, 0.5]}
    comparison = compare(table, baselines={"copy_last": 0.2})
    a, b, c = rows_of(markdown(judge(comparison), comparison), "Who wins in open loop")[2:]
    assert a == ["a", "**wins**"], "c has larger errors where it did not diverge, too"
    assert b == ["b", "2.99x, behind copying the last observation"] and c[1].startswith("diverged 1/3, behind")
    pair = compare({"a": table["a"], "b": table["b"]})
    assert rows_of(markdown(judge(pair), pair), "Who wins in open loop")[2:] == [["a", "**wins**"], ["b", "2.99x"]]
