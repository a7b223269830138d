"""Rules against plain loops, written from their papers' equations, in float64: values and gradients."""

import math

import pytest
import torch

from worldmodel import RULES, LatentPredictor
from worldmodel.cells import make_cell
from worldmodel.cells.matrix import FRAMES, WINDOW
from worldmodel.cells.recurrence import states
from worldmodel.nets import MLP

B, T, Z, A, D = 3, 40, 4, 2, 6
N, K, V = 4, 4, 2  # heads, keys and values of each: 8 values, of which 6 are used
exact = {"rtol": 0, "atol": 1e-12}


def made(rule, layers=1):
    """A cell whose parameters are not what they started as."""
    torch.manual_seed(0)
    cell = make_cell(rule, Z + A, D, layers, gate_bias=-1.0).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def inputs():
    """Resets at a segment's border, in its middle, two in a row; a lane has none for longer than the window."""
    generator = torch.Generator().manual_seed(1)
    z, a = (torch.randn(B, T, size, generator=generator, dtype=torch.float64) for size in (Z, A))
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[0, 8] = is_first[1, 3] = is_first[1, 20] = is_first[1, 21] = True
    return z.requires_grad_(), a, is_first


def lru(cell, frames):
    eigenvalue = torch.exp(torch.complex(-torch.exp(cell.decay), torch.exp(cell.angle)))
    state, seen = torch.zeros(D // 2, dtype=torch.complex128), []
    for u in frames:
        state = eigenvalue * state + torch.exp(cell.scale) * torch.complex(*(cell.input.weight @ u).chunk(2))
        seen.append(torch.cat([state.real, state.imag]))
    return seen


def mingru(cell, frames):
    h, seen = torch.zeros(D).double(), []
    for u in frames:
        gate, candidate = cell.input(u).chunk(2)
        h = (1 - torch.sigmoid(gate)) * h + torch.sigmoid(gate) * candidate
        seen.append(h)
    return seen


def short_convolution(cell, frames):
    """torch's own over an episode, causal, depthwise, then silu: queries, keys, values; and the other proposals."""
    rows = torch.stack(frames) @ cell.input.weight.T + cell.input.bias
    qkv, rest = rows[:, : 2 * N * K + D], rows[:, 2 * N * K + D :]
    padded = torch.nn.functional.pad(qkv.T, (FRAMES - 1, 0))
    mixed = torch.nn.functional.conv1d(padded, cell.filters.T[:, None], cell.filter_bias, groups=len(padded)).T
    return torch.nn.functional.silu(mixed), rest


def heads(row):
    """What each head gets of a row [queries, keys, values]."""
    query, key, value = row.split([N * K, N * K, D])
    value = torch.cat([value, torch.zeros(N * V - D).double()])
    return zip(query.split(K), key.split(K), value.split(V), strict=True)


def mamba2(cell, frames):
    mixed, rest = short_convolution(cell, frames)
    S, seen = [torch.zeros(V, K).double()] * N, []
    for row, others in zip(mixed, rest, strict=True):
        dt, z, skip = others.split([N, D, D])
        y = []
        for n, (C, b, x) in enumerate(heads(row)):
            delta, rate = torch.log(1 + torch.exp(dt[n])), -torch.exp(cell.rate[n])
            S[n] = torch.exp(delta * rate) * S[n] + delta * torch.outer(x, b)
            y.append(S[n] @ C)
        seen.append(skip + z * torch.sigmoid(z) * torch.cat(y)[:D])
    return seen


def gated_delta(cell, frames):
    mixed, rest = short_convolution(cell, frames)
    S, seen = [torch.zeros(V, K).double()] * N, []
    for row, others in zip(mixed, rest, strict=True):
        dt, b, z, skip = others.split([N, N, D, D])
        y = []
        for n, (q, k, v) in enumerate(heads(row)):
            q, k, beta = q / q.norm(), k / k.norm(), 2 * torch.sigmoid(b[n])
            alpha = torch.exp(-torch.exp(cell.rate[n]) * torch.log(1 + torch.exp(dt[n])))
            S[n] = alpha * S[n] @ (torch.eye(K).double() - beta * torch.outer(k, k)) + beta * torch.outer(v, k)
            y.append(S[n] @ q)
        seen.append(skip + z * torch.sigmoid(z) * torch.cat(y)[:D])
    return seen


def mlstm(cell, frames):
    """Without the stabiliser: in float64 no exponential overflows here."""
    mixed, rest = short_convolution(cell, frames)
    C, norm, seen = [torch.zeros(V, K).double()] * N, [torch.zeros(K).double()] * N, []
    for row, others in zip(mixed, rest, strict=True):
        write, keep, output, skip = others.split([N, N, D, D])
        y = []
        for n, (q, k, v) in enumerate(heads(row)):
            i, f, k = torch.exp(write[n]), torch.sigmoid(keep[n]), k / math.sqrt(K)
            C[n], norm[n] = f * C[n] + i * torch.outer(v, k), f * norm[n] + i * k
            y.append(C[n] @ q / max(abs(norm[n] @ q), torch.ones(()).double()))
        seen.append(skip + torch.sigmoid(output) * torch.cat(y)[:D])
    return seen


def slstm(cell, frames):
    h = c = n = torch.zeros(D).double()
    seen = []
    for u in frames:
        i, f, z, o = (cell.input(u) + cell.recurrent.weight @ h).chunk(4)
        i, f = torch.exp(i), torch.sigmoid(f)
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * c / n
        seen.append(h)
    return seen


def attention(cell, frames):
    queries, keys, values, skip = cell.input(torch.stack(frames)).split([N * V, V, V, D], dim=1)
    seen = []
    for t in range(len(frames)):
        y, window = [], list(range(max(0, t - WINDOW + 1), t + 1))
        for n, query in enumerate(queries[t].split(V)):
            match = keys[window] @ query / math.sqrt(V) + torch.stack([cell.bias[n, t - s] for s in window])
            y.append(torch.exp(match) @ values[window] / torch.exp(match).sum())
        seen.append(skip[t] + torch.cat(y)[:D])
    return seen


LOOPS = {loop.__name__: loop for loop in (lru, mingru, mamba2, gated_delta, mlstm, slstm, attention)}


def by_loop(cell, loop, z, a, is_first):
    """What heads see, (B, T, D), an episode after the other."""
    lanes = []
    for frames, first in zip(torch.cat([z, a], dim=-1), is_first, strict=True):
        starts = [0, *(t for t in range(1, T) if first[t]), T]
        episodes = (list(frames[begin:end]) for begin, end in zip(starts, starts[1:], strict=False))
        lanes.append(torch.stack([read for episode in episodes for read in loop(cell, episode)]))
    return torch.stack(lanes)


@pytest.mark.parametrize("rule", LOOPS)
def test_values_and_gradients_are_those_of_the_equations(rule):
    cell, (z, a, is_first) = made(rule), inputs()
    expected = by_loop(cell, LOOPS[rule], z, a, is_first)
    weights = torch.randn(B, T, D, generator=torch.Generator().manual_seed(2)).double()
    wanted = torch.autograd.grad((expected * weights).sum(), [z, *cell.parameters()])
    got = cell.read(states(cell, z, a, is_first)).transpose(0, 1)
    torch.testing.assert_close(got, expected, **exact)
    for ours, reference in zip(
        torch.autograd.grad((got * weights).sum(), [z, *cell.parameters()]), wanted, strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)
        assert reference.abs().max() > 1e-3, "a gradient that could be told from none"
    carry, parts = None, []  # and in segments, with the state carried
    for t in range(0, T, 8):
        part = states(cell, *(x[:, t : t + 8] for x in (z, a, is_first)), carry)
        carry = part[-1].detach()
        parts.append(cell.read(part))
    torch.testing.assert_close(torch.cat(parts).transpose(0, 1), expected, **exact)


@pytest.mark.parametrize("rule", ["lru", "mingru", "mamba2", "gated_delta", "mlstm", "attention"])
def test_two_layers_are_one_on_top_of_the_other(rule):
    cell, (z, a, is_first) = made(rule, layers=2), inputs()
    lower = cell.lower.read(states(cell.lower, z, a, is_first)).transpose(0, 1)
    u = torch.nn.functional.silu(cell.norm(cell.between(lower)))
    upper = cell.upper.read(states(cell.upper, u, u[..., :0], is_first)).transpose(0, 1)
    torch.testing.assert_close(cell.read(states(cell, z, a, is_first)).transpose(0, 1), lower + upper, **exact)


# --- what is claimed of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [-1000.0, 0.0, 1000.0])
def test_exponential_gates_neither_overflow_nor_vanish(write):
    """The first input of an episode is all that an sLSTM holds, however small its gate; in single precision."""
    ones = torch.ones(1, D)
    h = RULES["slstm"](torch.zeros(1, 4 * D), write * ones, 0 * ones, 0.5 * ones, 2 * ones)
    torch.testing.assert_close(h[:, :D], torch.tensor(math.tanh(0.5) / (1 + math.exp(-2))).expand(1, D))
    cell = made("mlstm").float()
    with torch.no_grad():
        cell.input.bias[2 * N * K + D :][: 2 * N] = torch.tensor([write] * N + [-5.0] * N)
    z = torch.randn(2, 300, Z, requires_grad=True)
    h = states(cell, z, torch.zeros(2, 300, A), torch.zeros(2, 300).bool())
    assert h.isfinite().all()
    assert torch.autograd.grad(cell.read(h).square().sum(), z)[0].isfinite().all()


def test_what_is_read_of_an_slstm_is_at_most_one():
    cell = made("slstm").float()
    z, a, is_first = 100 * torch.randn(B, 500, Z), torch.randn(B, 500, A), torch.zeros(B, 500).bool()
    assert cell.read(states(cell, z, a, is_first)).abs().max() <= 1 + 1e-6


def test_attention_sees_its_window_and_no_frame_before():
    cell, (z, a, is_first) = made("attention"), inputs()
    z, last = z.detach(), T - 1

    def read(changed):
        other = z.clone()
        other[2, changed] += 1
        return cell.read(states(cell, other, a, is_first))[last, 2]

    assert torch.equal(read(last - WINDOW), read([])) and not torch.equal(read(last - WINDOW + 1), read([]))


def test_gated_delta_can_turn_what_it_holds_around_and_the_others_only_fade():
    key = torch.nn.functional.normalize(torch.tensor([[[1.0, 2.0, 2.0, 0.0]]]), dim=-1)
    start = torch.randn(1, V, 4, generator=torch.Generator().manual_seed(0))
    h, nothing, far = (
        torch.cat([start.flatten(1), torch.zeros(1, V)], -1),
        torch.zeros(1, 1, V),
        torch.full((1, 1), 50.0),
    )
    shut, none = torch.full((1, 1), -50.0), torch.zeros(1, V)
    after = RULES["gated_delta"](h, key, key, nothing, shut, far, none, none, torch.zeros(1))[:, : 4 * V].view(1, V, 4)
    torch.testing.assert_close(after @ key[0, 0], -start @ key[0, 0])
    torch.testing.assert_close(
        after - (after @ key[0, 0])[..., None] * key, start - (start @ key[0, 0])[..., None] * key
    )
    for step in (-5.0, 0.0, 5.0):
        faded = RULES["mamba2"](h, key, key, nothing, torch.full((1, 1), step), none, none, torch.zeros(1))[:, : 4 * V]
        ratio = faded / start.flatten(1)
        assert ((ratio > 0) & (ratio < 1)).all()


def test_a_head_reads_the_states_of_its_own_layers():
    """Of a predictor: the whole of what was read, and nothing of what is remembered."""
    for rule in ("mamba2", "gated_delta", "mlstm", "attention"):
        predictor = LatentPredictor(Z, A, D, rule=rule, layers=1)
        assert predictor.read_dim == D and isinstance(predictor.head, MLP)
        h = torch.arange(predictor.state_dim).float()
        expected = h[-D:] if rule == "attention" else h[predictor.cell.rule_dim - D : predictor.cell.rule_dim]
        assert torch.equal(predictor.cell.read(h), expected)
