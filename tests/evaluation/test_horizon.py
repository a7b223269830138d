"""Open-loop curves with models whose errors are known."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from memory import all_obs, episodes_of
from toy_env import next_observation

from worldmodel.data.episodes import Episodes, Layout
from worldmodel.errors import UserError
from worldmodel.evaluation import rollouts
from worldmodel.evaluation.curves import horizon_curves
from worldmodel.evaluation.figures import difference, rollout_figure, save
from worldmodel.evaluation.rollouts import Ruler
from worldmodel.evaluation.selection import RolloutOptions


def toy_episodes(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    obs, action = [], []
    for length in lengths:
        o = rng.integers(0, 29, 2).astype(np.float32)
        actions = rng.integers(-2, 3, (length, 1)).astype(np.float32)
        rows = [o]
        for a in actions:
            rows.append(o := next_observation(o, a))
        obs += rows
        action += [*actions, np.zeros(1, np.float32)]
    return episodes_of(np.stack(obs), np.stack(action), lengths)


class Imagined(NamedTuple):
    obs: torch.Tensor
    z: torch.Tensor
    h: torch.Tensor


class Exact:
    """Knows the toy environment; its state counts the frames that it has seen."""

    device = torch.device("cpu")

    def observe(self, obs, action, is_first, h):
        h = torch.zeros(len(obs), 1) if h is None else h
        states = []
        for first in is_first.unbind(1):
            h = h.masked_fill(first.unsqueeze(1), 0) + 1
            states.append(h)
        return obs, torch.stack(states, 1), h

    def step(self, z, a):
        return torch.from_numpy(next_observation(z.numpy(), a.numpy()))

    def open_loop(self, z, h, action):
        self.started_with = getattr(self, "started_with", h)
        rows = []
        for a in action.unbind(1):
            rows.append(z := self.step(z, a))
        preds = torch.stack(rows, 1)
        return Imagined(preds, preds, h.unsqueeze(1).expand(-1, len(rows), -1))


class CopyLast(Exact):
    def step(self, z, a):
        return z


class FailsAfter(Exact):
    """Exact for a number of steps, then a constant."""

    def __init__(self, steps):
        self.steps, self.done = steps, 0

    def step(self, z, a):
        self.done += 1
        return super().step(z, a) if self.done <= self.steps else torch.full_like(z, 1e3)


def test_the_options_have_defaults_and_bounds():
    options = RolloutOptions()
    assert options.multiples == (1, 2, 5, 10, 50) and RolloutOptions([5, 1, 5]).multiples == (1, 5)
    assert (options.burn_in, options.starts, options.threshold, options.examples) == (None, 8, 0.5, 3)
    many = toy_episodes(*[1] * 70)
    assert len(options.first_episodes(many)) == 64 and len(RolloutOptions(max_episodes=3).first_episodes(many)) == 3
    wrong = {"multiples": (0, 1)}, {"multiples": ()}, {"starts": 0}, {"max_episodes": 0}, {"examples": 0}
    for arguments in (*wrong, {"burn_in": -1}):
        with pytest.raises(UserError, match="must be at least 1, burn_in at least 0"):
            RolloutOptions(**arguments)
    assert RolloutOptions(burn_in=0).burn_in == 0


def test_an_exact_model_has_no_error_at_any_horizon():
    model = Exact()
    curves = horizon_curves(model, toy_episodes(300, 250, 120), 10, RolloutOptions((1, 2, 5, 10), starts=4))
    assert (curves.nmse == 0).all() and len(curves.horizon) == 100 and curves.crossing is None
    lengths = [100, 100, 100, 50, 100, 100, 100, 50, 100, 90, 70, 50]  # from 4 starts to the end, at most 100
    assert curves.valid_time == pytest.approx(np.mean(lengths), abs=0.5)
    assert (curves.hidden_norm[:10] > 0).all()


def test_copy_last_is_the_copying_model():
    episodes = toy_episodes(300, 250)
    curves = horizon_curves(CopyLast(), episodes, 10, RolloutOptions((1, 2, 5)))
    np.testing.assert_allclose(curves.nmse, curves.copy_last)
    assert 1.2 < curves.copy_last.mean() < 2.8, "two independent draws differ by twice the variance"
    assert curves.mean.mean() == pytest.approx(1.0, abs=0.1)


def test_copy_last_by_hand():
    """An observation that rises by one a step: copying it H steps ahead is off by H."""
    obs = np.arange(41, dtype=np.float32)[:, None]
    episodes = episodes_of(obs, np.zeros((41, 1)), [40])
    curves = horizon_curves(CopyLast(), episodes, 5, RolloutOptions((1, 2), burn_in=3))
    np.testing.assert_allclose(curves.copy_last, curves.horizon**2 / obs.var(), rtol=1e-6)


def test_the_state_has_seen_every_frame_before_the_start():
    model = Exact()
    curves = horizon_curves(model, toy_episodes(300), 7, RolloutOptions((1,), starts=5, burn_in=20))
    starts = np.linspace(20, 300 - 7, 5).astype(int)
    assert curves.burn_in == 20
    assert model.started_with.flatten().tolist() == starts.tolist()


def test_valid_time_and_crossing():
    curves = horizon_curves(FailsAfter(12), toy_episodes(200, 200), 10, RolloutOptions((1, 2, 5)))
    assert curves.crossing == 13 and curves.valid_time == 13


def test_episodes_shorter_than_the_horizon():
    curves = horizon_curves(Exact(), toy_episodes(1, 2, 9, 30), steps=32)
    assert curves.burn_in >= 1 and 1 <= len(curves.horizon) <= 30 and (curves.nmse == 0).all()
    tiny = horizon_curves(Exact(), toy_episodes(1), steps=32)
    assert len(tiny.horizon) == 1 and tiny.burn_in == 0


def test_a_poisoned_episode_stays_alone():
    clean, dirty = toy_episodes(100, 100, 100), toy_episodes(100, 100, 100)
    dirty.frames[dirty.rows(1), :2] = np.nan
    good, bad = (
        horizon_curves(Exact(), episodes, 10, RolloutOptions((1, 2), examples=3)) for episodes in (clean, dirty)
    )
    for i in (0, 2):
        np.testing.assert_array_equal(good.examples[i].prediction, bad.examples[i].prediction)
    assert (good.nmse == 0).all()


def test_a_constant_observation_does_not_count():
    episodes = toy_episodes(100, 100)
    obs, action = all_obs(episodes), episodes.action(np.arange(202))
    wider = episodes_of(np.concatenate([obs, np.full((202, 1), 3.0)], axis=1), action, [100, 100])

    class Wide(Exact):
        def step(self, z, a):
            return torch.cat([super().step(z[:, :2], a), z[:, 2:] + 1e-3], 1)

    curves = horizon_curves(Wide(), wider, 10, RolloutOptions((1,)))
    assert (curves.nmse == 0).all()


def test_a_state_that_explodes_is_a_result(tmp_path):
    class Explodes(Exact):
        def step(self, z, a):
            return z * 1e12

    curves = horizon_curves(Explodes(), toy_episodes(100, 100), 10, RolloutOptions((1, 2), examples=1))
    assert np.isinf(curves.nmse[-1]) and curves.crossing == 1
    save(rollout_figure(curves, 10, "explodes"), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_every_trajectory_of_a_row_is_seen_whole_and_ticks_do_not_overlap():
    curves = horizon_curves(Exact(), toy_episodes(60, 40), 4, RolloutOptions((1, 2), examples=2))
    small, large = curves.examples
    curves = replace(curves, examples=[replace(large, truth=100 + 0 * large.truth), small])
    panels = rollout_figure(curves, 4, "two").axes
    for axes in panels:
        for line in axes.lines if "observation" in axes.get_ylabel() or not axes.get_ylabel() else ():
            if line.get_label() == "truth":
                low, high = axes.get_ylim()
                assert low < line.get_ydata().min() and line.get_ydata().max() < high
    (error,) = (axes for axes in panels if axes.get_ylabel() == "error / variance")
    assert [label.get_text() for label in error.get_xticklabels()] == ["1", "2", "5"]
    assert not error.get_xticklabels(minor=True)


def test_an_image_counts_as_the_whole_vector_and_what_never_varies_not_at_all():
    rng = np.random.default_rng(0)
    shape = {"type": "Box", "shape": [8, 8, 3], "dtype": "uint8"}
    vector = {"type": "Box", "shape": [2], "dtype": "float32"}
    frames = rng.standard_normal((50, 2 + 2 + 1)).astype(np.float32)
    images = rng.integers(0, 256, (50, 192), dtype=np.uint8)
    images[:, :100] = 7  # a still background

    def ruler(frames, images):
        layout = Layout({"v": vector, "i": shape}, vector | {"shape": [1]})
        return Ruler(Episodes(layout, frames, images, np.array([0]), np.array([50]), ["e"]))

    def of_mean(one, frames, images):
        truth = np.concatenate([frames[:, :2], images], axis=1)
        return one.error(one.mean, truth).mean()

    assert of_mean(ruler(frames, images), frames, images) == pytest.approx(1)
    weights = ruler(frames, images)
    shifted = weights.mean.copy()
    shifted[:2] += frames[:, :2].std(0)
    assert weights.error(shifted, weights.mean) == pytest.approx(0.5), "one deviation off in all of the vector: half"
    still = np.full_like(images, 9)
    assert of_mean(ruler(frames, still), frames, still) == pytest.approx(1)
    constant = frames.copy()
    constant[:, :2] = 3
    assert of_mean(ruler(constant, images), constant, images) == pytest.approx(1)


def test_differences_are_grey_bright_and_dark():
    truth, prediction = np.array([[0, 255, 10]], np.uint8), np.array([[255, 0, 10]], np.uint8)
    assert difference(truth, prediction).tolist() == [[255, 0, 127]]


def test_large_observations_are_rolled_out_in_groups(monkeypatch):
    """Some rollouts and some episodes at a time: the same numbers."""
    episodes = toy_episodes(80, 33, 120, 57)
    options = RolloutOptions((1, 2, 5), examples=4)
    whole = horizon_curves(CopyLast(), episodes, 10, options)
    monkeypatch.setattr(rollouts, "BLOCK", 40)
    parts = horizon_curves(CopyLast(), episodes, 10, options)
    for name in ("nmse", "copy_last", "mean", "hidden_norm", "rollouts"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), err_msg=name)
    for one, other in zip(whole.examples, parts.examples, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.truth, other.truth)
        np.testing.assert_array_equal(one.prediction, other.prediction)
