import io
import math
from itertools import product

import numpy as np
import pytest
from comparison.by_hand import T, compare, comparison_of
from rich.console import Console

from worldmodel import RULES
from worldmodel.comparison.results import Comparison
from worldmodel.comparison.statistics import Estimate
from worldmodel.comparison.tables import interval, markdown, number, print_verdict, ratio
from worldmodel.comparison.verdict import judge

NAN, INF = math.nan, math.inf


def printed(comparison: Comparison, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_verdict(judge(comparison), comparison, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "value, text",
    [
        (0.31234, "0.312"),
        (0.31, "0.31"),
        (12.345, "12.3"),
        (1234.5, "1230"),
        (99999.0, "100000"),
        (2.3e24, "2e+24"),
        (INF, "inf"),
        (0.0, "0"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_regret_has_three_decimals():
    assert (ratio(1.01249), ratio(12.0), ratio(1.2345e9)) == ("1.012", "12.000", "1e+09")


@pytest.mark.parametrize(
    "estimate, full, side, bare",
    [
        (Estimate(0.31, 0.29, 0.33, 5), "0.31 [0.29, 0.33]", "0.31 ±6.5%", "0.31"),
        (Estimate(0.31, 0.001, 90.0, 3), "0.31 [0.001, 90]", "0.31 ±>99%", "0.31"),
        (Estimate(0.31, NAN, NAN, 1), "0.31", "0.31", "0.31"),
        (Estimate(0.31, NAN, NAN, 1, 2), "0.31, diverged 2/3", "0.31, div. 2/3", "0.31, div. 2/3"),
        (Estimate(2e24, NAN, NAN, 0, 5), "2e+24, diverged 5/5", "2e+24, div. 5/5", "2e+24, div. 5/5"),
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
    assert (kalman[1], copy) == ("0.05", ["copy_last", "1.5"])
    assert rows_of(text, "Regret, open loop")[2][1].startswith("**2.020 ")
    assert rows_of(text, "Traits")[2][0] == "a"
    assert rows_of(text, "Sizes (--match params)")[2] == ["a", "12,345"]
    assert "worldmodel compare --out 'a folder'" in text
    assert "fit a\nfit b" in text
    assert rows_of(text, "Versions")[2] == ["python", "3.11"]
    assert "Holm" in text.split("### Method")[1]
    assert "### Closed loop" not in text  # nothing was measured there


def test_markdown_without_a_floor_has_no_regret():
    comparison = compare({"a": [0.1], "b": [0.2]})
    assert "### Regret" not in markdown(judge(comparison), comparison)


def test_what_a_variant_did_not_reach_is_a_dash():
    errors = {("a", 0): {"open": {T: 0.1, 5 * T: 0.2}}, ("b", 0): {"open": {T: 0.3}}}
    comparison = comparison_of(errors, [T, 5 * T])
    assert rows_of(markdown(judge(comparison), comparison), "Open loop")[3] == ["b", "0.3", "-"]


def test_failures_and_one_seed_are_shown():
    comparison = compare({"a": [0.1], "b": [0.2]}, failing=[("c", 0)])
    assert "no verdict: one seed" in printed(comparison)
    text = markdown(judge(comparison), comparison)
    assert rows_of(text, "Open loop")[4] == ["c", "-"]
    assert rows_of(text, "Traits")[4][-3:] == ["0", "0", "1"]
