"""A planner in a model: what its scores are, and that it controls what can be controlled."""

import pytest
import torch

from worldmodel.agents.planner import Planner
from worldmodel.agents.search import Categoricals, Gaussians, expected_return
from worldmodel.errors import UserError
from worldmodel.model import Model, Outcome

A = torch.tensor([[1.0, 0.2], [0.0, 1.0]])  # a mass that is pushed
B = torch.tensor([[0.02], [0.2]])
Q, R = torch.diag(torch.tensor([1.0, 0.1])), 0.1 * torch.eye(1)


class Linear(Model):
    """A model by hand: its latent is the state x, its h is z after the step, its reward -(x'Qx + a'Ra)."""

    def __init__(self) -> None:
        super().__init__(2, 1, None, 2, 4, "gru", 1, 0.0, 4, 1, 4, 1, "reconstruction", "none")

    def outcome(self, z, h, action):
        reward, states = [], []
        for a in action.unbind(dim=1):
            reward.append(-((z @ Q) * z).sum(dim=-1) - ((a @ R) * a).sum(dim=-1))
            z = z @ A.T + a @ B.T
            states.append(z)
        made = torch.stack(states, dim=1)
        return Outcome(torch.stack(reward, dim=1), torch.ones(action.shape[:2]), made, made)


def small_model(**options):
    torch.manual_seed(0)
    model = Model(3, 2, None, 6, 8, "gated_norm", 2, -1.0, 8, 1, 4, 1, "reconstruction", **options).double().eval()
    model.reward_norm.fit(torch.tensor([2.0]), torch.tensor([3.0]))
    return model.requires_grad_(False)


def within(bound, horizon):
    bounds = torch.tensor([-bound]), torch.tensor([bound])
    return lambda lanes: Gaussians.fresh(lanes, horizon, *bounds)


def test_a_plan_pays_for_what_the_members_do_not_agree_on():
    model = small_model(members=3)
    with torch.no_grad():
        model.decoder[-1].weight.mul_(100)  # a new one is nearly its base
    generator = torch.Generator().manual_seed(1)
    obs, action = (torch.randn(2, 5, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    z, h, _ = model.observe(obs, action, torch.zeros(2, 5, dtype=torch.bool))
    actions = torch.randn(8, 4, 2, generator=generator, dtype=torch.float64)
    score, paid = (
        Planner(model, within(1.0, 4), discount=0.9, penalty=penalty).objective(z[:, -1], h[:, -2])(actions)
        for penalty in (0.0, 2.0)
    )
    made = model.outcome(*(x.repeat_interleave(4, dim=0) for x in (z[:, -1], h[:, -2])), actions)
    apart = model.decode_each(made.z).std(dim=-2).square().mean(dim=-1).sqrt()  # the observations are not scaled
    cost = expected_return(2 * 3 * apart, made.continues, 0.9, None)
    assert cost.min() > 0
    torch.testing.assert_close(score - paid, cost)
    goal = model.place(model.encode(obs[:1, 0]))
    far, further = (
        Planner(model, within(1.0, 4), goal=goal, penalty=penalty).objective(z[:, -1], h[:, -2])(actions)
        for penalty in (0.0, 2.0)
    )
    torch.testing.assert_close(far - further, (2 * apart).sum(dim=-1))
    with pytest.raises(UserError, match="takes a model of several members"):
        Planner(small_model(), within(1.0, 4), penalty=1.0)
    with pytest.raises(UserError, match="--penalty is -1"):
        Planner(model, within(1.0, 4), penalty=-1.0)


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_the_plan_is_that_of_least_squares(method):
    """A quadratic cost of a linear system has one best sequence, in closed form; from several states at once."""
    steps, starts = 6, torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.3, -2.0]])
    planner = Planner(
        Linear(), within(5.0, steps), method, candidates=400, iterations=10, elites=20, temperature=0.1, persistence=0.2
    )
    action = planner(starts, torch.zeros(3, 4), torch.tensor([True] * 3))

    def residuals(actions, x):  # of the cost as a sum of squares; linear in the actions
        found = []
        for a in actions.unbind():
            found += [*(Q.sqrt() @ x), R[0, 0].sqrt() * a]
            x = A @ x + B[:, 0] * a
        return torch.stack(found)

    for lane, x in enumerate(starts):
        zero = torch.zeros(steps)
        jacobian = torch.autograd.functional.jacobian(lambda actions, x=x: residuals(actions, x), zero)
        best = torch.linalg.lstsq(jacobian, -residuals(zero, x).unsqueeze(1)).solution[:, 0]
        assert (planner.plan.mean[lane, :, 0] - best).abs().max() < 0.1  # of actions within 5
        torch.testing.assert_close(action[lane], planner.plan.mean[lane, 0])


def test_scores_are_the_returns_of_open_loop():
    model = small_model()
    z, h = model.encode(torch.randn(2, 3)), torch.randn(2, 8).double()
    actions = torch.randn(2 * 5, 4, 2).double()
    scores = Planner(model, within(1.0, 4), discount=0.9).objective(z, h)(actions)
    for lane in range(2):
        for n in range(5):
            i = 5 * lane + n
            made = model.open_loop(z[lane : lane + 1], h[lane : lane + 1], actions[i : i + 1])
            torch.testing.assert_close(scores[i : i + 1], expected_return(made.reward, made.continues, 0.9))


def test_behind_the_horizon_comes_what_the_value_head_says():
    model = small_model(value_discount=0.8)
    z, h, actions = model.encode(torch.randn(2, 3)), torch.randn(2, 8).double(), torch.randn(6, 4, 2).double()
    made = model.outcome(z.repeat_interleave(3, 0), h.repeat_interleave(3, 0), actions)
    expected = expected_return(made.reward, made.continues, 0.8, model.value(made.h[:, -1]))
    assert torch.equal(Planner(model, within(1.0, 4)).objective(z, h)(actions), expected), "with its own discount"
    per_step = model.value_head(made.h[:, -1]).squeeze(-1)
    torch.testing.assert_close(model.value(made.h[:, -1]), per_step * 3.0 / (1 - 0.8))
    other = Planner(model, within(1.0, 4), value=lambda z, h: z.sum(dim=-1)).objective(z, h)(actions)
    torch.testing.assert_close(other, expected_return(made.reward, made.continues, 0.8, made.z[:, -1].sum(dim=-1)))


def test_a_goal_is_a_place_to_come_to():
    """The mass stands still at the goal; the reward, which pulls to zero, does not count."""
    goal = torch.tensor([0.7, 0.0])
    planner = Planner(Linear(), within(6.0, 15), goal=goal, candidates=300, iterations=5)
    x = torch.zeros(1, 2)
    for step in range(25):
        x = x @ A.T + planner(x, torch.zeros(1, 4), torch.tensor([step == 0])) @ B.T
    assert (x - goal).abs().max() < 0.15


def test_the_same_seed_gives_the_same_actions_and_lanes_begin_anew_alone():
    model = small_model()
    z, h = model.encode(torch.randn(3, 3)), torch.randn(3, 8).double()

    def fresh(lanes):
        return Categoricals.fresh(lanes, 5, (2,), z)

    one, other = (Planner(model, fresh, "cem", candidates=20, iterations=2, elites=4, seed=3) for _ in range(2))
    first = torch.tensor([True] * 3)
    assert torch.equal(one(z, h, first), other(z, h, first))
    start = one.plan.shifted(torch.tensor([False, True, False]))
    assert torch.equal(start.probabilities[1], fresh(1).probabilities[0])
    assert not torch.equal(start.probabilities[0], fresh(1).probabilities[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "cme"}, "unknown planner 'cme': did you mean 'cem'"),
        ({"candidates": 0}, "--candidates is 0: it must be at least 1"),
        ({"temperature": 0.0}, "--temperature is 0.0: it must be above 0"),
        ({"persistence": 1.5}, "--persistence is 1.5: it must be from 0 to 1"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(UserError, match=words.replace("(", "\\(")):
        Planner(small_model(), within(1.0, 3), **options)
