"""A model that acts: its memory in the environment is the one that it has on the recorded episodes."""

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from worldmodel.agents.agent import ModelAgent
from worldmodel.agents.search import Categoricals, Gaussians
from worldmodel.agents.trained import fresh_plan
from worldmodel.data import spaces
from worldmodel.data.episodes import Layout
from worldmodel.data.spaces import describe, describe_observation
from worldmodel.envs.make import make_simulator
from worldmodel.envs.observe import Observed
from worldmodel.envs.play import play
from worldmodel.errors import UserError
from worldmodel.model import Model


def model_for(layout, rule="gated_norm"):
    torch.manual_seed(0)
    model = Model(layout.obs_dim, layout.action_dim, None, 6, 8, rule, 2, -1.0, 8, 1, 4, 1, "reconstruction")
    model.obs_norm.fit(torch.full((layout.obs_dim,), 0.1), torch.full((layout.obs_dim,), 0.7))
    if layout.action_space["type"] == "Box":
        model.action_norm.fit(torch.full((layout.action_dim,), 0.2), torch.full((layout.action_dim,), 1.5))
    return model.double().eval().requires_grad_(False)


@pytest.mark.parametrize(("env_id", "observe"), [("CartPole-v1", [0, 2]), ("Pendulum-v1", [0, 1])])
@pytest.mark.parametrize("rule", ["gated_norm", "lstm"])
def test_its_memory_is_closed_loop_over_what_happened(env_id, observe, rule):
    """Three environments, several episodes each: z and h at each frame equal closed_loop's, in float64."""
    simulator = make_simulator(env_id, 3, max_episode_steps=30)
    envs = simulator.envs
    observed = Observed(envs.single_observation_space, observe)
    layout = Layout(observed.space, describe(envs.single_action_space))
    model, rng, seen = model_for(layout, rule), np.random.default_rng(0), []

    def choose(z, h, is_first):
        action = rng.uniform(-2, 2, (3, layout.action_dim))
        if layout.action_space["type"] == "Discrete":
            action = np.eye(2)[rng.integers(0, 2, 3)]
        action = torch.from_numpy(action)
        seen[-1] |= {"z": z, "h": h, "action": action, "is_first": is_first}
        return action

    agent = ModelAgent(model, layout, observed, choose)

    def policy(observations, is_first):
        seen.append({"obs": torch.from_numpy(observations[:, observe]).double()})
        return agent(observations, is_first)

    play(simulator, policy, 9, seed=0)
    envs.close()
    steps = {name: torch.stack([step[name] for step in seen], dim=1) for name in seen[0]}
    assert steps["is_first"].sum() >= 9 and steps["is_first"].any(dim=1).all()
    z, h, _ = model.observe(steps["obs"], steps["action"], steps["is_first"])
    assert (z - steps["z"]).abs().max() < 1e-12
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1).masked_fill(steps["is_first"].unsqueeze(-1), 0.0)
    assert (before - steps["h"]).abs().max() < 1e-12


@pytest.mark.parametrize(
    "space",
    [
        gs.Box(-2, 3, (2, 2), np.float32),
        gs.Discrete(3, start=5),
        gs.MultiDiscrete([2, 3, 2]),
        gs.MultiBinary(4),
    ],
    ids=lambda space: type(space).__name__,
)
def test_actions_go_to_features_and_back(space):
    leaf = describe(space)
    space.seed(0)
    drawn = np.stack([space.sample() for _ in range(20)])
    back = spaces.values(spaces.features(drawn, leaf), leaf)
    assert np.array_equal(back, drawn) and all(space.contains(value.astype(space.dtype)) for value in back)


def test_an_observation_is_laid_out_as_the_data_is(pendulum_data):
    """A dict with an image and a vector: vectors first, then pixels, as rows of the dataset have them."""
    image = gs.Box(0, 255, (8, 9, 3), np.uint8)
    space = gs.Dict({"camera": image, "joint": gs.Box(-1, 1, (2,)), "mode": gs.Discrete(3)})
    layout = Layout(describe_observation(space), describe(gs.Discrete(2)))
    batch = {"camera": np.full((4, 8, 9, 3), 7, np.uint8), "joint": np.ones((4, 2)), "mode": np.array([0, 1, 2, 1])}
    frames = layout.frames(batch)
    assert frames.shape == (4, layout.obs_dim) and frames.dtype == np.float32
    assert np.array_equal(frames[2, :5], [1, 1, 0, 0, 1]) and (frames[:, 5:] == 7).all()


def test_plans_begin_with_any_action_of_the_space():
    like = torch.zeros((), dtype=torch.float64)
    plan = fresh_plan(describe(gs.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]))), 3, like)(4)
    assert isinstance(plan, Gaussians) and plan.mean.shape == (4, 3, 2) and plan.mean.dtype == torch.float64
    assert torch.equal(plan.mean[0, 0], torch.tensor([0.0, 0.5]).double()) and torch.equal(
        plan.std[0, 0], plan.high / 2 - plan.low / 2
    )
    plan = fresh_plan(describe(gs.MultiDiscrete([2, 3])), 3, like)(4)
    assert isinstance(plan, Categoricals) and plan.sizes == (2, 3) and plan.probabilities.shape == (4, 3, 5)
    with pytest.raises(UserError, match="bounded actions"):
        fresh_plan(describe(gs.Box(-np.inf, np.inf, (1,))), 3, like)
    with pytest.raises(UserError, match="not MultiBinary"):
        fresh_plan(describe(gs.MultiBinary(2)), 3, like)
