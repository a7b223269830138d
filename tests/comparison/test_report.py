"""The content of the report's page and figures; test_chromium looks at it in a browser."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from comparison.made_up import FOURTEEN, HORIZONS, STEPS, T, errors_of, make_comparison
from PIL import Image
from scipy import stats

from worldmodel.comparison.figures import COLORS, error_figure, looks, norm_figure, regret_figure
from worldmodel.comparison.lines import band, bands, over_floor, thinned
from worldmodel.comparison.report import FILM_BYTES, write_report
from worldmodel.comparison.results import Curve
from worldmodel.comparison.tables import number
from worldmodel.comparison.verdict import judge

SMALL = {"variants": ["gated_norm, carry", "residual, zero"], "seeds": [0, 1]}


class Reader(HTMLParser):
    """The visible text of a page, the addresses in it, and the tags that are never closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.addresses, self.tags, self.open = "", [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "img", "br", "wbr", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def report_of(comparison) -> Reader:
    path = comparison.folder / "report.html"
    write_report(comparison, judge(comparison), path)
    return Reader(path.read_text())


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("four"))


def test_one_file_of_bearable_size_says_everything(four):
    reader = report_of(four)
    assert not reader.open and not reader.addresses
    assert (four.folder / "report.html").stat().st_size < 6_000_000
    verdict = judge(four)
    said = [
        *four.variants,
        *(reference.title for reference in four.references),
        "worldmodel/LinearGaussian-v0",
        "T = 16",
    ]
    said += ["diverged 3/3", "up to ∞", "hidden_dim: 64", "torch", "4 variants, 3 seeds", "2026-02-14"]
    said += [
        "worldmodel compare --config conf/linear.yaml",
        "worldmodel fit --config OUT/config.yaml --model.rule residual",
    ]
    said += [number(verdict.cell("gated_norm, carry", "open", 160).error.mean)]
    said += [number(verdict.cell("gated_norm, zero", "closed", 32).regret.low, regret=True)]
    assert [words for words in said if words not in reader.text] == []
    for sentence in verdict.summary:
        assert sentence in " ".join(reader.text.split()) or sentence.split(": ", 1)[1] in reader.text


@pytest.mark.full
@pytest.mark.slow
def test_fourteen_variants_and_five_seeds_stay_below_six_and_a_half_megabytes(tmp_path):
    report_of(make_comparison(tmp_path, FOURTEEN, range(5)))
    assert (tmp_path / "report.html").stat().st_size < 6_500_000


def test_columns_say_what_they_rest_on_and_runs_to_come_are_counted(tmp_path):
    comparison = make_comparison(tmp_path)
    for reference in comparison.references:
        reference.curves["open"] = replace(reference.curves["open"], count=np.full(len(STEPS), 18.0))
    comparison.results.pop()
    text = report_of(comparison).text
    assert text.count("800 steps18 rollouts") == text.count("800 steps75 episodes") == 2
    assert "11 of 12 finished" in text


def test_failures_are_told_and_escaped(tmp_path):
    reader = report_of(make_comparison(tmp_path, failing=[("residual, carry", 1)]))
    assert "11 finished, 1 failed" in reader.text and "OutOfMemoryError: <no> memory left" in reader.text
    assert "no" not in reader.tags


def test_a_name_cannot_leave_its_place(tmp_path):
    evil = "</script><script>alert(1)</script>'\"&amp;"
    reader = report_of(make_comparison(tmp_path, [f"{evil}, carry", "gru, carry"], [0], env_id=evil))
    benign = report_of(make_comparison(tmp_path / "b", ["direct, carry", "gru, carry"], [0], env_id="x"))
    assert reader.tags.count("script") == benign.tags.count("script")
    assert f"{evil}, carry" in reader.text


@pytest.mark.parametrize(
    "options",
    [
        {"variants": ["gru, carry"], "seeds": [0]},
        {"references": False},
        {"floor": False},
        {"images": True},
        {"diverging": SMALL["variants"]},
        {"failing": [("residual, zero", 0), ("residual, zero", 1)]},
    ],
    ids=lambda options: "-".join(options),
)
def test_whatever_is_missing_the_rest_is_there(tmp_path, options):
    comparison = make_comparison(tmp_path, **SMALL | options)
    reader = report_of(comparison)
    assert all(variant in reader.text for variant in comparison.variants)
    assert ("regret" in reader.text) == (comparison.floor is not None)
    assert ("img" in reader.tags) == ("Animations are of the validation split" in reader.text) == ("images" in options)


def test_a_run_whose_curves_are_gone_is_in_the_tables(tmp_path):
    comparison = make_comparison(tmp_path, **SMALL)
    for path in tmp_path.glob("runs/v0/*/*.*"):
        path.unlink()
    assert "gated_norm, carry" in report_of(comparison).text
    assert "gated_norm, carry" not in comparison.curves


def test_a_large_animation_is_made_small(tmp_path):
    comparison = make_comparison(tmp_path, ["gru, carry"], [0], images=True)
    noise = np.random.default_rng(0).integers(0, 255, (16, 300, 600), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in noise]
    path = tmp_path / "runs/v0/s0/rollout.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)
    assert path.stat().st_size > 3 * FILM_BYTES
    report_of(comparison)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000 + 0.5 * path.stat().st_size


# --- lines and figures ----------------------------------------------------------------------------------------------


def test_a_band_is_the_t_interval_of_the_logarithms():
    values = np.array([[1.0, 2.0], [2.0, np.inf], [4.0, 8.0]])
    found = band(np.array([1, 2]), values)
    np.testing.assert_allclose(found.middle, [2, 4])
    half = stats.t.ppf(0.975, [2, 1]) * np.std(np.log([1, 2, 4]), ddof=1) / np.sqrt(3)
    half[1] = stats.t.ppf(0.975, 1) * np.log(2)  # of log 2 and log 8: their standard error is log 2
    np.testing.assert_allclose(found.high, found.middle * np.exp(half))
    np.testing.assert_allclose(found.low, found.middle / np.exp(half))
    assert list(found.seeds) == [3, 2]


def test_a_band_without_seeds_left_leaves_the_plot_and_one_seed_has_no_interval():
    found = band(np.array([1, 2]), np.array([[0.5, 1e24]]))
    assert found.middle[1] == np.inf and np.isnan(found.low).all() and list(found.seeds) == [1, 0]


def test_lines_pass_through_the_errors_at_the_horizons(four):
    curves = four.curves["gated_norm, carry"][0]
    step, values = thinned(curves["open"], curves["open"].nmse, "open", HORIZONS)
    at = dict(zip(step.tolist(), values, strict=True))
    assert {horizon: at[horizon] for horizon in HORIZONS} == errors_of(curves)["open"]
    assert len(step) < 130


def test_closed_loop_points_average_what_they_stand_for():
    curve = Curve(np.arange(1, 401), np.arange(400.0), np.zeros(400), np.linspace(400, 1, 400).round())
    step, values = thinned(curve, curve.nmse, "closed", [100, 400])
    begins = np.concatenate([[0], step[:-1]])
    for begin, end, value in zip(begins, step, values, strict=True):
        assert value == pytest.approx(np.average(curve.nmse[begin:end], weights=curve.count[begin:end]))


def test_a_rule_keeps_its_colour_and_zero_is_dashed(tmp_path):
    names = ["gru, carry", "gru, zero", "mine, carry", "gru, carry, model.layers 2"]
    found = looks(make_comparison(tmp_path, names))
    assert {found[name].color for name in names if name.startswith("gru")} == {COLORS["gru"]}
    assert found["gru, carry"].dash == "solid" and found["gru, zero"].dash == "dash"
    assert found["gru, carry, model.layers 2"].dash not in ("solid", "dash")
    assert found["mine, carry"].color not in COLORS.values()
    assert len(set(COLORS.values())) == len(COLORS)


def test_what_diverges_leaves_the_plot_and_squashes_nobody(four):
    for draw in (error_figure, regret_figure, norm_figure):
        figure = draw(four, four.curves, "open")
        low, high = 10 ** np.array(figure.layout.yaxis.range)
        calm = [np.asarray(trace.y) for trace in figure.data if trace.meta not in ("residual, zero", None)]
        assert high < 3 * max(np.nanmax(y) for y in calm) and low < min(np.nanmin(y) for y in calm)
        assert all(np.nanmax(np.asarray(trace.y)) <= 1.001 * high for trace in figure.data)
        marks = [trace for trace in figure.data if trace.mode == "markers"]
        assert [trace.meta for trace in marks] == ["residual, zero"] and len(marks[0].x) == 3
        assert min(marks[0].x) > 4 * T  # where it is made up to diverge


def test_a_regret_diverges_where_the_error_does(tmp_path):
    """The floor is at 1e-4: an error of 0.5 is a regret of thousands, and no divergence."""
    comparison = make_comparison(tmp_path, diverging=[])
    floor = next(reference for reference in comparison.references if reference.name == "kalman")
    floor.curves["open"].nmse[:] = 1e-4
    curves = comparison.curves
    figure = regret_figure(comparison, curves, "open")
    assert [trace for trace in figure.data if trace.mode == "markers"] == []
    errors = bands(curves, "open", lambda curve: (curve.step, curve.nmse))["residual, carry"]
    regret = over_floor(errors, (STEPS, floor.curves["open"].nmse))
    assert list(regret.seeds) == [3] * len(STEPS)
    np.testing.assert_allclose(regret.middle, errors.middle * 1e4)
    np.testing.assert_allclose(regret.high, errors.high * 1e4)


def test_norms_are_relative_to_the_trained_horizon(four):
    """States of any width can be compared."""
    curves = four.curves
    wide = [
        curve | {"open": replace(curve["open"], hidden_norm=99 * curve["open"].hidden_norm)}
        for curve in curves["residual, carry"]
    ]
    for runs in (curves["residual, carry"], wide):
        line = next(t for t in norm_figure(four, {"residual, carry": runs}, "open").data if t.fill is None)
        at = dict(zip(line.x.tolist(), np.asarray(line.y).tolist(), strict=True))
        assert at[T] == pytest.approx(1) and 1 < at[HORIZONS[-1]] < 2


def test_the_floor_has_regret_one(four):
    floor = next(reference for reference in four.references if reference.name == "kalman")
    figure = regret_figure(four, {"gated_norm, carry": [floor.curves]}, "closed")
    line = next(trace for trace in figure.data if trace.meta and trace.fill is None)
    np.testing.assert_allclose(np.asarray(line.y), 1, rtol=1e-6)
    assert regret_figure(replace(four, references=[]), four.curves, "closed") is None
