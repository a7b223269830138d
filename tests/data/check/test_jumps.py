"""Cuts between episodes in the wrong place, and cuts that are missing."""

import h5py
import numpy as np
import pytest

from tests.data.check.flat import SIMULATORS, cut, misplaced, rows
from worldmodel.data.check import check_episodes
from worldmodel.data.check.block import blocks
from worldmodel.data.check.finding import Recording
from worldmodel.data.check.fragments import Sample
from worldmodel.data.check.jumps import Jumps
from worldmodel.data.readers import open_source

SOME = pytest.mark.parametrize(
    "env_id", ["Pendulum-v1", "CartPole-v1", pytest.param("HalfCheetah-v5", marks=pytest.mark.full)]
)


def jumps(source):
    """The findings of this check alone, as check_episodes makes them."""
    recording, sample = Recording(source), Sample(source, 200_000)
    for block in blocks(source):
        recording.names += block.names
        sample.add(block)
    recording.fragments = sample.fragments()
    return Jumps(source).findings(recording)


@pytest.mark.parametrize("env_id", SIMULATORS)
def test_cuts_that_are_shifted_are_found_and_true_ones_are_not(env_id, often, seen):
    found, alarms, draws = 0, 0, often(50, 2)
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        policy = ("uniform", "smooth")[seed % 2]
        observations, actions, cuts, space = rows(env_id, often(seed, 0), policy)
        source = cut(observations, actions, misplaced(cuts, rng), space)
        found += [finding.check for finding in jumps(source)] == ["cuts in the wrong place"]
        alarms += bool(jumps(cut(observations, actions, cuts, space)))
    seen(f"{env_id}: {found} of {draws} found, {alarms} false alarms")
    assert found >= 0.95 * draws and not alarms


@pytest.mark.parametrize(("off", "where"), [(2, "episode 0, step 199"), (-2, "episode 1, step 1")])
def test_the_step_that_leads_into_the_next_episode_is_named(off, where):
    observations, actions, cuts, space = rows("Pendulum-v1")
    cuts = np.concatenate([cuts[:1], cuts[1:-1] + off, cuts[-1:]])
    (found,) = check_episodes(cut(observations, actions, cuts, space))
    assert (found.level, found.check) == ("error", "cuts in the wrong place")
    assert found.where == f"data.h5, {where}" and "2 rows" in found.what


@SOME
def test_a_whole_set_as_one_episode(env_id):
    observations, actions, cuts, space = rows(env_id)
    checks = {found.check: found for found in check_episodes(cut(observations, actions, cuts[[0, -1]], space))}
    assert {*checks} == {"one episode", "episodes run together"}
    together = checks["episodes run together"]
    places = [f"data.h5, episode 0, step {place - 1}" for place in cuts[1:-1]]
    assert together.where in places and together.count >= 0.5 * len(places)


@SOME
def test_flags_that_are_lost_now_and_then(env_id):
    observations, actions, cuts, space = rows(env_id)
    kept = np.concatenate([cuts[:-1][::2], cuts[-1:]])
    assert [found.check for found in jumps(cut(observations, actions, kept, space))] == ["episodes run together"]


def test_a_file_of_d4rl_read_with_the_wrong_length(tmp_path):
    observations, actions, cuts, _ = rows("Pendulum-v1")
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        file["observations"], file["actions"] = observations, actions
        file["rewards"], file["terminals"] = np.zeros(len(actions), np.float32), np.zeros(len(actions), bool)
    words = {"observations": {"observation": "observations"}, "actions": "actions", "rewards": "rewards"}
    words |= {"terminated": "terminals", "final_observation": "missing"}
    for length, checks in ((1600, ["episodes run together"]), (200, [])):
        schema = {"episodes": {"lengths": length}, **words}
        found = check_episodes(open_source(tmp_path / "d4rl.hdf5", schema=schema))
        assert [f.check for f in found if f.check != "constant"] == checks
