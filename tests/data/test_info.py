"""The description of a dataset: its numbers are those of the arrays, its sheet can be drawn."""

from dataclasses import replace

import numpy as np
import pytest

from tests.data.check.recordings import cartpole, cheetah, images, pendulum, source_of, with_episodes
from worldmodel.data.info import describe_dataset, info_table
from worldmodel.evaluation.contact_sheet import contact_sheet


def test_the_numbers_are_those_of_all_episodes_together():
    source = cheetah("uniform")
    episodes = [episode for _, episode in source.episodes()]
    info = describe_dataset(source)
    seen = np.concatenate([episode.observations["observation"] for episode in episodes])
    stats = info.observations["observation"]
    np.testing.assert_allclose(stats.mean, seen.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(stats.std, seen.std(0), rtol=1e-9)
    np.testing.assert_array_equal([stats.low, stats.high], [seen.min(0), seen.max(0)])
    np.testing.assert_allclose(info.returns, [episode.rewards.sum() for episode in episodes])
    assert (info.episodes, info.steps, info.truncated, info.terminated) == (20, 6000, 20, 0)
    assert info.bytes == sum(
        e.observations["observation"].nbytes + e.actions.nbytes + e.rewards.nbytes for e in episodes
    )


def test_images_are_counted_over_all_pixels():
    source = images("uniform")
    stats = describe_dataset(source).observations["pixels"]
    pixels = np.concatenate([episode.observations["pixels"] for _, episode in source.episodes()])
    assert (stats.low.item(), stats.high.item()) == (pixels.min(), pixels.max())
    np.testing.assert_allclose([stats.mean.item(), stats.std.item()], [pixels.mean(), pixels.std()], rtol=1e-9)


def test_actions_are_counted_and_rates_tell_the_time_span():
    source = with_episodes(cartpole("uniform"), lambda i, e: replace(e, rate=10.0))
    info = describe_dataset(source)
    taken = np.concatenate([episode.actions for _, episode in source.episodes()])
    assert info.action_counts is not None
    np.testing.assert_array_equal(info.action_counts, np.bincount(taken))
    assert info.rates == {10.0: 150}
    assert info.seconds == pytest.approx(info.steps / 10)


def test_nan_is_counted_apart():
    def spoil(i, episode):
        observations = {"observation": episode.observations["observation"].copy()}
        observations["observation"][3, 0] = np.nan
        return replace(episode, observations=observations)

    info = describe_dataset(with_episodes(pendulum("uniform"), spoil))
    stats = info.observations["observation"]
    assert stats.not_finite == 20
    assert np.isfinite([*stats.mean, *stats.std]).all()
    assert any("20 values are not finite" in value for _, value in info_table(info))


def test_the_table_tells_the_main_numbers():
    table = dict(info_table(describe_dataset(cartpole("uniform"))))
    assert table["episodes"] == "150"
    assert table["ends"] == "100% terminated, 0% truncated"
    assert table["action"] == "one of 2"
    assert table["actions taken"].startswith("0: ")


@pytest.mark.parametrize("recording", [pendulum, cartpole, images])
def test_the_sheet_can_be_drawn(recording, tmp_path):
    source = recording("uniform")
    contact_sheet(source, describe_dataset(source)).savefig(tmp_path / "sheet.png", dpi=40)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_single_episode_can_be_drawn(tmp_path):
    source = source_of([next(pendulum("uniform").episodes())[1]])
    contact_sheet(source, describe_dataset(source)).savefig(tmp_path / "sheet.png", dpi=40)
