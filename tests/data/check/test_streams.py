"""Planted faults of streams: clocks, rewards and flags among the observations, pictures, frozen stretches, units."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data.check.recordings import cartpole, closed_loop, images, pendulum, source_of
from worldmodel.data.check import check_episodes


def noise(observation, rng):
    return rng.uniform(-1, 1)


def found(source, check):
    """The one finding of this kind; none of the other new kinds."""
    findings = [finding for finding in check_episodes(source) if finding.check != "constant"]
    assert [finding.check for finding in findings] == [check], findings
    assert findings[0].remedy
    return findings[0]


def with_key(source, key, values, rate=float("nan")):
    """The source with a further observation; `values(number, episode)` gives its rows."""
    changed = [
        replace(episode, observations={**episode.observations, key: values(i, episode)}, rate=rate)
        for i, (_, episode) in enumerate(source.episodes())
    ]
    return source_of(changed, source.action_space)


def clock(rate, change=lambda i, times: times):
    return with_key(pendulum("uniform"), "time", lambda i, e: change(i, np.arange(len(e) + 1) / 20)[:, None], rate)


def test_an_even_clock_is_no_fault():
    assert check_episodes(clock(20.0)) == []


def test_a_clock_that_skips():
    place = found(clock(20.0, lambda i, times: times + 0.15 * (i == 4) * (times > 3)), "clock skips")
    assert place.where == "data.h5, episode 4, step 60" and "'time'" in place.what


def test_a_clock_that_goes_back():
    place = found(clock(20.0, lambda i, times: times - 2 * (i == 4) * (times > 3)), "clock goes back")
    assert (place.level, place.where) == ("error", "data.h5, episode 4, step 60")


def test_a_clock_that_drifts_from_the_declared_rate():
    assert "1.05 times" in found(clock(20.0, lambda i, times: 1.05 * times), "clock off its rate").what
    found(clock(20.0, lambda i, times: 1050 * times), "clock off its rate")  # milliseconds
    assert "0.5 times" in found(clock(10.0), "clock off its rate").what
    assert check_episodes(clock(20.0, lambda i, times: 1000 * times)) == []
    assert check_episodes(clock(5.0, lambda i, times: np.arange(len(times)))) == []  # a counter


@pytest.mark.parametrize("after", [True, False])
def test_the_reward_among_the_observations(after):
    def reward(_, episode):
        nothing = np.zeros(1)
        return np.concatenate([nothing, episode.rewards] if after else [episode.rewards, nothing])[:, None]

    place = found(with_key(pendulum("uniform"), "extra", reward), "reward among the observations")
    assert place.where == "data.h5, extra" and ("before" if after else "after") in place.what


@pytest.mark.parametrize("flag", ["first", "last", "terminal", "but one"])
def test_a_flag_among_the_observations(flag):
    def flags(_, episode):
        values = np.zeros((len(episode) + 1, 2), np.float32)
        values[:, 1] = np.random.default_rng(0).normal(size=len(values))
        values[{"first": 0, "last": -1, "terminal": -1, "but one": -2}[flag], 0] = 1
        if flag == "terminal":
            values[-1, 0] = episode.terminated
        return values

    base = cartpole("uniform")
    parts = [replace(e, terminated=i % 2 == 0, truncated=i % 2 == 1) for i, (_, e) in enumerate(base.episodes())]
    source = with_key(source_of(parts, base.action_space), "extra", flags)
    place = found(source, "flag among the observations")
    assert "entry 0" in place.what and flag in place.what


@pytest.mark.parametrize(("kind", "dtype"), [("JPEG", np.uint8), ("PNG", np.uint8), ("JPEG", np.float32)])
def test_pictures_that_were_never_decoded(kind, dtype):
    rng = np.random.default_rng(0)

    def files(_, episode):
        rows = np.zeros((len(episode) + 1, 2000), np.uint8)
        for row in rows:
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(file, kind)
            row[: len(file.getvalue())] = np.frombuffer(file.getvalue(), np.uint8)
        return rows.astype(dtype)

    short = closed_loop(noise, episodes=4, steps=20)
    checks = {finding.check: finding for finding in check_episodes(with_key(short, "camera", files))}
    place = checks["compressed pictures"]
    assert place.level == "error" and place.where == "data.h5, episode 0, step 0" and "--skip camera" in place.remedy


def test_an_encoder_that_freezes():
    parts = [episode for _, episode in pendulum("uniform").episodes()]
    values = parts[7].observations["observation"].copy()
    values[100:130, 2] = values[100, 2]
    parts[7] = replace(parts[7], observations={"observation": values})
    place = found(source_of(parts), "frozen")
    assert place.where == "data.h5, episode 7, step 100" and "entry 2, stands still for 29 steps" in place.what


def test_a_camera_that_freezes_for_a_while():
    base = images("uniform")
    parts = [episode for _, episode in base.episodes()]
    frames = parts[7].observations["pixels"].copy()
    frames[40:60] = frames[40]
    parts[7] = replace(parts[7], observations={"pixels": frames})
    source = replace(source_of(parts, base.action_space), observation_space=base.observation_space)
    assert found(source, "frozen").where == "data.h5, episode 7, step 40"


@pytest.mark.parametrize(("factor", "units"), [(180 / np.pi, "degrees and radians"), (1000, "millimetres")])
def test_episodes_in_other_units(factor, units):
    parts = [episode for _, episode in pendulum("uniform").episodes()]
    for i in (2, 5, 11):
        values = parts[i].observations["observation"].copy()
        values[:, 2] *= factor
        parts[i] = replace(parts[i], observations={"observation": values})
    findings = check_episodes(source_of(parts))
    (place,) = [finding for finding in findings if finding.check == "mixed units"]
    assert (place.where, place.count) == ("data.h5, episode 2, step 0", 3) and units in place.what


def test_actions_in_other_units():
    parts = [episode for _, episode in closed_loop(noise).episodes()]
    parts[:8] = [replace(part, actions=part.actions * np.float32(180 / np.pi)) for part in parts[:8]]
    (place,) = [finding for finding in check_episodes(source_of(parts)) if finding.check == "mixed units"]
    assert place.count == 8 and place.what.startswith("actions, entry 0")
