"""The fused passes against autograd's through the plain loop, in float64."""

import pytest
import torch

from worldmodel import RULES, LatentPredictor
from worldmodel.cells.fused import FUSED as PASSES
from worldmodel.cells.fused import has_fused

B, T, Z, A, D = 3, 24, 4, 2, 6
FUSED = [name for name, rule in RULES.items() if rule in PASSES]
every_rule = pytest.mark.parametrize(("rule", "layers"), [(rule, layers) for rule in FUSED for layers in (1, 2)])


def make(rule, layers):
    torch.manual_seed(0)
    return LatentPredictor(Z, A, D, rule=rule, layers=layers).double()


def inputs(predictor):
    generator, sizes = torch.Generator().manual_seed(1), ((T, Z), (T, A), (predictor.state_dim,))
    z, a, h = (torch.randn(B, *size, generator=generator).double() for size in sizes)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[0, 0] = is_first[1, [3, 11, 12]] = is_first[2, -1] = True
    return z.requires_grad_(), a.requires_grad_(), is_first, h.requires_grad_()


def gradients(predictor, weights, z, a, is_first, h, by_step):
    states = predictor.states(z, a, is_first, h, by_step=by_step)
    return states, torch.autograd.grad((states * weights).sum(), [z, a, h, *predictor.cell.parameters()])


def test_these_rules_have_them():
    assert FUSED == ["residual", "gated", "gated_norm", "direct", "unit_norm", "gru", "lstm"]
    assert all(has_fused(make(rule, 1).cell) == (rule in FUSED) for rule in RULES)


@every_rule
def test_equal_to_autograd_through_the_loop(rule, layers):
    predictor = make(rule, layers)
    z, a, is_first, h = inputs(predictor)
    with torch.no_grad():  # nothing at its start: norms with a scale, and a residual that moves
        for parameter in predictor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    weights = torch.randn(T, B, predictor.state_dim).double()
    states, got = gradients(predictor, weights, z, a, is_first, h, by_step=False)
    expected_states, expected = gradients(predictor, weights, z, a, is_first, h, by_step=True)
    torch.testing.assert_close(states, expected_states, rtol=0, atol=1e-12)
    for ours, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)
        assert reference.abs().max() > 1e-3, "a gradient that could be told from none"


@every_rule
def test_a_rollout_without_gradients_equals_one_step_after_the_other(rule, layers):
    predictor = make(rule, layers)
    z, a, _, h = inputs(predictor)
    start = z[:, 0].detach(), h.detach()
    kept = [x.clone() for x in (*start, a)]
    reference = predictor.open_loop(*start, a)
    with torch.no_grad():
        ours = predictor.open_loop(*start, a)
    for got, expected in zip(ours, reference, strict=True):
        assert expected.requires_grad and not got.requires_grad
        torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-12)
    assert all(torch.equal(x, before) for x, before in zip((*start, a), kept, strict=True)), "inputs stay as they are"


@every_rule
def test_a_state_that_overflowed_does_not_reach_past_a_reset(rule, layers):
    predictor = make(rule, layers)
    z, a, is_first, h = inputs(predictor)
    is_first[:, 0] = True
    states, got = gradients(
        predictor, torch.ones(T, B, predictor.state_dim), z, a, is_first, h * float("nan"), by_step=False
    )
    assert states.isfinite().all() and all(gradient.isfinite().all() for gradient in got)
    assert not got[2].any(), "nothing of the state before"


def test_huge_candidates_stay_under_the_bound_and_gradients_finite():
    predictor = make("gated_norm", 1)
    z, a, is_first, h = inputs(predictor)
    with torch.no_grad():
        predictor.cell.input.weight.mul_(1e20)
    for by_step in (False, True):
        states, got = gradients(predictor, torch.ones(T, B, predictor.state_dim), z, a, is_first, 0 * h, by_step)
        assert states.isfinite().all() and states.abs().max() <= (D - 1) ** 0.5
        assert got[0].isfinite().all()


def test_the_loss_takes_it_and_mixed_precision_does_not(monkeypatch):
    predictor = make("gated_norm", 2)
    z, a, is_first, h = inputs(predictor)
    monkeypatch.setattr("worldmodel.cells.recurrence.fused_states", lambda *_: pytest.fail("taken"))
    predictor.states(z, a, is_first, h, by_step=True)
    with torch.autocast("cpu", torch.bfloat16):
        predictor.states(z, a, is_first, h)
    with pytest.raises(pytest.fail.Exception, match="taken"):
        predictor.closed_loop(z, a, is_first, h)


def test_a_second_derivative_is_refused_and_by_step_gives_it():
    predictor = make("gated", 1)
    z, a, is_first, h = inputs(predictor)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(predictor.states(z, a, is_first, h).sum(), z, create_graph=True)
    by_step = torch.autograd.grad(predictor.states(z, a, is_first, h, by_step=True).sum(), z, create_graph=True)[0]
    by_step.sum().backward()


@pytest.mark.full
@pytest.mark.parametrize("rule", ["gated_norm", "gru"])
def test_compiled_is_equal_up_to_rounding(rule):
    predictor = make(rule, 1)
    z, a, is_first, h = inputs(predictor)
    weights = torch.randn(T, B, predictor.state_dim).double()
    expected_states, expected = gradients(predictor, weights, z, a, is_first, h, by_step=True)
    predictor.compile_step()
    states, got = gradients(predictor, weights, z, a, is_first, h, by_step=False)
    torch.testing.assert_close(states, expected_states, rtol=0, atol=1e-12)
    for ours, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)
