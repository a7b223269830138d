"""Batches out of episodes in memory, as a map-style dataset and the sampler that walks it."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from worldmodel.batch import Batch
from worldmodel.data.episodes import Episodes
from worldmodel.data.lanes import LaneSchedule


class Segments(Dataset[Batch]):
    """Item n is batch n of the lane schedule: this rank's lanes of it."""

    def __init__(self, episodes: Episodes, schedule: LaneSchedule, rank: int = 0, world_size: int = 1) -> None:
        self.episodes = episodes
        self.schedule = schedule
        self.world_size = world_size
        mine = schedule.lanes // world_size
        self.lanes = slice(rank * mine, (rank + 1) * mine)
        self.starts = episodes.starts

    def __len__(self) -> int:
        return self.schedule.batches_per_epoch

    def __getitem__(self, n: int) -> Batch:
        frames = self.schedule.batch(n)
        num_valid = frames.valid.sum() / self.world_size
        episode, step, valid = frames.episode[self.lanes], frames.step[self.lanes], frames.valid[self.lanes]
        real = episode >= 0
        rows = np.where(real, self.starts[episode] + step, 0)
        steps = rows[:, :-1]
        data = self.episodes
        return Batch(
            obs=_gather(data.obs, rows, real),
            action=_gather(data.action, steps, valid),
            reward=_gather(data.reward, steps, valid),
            terminated=_gather(data.terminated, steps, valid),
            is_first=torch.from_numpy(frames.is_first[self.lanes]),
            valid=torch.from_numpy(valid),
            episode=torch.from_numpy(episode[:, :-1].copy()),
            step=torch.from_numpy(step[:, :-1].copy()),
            num_valid=torch.tensor(num_valid, dtype=torch.float32),
            position=n,
        )


def _gather(values: np.ndarray, rows: np.ndarray, keep: np.ndarray) -> torch.Tensor:
    """values[rows], zero where not `keep`: what stands in a masked row must not reach any computation."""
    picked = values[rows]
    if not keep.all():
        picked[~keep] = 0
    return torch.from_numpy(picked)


class StreamSampler(Sampler[int]):
    """Counts batches from a position, without end; its length is an epoch's.

    Args:
        position: called when an iteration starts; says with which batch.
        batches_per_epoch: what `len` answers.
    """

    def __init__(self, position: Callable[[], int], batches_per_epoch: int) -> None:
        self.position = position
        self.batches_per_epoch = batches_per_epoch

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[int]:
        n = self.position()
        while True:
            yield n
            n += 1
