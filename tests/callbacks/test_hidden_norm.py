"""The hidden state's numbers against closed forms, and its two warnings."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from worldmodel.callbacks.hidden_norm import HiddenNormMonitor, growth_moments
from worldmodel.rules import BOUNDS


def norm_growth(*arguments):
    covariance, variance = growth_moments(*arguments)
    return covariance / variance.clamp(min=1)


def stretch_of(*lengths):
    """is_first of one lane whose episodes have these lengths."""
    is_first = torch.zeros(1, sum(lengths), dtype=torch.bool)
    is_first[0, torch.tensor([0, *lengths[:-1]]).cumsum(0)] = True
    return is_first


def test_growth_is_the_slope_over_an_episodes_steps():
    steps = torch.arange(12.0).unsqueeze(0)
    nowhere = torch.zeros(1, 12, dtype=torch.bool)
    everywhere = ~nowhere
    assert norm_growth(3 + 0.5 * steps, nowhere, everywhere).item() == pytest.approx(0.5)
    assert norm_growth(torch.full((2, 12), 7.0), nowhere.expand(2, -1), everywhere.expand(2, -1)).item() == 0
    # each episode grows by 2 a step from a height of its own: the heights must not count
    sawtooth = torch.cat([100 + 2 * torch.arange(5.0), 2 * torch.arange(7.0)]).unsqueeze(0)
    assert norm_growth(sawtooth, stretch_of(5, 7), everywhere).item() == pytest.approx(2.0)
    # nor what stands in the padding
    broken = torch.where(torch.arange(12) < 9, sawtooth, float("nan"))
    assert norm_growth(broken, stretch_of(5, 7), torch.arange(12).unsqueeze(0) < 9).item() == pytest.approx(2.0)


def measure(h, rule, batch=None, monitor=None, **hparams):
    logged = {}
    module = SimpleNamespace(
        hparams={"rule": rule, **hparams}, global_step=50, log_dict=lambda metrics: logged.update(metrics), gate=None
    )
    trainer = MagicMock(global_step=50, log_every_n_steps=50)
    trainer.strategy.reduce = lambda values, reduce_op: values  # one rank
    (monitor or HiddenNormMonitor()).on_train_batch_end(trainer, module, {"h": h}, batch or {}, 0)
    return {name.removeprefix("hidden/"): float(value) for name, value in logged.items()}


def test_numbers_by_hand():
    h = torch.tensor([[[3.0, 4.0], [0.0, 5.0], [6.0, 8.0]]])  # norms 5, 5, 10
    numbers = measure(h, "gru", {"carry": torch.tensor([[3.0, 4.0]])})
    assert numbers["norm_mean"] == pytest.approx(20 / 3) and numbers["norm_max"] == 10
    assert numbers["delta_norm"] == pytest.approx((0 + 10**0.5 + 45**0.5) / 3)
    assert numbers["norm_growth"] == pytest.approx(2.5)
    assert numbers["bound_margin"] == pytest.approx(1 - 8)  # the bound of a gru is 1
    assert "bound_margin" not in measure(h, "residual") and "gate_mean" not in numbers


def test_the_bound_is_that_of_the_rule_s_width_and_not_of_what_is_packed_with_it():
    h = torch.full((1, 2, 8), 0.5)
    alone, packed = (measure(h, "gated_norm", **given)["bound_margin"] for given in ({}, {"hidden_dim": 2}))
    assert alone == pytest.approx(1 - 0.5 / BOUNDS["gated_norm"](8))
    assert packed == pytest.approx(1 - 0.5 / BOUNDS["gated_norm"](2)) != alone


def test_the_thresholds_of_the_warnings(recwarn):
    monitor = HiddenNormMonitor()
    moving = torch.tensor([1.0, -1.0]).repeat(3).view(1, 6, 1).expand(1, 6, 4)
    measure(99.0 * moving, "residual", monitor=monitor)
    measure(2e-4 * moving, "residual", monitor=monitor)
    assert not recwarn.list
    measure(101.0 * moving, "residual", monitor=monitor)
    measure(4e-5 * moving, "residual", monitor=monitor)
    assert ["explodes" in str(w.message) for w in recwarn.list] == [True, False]


@pytest.mark.parametrize("size", [1e4, float("nan"), float("inf")])
def test_warns_once_when_the_state_explodes(size):
    monitor = HiddenNormMonitor()
    with pytest.warns(UserWarning, match="explodes at step 50 under the rule 'residual'.*--model.rule gated_norm"):
        measure(torch.full((2, 3, 4), size), "residual", monitor=monitor)
    with pytest.warns(UserWarning) as caught:
        measure(torch.full((2, 3, 4), size), "residual", monitor=monitor)
        import warnings

        warnings.warn("only this one", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["only this one"]


def test_warns_when_the_state_is_dead():
    with pytest.warns(UserWarning, match="is dead at step 50.*remembers nothing.*--model.gate_bias"):
        measure(torch.zeros(2, 3, 4), "gated")
    with pytest.warns(UserWarning, match="is dead"):
        measure(torch.ones(2, 3, 4), "gated", {"carry": torch.ones(2, 4)})  # does not move


@pytest.mark.parametrize(("size", "warned"), [(101.0, "explodes"), (99.0, ""), (1.1e-4, ""), (0.9e-4, "dead")])
def test_the_thresholds_are_root_mean_squares(recwarn, size, warned):
    measure(size * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]), "residual")
    assert [warned in str(warning.message) for warning in recwarn] == [True] * bool(warned)


def test_a_healthy_state_is_not_warned_of(recwarn):
    measure(torch.randn(2, 30, 4), "gated_norm")
    assert not recwarn.list
