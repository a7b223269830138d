"""A collection that is interrupted, or whose simulator fails, loses nothing that was finished."""

import json
import os
import resource
import signal
import time
from functools import partial

import numpy as np
import pytest
from envs import odd_envs
from envs.forked import Forked
from toy_env import next_observation

from worldmodel.cli import main
from worldmodel.data.manifest import read_manifest
from worldmodel.data.readers.worldmodel import open_dataset
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.errors import UserError
from worldmodel.runs import display


def whole_episodes(folder):
    """The episodes of a dataset of toys; each is checked to be finished and true."""
    episodes = [episode for _, episode in open_dataset(folder).episodes()]
    for episode in episodes:
        seen = episode.observations["observation"]
        np.testing.assert_array_equal(seen[1:], next_observation(seen[:-1], episode.actions))
        assert episode.terminated or len(episode) == 20
    starts = [episode.observations["observation"].tobytes() for episode in episodes]
    assert len(set(starts)) == len(starts), "an episode was written twice"
    return episodes


def failing(what, **more):
    return CollectOptions(env_id="envs.odd_envs:Failing-v0", steps=2000, num_envs=3, env_kwargs={"what": what, **more})


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_error_in_the_simulator_keeps_the_finished_episodes(tmp_path, vectorization, capfd):
    folder = tmp_path / "d"
    with pytest.raises(UserError) as raised:
        collect(failing("raise", at=200), folder, vectorization)
    line = str(raised.value)
    assert "Failing-v0" in line and "environment 1: ZeroDivisionError: 100 % of the cart is lost (odd_envs.py:" in line
    assert "step 2" in line  # 200 steps and the resets between
    kept = whole_episodes(folder)
    assert f"{len(kept)} episodes ({sum(map(len, kept))} steps)" in line and len(kept) > 20
    assert str(folder) in line and "the same command collects the rest" in line
    assert not read_manifest(folder)["complete"]
    out = capfd.readouterr()
    assert not out.out and "Traceback" not in out.err

    collect({**failing("nothing", seed=3), "seed": 3, "steps": 300}, folder, append=True)
    assert [e for _, e in open_dataset(folder).episodes()][: len(kept)][-1].rewards.tolist() == kept[
        -1
    ].rewards.tolist()
    assert read_manifest(folder)["complete"]


def test_a_process_that_dies_is_named(tmp_path):
    with pytest.raises(UserError, match=r"environment 1 \(exit status -9\) ended by itself.* are kept in "):
        collect(failing("die", at=100), tmp_path / "d", "async")
    assert len(whole_episodes(tmp_path / "d")) > 5


def test_a_failure_before_the_first_episode_leaves_the_folder_free(tmp_path):
    folder = tmp_path / "d"
    with pytest.raises(UserError, match="no episode was finished"):
        collect(failing("raise", at=1), folder)
    assert not folder.exists()
    collect({**failing("nothing"), "steps": 100}, folder)
    before = read_manifest(folder)
    with pytest.raises(UserError, match="is unchanged"):
        collect({**failing("raise", at=1, seed=3), "seed": 3}, folder, append=True)
    after = read_manifest(folder)
    assert (after["files"], after["collected"]) == (before["files"], before["collected"])


def test_a_nan_action_is_refused_at_once(tmp_path):
    odd_envs.nan_at_30.calls = 0
    options = CollectOptions(
        env_id="toy_env:Toy-v0", steps=900, num_envs=3, max_episode_steps=20, policy="envs.odd_envs:nan_at_30"
    )
    with pytest.raises(UserError, match=r"NaN or infinite action at step 30, environment 2.* kept in "):
        collect(options, tmp_path / "d")
    assert all(np.isfinite(episode.actions).all() for episode in whole_episodes(tmp_path / "d"))


def test_a_nan_reward_is_recorded(tmp_path):
    """The check of a dataset finds it; a simulator's fault is data."""
    collect({**failing("nan", at=5), "steps": 100}, tmp_path / "d")
    assert sum(np.isnan(e.rewards).sum() for _, e in open_dataset(tmp_path / "d").episodes()) == 1


def test_an_interrupt_keeps_the_finished_episodes(tmp_path):
    seen = 0

    def interrupt(steps):
        nonlocal seen
        seen += steps
        if seen > 300:
            raise KeyboardInterrupt

    options = CollectOptions(env_id="toy_env:Toy-v0", steps=10_000, max_episode_steps=20)
    with pytest.raises(KeyboardInterrupt, match="kept in .* the same command collects the rest"):
        collect(options, tmp_path / "d", on_steps=interrupt)
    kept = whole_episodes(tmp_path / "d")
    assert len(kept) > 5 and sum(map(len, kept)) <= seen
    with pytest.raises(KeyboardInterrupt):
        seen = 0
        collect(options, tmp_path / "e", keep_interrupted=False, on_steps=interrupt)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_ctrl_c_ends_with_one_line_that_says_what_is_kept(tmp_path, vectorization):
    """The signal goes to every process of the group, as a terminal sends it."""
    folder = tmp_path / "d"
    arguments = ["collect", "envs.odd_envs:Failing-v0", "--out", str(folder), "--steps", "100000000", "--num_envs", "3"]
    arguments += ["--vectorization", vectorization, "--env_kwargs", json.dumps({"what": "nothing"})]
    with open(tmp_path / "out", "w") as out:
        process = Forked(partial(main, arguments), out.fileno(), tmp_path / "err")
    deadline = time.monotonic() + 60
    while not ((folder / "manifest.json").exists() and read_manifest(folder)["episodes"] > 20):
        assert process.is_running() and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130 and (tmp_path / "out").read_text() == ""
    err = (tmp_path / "err").read_text()
    assert len(err.splitlines()) == 1 and "interrupted: the" in err and "the same command collects the rest" in err
    kept = whole_episodes(folder)
    assert f"the {len(kept)} episodes" in err
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(process.pid, 0)


def test_a_ctrl_c_that_reaches_a_worker_is_for_the_main_process_to_answer(tmp_path):
    manifest = collect({**failing("interrupt", at=10), "steps": 300}, tmp_path / "d", "async")
    assert manifest["complete"] and manifest["steps"] == 300


def test_a_folder_that_vanishes_is_named(tmp_path):
    folder, moved = tmp_path / "d", tmp_path / "moved"
    steps = 0

    def take_away(new):
        nonlocal steps
        steps += new
        if steps > 200 and not moved.exists():
            folder.rename(moved)

    with pytest.raises(UserError, match="cannot be written"):
        collect(CollectOptions(env_id="toy_env:Toy-v0", steps=3000, max_episode_steps=20), folder, on_steps=take_away)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", ""], "--out: it must name a folder"),
        (["--out", "x", "--pixels", "big"], "'big' is not a side such as 64"),
        (["--out", "x", "--observe", "a,,b"], "'a,,b' is not a list"),
    ],
)
def test_mistakes_on_the_command_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["collect", "Pendulum-v1", *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and message in line


def test_a_full_disk_keeps_what_was_acknowledged(tmp_path, monkeypatch, capsys):
    """Files may not grow beyond 100 kB: to HDF5 and to us that is a disk without room."""
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, hard))
    try:
        with pytest.raises(SystemExit) as stop:
            main(["collect", "CartPole-v1", "--out", "d", "--steps", "2000000", "--num_envs", "64"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "d cannot be written: File too large" in line
    kept = len(list(open_dataset(tmp_path / "d").episodes())) if (tmp_path / "d").exists() else 0
    assert f"the {kept} episodes" in line if kept else "holds no dataset" in line


def test_a_recording_continues_when_nobody_reads_its_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(display, "LINE_SECONDS", 0)
    reader, writer = os.pipe()
    process = Forked(
        partial(main, ["collect", "CartPole-v1", "--out", "d", "--steps", "2000"]), writer, tmp_path / "err"
    )
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert lines.readline().startswith("collecting CartPole-v1")
    assert process.wait() == 0 and process.err.read_text() == ""
    assert sum(len(episode) for _, episode in open_dataset(tmp_path / "d").episodes()) == 2000
