"""Triad: exact counts, latches that hold, bounded features, and gradients that reach everything."""

import math

import pytest
import torch
from torch import Tensor

from worldmodel import LatentPredictor
from worldmodel.cells.triad import COUNTERS, LATCHES, NEAR, Triad
from worldmodel.rules import ternary, triad

B, T, Z, A, D = 4, 32, 5, 2, 6
START = 2 * D  # where the counters' and latches' rows begin, with one layer
WRITE, VALUE = START + COUNTERS, START + COUNTERS + LATCHES
LATER = VALUE + LATCHES
AT_ZERO = COUNTERS * (1 + NEAR.index(0)) + LATCHES  # of what is read, behind the gated channels
COUNTS, HELD = slice(D, D + COUNTERS), slice(D + COUNTERS, D + COUNTERS + LATCHES)  # in the state


def symbols(*names: str) -> Tensor:
    """One-hot inputs (len, Z): a, b, the key, and two values."""
    return torch.eye(Z)[[("a", "b", "key", "v", "w").index(name) for name in names]]


def hand_set() -> Triad:
    """Counter 0 counts a's less b's; latch 0 takes the sign of what comes after the key: v is +, w is -."""
    torch.manual_seed(0)
    cell = Triad(Z, D, layers=1, gate_bias=-1.0, tokens=True)
    a, b, key, v, w = range(Z)
    with torch.no_grad():
        cell.input.weight[START:] = 0.0
        cell.input.bias[START:] = 0.0
        cell.input.weight[START, [a, b]] = torch.tensor([1.0, -1.0])
        cell.input.bias[WRITE : WRITE + LATCHES] = -1.0
        cell.input.weight[LATER, key] = 2.0
        cell.input.weight[VALUE, [v, w]] = torch.tensor([0.5, -0.5])
    return cell


@torch.no_grad()
def test_counts_to_100000_and_back_exactly():
    """A relay: of a hundred lanes, each begins where the one before it ends, after a thousand steps; then all go back.

    One lane that runs all the way visits the same counts, as a count depends on itself and the input only.
    """
    cell = hand_set()
    up, down = cell.project(symbols("a", "b"), torch.zeros(2, 0)).unsqueeze(1).unbind()
    start = torch.zeros(100, cell.state_dim)
    start[:, D] = 1000.0 * torch.arange(100)
    h = start
    for _ in range(1000):
        h = cell.step(up.expand(100, -1), h)
    assert torch.equal(h[:-1, D], start[1:, D]) and h[-1, D].item() == 100_000
    for t in range(1000):
        assert (cell.read(h)[0, D + AT_ZERO] == 1).item() == (t == 1000), "not yet at zero"
        h = cell.step(down.expand(100, -1), h)
    assert torch.equal(h[:, D], start[:, D])
    assert cell.read(h)[0, D + AT_ZERO].item() == 1


def test_counters_are_exact_up_to_2_to_the_24():
    cell, top = hand_set(), 2.0**24
    h = torch.zeros(1, cell.state_dim)
    h[0, D] = top - 3
    x = cell.project(symbols("a"), torch.zeros(1, 0))
    counts = []
    for _ in range(4):
        h = cell.step(x, h)
        counts.append(h[0, D].item())
    assert counts == [top - 2, top - 1, top, top], "and stand still there"


def test_a_latch_takes_what_follows_the_key_and_holds_it_bit_for_bit():
    cell = hand_set()
    names = ["a", "v", "key", "w"] + ["v", "b", "w", "a", "v"] * 200
    x = cell.project(symbols(*names), torch.zeros(len(names), 0))
    h = torch.zeros(1, cell.state_dim)
    states = []
    for x_t in x.split(1):
        h = cell.step(x_t, h)
        states.append(h[0, HELD.start])
    assert states[:3] == [0.0, 0.0, 0.0]
    assert torch.equal(torch.stack(states[3:]), torch.tanh(torch.tensor(-0.5)).expand(1001))


def test_a_key_before_an_episode_says_nothing_in_it():
    predictor = LatentPredictor(Z, 0, D, rule="triad", layers=1)
    predictor.cell.load_state_dict(hand_set().state_dict())
    z = symbols("key", "v", "key", "w").unsqueeze(0)
    is_first = torch.tensor([[True, False, False, True]])
    latch = predictor.closed_loop(z, z[..., :0], is_first).h[0, :, HELD.start]
    torch.testing.assert_close(latch, torch.tensor([0.0, math.tanh(0.5), math.tanh(0.5), 0.0]))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("scale", [3.0, 1e3, 1e6, 1e15])
@pytest.mark.parametrize("dim", [1, 2, D])
def test_all_that_is_read_is_bounded_for_any_input(dim, scale, tokens, layers):
    torch.manual_seed(0)
    predictor = LatentPredictor(Z, A, dim, rule="triad", layers=layers, tokens=tokens)
    z, a = torch.randn(B, 200, Z) * scale, torch.randn(B, 200, A) * scale
    h = predictor.closed_loop(z, a, torch.zeros(B, 200, dtype=torch.bool)).h
    seen = predictor.cell.read(h)
    assert seen.shape[-1] == predictor.read_dim == dim + (4 * COUNTERS + 3 * LATCHES if tokens else COUNTERS + LATCHES)
    assert seen.isfinite().all() and seen.abs().max() <= max(1, math.sqrt(dim - 1)) * (1 + 1e-5)
    assert h[..., dim : dim + COUNTERS].abs().max() > 3, "which the counters themselves are not"


def test_what_is_read_at_an_episodes_start():
    cell = hand_set()
    seen = cell.read(torch.zeros(cell.state_dim)).split(
        [D, COUNTERS, LATCHES, COUNTERS, COUNTERS, COUNTERS, 2 * LATCHES]
    )
    beside = torch.exp(torch.tensor(-2.0)).item()
    assert [set(part.tolist()) for part in seen] == [{0.0}, {0.0}, {0.0}, {beside}, {1.0}, {beside}, {0.0}]


def test_counts_depend_on_the_current_input_only():
    """Whatever the rest of the state holds, and whatever came before: h enters a count as itself."""
    torch.manual_seed(0)
    cell = Triad(Z, D, layers=2, gate_bias=-1.0, tokens=True)
    x = cell.project(3 * torch.randn(B, Z), torch.zeros(B, 0))
    h = torch.randn(B, cell.state_dim)
    jacobian = torch.autograd.functional.jacobian(lambda h: cell.step(x, h)[:, COUNTS].sum(0), h)
    expected = torch.zeros(COUNTERS, cell.state_dim)
    expected[:, COUNTS] = torch.eye(COUNTERS)
    assert torch.equal(jacobian, expected.unsqueeze(1).expand_as(jacobian))
    change = cell.step(x, h)[:, COUNTS] - h[:, COUNTS]
    torch.testing.assert_close(change, change.round(), rtol=0, atol=1e-6)
    assert set(change.round().flatten().tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("tokens", [False, True])
def test_every_row_of_every_parameter_learns(layers, tokens):
    """Also where nearly every increment rounds to zero, as on observations at the start of a training."""
    torch.manual_seed(0)
    predictor = LatentPredictor(Z, A, D, rule="triad", layers=layers, tokens=tokens)
    cell, scale = predictor.cell, 3.0 if tokens else 0.8
    z, a, is_first = scale * torch.randn(B, T, Z), torch.randn(B, T, A), torch.zeros(B, T, dtype=torch.bool)
    loop = predictor.closed_loop(z, a, is_first)
    still = (loop.h[..., COUNTS].diff(dim=1) == 0).float().mean()
    assert still < 0.7 if tokens else still > 0.999
    loop.pred.square().sum().backward()
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]).abs().sum(1).all(), name


def test_ternary_rounds_and_has_the_gradient_of_what_it_rounds():
    u = torch.tensor([-3.0, -0.6, -0.5, 0.0, 0.5, 0.6, 1e9], requires_grad=True)
    t = ternary(u)
    assert t.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    (gradient,) = torch.autograd.grad(t.sum(), u)
    assert torch.equal(gradient, torch.ones(7))


def test_smooth_gradients_are_those_of_finite_differences_and_writes_have_the_sigmoids():
    generator = torch.Generator().manual_seed(0)

    def randn(width: int) -> Tensor:
        return torch.randn(B, width, generator=generator, dtype=torch.float64, requires_grad=True)

    gated, counters, latches, pending_value = randn(D), randn(COUNTERS), randn(LATCHES), randn(LATCHES)
    gate, candidate, increment, value, later = randn(D), randn(D), randn(COUNTERS), randn(LATCHES), randn(2 * LATCHES)
    pending_write, write = randn(LATCHES), randn(LATCHES)

    def smooth(gated, counters, latches, pending_value, gate, candidate, increment, value, later):
        h = torch.cat([gated, counters, latches, pending_write.detach(), pending_value], dim=-1)
        return triad(h, gate, candidate, increment, write.detach(), value, later)

    arguments = (gated, counters, latches, pending_value, gate, candidate, increment, value, later)
    assert torch.autograd.gradcheck(smooth, arguments)

    h = torch.cat([gated, counters, latches, pending_write, pending_value], dim=-1)
    held = triad(h, gate, candidate, increment, write, value, later)[:, HELD]
    v, logit = torch.tanh(value + pending_value), write + pending_write
    assert torch.equal(held, torch.where(logit > 0, v, latches))
    slope = torch.sigmoid(logit) * torch.sigmoid(-logit)
    for share in (write, pending_write):
        (gradient,) = torch.autograd.grad(held.sum(), share, retain_graph=True)
        torch.testing.assert_close(gradient, (v - latches) * slope)


@pytest.mark.parametrize("layers", [1, 2])
def test_more_hidden_units_are_more_parameters(layers):
    """Else no size could be found that makes a comparison fair."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in Triad(9, dim, layers, -1.0).parameters()) for dim in (*range(1, 40), 511, 512)]
    assert all(less < more for less, more in zip(counts, counts[1:], strict=False))
