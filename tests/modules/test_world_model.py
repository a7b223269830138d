"""The world model's losses: what reaches them is true, what is masked does not, both objectives learn."""

import pytest
import torch
from conftest import over_rules
from torch import nn
from toy_env import next_observation, reward_of

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.base import PER_OCTAVE
from worldmodel.errors import UserError
from worldmodel.evaluation.arx import fitted_base
from worldmodel.predictor import ClosedLoop, OpenLoop

SMALL = {"latent_dim": 6, "hidden_dim": 10, "width": 12}


def as_torch(function):
    return lambda *tensors: torch.from_numpy(function(*[t.numpy() for t in tensors]))


class Oracle(nn.Module):
    """A predictor that knows the toy environment exactly; its state is the observation and action of the step."""

    state_dim = read_dim = 3

    def __init__(self):
        super().__init__()
        self.cell = self
        self.read = lambda h: h

    def closed_loop(self, z, a, is_first, h=None):
        state = torch.cat([z, a], -1)
        return ClosedLoop(as_torch(next_observation)(z, a), state, state[:, -1], is_first, h)

    def open_loop(self, z, h, a):
        preds = []
        for a_t in a.unbind(1):
            z = as_torch(next_observation)(z, a_t)
            preds.append(z)
        return OpenLoop(torch.stack(preds, 1), torch.zeros(*a.shape[:2], 3))


class RewardOracle(nn.Module):
    def forward(self, state):
        obs, action = state[..., :2], state[..., 2:]
        reward = as_torch(reward_of)(obs, action, as_torch(next_observation)(obs, action))
        return torch.stack([reward, torch.zeros_like(reward)], -1)


def oracle_terms(batch):
    model = WorldModel(2, 1, latent_dim=2, open_loop_steps=4, base="none")
    model.encoder, model.decoder, model.predictor, model.heads = nn.Identity(), nn.Identity(), Oracle(), RewardOracle()
    terms, _, _ = model.losses(batch)
    return {name: terms[name].item() for name in ("prediction", "reward", "open_loop")}


def toy_batches(path, **options):
    data = EpisodeDataModule(path, steps=8, lanes=3, **options)
    loader = iter(data.train_dataloader())
    return [next(loader) for _ in range(len(data.train_dataloader()))]


def test_every_transition_that_reaches_the_loss_is_true(toy_data):
    batches = toy_batches(toy_data)
    assert sum(int(b["valid"].sum()) for b in batches) > 300
    for batch in batches:
        assert oracle_terms(batch) == {"prediction": 0.0, "reward": 0.0, "open_loop": 0.0}


@pytest.mark.parametrize("field", ["action", "reward"])
def test_a_reader_that_shifts_by_one_is_caught(toy_data, field):
    batches = [b for b in toy_batches(toy_data) if b["valid"].all(dim=1).any()]
    term = {"action": "prediction", "reward": "reward"}[field]
    for batch in batches:
        shifted = batch | {field: batch[field].roll(1, dims=1)}
        assert oracle_terms(shifted)[term] > 1


def test_terminal_steps_are_where_the_environment_ended(toy_data):
    for batch in toy_batches(toy_data):
        after = batch["obs"][:, 1:, 0]
        assert torch.equal(batch["terminated"], batch["valid"] & (after == 0))


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "latent"},
        {"open_loop_steps": 3},
        {"feedback": False},
        {"feedback": False, "open_loop_steps": 5},
    ],
    ids=str,
)
def test_a_poisoned_episode_changes_nothing_for_another(toy_data, options):
    """Neither what the model computes for another episode, nor what that one adds to the losses."""
    torch.manual_seed(0)
    model = WorldModel(2, 1, **{"open_loop_steps": 4, **SMALL, **options})
    batch = toy_batches(toy_data)[1]
    lane, boundary = next((b, t) for b, t in batch["is_first"].nonzero().tolist() if t > 2)
    batch["valid"][lane, :boundary] = False  # what the poisoned episode itself adds is left out of both
    poisoned = dict(batch)
    poisoned["carry"] = model.initial_carry(batch["obs"]).index_fill(0, torch.tensor(lane), float("nan"))
    for name in ("obs", "action", "reward"):
        poisoned[name] = batch[name].clone()
        poisoned[name][lane, :boundary] = float("nan")
    (clean_terms, clean_h, _), (terms, h, _) = model.losses(batch), model.losses(poisoned)
    others = [i for i in range(3) if i != lane]
    assert torch.equal(clean_h[others], h[others]) and torch.equal(clean_h[lane, boundary:], h[lane, boundary:])
    assert {k: v.item() for k, v in clean_terms.items()} == {k: v.item() for k, v in terms.items()}


def test_padding_has_no_gradient(toy_data):
    """Whatever stands where a step is not valid, the gradient is the same."""
    batch = next(b for b in toy_batches(toy_data) if not b["valid"].all())
    gradients = []
    for filler in (0.0, 5.0):
        torch.manual_seed(0)
        model = WorldModel(2, 1, open_loop_steps=8, **SMALL)
        other = dict(batch)
        other["action"] = torch.where(batch["valid"].unsqueeze(-1), batch["action"], filler)
        other["reward"] = torch.where(batch["valid"], batch["reward"], filler)
        terms, _, _ = model.losses(other)
        model.total(terms).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


OBJECTIVES = [
    {"objective": "reconstruction"},
    {"objective": "reconstruction", "open_loop_steps": 4},
    {"objective": "reconstruction", "feedback": False, "open_loop_steps": 5},
    {"objective": "reconstruction", "base": "none", "open_loop_steps": 3},
    {"objective": "latent"},
    {"objective": "latent", "target": "stop_gradient", "open_loop_steps": 8},
    {"objective": "latent", "anti_collapse": "sigreg"},
]


def name_of(value):
    return "-".join(map(str, value.values())) if isinstance(value, dict) else value


@pytest.mark.parametrize(("rule", "options"), over_rules(OBJECTIVES), ids=name_of)
def test_all_terms_are_finite_and_every_parameter_learns(toy_data, rule, options):
    torch.manual_seed(0)
    model = WorldModel(2, 1, rule=rule, **SMALL, **options)
    terms, h, carry = model.losses(toy_batches(toy_data)[0])
    assert set(terms) == set(model.weights) and all(value.isfinite() for value in terms.values())
    assert torch.equal(h[:, -1], carry[:, : h.shape[-1]])
    model.total(terms).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"DDP raises for parameters without gradient: {without}"


def test_the_probe_sends_no_gradient_into_the_model(toy_data):
    model = WorldModel(2, 1, objective="latent", **SMALL)
    terms, _, _ = model.losses(toy_batches(toy_data)[0])
    terms["probe"].backward()
    assert all(p.grad is None for p in (*model.encoder.parameters(), *model.predictor.parameters()))
    assert all(p.grad is not None for p in model.decoder.parameters())


def test_open_loop_steps_must_fit_the_segment(toy_data):
    model = WorldModel(2, 1, open_loop_steps=9, **SMALL)
    with pytest.raises(UserError, match="9 is more than the segment of 8"):
        model.losses(toy_batches(toy_data)[0])


@pytest.mark.parametrize("options", [{"base": "none"}, {}, {"feedback": False}], ids=str)
@pytest.mark.parametrize("steps", [3, 5, 8])
def test_trained_rollouts_end_where_the_segment_does(toy_data, steps, options):
    """Of 8 steps, rollouts of 3 start after 2 and after 5, one of 5 after 3; their errors count within an episode.

    With a base they are in units of its error so far ahead; without feedback, as far ahead as it was measured.
    """
    torch.manual_seed(0)
    model, units = WorldModel(2, 1, open_loop_steps=steps, **options, **SMALL).eval(), torch.ones(8, 2)
    if model.base is not None:
        model.base.drifts.uniform_(0.1, 0.9)
        units[:] = model.base.drifts[-1]
    if model.base is not None and model.base.feedback:
        knots = PER_OCTAVE * torch.arange(1, 9).log2()
        below, share = knots.long(), knots.frac().unsqueeze(-1)
        units = (1 - share) * model.base.drifts[below] + share * model.base.drifts[below + 1]
    for batch in toy_batches(toy_data):
        obs, action, valid = model.obs_norm(batch["obs"]), model.action_norm(batch["action"]), batch["valid"]
        z, h, _ = model.observe(batch["obs"][:, :-1], batch["action"], batch["is_first"])
        total = torch.zeros(())
        for start in range(8 % steps, 8, steps):
            before = torch.nn.functional.pad(h, (0, 0, 1, 0))[:, start]
            before = torch.where(batch["is_first"][:, start, None], 0.0, before)
            rollout = model.unroll(z[:, start], before, action[:, start : start + steps])
            pred = model.decoder(rollout.pred) if model.base is None else model.place(rollout.pred)
            errors = ((pred - obs[:, start + 1 : start + 1 + steps]) / units[:steps]).square().mean(dim=-1)
            total += (errors * valid[:, start : start + steps].cumprod(dim=1)).sum()
        terms, _, _ = model.losses(batch)
        torch.testing.assert_close(terms["open_loop"], total / batch["num_valid"])


@pytest.mark.parametrize("reward_head", ["point", "two_hot"])
def test_the_value_of_a_step_is_the_return_behind_it(toy_data, reward_head):
    """Discount 1/2 on a table by hand: a value head that says v everywhere, targets by TD(0.95) within the segment."""
    model = WorldModel(2, 1, **SMALL, value_discount=0.5, reward_head=reward_head).eval()
    model.reward_norm.fit(torch.tensor([0.0]), torch.tensor([2.0]))
    model.fit_rewards(-5.0, 20.0, 0.5)
    torch.nn.init.zeros_(model.value_head[-1].weight)
    said = torch.nn.init.normal_(model.value_head[-1].bias).detach()
    form = model.value_form
    v = float(form.expected(said)) * 2.0 / (1 - 0.5)  # a head counts in rewards' deviations a step
    batch = toy_batches(toy_data)[0] | {
        "reward": torch.tensor([[7.0, 1, 2, 3, 7, 5, 6, 7]]).expand(3, 8),
        "terminated": torch.zeros(3, 8, dtype=torch.bool),
        "valid": torch.ones(3, 8, dtype=torch.bool),
        "num_valid": torch.tensor(24.0),
    }
    batch["terminated"][:, 3] = True  # step 3 ends an episode; step 4 only leads to the next one
    batch["valid"][:, 4] = False
    mixed = 0.05 * v
    late = [6 + 0.5 * (mixed + 0.95 * (7 + 0.5 * v)), 7 + 0.5 * v]  # behind steps 5 and 6; the last one's is not known
    early = [2 + 0.5 * (mixed + 0.95 * 3), 3.0]  # behind steps 1 and 2: nothing follows step 3
    targets = torch.tensor([1 + 0.5 * (mixed + 0.95 * early[0]), *early, *late]) * 0.5 / 2
    if reward_head == "point":
        errors = (said - targets).square()
    else:
        errors = -(form.encode(targets) * said.log_softmax(dim=-1)).sum(dim=-1)
    terms, _, _ = model.losses(batch)
    assert float(terms["value"].detach()) == pytest.approx(3 * float(errors.sum()) / 24, rel=1e-5)
    assert model.weights["value"] == model.hparams["reward_weight"]
    assert "value" not in WorldModel(2, 1, **SMALL).weights


@pytest.mark.parametrize("discount", [1.0, -0.1])
def test_a_value_needs_a_discount(discount):
    with pytest.raises(UserError, match="model.value_discount is"):
        WorldModel(2, 1, **SMALL, value_discount=discount)


def test_open_loop_in_the_units_of_the_data(pendulum_data):
    data = EpisodeDataModule(pendulum_data)
    model = WorldModel(2, 1, **SMALL)
    model.obs_norm.fit(*data.statistics["obs"])
    episode = data.splits["val"]
    obs = torch.from_numpy(episode.obs(episode.rows(0)[:10])).unsqueeze(0)
    assert torch.allclose(model.obs_norm.inverse(model.obs_norm(obs)), obs, atol=1e-6)
    imagined = model.open_loop(model.encode(obs[:, 0]), torch.zeros(1, 10), torch.zeros(1, 7, 1))
    assert imagined.obs.shape == (1, 7, 2) and imagined.reward.shape == imagined.continues.shape == (1, 7)
    assert ((imagined.continues > 0) & (imagined.continues < 1)).all()


@pytest.mark.parametrize("base", ["none", "linear"])
def test_golden_losses(pendulum_data, base):
    """Twenty steps of training tell a refactoring from a change. A change on purpose writes the new numbers here."""
    torch.manual_seed(0)
    data = EpisodeDataModule(pendulum_data, steps=16, lanes=4)
    model = WorldModel(2, 1, open_loop_steps=8, open_loop_weight=0.3, base=base, **SMALL)
    for name, norm in (("obs", model.obs_norm), ("action", model.action_norm), ("reward", model.reward_norm)):
        norm.fit(*data.statistics[name])
    if base == "linear":
        model.base = fitted_base(data.splits["train"], base, None, 16, model.obs_norm, model.action_norm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader, carry, seen = iter(data.train_dataloader()), None, []
    for _ in range(20):
        batch = next(loader)
        if carry is not None:
            batch["carry"] = carry
        terms, _, carry = model.losses(batch)
        loss = model.total(terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[::5] + seen[-1:] == pytest.approx(GOLDEN[base], rel=1e-3)


GOLDEN = {
    "none": [2.91589, 2.01928, 2.60458, 2.39323, 3.15019],
    "linear": [1.48752, 0.80137, 1.47209, 1.81653, 2.00295],
}


def test_a_diverged_step_cannot_hide_in_the_validation_loss():
    metric = WorldModel(2, 1, **SMALL).val_means["loss"]
    metric.update(torch.tensor(1.0), weight=torch.tensor(7.0))
    assert metric.compute() == 1.0
    metric.update(torch.tensor(float("nan")), weight=torch.tensor(3.0))
    assert metric.compute() == float("inf")
