"""The diagonal cell against complex arithmetic, its traces against BPTT."""

import math

import pytest
import torch

from worldmodel import LatentPredictor
from worldmodel.cells.diagonal import Diagonal
from worldmodel.errors import UserError
from worldmodel.nets import MLP
from worldmodel.rtrl import RTRL, Eligibility
from worldmodel.rules import LARGEST_MODULUS

B, T, OBS, Z, A, D = 3, 21, 2, 3, 1, 6
both = pytest.mark.parametrize("layers", [1, 2])


def make(layers=1, hidden_dim=D):
    torch.manual_seed(0)
    predictor = LatentPredictor(Z, A, 2 * math.ceil(hidden_dim / 2), rule="direct", layers=1)
    predictor.cell = Diagonal(Z + A, hidden_dim, layers, gate_bias=-1.0)
    torch.nn.init.normal_(predictor.cell.output.weight, std=0.5)  # angles that the input moves, too
    return predictor.double()


def inputs(width=Z):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(B, T, width, generator=generator, dtype=torch.float64)
    a = torch.randn(B, T, A, generator=generator, dtype=torch.float64)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[0, 8] = is_first[2, 0] = True
    is_first[1, [3, 11, 12]] = True
    return z, a, is_first


def test_a_constant_input_gives_the_geometric_sum_of_a_rotation():
    cell = make().cell
    keep, angle = torch.tensor([2.0, -0.5, 0.0]).double(), torch.tensor([0.3, 3.0, -7.0]).double()
    candidate = torch.tensor([1.0, 2.0, 3.0, -4.0, 0.5, 0.0]).double()
    h = torch.tensor([0.3, -0.2, 1.0, 0.1, 0.4, -0.9]).double()
    eigenvalue = torch.polar(LARGEST_MODULUS * keep.sigmoid(), angle)
    start, added = torch.complex(*h.chunk(2)), torch.complex(*candidate.tanh().chunk(2)) * (1 - eigenvalue.abs())
    for _ in range(50):
        h = cell.step(torch.cat([keep, angle, candidate]), h)
    wanted = eigenvalue**50 * start + added * (1 - eigenvalue**50) / (1 - eigenvalue)
    torch.testing.assert_close(torch.complex(*h.chunk(2)), wanted, rtol=0, atol=1e-13)


def test_a_state_turns_without_fading_where_the_gate_is_shut():
    """What no real positive decay can: an oscillator's phase, after 1000 steps of single precision."""
    cell = make().cell.float()
    x = torch.cat([torch.full((3,), 100.0), torch.full((3,), 0.1), torch.zeros(6)])
    h = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    for _ in range(1000):
        h = cell.step(x, h)
    faded = LARGEST_MODULUS**1000
    assert h[0].item() == pytest.approx(faded * math.cos(100.0), abs=2e-4)
    assert h[3].item() == pytest.approx(faded * math.sin(100.0), abs=2e-4)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_the_state_is_bounded_for_wild_inputs_and_in_the_worst_case(scale):
    predictor = make().float()
    z, a = torch.randn(4, 300, Z) * scale, torch.randn(4, 300, A) * scale
    h = predictor.closed_loop(z, a, torch.zeros(4, 300, dtype=torch.bool)).h
    assert h.abs().max() <= math.sqrt(2) * (1 + 1e-5)
    worst = torch.cat([torch.full((3,), scale), torch.zeros(3), torch.full((6,), scale)])  # aligned, hardly forgetting
    h = torch.tensor([1.0] * 6)
    for _ in range(1000):
        h = predictor.cell.step(worst, h)
    assert h.abs().max() <= 1 + 1e-5


def test_an_odd_width_is_rounded_up():
    predictor, (z, a, _) = make(hidden_dim=5), inputs()
    assert predictor.cell.state_dim == predictor.cell.read_dim == 6
    x = predictor.cell.project(z, a)
    gate = predictor.cell.gate(x, torch.zeros(B, T, 6))
    assert gate.shape == (B, T, 6) and ((gate > 0) & (gate < 1)).all()
    assert predictor.cell.step(x[:, 0], torch.zeros(B, 6, dtype=torch.float64)).shape == (B, 6)


# --- traces --------------------------------------------------------------------------------------------------------


def gradients(estimator, encoder, predictor, params, steps):
    """Of all segments together; None as estimator: of the whole stream by BPTT."""
    data = inputs(OBS)
    total, carry = [torch.zeros_like(p) for p in params], None
    for t in range(0, T, steps):
        obs, action, is_first = (x[:, t : t + steps] for x in data)
        start = estimator.attach(carry, is_first) if estimator else None
        loop = predictor.closed_loop(encoder(obs), action, is_first, start)
        found = torch.autograd.grad(loop.pred.square().sum(), params)
        total = [a + b for a, b in zip(total, found, strict=True)]
        if estimator:
            carry = estimator.advance(carry, loop.h, obs, action, is_first)
            assert not carry.requires_grad
    return total


def assert_equal(got, wanted):
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


@both
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_traces_give_the_gradient_of_the_whole_stream(layers, steps):
    predictor, encoder = make(layers), MLP(OBS, Z, 4, depth=1).double()
    params = [*predictor.cell.output.parameters(), *predictor.head.parameters()]
    wanted = gradients(None, encoder, predictor, params, T)
    assert_equal(gradients(Eligibility(encoder, predictor), encoder, predictor, params, steps), wanted)


@both
def test_rtrl_gives_the_encoders_too(layers):
    predictor, encoder = make(layers), MLP(OBS, Z, 4, depth=1).double()
    params = [*encoder.parameters(), *predictor.cell.parameters()]
    wanted = gradients(None, encoder, predictor, params, T)
    assert_equal(gradients(RTRL(encoder, predictor), encoder, predictor, params, 4), wanted)


def test_a_trace_is_as_large_as_the_parameters_and_never_grows():
    """5,000 steps without a reset, one lane, in segments of 50."""
    predictor, encoder = make().float(), MLP(OBS, Z, 4, depth=1)
    estimator, carry = Eligibility(encoder, predictor), None
    numbers = sum(p.numel() for p in predictor.cell.parameters())
    is_first, generator = torch.zeros(1, 50, dtype=torch.bool), torch.Generator().manual_seed(0)
    largest = []
    for _ in range(100):
        obs, action = (torch.randn(1, 50, width, generator=generator) for width in (OBS, A))
        with torch.no_grad():
            start = None if carry is None else carry[:, :D]
            h = predictor.closed_loop(encoder(obs), action, is_first, start).h
        carry = estimator.advance(carry, h, obs, action, is_first)
        assert carry.shape == (1, D + 2 * numbers) and carry.untyped_storage().nbytes() == carry.nbytes
        largest.append(carry.abs().max().item())
    assert max(largest[50:]) < 2 * max(largest[:50])


def test_traces_are_for_the_diagonal_cell_and_forget_what_a_reset_cut_off():
    with pytest.raises(UserError, match="--model.gradient rtrl"):
        Eligibility(MLP(OBS, Z, 4, 1), LatentPredictor(Z, A, D, rule="gated"))
    predictor, encoder = make(), MLP(OBS, Z, 4, depth=1).double()
    estimator, (obs, action, is_first) = Eligibility(encoder, predictor), inputs(OBS)
    is_first[:, 0] = True
    h = predictor.closed_loop(encoder(obs), action, is_first).h
    clean = estimator.advance(None, h, obs, action, is_first)
    poisoned = torch.full_like(clean, float("nan"))
    loss = predictor.closed_loop(encoder(obs), action, is_first, estimator.attach(poisoned, is_first)).pred.sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(predictor.cell.parameters())))
    obs[0, :8] = h[0, :8] = float("inf")  # the episode before a reset
    assert torch.equal(estimator.advance(poisoned, h, obs, action, is_first), clean)
