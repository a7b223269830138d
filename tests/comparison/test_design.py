"""Which runs a comparison consists of, and hidden sizes within 2% of each other for every rule."""

import re

import pytest
from conftest import over_rules

from worldmodel import RULES, WorldModel
from worldmodel.comparison.design import Variant, amount, difference, matched, runs_of, variants_of
from worldmodel.comparison.measure import size_of
from worldmodel.errors import UserError

VECTORS = {"obs_dim": 2, "action_dim": 1}
PIXELS = {"obs_dim": 3 + 16 * 16 * 3, "action_dim": 2, "images": [(16, 16, 3)], "objective": "latent"}


@pytest.mark.parametrize(
    ("rule", "match", "layers"), over_rules(("params", "flops"), (2, 1), repeated=("gated_norm", "lstm", "slots"))
)
def test_every_rule_comes_within_two_percent(rule, match, layers):
    """Of the default configuration, with one layer or two: gru and lstm are stacked."""
    reference, arguments = size_of(VECTORS), VECTORS | {"rule": rule, "layers": layers}
    size = matched(rule, arguments, reference, match)
    assert abs(difference(size, reference, match)) <= 0.02
    others = [size_of(arguments | {"hidden_dim": size.hidden_dim + by}) for by in (-1, 1)]
    off = [abs(amount(other, match) - amount(reference, match)) for other in (size, *others)]
    assert off[0] == min(off), "the nearest of all"


def test_models_of_images_are_matched_too():
    reference = size_of(PIXELS)
    size = matched("lstm", PIXELS | {"rule": "lstm"}, reference, "params")
    off = [
        amount(size_of(PIXELS | {"rule": "lstm", "hidden_dim": size.hidden_dim + by}), "params") for by in (-1, 0, 1)
    ]
    assert min(off, key=lambda parameters: abs(parameters - reference.parameters)) == size.parameters
    assert abs(difference(size, reference, "params")) <= 0.005, "the nearest, although the encoder is most of it"


@pytest.mark.parametrize("rule", RULES)
def test_the_counts_are_those_of_the_model_that_is_trained(rule):
    model = WorldModel(**PIXELS, rule=rule, hidden_dim=20)
    size = size_of(model.hparams)
    assert size.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert size.parameters < sum(p.numel() for p in model.parameters()), "the target encoder is not trained"
    assert size.recurrence_parameters == sum(p.numel() for p in model.predictor.cell.parameters())
    assert size.hidden_dim == 20


def test_flops_are_those_of_the_matmuls_by_hand():
    """A multiplication and an addition for each weight: cell [Z + A + D -> 2D], head Linear(D, D), Linear(D, Z)."""
    size = size_of(VECTORS | {"rule": "gated", "layers": 1, "latent_dim": 6, "hidden_dim": 10})
    assert size.flops == 2 * ((6 + 1 + 10) * 20 + 10 * 10 + 10 * 6)


def test_the_configuration_matches_itself_and_hidden_changes_nothing():
    reference = size_of(VECTORS | {"hidden_dim": 37})
    assert matched("itself", VECTORS | {"hidden_dim": 99}, reference, "params") == reference
    lstm = VECTORS | {"rule": "lstm", "hidden_dim": 37}
    assert matched("lstm", lstm, reference, "hidden") == size_of(lstm) != reference


def test_what_cannot_be_matched_says_what_can_be_reached():
    tiny = VECTORS | {"latent_dim": 1, "width": 1, "hidden_dim": 5}
    with pytest.raises(
        UserError, match=r"lstm cannot be matched within 2% .* hidden_dim 2 has \d+ and hidden_dim 3 has"
    ):
        matched("lstm", tiny | {"rule": "lstm"}, size_of(tiny), "params")


def test_every_combination_has_a_name_a_folder_and_a_command(tmp_path):
    variants = variants_of({"rule": ["gated", "lstm"], "start": ["carry", "zero"], "model.layers": ["1", "2"]})
    runs = runs_of(tmp_path / "out", variants, list(range(10, 18)), [0, 1], "here")
    assert len(runs) == 16 and [run["seed"] for run in runs] == [0] * 8 + [1] * 8
    run = runs[-1]
    assert run["variant"] == "lstm, zero, model.layers 2" and run["slug"] == "lstm-zero-model.layers-2"
    assert run["argv"] == [
        *("worldmodel", "fit", "--config", f"{tmp_path}/out/config.yaml"),
        *("--model.rule", "lstm", "--model.hidden_dim", "17", "--tbptt.start", "zero", "--model.layers", "2"),
        *("--seed_everything", "1", "--run_dir", f"{tmp_path}/out/runs/lstm-zero-model.layers-2/s1"),
        *("--experiment", "here"),
    ]


def test_slugs_are_safe_and_unique_and_stay_when_values_are_added():
    values = ["1e-3", "-1", "[1, 2]", "[1; 2]", "a/b", "../x", "a b", "x" * 300, "x" * 301]
    slugs = [Variant({"rule": "gated", "start": "carry", "model.width": value}).slug for value in values]
    assert len({slug.lower() for slug in slugs}) == len(values)
    for slug in slugs:
        assert re.fullmatch(r"[a-z][\w.+-]{1,120}", slug), slug


def test_a_value_that_looks_like_an_option_stays_a_value(tmp_path):
    (run,) = runs_of(
        tmp_path, [Variant({"rule": "gated", "start": "carry", "model.gate_bias": "-1e-3"})], [5], [0], "x"
    )
    assert "--model.gate_bias=-1e-3" in run["argv"]
