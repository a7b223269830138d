import csv
import math

import numpy as np
import pytest
from comparison.by_hand import T, Table, compare, comparison_of
from scipy import stats

from worldmodel.comparison.contest import Pair, Ranking, Verdict
from worldmodel.comparison.results import Comparison, Failure, Reference, is_diverged
from worldmodel.comparison.verdict import judge, write_results_csv, write_verdict
from worldmodel.durable import read_json

NAN, INF = math.nan, math.inf


def the_pair(table: Table) -> Pair:
    (pair,) = judge(compare(table)).pairs
    return pair


def the_ranking(table: Table, **values) -> Ranking:
    (ranking,) = judge(compare(table, **values)).rankings
    return ranking


def noisy(rng: np.random.Generator, seeds: int, factor: float = 1.0, noise: float = 0.1) -> list[float]:
    return (0.3 * factor * np.exp(noise * rng.standard_normal(seeds))).tolist()


# --- cells and traits ------------------------------------------------------------------------------------------------


def test_cells_hold_the_mean_over_seeds_and_the_regret():
    verdict = judge(compare({"a": [0.1, 0.2, 0.4], "b": [0.3, INF, 0.3]}, floor=0.1))
    a, b = verdict.cells
    half = stats.t.ppf(0.975, 2) * math.log(2) / math.sqrt(3)
    assert (a.error.mean, a.error.low, a.error.high) == pytest.approx(
        (0.2, 0.2 * math.exp(-half), 0.2 * math.exp(half))
    )
    assert (a.error.n, a.error.diverged, b.error.n, b.error.diverged) == (3, 0, 2, 1)
    assert a.regret is not None and b.regret is not None
    assert (a.regret.mean, a.regret.high, b.regret.mean) == pytest.approx((2.0, 2 * math.exp(half), 3.0))
    assert (a.variant, a.loop, a.horizon) == ("a", "open", T)


def test_without_a_floor_there_is_no_regret():
    assert all(cell.regret is None for cell in judge(compare({"a": [0.1], "b": [0.2]})).cells)


def test_traits_have_means_and_counts():
    rates = {0: 10.0, 1: 20.0, 2: 30.0}
    comparison = compare(
        {"a": [0.1, INF, 0.1], "b": [0.1, 0.1]},
        failing=[("b", 2)],
        steps_per_second=lambda variant, seed: rates[seed],
        norm_growth=lambda variant, seed: INF if (variant, seed) == ("a", 1) else 0.5,
    )
    verdict = judge(comparison)

    def of(variant, name):
        estimate = verdict.trait(variant, name)
        assert estimate is not None
        return estimate.mean, estimate.n, estimate.diverged

    assert of("a", "steps_per_second") == (pytest.approx(6000 ** (1 / 3)), 3, 0)
    assert of("a", "norm_growth") == (0.5, 2, 1)
    assert [of("a", name)[0] for name in ("finished", "diverged", "failed")] == [3, 1, 0]
    assert [of("b", name)[0] for name in ("finished", "diverged", "failed")] == [2, 0, 1]
    assert of("b", "failed")[1] == 3  # of three that were planned


def test_no_interval_of_a_positive_quantity_is_below_zero():
    """Two seeds far apart: intervals are 13 standard errors wide."""
    names = ("steps_per_second", "seconds", "peak_memory_mb", "valid_time")
    apart = dict.fromkeys(names, lambda variant, seed: 1.0 + 90 * seed)
    scores = {"scores": lambda variant, seed: {name: {T: 0.5 + 0.4 * seed} for name in ("conformal90", "sharpness90")}}
    verdict = judge(compare({"a": [0.1, 0.2]}, **apart, **scores))
    for name in apart:
        estimate = verdict.trait("a", name)
        assert estimate is not None and 0 <= estimate.low < estimate.mean < estimate.high, name
    share, width = (verdict.score("a", name, T) for name in ("conformal90", "sharpness90"))
    assert (share.low, share.high, width.low) == (0, 1, 0)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_a_pair_is_compared_seed_by_seed():
    """Seeds spread by a factor of ten; the variants by 4 to 6% in every seed."""
    a, b = [0.1, 1.0, 0.3, 0.02], [0.105, 1.05, 0.313, 0.0212]
    pair = the_pair({"a": a, "b": b})
    assert pair.ratio == pytest.approx(stats.gmean(np.array(a) / np.array(b)))
    assert pair.p == pytest.approx(stats.ttest_rel(np.log(a), np.log(b)).pvalue)
    assert pair.low < pair.ratio < pair.high < 1
    assert pair.better == "a"


def test_only_seeds_that_both_have_are_compared():
    pair = the_pair({"a": {0: 0.1, 1: 0.11, 2: 0.12, 7: 99.0}, "b": {0: 0.2, 1: 0.23, 2: 0.23, 5: 0.001}})
    alone = the_pair({"a": [0.1, 0.11, 0.12], "b": [0.2, 0.23, 0.23]})
    assert pair == alone
    assert pair.better == "a"


def test_seeds_that_nobody_shares_allow_no_verdict():
    table = {"a": {0: 0.1, 1: 0.1}, "b": {2: 5.0, 3: 5.1}}
    pair = the_pair(table)
    assert math.isnan(pair.p) and pair.better is None
    assert the_ranking(table).winner is None


def test_p_is_corrected_for_the_number_of_pairs():
    table = {"a": [0.1, 0.12, 0.11], "b": [0.13, 0.14, 0.15], "c": [0.1, 0.2, 0.15]}
    pairs = {(pair.a, pair.b): pair for pair in judge(compare(table)).pairs}
    alone = {couple: the_pair({name: table[name] for name in couple}) for couple in pairs}
    smallest = min(alone, key=lambda couple: alone[couple].p)
    assert len(pairs) == 3
    assert pairs[smallest].p == pytest.approx(3 * alone[smallest].p)
    assert pairs[smallest].low == alone[smallest].low  # intervals are of one ratio


@pytest.mark.parametrize(
    "a, b, better",
    [
        ([0.1, 0.1, 0.1], [INF, 1e24, NAN], "a"),  # 3 of 3 diverged
        ([1e24, 1e24, INF, 1e5, 101.0], [50.0, 0.1, 3.0, 2.0, 9.0], "b"),
        ([0.1, 0.1], [INF, INF], None),  # two seeds prove nothing
        ([0.1, 0.1, 0.1, 0.1, 0.1], [INF, 0.1, 0.1, 0.1, 0.1], None),
        ([0.1, 0.1, 0.1, 0.1, 0.1], [INF, INF, INF, INF, 0.1], "a"),
        ([0.1, 0.1, 0.1, 0.1], [INF, 0.2, 0.201, 0.202], "a"),  # rarely, but worse elsewhere too
        ([0.2, 0.2, 0.201, 0.202], [INF, 0.1, 0.1, 0.1], None),  # one says this, the other that
        ([0.2, 0.21, 0.2, 9, 9, 9, 9, 9, 9], [0.1, 0.1, 0.1, INF, INF, INF, INF, INF, INF], None),
        ([INF, 0.1, 0.11, 0.12], [0.2, INF, 0.22, 0.24], None),
        ([INF, INF, INF], [INF, 1e24, 1e3], None),
    ],
)
def test_divergence_speaks_where_it_is_no_chance(a, b, better):
    assert the_pair({"a": a, "b": b}).better == better
    swapped = {"a": "b", "b": "a", None: None}
    assert the_pair({"a": b, "b": a}).better == swapped[better]


@pytest.mark.parametrize(("error", "diverged"), [(100.0, False), (100.1, True), (INF, True), (NAN, True)])
def test_a_hundred_variances_are_the_limit(error, diverged):
    assert is_diverged(error) == diverged


def test_two_that_always_diverge_are_not_different():
    pair = the_pair({"a": [INF, INF, INF], "b": [1e24, INF, 1e30]})
    assert pair.p == 1 and math.isnan(pair.ratio)


# --- rankings --------------------------------------------------------------------------------------------------------


def test_a_winner_is_better_than_every_other():
    a, b, c = [0.1, 0.101, 0.102, 0.1, 0.1], [0.2, 0.203, 0.2, 0.201, 0.2], [0.3, 0.303, 0.304, 0.3, 0.3]
    ranking = the_ranking({"c": c, "a": a, "b": b})
    assert (ranking.winner, ranking.best, ranking.statement) == ("a", ["a"], "a wins")
    ranking = the_ranking({"c": c, "a": a, "b": [0.2, 0.05, 0.2, 0.1, 0.07]})
    assert ranking.winner is None
    assert ranking.best == ["a", "b"]
    assert ranking.statement.startswith("no verdict: 5 seeds do not tell these 2 apart: a; b")


@pytest.mark.parametrize(
    ("count", "said"), [(3, "5 seeds do not tell these 3 apart: "), (4, "4 are not told apart (lowest: ")]
)
def test_the_summary_names_at_most_three_variants(count, said):
    rng = np.random.default_rng(0)
    summary = judge(compare({name: noisy(rng, 5) for name in "abcd"[:count]})).summary
    assert f"no verdict: {said}" in summary[0]


def test_who_diverged_in_a_seed_never_wins():
    a, b = [0.001, 0.00101, 0.001, 0.001, INF], [0.3, 0.301, 0.302, 0.3, 0.3]
    ranking = the_ranking({"a": a, "b": b})
    assert ranking.winner is None
    assert ranking.best == ["b"]
    assert ranking.statement == "no verdict: 5 seeds do not show that b is better than a; diverged: a (1 of 5)"


def test_who_alone_does_not_diverge_wins_if_that_is_no_chance():
    ranking = the_ranking({"a": [0.5, 0.6, 0.5], "b": [INF, INF, 1e24], "c": [INF, INF, INF]})
    assert ranking.winner == "a"
    assert ranking.statement == "a wins; diverged: b (3 of 3); c (3 of 3)"
    assert the_ranking({"a": [0.5, 0.6, 0.5], "b": [0.5, 0.6, 1e24]}).winner is None


def test_if_all_diverge_nobody_wins():
    ranking = the_ranking({"a": [INF, INF, INF], "b": [0.1, 0.1, INF]})
    assert (ranking.winner, ranking.best) == (None, [])
    assert ranking.statement == "no verdict: every variant diverged, a (3 of 3); b (1 of 3)"


def test_a_gap_below_one_percent_is_of_no_use():
    a = [0.1, 0.2, 0.3, 0.4]
    near, far = [1.005 * 0.1, 1.0051 * 0.2, 1.0049 * 0.3, 1.005 * 0.4], [0.15, 0.301, 0.452, 0.6]
    ranking = the_ranking({"a": a, "near": near, "far": far})
    assert (ranking.winner, ranking.best) == (None, ["a", "near"])
    assert ranking.statement == "a is better by less than 1% than near: no practical difference"
    assert the_ranking({"a": a, "near": [1.02 * error / 1.005 for error in near]}).winner == "a"


def test_one_seed_allows_no_verdict():
    verdict = judge(compare({"a": [0.1], "b": [50.0]}))
    assert [pair.better for pair in verdict.pairs] == [None]
    assert math.isnan(verdict.pairs[0].p)
    ranking = verdict.rankings[0]
    assert (ranking.winner, ranking.best, ranking.statement) == (None, [], "no verdict: one seed")
    assert math.isnan(verdict.cells[0].error.low)
    assert "One seed" in " ".join(verdict.summary)


def test_one_variant_has_nothing_to_be_compared_with():
    verdict = judge(compare({"a": [0.1, 0.2]}))
    assert verdict.pairs == []
    assert verdict.rankings[0].winner is None
    assert verdict.rankings[0].statement == "only one variant: nothing to compare it with"


# --- nothing that is not there ---------------------------------------------------------------------------------------


def test_equal_runs_are_no_difference():
    runs = [0.1, 0.2, 0.15]
    verdict = judge(compare({"a": runs, "copy": runs, "worse": [0.3, 0.61, 0.449]}))
    (pair, *_), (ranking,) = verdict.pairs, verdict.rankings
    assert (pair.ratio, pair.low, pair.high, pair.p, pair.better) == (1, 1, 1, 1, None)
    assert (ranking.winner, ranking.best) == (None, ["a", "copy"])
    assert ranking.statement == "no difference: the runs of a and copy are equal"
    assert "No difference: a and copy have equal runs at every horizon." in verdict.summary


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("diverging", [0.0, 0.3])
def test_false_alarms_are_as_rare_as_said(seeds, diverging):
    """300 comparisons of two variants that are the same but for noise; 5% +- 2 standard errors."""
    rng = np.random.default_rng(seeds)
    alarms = 0
    for _ in range(300):
        common = rng.standard_normal(seeds)
        errors = 0.3 * np.exp(common + 0.1 * rng.standard_normal((2, seeds)))
        errors[rng.random((2, seeds)) < diverging] = INF
        alarms += the_pair({"a": errors[0].tolist(), "b": errors[1].tolist()}).better is not None
    assert alarms <= 300 * 0.05 + 2 * math.sqrt(300 * 0.05 * 0.95)


@pytest.mark.parametrize("seeds", [3, 5])
def test_many_equal_variants_are_rarely_told_apart(seeds):
    """The correction holds for all 15 pairs together, and the winner, who has none, must pass five tests."""
    rng = np.random.default_rng(10 + seeds)
    alarms = winners = 0
    for _ in range(300):
        verdict = judge(compare({name: noisy(rng, seeds) for name in "abcdef"}))
        winners += verdict.rankings[0].winner is not None
        alarms += any(pair.better for pair in verdict.pairs)
    assert max(alarms, winners) <= 300 * 0.05 + 2 * math.sqrt(300 * 0.05 * 0.95)


def test_equal_variants_that_diverge_by_chance_are_rarely_told_apart():
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        errors = {name: [INF if rng.random() < 0.5 else error for error in noisy(rng, 5)] for name in "abcdefg"}
        verdict = judge(compare(errors))
        alarms += any(pair.better for pair in verdict.pairs) or verdict.rankings[0].winner is not None
    assert alarms <= 200 * 0.05 + 2 * math.sqrt(200 * 0.05 * 0.95)


def test_a_winner_among_seven_is_found_by_five_seeds():
    rng = np.random.default_rng(1)
    gaps = {"a": 1.0} | dict.fromkeys("bcdefg", 1.3)
    found = [judge(compare({v: noisy(rng, 5, gap) for v, gap in gaps.items()})).rankings[0].winner for _ in range(100)]
    assert found.count("a") >= 40 and set(found) <= {"a", None}


def test_a_gap_of_thirty_percent_is_found_by_five_seeds():
    rng = np.random.default_rng(0)
    found = sum(the_ranking({"a": noisy(rng, 5), "b": noisy(rng, 5, 1.3)}).winner == "a" for _ in range(100))
    assert found >= 80


# --- several horizons ------------------------------------------------------------------------------------------------


def several() -> Comparison:
    """carry is better than zero, which diverges beyond 2 T; nothing reaches 50 T."""
    errors = {}
    for seed in range(4):
        noise = 1 + 0.01 * (seed * seed % 3)
        for variant, factor in (("residual, carry", 1.0), ("residual, zero", 1.2), ("gru, carry", 1.5)):
            late = INF if variant == "residual, zero" else 0.8 * noise * factor
            near = 0.1 * factor * noise * (1 + 0.002 * seed)
            errors[variant, seed] = {"closed": {T: near, 2 * T: near}, "open": {T: near, 2 * T: 3 * near, 5 * T: late}}
    references = [
        Reference(
            "kalman", "the floor", {"closed": {T: 0.1, 2 * T: 0.1}, "open": {T: 0.1, 2 * T: 0.3, 5 * T: 0.8}}, {}
        ),
        Reference("mean", "the mean", {"closed": {T: 1.0, 2 * T: 1.0}, "open": {T: 1.0, 2 * T: 1.0, 5 * T: 1.0}}, {}),
    ]
    return comparison_of(
        errors,
        [T, 2 * T, 5 * T, 50 * T],
        failing=[("gru, carry", 9)],
        references=references,
    )


def test_horizons_that_no_run_reached_are_left_out():
    verdict = judge(several())
    assert verdict.horizons == [T, 2 * T, 5 * T]
    assert verdict.cell("gru, carry", "closed", 5 * T) is None
    assert verdict.ranking("closed", 5 * T) is None
    assert f"No errors at {50 * T} steps: no episode is that long." in verdict.summary


def test_a_horizon_that_some_runs_miss_counts_those_that_have_it():
    errors = {("a", seed): {"open": {T: 0.1, 5 * T: 0.2 + seed / 100}} for seed in range(3)}
    errors |= {("b", seed): {"open": {T: 0.1, 5 * T: 0.2 + seed / 90}} for seed in range(3)}
    del errors["b", 0]["open"][5 * T]
    verdict = judge(comparison_of(errors, [T, 5 * T]))
    far = verdict.cell("b", "open", 5 * T)
    assert far is not None and (far.error.n, far.error.diverged) == (2, 0)
    ranking = verdict.ranking("open", 5 * T)
    assert ranking is not None and "2 to 3 seeds" in ranking.statement


def test_the_summary_says_what_a_researcher_reads_first():
    summary = judge(several()).summary
    assert 4 <= len(summary) <= 10
    text = "\n".join(summary)
    assert f"Open loop: at {T}, {2 * T} and {5 * T} steps residual, carry wins." in text
    assert f"Closed loop: at {T} and {2 * T} steps residual, carry wins." in text
    assert f"residual, zero in open loop from {5 * T} steps on (4 of 4 runs at {5 * T})" in text
    assert f"open loop at {5 * T} steps carry is better for it" in text
    assert f"closed loop at {T} steps carry is better for it (error of zero / carry 1.2)" in text
    assert (
        f"Regret (error / error of the floor, at {T}, {2 * T} and {5 * T} steps): residual, carry (the lowest)" in text
    )
    assert summary[0] == (
        f"Worse than a baseline: residual, zero in open loop at {5 * T} steps (runs diverged at {5 * T} steps;"
        f" the mean does not); gru, carry in open loop at {5 * T} steps (1.21 times the error of the mean)."
    )
    assert "1 of 13 runs failed: gru, carry, seed 9 (out of memory)." in text


def baselines_of(table, **baselines):
    verdict = judge(compare(table, baselines=baselines))
    return verdict.summary[0], {each.variant: (each.ahead, each.sure) for each in verdict.baselines}


def test_a_baseline_that_is_ahead_is_told_first():
    """With the factor to the best one, and whether it may be chance; the floor is no baseline."""
    better, near, bad = [0.10, 0.11, 0.12], [0.19, 0.20, 0.22], [0.40, 0.41, 0.42]
    said, found = baselines_of({"a": better, "b": near, "c": bad}, copy_last=0.3, autoregression=0.2)
    assert found == {
        "a": ([], []),
        "b": (["autoregression"], []),
        "c": (["autoregression", "copy_last"], ["autoregression", "copy_last"]),
    }
    assert said == (
        "Worse than a baseline: b and c in open loop at 10 steps"
        " (1.01 to 2.05 times the error of a linear autoregression, which may be chance at 10 steps)."
    )
    said, _ = baselines_of({"a": bad, "b": bad}, mean=0.2)
    assert said == "Worse than a baseline: every variant in open loop at 10 steps (2.05 times the error of the mean)."
    said, _ = baselines_of({"a": better, "b": [0.3, 0.3, 0.3]}, mean=0.3)
    assert (
        said
        == "Worse than a baseline: b in open loop at 10 steps (the error of the mean, which may be chance at 10 steps)."
    )
    said, _ = baselines_of({"a": better, "b": near}, mean=0.3, copy_last=INF)
    assert said == "Every rule is ahead of every baseline at every horizon."
    said, found = baselines_of({"a": better, "b": [0.1, 0.1, INF]}, mean=0.3, copy_last=INF)
    assert found["b"] == (["mean"], []), "what diverged in a seed is not ahead; nor is a baseline that diverged"
    assert said.endswith("b in open loop at 10 steps (runs diverged at 10 steps; the mean does not).")
    verdict = judge(compare({"a": better, "b": near}, floor=0.05))
    assert verdict.baselines == [] and "baseline" not in " ".join(verdict.summary)


def test_the_default_rule_is_named_beside_the_lowest_regret():
    table = {"gated_norm, zero": [0.13, 0.131], "gated_norm, carry": [0.12, 0.121], "gru, carry": [0.11, 0.111]}
    text = "\n".join(judge(compare(table, floor=0.1)).summary)
    assert "gru, carry (the lowest) 1.105 in open loop; gated_norm, carry 1.205 in open loop." in text
    assert "gated_norm, zero 1.3" not in text


def test_a_comparison_that_came_to_nothing_says_so():
    verdict = judge(compare({}, failing=[("a", 0), ("b", 0)]))
    assert (verdict.horizons, verdict.cells, verdict.rankings) == ([], [], [])
    assert verdict.summary[0].startswith("No run has finished")
    assert "2 of 2 runs failed" in verdict.summary[1]


def test_runs_that_are_still_to_come_are_counted():
    comparison = compare({"a": [0.1, 0.2], "b": [0.1, 0.2]})
    comparison.results.pop()
    assert judge(comparison).summary[-1] == "1 of 4 runs have not finished."


# --- files -----------------------------------------------------------------------------------------------------------


def test_verdict_json_holds_everything(tmp_path):
    verdict = judge(several())
    write_verdict(verdict, tmp_path / "verdict.json")
    read = read_json(tmp_path / "verdict.json")
    assert read["summary"] == verdict.summary and read["method"] == verdict.method
    assert len(read["pairs"]) == len(verdict.pairs) == 3 * 5
    assert read["cells"][0]["error"] == vars(verdict.cells[0].error)
    assert INF in [cell["error"]["mean"] for cell in read["cells"]]
    assert len(read["baselines"]) == len(read["cells"])
    late = next(row for row in read["baselines"] if (row["variant"], row["horizon"]) == ("gru, carry", 5 * T))
    assert (late["loop"], late["baselines"], late["ahead"], late["sure"]) == ("open", {"mean": 1.0}, ["mean"], ["mean"])
    assert late["error"]["low"] > 1.0


def test_results_csv_has_a_row_for_every_error(tmp_path):
    comparison = several()
    comparison.failures.append(Failure("gru, carry", {}, 8, "", ""))
    write_results_csv(comparison, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["variant", "rule", "start", "seed", "loop", "horizon", "error", "regret"]
    assert len(rows) == (3 * 4 + 2) * 5
    assert [row for row in rows if row["variant"] == "the mean"][0] == {
        **dict.fromkeys(rows[0], ""), "variant": "the mean", "loop": "closed", "horizon": "10", "error": "1.0",
        "regret": "10.0",
    }  # fmt: skip
    row = next(
        r for r in rows if (r["variant"], r["seed"], r["loop"], r["horizon"]) == ("gru, carry", "0", "open", "20")
    )
    assert (row["rule"], row["start"]) == ("gru", "carry")
    assert float(row["error"]) == pytest.approx(0.45) and float(row["regret"]) == pytest.approx(1.5)
    assert {float(row["error"]) for row in rows if row["variant"] == "residual, zero" and row["horizon"] == "50"} == {
        INF
    }


def scored(crps) -> Comparison:
    """Three variants, of which the last predicts points and has the least errors."""
    errors = {"a": [0.30, 0.31, 0.29], "b": [0.20, 0.21, 0.19], "point": [0.10, 0.11, 0.09]}
    own = {"conformal90": 0.88, "sharpness90": 1.5, "nll_regret": -0.01}

    def scores(variant, seed):
        found = {"crps": crps[variant][seed], **own} if variant in crps else {}
        return {name: {T: value} for name, value in found.items()}

    return compare(errors, scores=scores)


def test_who_is_best_by_crps_need_not_be_by_error(tmp_path):
    comparison = scored({"a": [0.50, 0.52, 0.48], "b": [0.90, 0.95, 0.86]})
    verdict = judge(comparison)
    assert (verdict.ranking("open", T).winner, verdict.crps_ranking(T).winner) == ("point", "a")
    (pair,) = verdict.crps_pairs
    assert (pair.a, pair.b, pair.better) == ("a", "b", "a") and pair.ratio == pytest.approx(0.55, abs=0.01)
    assert verdict.score("a", "crps", T).mean == pytest.approx((0.50 * 0.52 * 0.48) ** (1 / 3))
    assert verdict.score("b", "nll_regret", T).mean == pytest.approx(-0.01), "arithmetic: it may be below zero"
    assert verdict.score("point", "crps", T) is None
    said = " ".join(verdict.summary)
    assert "Open loop, by CRPS: at 10 steps a wins." in said
    assert "The truth within 90% intervals, corrected: a 88%; b 88%." in said
    write_verdict(verdict, tmp_path / "verdict.json")
    assert read_json(tmp_path / "verdict.json")["crps_rankings"][0]["winner"] == "a"
    write_results_csv(comparison, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["crps"] for row in rows] == ["0.5", "0.52", "0.48", "0.9", "0.95", "0.86", "", "", ""]
    assert list(rows[0])[-4:] == ["crps", "conformal90", "sharpness90", "nll_regret"]


def test_points_alone_have_no_verdict_by_crps():
    verdict = judge(scored({}))
    assert not verdict.scores and not verdict.crps_rankings and "CRPS" not in " ".join(verdict.summary)


def test_results_csv_without_a_floor_leaves_regret_empty(tmp_path):
    write_results_csv(compare({"a": [0.1]}), tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().splitlines()[1] == "a,a,0,open,10,0.1,"


def test_the_method_is_told():
    method = judge(compare({"a": [0.1]})).method
    assert all(word in method for word in ("geometric", "t-test", "Holm", "95%", "diverged", "100 variances"))
    assert isinstance(judge(compare({"a": [0.1]})), Verdict)


def test_a_spread_beyond_all_numbers_is_no_crash():
    """Two seeds whose ratio is 1e-300 and 1: the interval passes what a float holds."""
    verdict = judge(compare({"a": [1e-300, 0.1], "b": [0.1, 0.1], "c": [0.0, 50.0]}, floor=0.1))
    assert verdict.rankings[0].winner is None
    assert verdict.cells[0].error.high == INF
