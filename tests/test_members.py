"""K predictors side by side are K predictors: forward, backward and in both loops, for every rule."""

import math

import pytest
import torch

from worldmodel import RULES, LatentPredictor, WorldModel
from worldmodel.errors import UserError
from worldmodel.futures import futures
from worldmodel.members import bootstrapped
from worldmodel.modules.optimizer import adamw

K, B, T, Z, A, D = 3, 2, 5, 4, 2, 6
EXACT = {"rtol": 0, "atol": 1e-12}


def members_of(rule, layers=2, tokens=False):
    """The predictors side by side, and each of them alone."""
    torch.manual_seed(0)
    args = Z, A, D, rule, layers, -1.0, 1, tokens
    several = LatentPredictor(*args, members=K).double()
    alone = [LatentPredictor(*args).double() for _ in range(K)]
    for i, one in enumerate(alone):
        one.load_state_dict({name: tensor[i] for name, tensor in several.state_dict().items()})
    return several, alone


def inputs(*lanes):
    generator = torch.Generator().manual_seed(1)
    z, a = (torch.randn(*lanes, T, n, generator=generator, dtype=torch.float64) for n in (Z, A))
    is_first = torch.zeros(*lanes, T, dtype=torch.bool)
    is_first[..., 0, 3] = True
    return z, a, is_first


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_side_by_side_they_are_what_each_is_alone(rule, layers, tokens):
    several, alone = members_of(rule, layers, tokens)
    z, a, is_first = inputs(K, B)
    h = torch.randn(K, B, several.state_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    flat = [x.flatten(0, 1).requires_grad_(x.is_floating_point()) for x in (z, a, is_first, h)]
    loop = several.closed_loop(*flat)
    rolled = several.open_loop(flat[0][:, 0], flat[3], flat[1])
    with torch.no_grad():
        seen = several.open_loop(flat[0][:, 0], flat[3], flat[1], lambda pred, a_t: pred + a_t.sum(-1, keepdim=True))
    (loop.pred.square().sum() + loop.h[:, -1].sum() + rolled.pred.square().sum()).backward()
    for i, one in enumerate(alone):
        lanes = slice(i * B, (i + 1) * B)
        own = one.closed_loop(z[i], a[i], is_first[i], h[i])
        steps = one.open_loop(z[i, :, 0], h[i], a[i])
        (own.pred.square().sum() + own.h[:, -1].sum() + steps.pred.square().sum()).backward()
        for ours, theirs in zip(loop, own, strict=True):
            torch.testing.assert_close(ours[lanes], theirs, **EXACT)
        torch.testing.assert_close(rolled.pred[lanes], steps.pred, **EXACT)
        torch.testing.assert_close(rolled.h[lanes], steps.h, **EXACT)
        with torch.no_grad():
            fed = one.open_loop(z[i, :, 0], h[i], a[i], lambda pred, a_t: pred + a_t.sum(-1, keepdim=True))
        torch.testing.assert_close(seen.pred[lanes], fed.pred, **EXACT)
        gate = one.gate(z[i], a[i], own.h)
        if gate is not None:
            torch.testing.assert_close(several.gate(flat[0], flat[1], loop.h)[lanes], gate, **EXACT)
        for name, parameter in one.named_parameters():
            theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            ours = several.get_parameter(name).grad
            torch.testing.assert_close(theirs if ours is None else ours[i], theirs, rtol=1e-9, atol=1e-10, msg=name)


O = 2  # noqa: E741
SIZES = {"latent_dim": Z, "hidden_dim": D, "width": 5, "base_lags": 2}


def models_of(base="linear", output="point", **options):
    """A world model of members, and a model of each with the same encoder, decoder and heads."""
    torch.manual_seed(0)
    options = {**SIZES, "base": base, "output": output, "open_loop_steps": 2, **options}
    if base != "linear":
        del options["base_lags"]
    several = WorldModel(O, A, members=K, **options).double()
    with torch.no_grad():
        for parameter in several.parameters():  # a new one is nearly its base
            parameter.add_(0.2 * torch.randn_like(parameter))
        if several.base is not None and base == "linear":
            several.base.weights.copy_(0.3 * torch.randn_like(several.base.weights))
    options.pop("bootstrap", None)
    alone = [WorldModel(O, A, **options).double() for _ in range(K)]
    for i, one in enumerate(alone):
        weights = several.state_dict()
        one.load_state_dict({n: x[i] if n.startswith("predictor.") else x for n, x in weights.items()})
    return several, alone


def segment(lanes=4, steps=6):
    generator = torch.Generator().manual_seed(3)
    obs, action, reward = (
        torch.randn(lanes, n, width, generator=generator, dtype=torch.float64)
        for n, width in ((steps + 1, O), (steps, A), (steps, 1))
    )
    never = torch.zeros(lanes, steps, dtype=torch.bool)
    is_first = never.clone()
    is_first[0, 3] = True
    valid = ~is_first.roll(-1, dims=1)
    episode = torch.arange(lanes).unsqueeze(1).expand(-1, steps) + lanes * is_first.cumsum(1)
    return {
        "obs": obs, "action": action, "reward": reward.squeeze(-1), "terminated": never, "truncated": never,
        "is_first": is_first, "valid": valid, "num_valid": valid.sum().double(), "episode": episode,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("base", "options"),
    [
        *[("linear", {}), ("linear", {"feedback": False}), ("linear", {"output": "mixture"})],
        *[("none", {"output": "gaussian"}), ("last", {"value_discount": 0.9})],
        ("none", {"value_discount": 0.9, "reward_head": "two_hot"}),
    ],
)
def test_the_model_is_their_mean(base, options):
    several, alone = models_of(base, **options)
    several.eval()
    batch = segment()
    before = {"obs": batch["obs"][:, :-1], "action": batch["action"], "is_first": batch["is_first"]}
    pred, h, carry = several.closed_loop(**before)
    z, _, _ = several.observe(**before)
    made = several.open_loop(z[:, 2], h[:, 1], batch["action"][:, 2:])
    first = several.open_loop(z[:, 2], h[:, 1], batch["action"][:, 2:4])
    second = several.open_loop(first.z[:, -1], first.h[:, -1], batch["action"][:, 4:])
    torch.testing.assert_close(torch.cat([first.obs, second.obs], dim=1), made.obs, **EXACT)
    terms, _, _ = several.losses(batch)
    each, predictions, rewards, losses = [], [], [], []
    for i, one in enumerate(alone):
        one.eval()
        own, states, own_carry = one.closed_loop(**before)
        predictions.append(own)
        lane = slice(i * several.predictor.state_dim, (i + 1) * several.predictor.state_dim)
        torch.testing.assert_close(h[..., lane], states, **EXACT)
        torch.testing.assert_close(carry[:, several.state_dim :], own_carry[:, several.predictor.state_dim :], **EXACT)
        rolled = one.open_loop(one.observe(**before)[0][:, 2], states[:, 1], batch["action"][:, 2:])
        each.append(rolled.obs)
        rewards.append(rolled.reward)
        losses.append(one.losses(batch)[0])
    torch.testing.assert_close(pred, torch.stack(predictions).mean(dim=0), **EXACT)
    torch.testing.assert_close(made.obs, torch.stack(each).mean(dim=0), **EXACT)
    torch.testing.assert_close(several.decode_each(made.z), torch.stack(each, dim=-2), **EXACT)
    torch.testing.assert_close(made.reward, torch.stack(rewards).mean(dim=0), **EXACT)
    for name, value in terms.items():
        torch.testing.assert_close(value, torch.stack([own[name] for own in losses]).mean(), **EXACT, msg=name)


@pytest.mark.parametrize("rule", RULES)
def test_carried_segments_are_one_unroll_and_what_is_in_one_lane_stays_there(rule):
    several, _ = models_of(rule=rule)
    batch = segment()
    parts = ("obs", "action", "is_first")
    whole, h, _ = several.closed_loop(batch["obs"][:, :-1], batch["action"], batch["is_first"])
    carry, found = None, []
    for part in (slice(0, 2), slice(2, 6)):
        pred, _, carry = several.closed_loop(*(batch[name][:, :-1][:, part] if name == "obs" else batch[name][:, part]
                                               for name in parts), carry)  # fmt: skip
        found.append(pred)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, **EXACT)
    batch["obs"][1] = float("nan")
    poisoned, _, _ = several.closed_loop(batch["obs"][:, :-1], batch["action"], batch["is_first"])
    assert torch.equal(poisoned[[0, 2, 3]], whole[[0, 2, 3]])


def test_futures_are_of_one_member_each():
    several, alone = models_of(output="gaussian")
    several.eval()
    batch = segment(steps=5)
    before = batch["obs"][:1, :-1], batch["action"][:1], batch["is_first"][:1] & False
    z, h, _ = several.observe(*before)
    noise = torch.randn(2 * K, 4, O + 1, dtype=torch.float64)
    lanes = [x.expand(2 * K, *x.shape[1:]) for x in (z[:, 3], h[:, 2], torch.ones(1, 4, A, dtype=torch.float64))]
    drawn, first = futures(several, *lanes, noise), futures(several, *lanes[:2], lanes[2][:, :3], noise[:, :3])
    second = futures(several, first.z, first.h, lanes[2][:, 3:], noise[:, 3:])
    torch.testing.assert_close(torch.cat([first.obs, second.obs], dim=1), drawn.obs, **EXACT)
    for i, one in enumerate(alone):
        own = one.eval().observe(*before)
        mine = slice(i, None, K)
        theirs = futures(one, own[0][:, 3].expand(2, -1), own[1][:, 2].expand(2, -1), lanes[2][:2], noise[mine])
        torch.testing.assert_close(drawn.obs[mine], theirs.obs, **EXACT)
        torch.testing.assert_close(drawn.given_past.scale[mine], theirs.given_past.scale, **EXACT)


def test_a_bootstrapped_member_learns_from_its_own_episodes():
    several, _ = models_of(bootstrap=True, open_loop_steps=0)
    batch = segment(lanes=40)
    kept = bootstrapped(batch["episode"], K)
    assert not torch.equal(kept[0], kept[1]) and torch.equal(kept, bootstrapped(batch["episode"], K))
    many = bootstrapped(torch.arange(20_000).unsqueeze(1), K)
    assert many.double().mean(dim=(1, 2)) == pytest.approx(1 - math.exp(-1), abs=0.01)
    assert (many[0] & many[1]).double().mean() == pytest.approx((1 - math.exp(-1)) ** 2, abs=0.01), "independent"
    several.step(batch).loss.backward()
    weight = several.get_parameter("predictor.head.0.weight")
    before = weight.grad.clone()
    lane = next(i for i in range(40) if not kept[0, i].any() and kept[1, i].all())
    batch["reward"][lane] += 1
    batch["obs"][lane] += 1
    several.zero_grad()
    several.step(batch).loss.backward()
    assert torch.equal(weight.grad[0], before[0]) and not torch.equal(weight.grad[1], before[1])


def test_only_matrices_of_members_decay():
    several, _ = models_of()
    optimizer = adamw(several.parameters(), 1e-3, 0.1, "constant", 1, 10, stacked=several.predictor.parameters())
    names = {id(parameter): name for name, parameter in several.named_parameters()}
    decayed = {names[id(parameter)] for parameter in optimizer["optimizer"].param_groups[0]["params"]}
    assert "predictor.cell.recurrent.weight" in decayed and not any(name.endswith("bias") for name in decayed)
    assert "predictor.cell.norm.weight" not in decayed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "model.members is 0"),
        ({"members": 2, "objective": "tokens"}, "is for the objective reconstruction"),
        ({"members": 2, "gradient": "rtrl"}, "model.gradient rtrl is for one member"),
        ({"bootstrap": True}, "is for several members"),
    ],
)
def test_what_members_do_not_know_is_said(options, message):
    with pytest.raises(UserError, match=message):
        WorldModel(O, A, **options)
