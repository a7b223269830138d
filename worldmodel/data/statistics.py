"""Means and variances over episodes, in one pass over blocks of rows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.episodes import Episodes

BLOCK = 65_536  # rows at a time
IMAGE_SAMPLE = 4096  # evenly spaced frames from which the moments of images are taken


class Moments(NamedTuple):
    """Per entry. Pixels have the mean variance of their image's pixels, since a single pixel may never change."""

    mean: np.ndarray  # (X,) float64
    var: np.ndarray  # (X,) float64


def observation_moments(episodes: Episodes) -> Moments:
    """The moments (O,) of all observations of these episodes."""
    layout = episodes.layout
    vectors = [_moments(episodes.frames.take(rows, axis=0)[:, : layout.vector_dim]) for rows in _blocks(episodes)]
    parts = [_merge(vectors)]
    if episodes.images is not None:
        every = np.concatenate([episodes.rows(i) for i in range(len(episodes))])
        sample = every[np.linspace(0, len(every) - 1, min(len(every), IMAGE_SAMPLE)).astype(np.int64)]
        images = [
            _moments(episodes.images.take(rows, axis=0)) for rows in np.array_split(sample, -(-len(sample) // 256))
        ]
        mean, var = _merge(images)
        sizes = [h * w * c for h, w, c in layout.images.values()]
        pooled = [np.full(len(part), part.mean()) for part in np.split(var, np.cumsum(sizes)[:-1])]
        parts.append(Moments(mean, np.concatenate(pooled)))
    return Moments(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def observation_range(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value (O,) of each entry of the vectors of these episodes."""
    size = episodes.layout.vector_dim
    ends = [
        (part.min(axis=0), part.max(axis=0))
        for part in (episodes.frames.take(r, axis=0)[:, :size] for r in _blocks(episodes))
    ]
    low, high = zip(*ends, strict=True)
    return np.min(low, axis=0), np.max(high, axis=0)


class StepStatistics(NamedTuple):
    """The moments of actions and rewards, and the range of the rewards."""

    action: Moments  # (A,)
    reward: Moments  # (1,)
    reward_range: float


def step_statistics(episodes: Episodes) -> StepStatistics:
    """Statistics of all transitions of these episodes."""
    size = episodes.layout.vector_dim
    actions, rewards, ends = [], [], []
    for rows in _blocks(episodes, last=False):
        steps = episodes.frames.take(rows, axis=0)
        actions.append(_moments(steps[:, size + 2 :]))
        rewards.append(_moments(steps[:, size : size + 1]))
        ends += [float(steps[:, size].min()), float(steps[:, size].max())]
    return StepStatistics(_merge(actions), _merge(rewards), max(ends) - min(ends))


def reward_extent(episodes: Episodes) -> tuple[float, float, float]:
    """The least and the greatest reward of these episodes, and the mean absolute deviation from their mean."""
    size = episodes.layout.vector_dim
    blocks = [episodes.frames.take(rows, axis=0)[:, size].astype(np.float64) for rows in _blocks(episodes, last=False)]
    rewards = np.concatenate(blocks)
    return float(rewards.min()), float(rewards.max()), float(np.abs(rewards - rewards.mean()).mean())


def normalization(episodes: Episodes) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of observations (O,), actions (A,) and rewards (1,), to normalise them with.

    One-hot entries keep their units: mean 0, deviation 1. Each pixel has its own mean, and its image's deviation. A
    reward's deviation is at least an eighth of its range: otherwise one that comes once an episode would outweigh
    everything else by its square.
    """
    layout, steps = episodes.layout, step_statistics(episodes)
    continuous, continuous_action = layout.continuous()
    mean, std = _mean_std(steps.reward, np.ones(1, bool))
    return {
        "obs": _mean_std(observation_moments(episodes), np.append(continuous, np.ones(layout.pixels, bool))),
        "action": _mean_std(steps.action, np.full(layout.action_dim, continuous_action)),
        "reward": (mean, std.clamp(min=steps.reward_range / 8)),
    }


def _mean_std(moments: Moments, continuous: np.ndarray) -> tuple[Tensor, Tensor]:
    mean, std = np.where(continuous, moments.mean, 0.0), np.where(continuous, np.sqrt(moments.var), 1.0)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _blocks(episodes: Episodes, last: bool = True) -> Iterator[np.ndarray]:
    """Row numbers of all frames, a few episodes at a time; without the last frame of each unless `last`."""
    block: list[np.ndarray] = []
    size = 0
    for i in range(len(episodes)):
        rows = episodes.rows(i)
        block.append(rows if last else rows[:-1])
        size += len(rows)
        if size >= BLOCK or i == len(episodes) - 1:
            yield from np.array_split(np.concatenate(block), -(-size // BLOCK))
            block, size = [], 0


def _moments(values: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    return len(values), values.mean(axis=0, dtype=np.float64), values.var(axis=0, dtype=np.float64)


def _merge(blocks: list[tuple[int, np.ndarray, np.ndarray]]) -> Moments:
    """The moments of all rows from those of blocks (Chan, Golub & LeVeque 1979)."""
    counts = np.array([count for count, _, _ in blocks], dtype=np.float64)[:, None]
    means, variances = (np.stack([block[i] for block in blocks]) for i in (1, 2))
    mean = (counts * means).sum(axis=0) / counts.sum()
    return Moments(mean, (counts * (variances + np.square(means - mean))).sum(axis=0) / counts.sum())
