"""A checkpoint in stable-worldmodel's calling convention; with the package itself, where it is installed."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest
import torch

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.agents.swm import WorldModelPolicy
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.errors import UserError

FEW = {"horizon": 3, "candidates": 8, "iterations": 1, "elites": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swm")
    collect(CollectOptions(env_id="Pendulum-v1", steps=400, observe=[0, 1]), folder / "data")
    data = EpisodeDataModule(folder / "data", steps=4, lanes=2)
    torch.manual_seed(0)
    model = WorldModel(data.obs_dim, data.action_dim, latent_dim=4, hidden_dim=6, width=8)
    state = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    torch.save(state | {"EpisodeDataModule": data.state_dict()}, folder / "last.ckpt")
    return folder / "last.ckpt"


class Pool:
    """As its World keeps environments: infos of (N, 1, ...), written in place; episodes that end are reset at once."""

    def __init__(self, env_id, num_envs):
        self.envs = [gym.make(env_id, max_episode_steps=7 + 4 * i) for i in range(num_envs)]
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        first = [env.reset(seed=i)[0] for i, env in enumerate(self.envs)]
        self.infos = {"observation": np.stack(first)[:, None], "step_idx": np.zeros((num_envs, 1), int)}

    def step(self, actions):
        for i, env in enumerate(self.envs):
            obs, _, terminated, truncated, _ = env.step(actions[i])
            self.infos["step_idx"][i] += 1
            if terminated or truncated:
                obs, self.infos["step_idx"][i] = env.reset()[0], 0
            self.infos["observation"][i, 0] = obs


def test_keeps_a_state_an_environment_that_is_closed_loops(run):
    pool, policy = Pool("Pendulum-v1", 3), WorldModelPolicy(run, **FEW)
    policy.set_env(pool)
    seen = {"obs": [], "action": [], "is_first": []}
    for _ in range(25):
        seen["obs"].append(torch.from_numpy(pool.infos["observation"][:, 0, :2].copy()))
        seen["is_first"].append(torch.from_numpy(pool.infos["step_idx"][:, 0] == 0))
        actions = policy.get_action(pool.infos)
        assert actions.shape == (3, 1) and actions.dtype == np.float32 and (abs(actions) <= 2).all()
        seen["action"].append(torch.from_numpy(actions))
        pool.step(actions)
    steps = {name: torch.stack(values, dim=1) for name, values in seen.items()}
    assert steps["is_first"].sum() > 6, "episodes of different lengths began anew"
    *_, carry = policy.trained.model.observe(steps["obs"], steps["action"], steps["is_first"])
    torch.testing.assert_close(policy.agent.carry, carry, rtol=0, atol=1e-6)
    policy.set_env(pool)
    assert policy.agent.carry is None, "other environments, another state"


def test_mistakes(run):
    policy = WorldModelPolicy(run, **FEW)
    with pytest.raises(UserError, match="no environment yet"):
        policy.get_action({})
    with pytest.raises(UserError, match="does not fit"):
        policy.set_env(Pool("CartPole-v1", 1))
    pool = Pool("Pendulum-v1", 1)
    policy.set_env(pool)
    with pytest.raises(UserError, match="no 'step_idx'"):
        policy.get_action({"observation": pool.infos["observation"]})


@pytest.mark.skipif(importlib.util.find_spec("stable_worldmodel") is None, reason="worldmodel[swm] is not installed")
def test_in_its_own_evaluator(run):
    """Skipped where torch is a CPU build: it imports torchvision, and PyPI's lacks its operators there (nms)."""
    import stable_worldmodel as swm

    world = swm.World("Pendulum-v1", num_envs=2, add_pixels=False, max_episode_steps=10)
    policy = WorldModelPolicy(run, **FEW)
    assert isinstance(policy, swm.policy.BasePolicy)
    world.set_policy(policy)
    played = world.evaluate(episodes=4, seed=0)
    assert len(played["episode_successes"]) == 4
