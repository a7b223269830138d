"""A collector that is killed at any instant loses nothing that it acknowledged, and leaves nothing half done."""

import os
import signal
import time
from functools import partial

import numpy as np
import pytest
from envs.forked import Forked
from toy_env import next_observation, reward_of

from worldmodel.data.manifest import read_manifest
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.data.writer import EpisodeWriter, compact
from worldmodel.envs import collect
from worldmodel.envs.collect import CollectOptions


def collect_forever(folder, seed):
    # acknowledge all the time, so that the kill meets every part of it
    collect.EpisodeWriter = partial(EpisodeWriter, flush_seconds=0.02)
    options = CollectOptions(
        env_id="toy_env:Toy-v0", steps=10**9, seed=seed, num_envs=4, max_episode_steps=40,
        policy="toy_env:integer_actions",
    )  # fmt: skip
    collect.collect(options, folder, append=True, on_acknowledged=lambda new: print(new, flush=True))


def kill_one(folder, seed, seconds) -> int:
    """Collect into the folder, kill after the first acknowledgement and this time; how many were acknowledged."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as lines:
        process = Forked(partial(collect_forever, folder, seed), writer, folder.with_suffix(".err"))
        os.close(writer)
        first = lines.readline()
        time.sleep(seconds)
        process.kill()
        acknowledged = first + lines.read()
    assert process.wait() == -signal.SIGKILL, process.err.read_text()
    return sum(int(line) for line in acknowledged.split("\n")[:-1])  # a line that was cut does not count


def assert_whole(episode):
    before, after = episode.observations["observation"][:-1], episode.observations["observation"][1:]
    np.testing.assert_array_equal(after, next_observation(before, episode.actions))
    np.testing.assert_array_equal(episode.rewards, reward_of(before, episode.actions, after))
    assert episode.terminated == (after[-1, 0] == 0) and (before[1:, 0] != 0).all()
    assert episode.truncated == (len(episode) == 40 and not episode.terminated), "an episode was cut"
    assert episode.terminated or len(episode) == 40


def kill_often(folder, kills):
    rng, seen = np.random.default_rng(0), 0
    for i in range(kills):
        acknowledged = kill_one(folder, 4 * i, rng.uniform(0, 0.4))
        episodes = [episode for _, episode in open_dataset(folder).episodes()]
        assert len(episodes) >= seen + acknowledged, f"kill {i}: {acknowledged} were acknowledged"
        for episode in episodes[seen:]:
            assert_whole(episode)
        seen = len(episodes)
    before = read_manifest(folder)
    compact(folder)
    assert [len(episode) for _, episode in open_dataset(folder).episodes()] == [len(one) for one in episodes]
    assert len(before["files"]) > len(read_manifest(folder)["files"])
    assert {path.suffix for path in folder.iterdir()} == {".h5", ".json"}, "nothing is left behind"


@pytest.mark.fault(17)
def test_a_killed_collector_loses_nothing(tmp_path, often, seen):
    kills = often(50, 3)
    kill_often(tmp_path / "d", kills)
    seen(f"{kills} kills: no acknowledged episode lost, no episode half written")
