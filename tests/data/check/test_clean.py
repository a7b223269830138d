"""No false alarm on clean recordings, whatever the simulator and the policy."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.check.recordings import (
    cartpole,
    cheetah,
    closed_loop,
    images,
    lander,
    pendulum,
    played,
    record,
    source_of,
    with_episodes,
)
from worldmodel.data.check import check_episodes


def splits(episodes):
    order = np.random.default_rng(0).permutation(episodes)
    cut = episodes * 4 // 5
    return {"train": order[:cut], "val": order[cut:]}


@pytest.mark.parametrize(
    ("recording", "policy"),
    [
        *((recording, "uniform") for recording in (pendulum, cartpole, cheetah, images)),
        (pendulum, "smooth"),
        *(pytest.param(recording, "smooth", marks=pytest.mark.full) for recording in (cartpole, cheetah, images)),
    ],
)
def test_clean_recordings_of_simulators_give_no_finding(recording, policy):
    assert check_episodes(recording(policy), splits) == []


@pytest.mark.parametrize("policy", ["uniform", pytest.param("smooth", marks=pytest.mark.full)])
def test_of_the_lunar_lander_only_its_own_bounds_are_reported(policy):
    # it does leave the velocities it declares (-10 to 10) now and then: a true finding
    assert {found.check for found in check_episodes(lander(policy), splits)} <= {"out of bounds"}


@pytest.mark.parametrize("policy", ["uniform", pytest.param("smooth", marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("env_id", "episodes", "steps"),
    [
        ("MountainCarContinuous-v0", 8, 300),  # walls, at which a speed is zero; rewards that never vary
        ("Reacher-v5", 40, 50),  # a target that is constant in an episode
        ("Hopper-v5", 60, 200),  # contacts, falls
        ("FrozenLake-v1", 150, 100),  # discrete observations, sparse rewards, short episodes
        ("CliffWalking-v1", 30, 50),  # sent back to the start, within an episode
        ("Acrobot-v1", 12, 500),  # fast: its observation turns by a radian a step
        *(
            pytest.param(*rest, marks=pytest.mark.full)
            for rest in (("Swimmer-v5", 8, 300), ("BipedalWalker-v3", 9, 400))
        ),
    ],
)
def test_clean_recordings_of_other_kinds_give_no_finding(env_id, episodes, steps, policy):
    assert check_episodes(record(env_id, episodes, policy, steps=steps), splits) == []


@pytest.mark.parametrize("entries", [1, 2])
def test_an_angle_that_wraps_around_gives_no_finding(entries):
    def wrap(_, episode):
        x, y, speed = episode.observations["observation"].T
        return replace(episode, observations={"observation": np.stack([np.arctan2(y, x), speed], axis=1)[:, :entries]})

    source = pendulum("uniform")
    leaf = source.observation_space["observation"] | {"shape": [entries], "low": None, "high": None}
    assert check_episodes(replace(with_episodes(source, wrap), observation_space={"observation": leaf}), splits) == []


POLICIES = {
    "linear": lambda o, rng: -1.5 * o[0] - 0.8 * o[1],
    "saturating": lambda o, rng: np.tanh(-3 * o[0] - 2 * o[1]),
    "switching": lambda o, rng: -np.sign(o[0] + o[1]),
    "noisy": lambda o, rng: -1.5 * o[0] - 0.8 * o[1] + 0.3 * rng.normal(),
    "wavy": lambda o, rng: np.sin(5 * o[0] + 3 * o[1]),
}


@pytest.mark.parametrize("noise", [0.0, 0.03, *(pytest.param(n, marks=pytest.mark.full) for n in (0.001, 0.3))])
@pytest.mark.parametrize("policy", POLICIES)
def test_feedback_policies_are_not_taken_for_shifted_actions(policy, noise):
    assert check_episodes(closed_loop(POLICIES[policy], noise), splits) == []


def pd_control(o, rng):
    return -10 * o[1] - 2 * o[2]


def swing_up(o, rng):
    return 2 * np.sign(o[2]) if o[0] < 0.7 else pd_control(o, rng)


def balance(o, rng):
    return rng.integers(2) if rng.random() < 0.2 else int(o[2] + 0.5 * o[3] + 0.1 * o[0] + 0.2 * o[1] > 0)


@pytest.mark.parametrize(
    ("env_id", "policy"), [("Pendulum-v1", pd_control), ("Pendulum-v1", swing_up), ("CartPole-v1", balance)]
)
def test_controllers_on_simulators_give_no_finding(env_id, policy):
    assert check_episodes(played(env_id, 20, policy, steps=200), splits) == []


@pytest.mark.parametrize("policy", ["uniform", pytest.param("smooth", marks=pytest.mark.full), swing_up])
def test_a_hidden_velocity_gives_no_finding(policy):
    source = pendulum(policy) if isinstance(policy, str) else played("Pendulum-v1", 20, policy, steps=200)

    def hide(_, episode):
        return replace(episode, observations={"observation": episode.observations["observation"][:, :2]})

    hidden = with_episodes(source, hide)
    leaf = source.observation_space["observation"] | {"shape": [2], "low": None, "high": None}
    assert check_episodes(replace(hidden, observation_space={"observation": leaf}), splits) == []


def test_episodes_at_different_speeds_are_not_different_rates():
    source = played("Pendulum-v1", 20, lambda o, rng: rng.uniform(-2, 2), steps=200)
    calm = played("Pendulum-v1", 20, lambda o, rng: -0.9 * o[2], steps=200, seed=7)
    both = [episode for s in (source, calm) for _, episode in s.episodes()]
    assert check_episodes(source_of(both, source.action_space), splits) == []


@pytest.mark.parametrize("still", [8, 15])
def test_standing_still_and_a_common_start_are_no_copies(still):
    rng = np.random.default_rng(0)
    source = closed_loop(lambda o, rng: rng.uniform(-1, 1))
    start = next(source.episodes())[1]

    def change(_, episode):
        observations, actions = episode.observations["observation"].copy(), episode.actions.copy()
        observations[:20], actions[:20] = start.observations["observation"][:20], start.actions[:20]
        place = rng.integers(30, 60)
        observations[place : place + still], actions[place : place + still] = 1.0, 0.0
        return replace(episode, observations={"observation": observations}, actions=actions)

    found = check_episodes(with_episodes(source, change), splits)
    assert not [f for f in found if f.check in ("overlapping episodes", "duplicated episodes", "splits share frames")]


def test_recordings_cut_at_the_end_keep_their_good_name():
    source = cartpole("uniform")
    cut = with_episodes(source, lambda i, e: replace(e, terminated=i > 10, truncated=i <= 10))
    assert check_episodes(cut, splits) == []


@pytest.mark.parametrize("episodes", [1, 2])
def test_tiny_datasets_are_read_without_complaint(episodes):
    source = pendulum("uniform")
    few = [episode for _, episode in source.episodes()][:episodes]
    assert [f.check for f in check_episodes(source_of(few))] == ["one episode"] * (episodes == 1)
    short = [
        replace(
            e, observations={k: v[:2] for k, v in e.observations.items()}, actions=e.actions[:1], rewards=e.rewards[:1]
        )
        for e in few
    ]
    check_episodes(source_of(short))  # of single steps much is constant: only that nothing breaks


def test_a_bounded_sample_gives_the_same_verdict():
    assert check_episodes(pendulum("uniform"), splits, max_steps=1000) == []
