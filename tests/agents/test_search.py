"""The searches, on problems whose best actions are known."""

from functools import partial

import pytest
import torch

from worldmodel.agents.search import (
    FLOOR,
    Categoricals,
    Gaussians,
    elite_weights,
    expected_return,
    search,
    softmax_weights,
)

CEM, MPPI = partial(elite_weights, elites=20), partial(softmax_weights, temperature=0.3)
LOW, HIGH = torch.tensor([-1.0, -3.0]), torch.tensor([2.0, 1.0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("weights", [CEM, MPPI], ids=["cem", "mppi"])
def test_finds_the_top_of_a_quadratic_in_every_lane(weights):
    """Two lanes with tops of their own, one of them beyond a bound: the bound is the best."""
    tops = torch.tensor([[[0.5, -2.0], [1.0, 0.0], [-0.5, 0.5]], [[0.0, 0.0], [2.4, -2.5], [1.5, -3.4]]])

    def objective(actions):
        return -(actions.unflatten(0, (2, -1)) - tops.unsqueeze(1)).square().sum(dim=(-1, -2)).flatten()

    plan = search(objective, Gaussians.fresh(2, 3, LOW, HIGH), weights, generator(), candidates=400, iterations=12)
    assert (plan.mean - tops.clamp(LOW, HIGH)).abs().max() < 0.08
    assert torch.equal(plan.action, plan.mean[:, 0])


@pytest.mark.parametrize("weights", [CEM, MPPI], ids=["cem", "mppi"])
def test_finds_the_best_choices(weights):
    """Two factors a step, of 3 and 2 choices; the score is a sum, with an interaction of neighbouring steps."""
    best = torch.tensor([[2, 1], [0, 0], [1, 1], [2, 0]])
    hot = torch.cat([torch.nn.functional.one_hot(best[:, i], n) for i, n in enumerate((3, 2))], dim=-1).float()

    def objective(actions):
        right = (actions * hot).sum(dim=-1)  # (N, H), of 2
        return right.sum(dim=-1) + (right[:, 1:] * right[:, :-1]).sum(dim=-1)

    plan = search(objective, Categoricals.fresh(1, 4, (3, 2)), weights, generator(), candidates=300, iterations=6)
    assert torch.equal(plan.probabilities[0].round(), hot)
    assert torch.equal(plan.action, hot[:1])


def test_what_is_drawn_follows_the_probabilities_and_persists():
    probabilities = torch.tensor([0.2, 0.5, 0.3]).expand(1, 40, 3)
    plan = Categoricals(probabilities, (3,))
    drawn = {}

    def objective(actions):
        drawn["actions"] = actions
        return torch.zeros(len(actions))

    all_alike = partial(elite_weights, elites=4000)
    search(objective, plan, all_alike, generator(), candidates=4000, iterations=1, persistence=0.8)
    actions = drawn["actions"][1:]  # the first is the middle of the plan
    assert (actions.sum(dim=-1) == 1).all()
    assert (actions.mean(dim=(0, 1)) - probabilities[0, 0]).abs().max() < 0.02
    same = (actions[:, 1:] * actions[:, :-1]).sum(dim=-1).mean()
    assert same > 0.6, "independent draws are the same with probability 0.38"


@pytest.mark.parametrize("persistence", [0.0, 0.7])
def test_noise_keeps_its_spread_and_has_the_correlation_asked_for(persistence):
    drawn = {}

    def objective(actions):
        drawn["actions"] = actions[1:, :, 0]
        return torch.zeros(len(actions))

    wide = torch.full((1,), 1e3)
    plan = Gaussians(torch.zeros(1, 20, 1), torch.ones(1, 20, 1), -wide, wide)
    search(objective, plan, MPPI, generator(), candidates=5000, iterations=1, persistence=persistence)
    noise = drawn["actions"]
    assert torch.allclose(noise.std(dim=0), torch.ones(20), atol=0.04)
    assert float((noise[:, 1:] * noise[:, :-1]).mean()) == pytest.approx(persistence, abs=0.02)


def test_weights_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 5.0, 1.0]])
    assert torch.equal(elite_weights(scores, 2), torch.tensor([[0.5, 0, 0.5, 0], [0, 0, 0.5, 0.5]]))
    assert torch.equal(elite_weights(scores, 9), torch.full((2, 4), 0.25)), "more elites than candidates"
    one = torch.tensor([[0.0, 2.0]])  # of deviation 1
    expected = torch.tensor([[1.0, torch.e**4]]) / (1 + torch.e**4)
    assert torch.allclose(softmax_weights(one, 0.5), expected)
    assert torch.allclose(softmax_weights(1000 * one, 0.5), expected), "the unit of the scores does not matter"
    assert torch.equal(softmax_weights(torch.ones(1, 4), 0.5), torch.full((1, 4), 0.25))


@pytest.mark.parametrize("weights", [CEM, MPPI], ids=["cem", "mppi"])
def test_a_rollout_that_diverges_is_never_chosen(weights):
    def objective(actions):
        score = -10 - actions[:, 0, 0]  # a score of 0 would be the best
        return torch.where(actions[:, 0, 0] < 0, torch.nan, score)

    plan = search(objective, Gaussians.fresh(1, 2, LOW, HIGH), weights, generator(), iterations=8)
    assert plan.mean.isfinite().all() and 0 <= plan.mean[0, 0, 0] < 0.2

    plan = search(lambda actions: actions[:, 0, 0] * torch.nan, Gaussians.fresh(1, 2, LOW, HIGH), weights, generator())
    assert plan.mean.isfinite().all(), "nothing is known, and nothing breaks"


def test_the_next_plan_is_one_step_on_and_forgets_at_an_episodes_start():
    fresh = Gaussians.fresh(2, 3, LOW, HIGH)
    plan = Gaussians(torch.arange(12.0).view(2, 3, 2) / 12, 0.1 * fresh.std, LOW, HIGH)
    on = plan.shifted(torch.tensor([False, True]))
    assert torch.equal(on.mean[0, :2], plan.mean[0, 1:]) and torch.equal(on.mean[0, 2], (LOW + HIGH) / 2)
    assert torch.equal(on.mean[1], fresh.mean[1])
    assert torch.equal(on.std, fresh.std), "as wide as at first"

    sure = torch.eye(3).expand(2, 3, 3)
    on = Categoricals(sure, (3,)).shifted(torch.tensor([False, True])).probabilities
    assert torch.allclose(on[0, :2], (sure[0, 1:] + 1 / 3) / 2), "half forgotten"
    assert torch.allclose(on[0, 2], torch.full((3,), 1 / 3)) and torch.allclose(on[1], torch.full((3, 3), 1 / 3))


def test_no_search_is_ever_sure():
    plan = Categoricals.fresh(1, 1, (2,)).fitted(torch.tensor([[[[1.0, 0.0]]]]), torch.ones(1, 1))
    assert torch.allclose(plan.probabilities, torch.tensor([1 - FLOOR / 2, FLOOR / 2]))
    plan = Gaussians.fresh(1, 1, LOW, HIGH).fitted(torch.zeros(1, 1, 1, 2), torch.ones(1, 1))
    assert torch.allclose(plan.std, FLOOR * (HIGH - LOW) / 2)


def test_expected_return_by_hand():
    reward, continues = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.25, 0.8]])
    assert float(expected_return(reward, continues)) == 1 + 0.5 * 2 + 0.5 * 0.25 * 4
    assert float(expected_return(reward, continues, 0.5)) == 1 + 0.25 * 2 + 0.25 * 0.125 * 4
    value = torch.tensor([10.0])
    expected = 1.5 + 0.25 * 0.125 * 4 + 0.25 * 0.125 * 0.4 * 10
    assert float(expected_return(reward, continues, 0.5, value)) == pytest.approx(expected)
