"""Real-time recurrent learning against BPTT through the whole stream, in double precision."""

import pytest
import torch
from conftest import over_rules
from torch import nn

from worldmodel import RULES, LatentPredictor, rtrl
from worldmodel.errors import UserError
from worldmodel.nets import MLP
from worldmodel.rtrl import RTRL

B, T, OBS, Z, A, D = 3, 12, 2, 3, 1, 4


def make(rule, layers=1):
    torch.manual_seed(0)
    encoder = MLP(OBS, Z, 4, depth=1).double()
    return encoder, LatentPredictor(Z, A, D, rule=rule, layers=layers).double()


def stream():
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(B, T, OBS, generator=generator, dtype=torch.float64)
    action = torch.randn(B, T, A, generator=generator, dtype=torch.float64)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 0] = True
    is_first[0, 4] = True  # at the border of segments of 4
    is_first[1, [6, 7]] = True  # in the middle, and two in a row; lane 2 has none
    return obs, action, is_first


def loss_of(encoder, predictor, obs, action, is_first, start):
    """Terms of predictions, of latents and of open-loop rollouts from the states before; and the states."""
    z = encoder(obs)
    loop = predictor.closed_loop(z, action, is_first, start)
    before = loop.before
    rollouts = [predictor.open_loop(z[:, t], before[:, t], action[:, t : t + 2]).pred for t in range(0, len(z[0]), 2)]
    loss = loop.pred.square().sum() + z.pow(3).sum() + torch.stack(rollouts).sin().sum()
    return loss, loop.h


def one_step_loss(encoder, predictor, obs, action, is_first, start):
    loop = predictor.closed_loop(encoder(obs), action, is_first, start)
    return loop.pred.square().sum(), loop.h


def gradients(loss, *modules):
    params = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in params], allow_unused=True)
    return [(n, torch.zeros_like(p) if g is None else g) for (n, p), g in zip(params, found, strict=True)]


def segments(model, data, steps, loss_of=loss_of):
    """The gradients of all segments together, each from a carry of values."""
    estimator, total, carry = RTRL(*model), None, None
    for t in range(0, data[0].shape[1], steps):
        part = [x[:, t : t + steps] for x in data]
        start = estimator.attach(carry, part[-1])
        loss, h = loss_of(*model, *part, start)
        found = gradients(loss, *model)
        total = found if total is None else [(n, a + b) for (n, a), (_, b) in zip(total, found, strict=True)]
        carry = estimator.advance(carry, h, *part)
        assert not carry.requires_grad
    return total


def assert_equal_gradients(got, wanted, relative=1e-10):
    for (name, ours), (_, theirs) in zip(got, wanted, strict=True):
        assert (ours - theirs).abs().max() <= relative * theirs.abs().max(), name


@pytest.mark.parametrize(("rule", "layers", "steps"), over_rules((1, 2), (4, 1)))
def test_segments_have_the_gradient_of_the_whole_stream(rule, layers, steps):
    model, data = make(rule, layers), stream()
    loss = loss_of if steps > 1 else one_step_loss
    assert_equal_gradients(segments(model, data, steps, loss), gradients(loss(*model, *data, None)[0], *model))


def influences(model, data):
    """P_t of every step, (T, B, D, P), and the states (T, B, D)."""
    estimator, carry, found = RTRL(*model), None, []
    for t in range(T):
        part = [x[:, t : t + 1] for x in data]
        h = model[1].closed_loop(model[0](part[0]), *part[1:], None if carry is None else carry[:, :D]).h
        carry = estimator.advance(carry, h, *part)
        found.append(carry)
    return estimator, torch.stack(found)[..., D:].unflatten(-1, (D, -1)), torch.stack(found)[..., :D]


def test_a_states_gradient_meets_its_own_influence_and_no_later_one():
    model, data = make("gated_norm"), stream()
    h = model[1].closed_loop(model[0](data[0]), *data[1:]).h
    estimator, influence, states = influences(model, data)
    torch.testing.assert_close(states.transpose(0, 1), h, rtol=0, atol=1e-14)
    wanted = torch.autograd.grad(h.pow(3).sum(), list(estimator.params.values()))
    wanted = torch.cat([gradient.flatten() for gradient in wanted])
    by_state = 3 * states.square()  # dL/dh_t
    error = (torch.einsum("tbd,tbdp->p", by_state, influence) - wanted).abs().max()
    assert error <= 1e-10 * wanted.abs().max()
    advanced = torch.einsum("tbd,tbdp->p", by_state[:-1], influence[1:])
    assert (advanced - wanted).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("rule", RULES)
def test_a_key_that_lies_before_the_segment_is_seen_by_rtrl_alone(rule):
    key, steps = 5, 4
    torch.manual_seed(0)
    embedding = nn.Embedding(6, Z).double()
    model = embedding, LatentPredictor(Z, 0, D, rule=rule, layers=1).double()
    tokens = torch.randint(0, 5, (B, T), generator=torch.Generator().manual_seed(3))
    tokens[:, 1] = key
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[:, 0] = True
    data = tokens, torch.zeros(B, T, 0, dtype=torch.float64), is_first

    def answer(encoder, predictor, obs, action, is_first, start):
        loop = predictor.closed_loop(encoder(obs), action, is_first, start)
        return loop.pred[:, -1].sum(), loop.h

    whole = gradients(answer(*model, *data, None)[0], *model)
    carry, state, estimator = None, None, RTRL(*model)
    for t in range(0, T, steps):
        part = [x[:, t : t + steps] for x in data]
        exact, h = answer(*model, *part, estimator.attach(carry, part[-1]))
        truncated, _ = answer(*model, *part, state)
        carry, state = estimator.advance(carry, h, *part), h[:, -1].detach()
    found = gradients(exact, *model)
    assert exact.item() == truncated.item()
    assert not gradients(truncated, *model)[0][1][key].any()
    assert found[0][1][key].all()
    assert_equal_gradients(found, whole)


def test_it_starts_from_a_state_alone_and_forgets_what_a_reset_cut_off():
    model, data = make("gated"), stream()
    estimator = RTRL(*model)
    state = torch.randn(B, D, dtype=torch.float64)
    assert torch.equal(estimator.attach(state, data[-1]), state)
    loss, h = loss_of(*model, *data, None)
    clean = estimator.advance(None, h, *data)
    poisoned = torch.full_like(clean, float("nan"))
    attached, _ = loss_of(*model, *data, estimator.attach(poisoned, data[-1]))
    assert_equal_gradients(gradients(attached, *model), gradients(loss, *model))
    data[0][0, :4] = float("inf")  # the episode before a reset
    torch.testing.assert_close(estimator.advance(poisoned, h, *data), clean, rtol=0, atol=1e-14)


def test_frozen_parameters_are_left_out():
    model, data = make("gated"), stream()
    model[0].requires_grad_(False)
    assert RTRL(*model).num_params == sum(p.numel() for p in model[1].cell.parameters())
    assert_equal_gradients(segments(model, data, 4), gradients(loss_of(*model, *data, None)[0], *model))


def test_what_cannot_be_carried_is_told_in_one_line(monkeypatch):
    estimator, is_first = RTRL(*make("gated")), torch.ones(B, 1, dtype=torch.bool)
    with pytest.raises(UserError, match="another model.gradient"):
        estimator.attach(torch.zeros(B, D + 1, dtype=torch.float64), is_first)
    monkeypatch.setattr(rtrl, "LARGEST", 1000)
    with pytest.raises(UserError, match="hidden_dim.*--model.gradient tbptt"):
        estimator.attach(None, is_first)
