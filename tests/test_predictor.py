"""The unroll against what cannot be argued with: one long unroll, full BPTT, torch.nn, a single step."""

import pytest
import torch
from conftest import over_rules
from torch import nn

from worldmodel import RULES, LatentPredictor
from worldmodel.errors import UserError

B, T, Z, A, D = 3, 24, 4, 2, 6
every_cell = pytest.mark.parametrize(("rule", "layers"), over_rules((2, 1)))


def make(rule, layers=1):
    torch.manual_seed(0)
    return LatentPredictor(Z, A, D, rule=rule, layers=layers).double()


def inputs(length=T, seed=1):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(B, length, Z, generator=generator, dtype=torch.float64)
    a = torch.randn(B, length, A, generator=generator, dtype=torch.float64)
    is_first = torch.zeros(B, length, dtype=torch.bool)
    is_first[:, 0] = True
    is_first[0, 8] = True  # at a segment's border
    is_first[1, [3, 11, 12]] = True  # in the middle, and two in a row
    is_first[2, -1] = True  # at the very end
    return z, a, is_first


@every_cell
def test_carried_segments_equal_one_unroll(rule, layers):
    predictor = make(rule, layers)
    z, a, is_first = inputs()
    whole = predictor.closed_loop(z, a, is_first)
    carry, preds, states = None, [], []
    for t in range(0, T, 8):
        part = predictor.closed_loop(z[:, t : t + 8], a[:, t : t + 8], is_first[:, t : t + 8], carry)
        carry = part.carry
        preds.append(part.pred)
        states.append(part.h)
    torch.testing.assert_close(torch.cat(preds, 1), whole.pred, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat(states, 1), whole.h, rtol=0, atol=1e-12)
    torch.testing.assert_close(carry, whole.h[:, -1], rtol=0, atol=1e-12)


@every_cell
def test_a_reset_is_a_fresh_start(rule, layers):
    predictor = make(rule, layers)
    z, a, is_first = inputs()
    whole = predictor.closed_loop(z, a, is_first)
    fresh = predictor.closed_loop(z[1:2, 3:11], a[1:2, 3:11], torch.zeros(1, 8, dtype=torch.bool))
    torch.testing.assert_close(whole.pred[1:2, 3:11], fresh.pred, rtol=0, atol=1e-12)


@every_cell
def test_gradient_of_a_whole_episode_is_full_bptt(rule, layers):
    predictor = make(rule, layers)
    z, a, _ = inputs()
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 0] = True
    loss = predictor.closed_loop(z, a, is_first, torch.randn(B, predictor.state_dim).double()).pred.square().mean()
    got = torch.autograd.grad(loss, list(predictor.parameters()))
    # the reference: step by step through `forward`, from zeros, nothing shared with the unroll
    h, preds = predictor.initial_state(z), []
    for t in range(T):
        pred, _, h = predictor(z[:, t], h, a[:, t])
        preds.append(pred)
    expected = torch.autograd.grad(torch.stack(preds, 1).square().mean(), list(predictor.parameters()))
    for ours, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


@every_cell
def test_a_border_lets_the_value_through_and_not_the_gradient(rule, layers):
    predictor = make(rule, layers)
    z, a, _ = inputs()
    nowhere = torch.zeros(B, 8, dtype=torch.bool)
    z_before = z[:, :8].clone().requires_grad_()
    before = predictor.closed_loop(z_before, a[:, :8], nowhere)
    after = predictor.closed_loop(z[:, 8:16], a[:, 8:16], nowhere, before.carry)
    assert not before.carry.requires_grad
    (gradient,) = torch.autograd.grad(after.pred.sum() + 0 * before.pred.sum(), z_before)
    assert (gradient == 0).all()
    other = predictor.closed_loop(z_before + 1, a[:, :8], nowhere)
    moved = predictor.closed_loop(z[:, 8:16], a[:, 8:16], nowhere, other.carry)
    assert (moved.pred[:, 0] - after.pred[:, 0]).abs().max() > 1e-6


@every_cell
def test_one_step_is_the_step_of_the_unroll(rule, layers):
    predictor = make(rule, layers)
    z, a, is_first = inputs()
    loop = predictor.closed_loop(z, a, is_first)
    before = loop.before
    for t in range(T):
        pred, delta, h_next = predictor(z[:, t], before[:, t], a[:, t])
        torch.testing.assert_close(pred, loop.pred[:, t], rtol=0, atol=1e-13)
        torch.testing.assert_close(h_next, loop.h[:, t], rtol=0, atol=1e-13)
        torch.testing.assert_close(delta, loop.h[:, t] - before[:, t], rtol=0, atol=1e-13)


@every_cell
def test_open_loop_feeds_on_its_own_predictions(rule, layers):
    predictor = make(rule, layers)
    z, a, _ = inputs()
    h = torch.randn(B, predictor.state_dim, dtype=torch.float64)
    rollout = predictor.open_loop(z[:, 0], h, a)
    seen = torch.cat([z[:, :1], rollout.pred[:, :-1]], dim=1)
    loop = predictor.closed_loop(seen, a, torch.zeros(B, T, dtype=torch.bool), h)
    torch.testing.assert_close(rollout.pred, loop.pred, rtol=0, atol=1e-12)
    torch.testing.assert_close(rollout.h, loop.h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("rule", "reference"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_standard_cells_equal_torch(rule, reference, layers):
    predictor = make(rule, layers)
    z, a, _ = inputs()
    rnn = reference(Z + A, D, num_layers=layers, batch_first=True).double()
    rnn.load_state_dict(predictor.cell.rnn.state_dict())
    loop = predictor.closed_loop(z, a, torch.zeros(B, T, dtype=torch.bool))
    expected, _ = rnn(torch.cat([z, a], -1))
    ours = predictor.cell.read(loop.h)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    got = torch.autograd.grad(ours.square().sum(), list(predictor.cell.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(rnn.parameters()))
    for gradient, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rule", "layers", "poison"), over_rules((2, 1), (float("nan"), float("inf"), 1e30)))
def test_poison_in_one_episode_never_reaches_another(rule, layers, poison):
    predictor = make(rule, layers)
    z, a, is_first = inputs()
    clean = predictor.closed_loop(z, a, is_first)
    z_bad, a_bad = z.clone(), a.clone()
    z_bad[0, :8], a_bad[0, :8] = poison, poison  # lane 0: the episode before the reset at 8
    dirty = predictor.closed_loop(z_bad, a_bad, is_first)
    assert torch.equal(dirty.h[0, 8:], clean.h[0, 8:])
    assert torch.equal(dirty.pred[1:], clean.pred[1:])
    carry = torch.full((B, predictor.state_dim), poison, dtype=torch.float64)
    is_first[:, 0] = True
    assert torch.equal(predictor.closed_loop(z, a, is_first, carry).h, clean.h)


@every_cell
def test_the_gate_is_what_the_step_used(rule, layers):
    predictor = make(rule, layers)
    z, a, is_first = inputs()
    before = predictor.closed_loop(z, a, is_first).before
    gate = predictor.cell.gate(predictor.cell.project(z, a), before)
    if rule in ("residual", "direct", "unit_norm", "lru", "mamba2", "mlstm", "attention"):
        assert gate is None
    else:
        assert gate is not None and gate.shape == (B, T, D)
        everything = is_first.unsqueeze(-1) if rule == "slstm" else torch.zeros_like(gate).bool()
        assert ((gate > 0) & (gate < 1) ^ everything).all()


def test_gate_bias():
    predictor = LatentPredictor(Z, A, D, rule="gated", layers=1, gate_bias=-1.0)
    z, a = torch.zeros(1, 1, Z), torch.zeros(1, 1, A)
    gate = predictor.cell.gate(predictor.cell.project(z, a), predictor.initial_state(z))
    torch.testing.assert_close(gate, torch.sigmoid(torch.tensor(-1.0)).expand_as(gate))


def test_only_the_chosen_rules_parameters_exist():
    for rule in RULES:
        predictor = make(rule)
        z, a, is_first = inputs()
        predictor.closed_loop(z, a, is_first).pred.sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in predictor.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_float_dtype(dtype):
    predictor = LatentPredictor(Z, A, D).to(dtype)
    z, a, is_first = inputs()
    loop = predictor.closed_loop(z.to(dtype), a.to(dtype), is_first)
    assert loop.pred.dtype == loop.h.dtype == loop.carry.dtype == dtype


def test_an_fp32_state_works_under_autocast():
    predictor = LatentPredictor(Z, A, D)
    z, a, is_first = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loop = predictor.closed_loop(z.float(), a.float(), is_first, torch.zeros(B, D))
    assert loop.h.dtype == torch.float32


def test_wrong_arguments_name_the_right_ones():
    with pytest.raises(UserError, match="did you mean 'gated_norm'"):
        LatentPredictor(Z, A, D, rule="gatednorm")
    with pytest.raises(UserError, match="1 or 2 layers"):
        LatentPredictor(Z, A, D, layers=3)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_new_residual_state_stays_small_through_a_long_episode(layers):
    """Else a carried state drowns its inputs, or overflows, before anything is learnt."""
    torch.manual_seed(0)
    predictor = LatentPredictor(Z, A, 32, rule="residual", layers=layers).float()
    z, a, is_first = torch.randn(4, 1600, Z), torch.randn(4, 1600, A), torch.zeros(4, 1600, dtype=torch.bool)
    assert predictor.closed_loop(z, a, is_first).h.norm(dim=-1).max() < 40
