"""Batches from episodes, as a map-style dataset and the sampler that walks it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from worldmodel.batch import Batch
from worldmodel.data.episodes import Episodes
from worldmodel.data.lanes import Frames, LaneSchedule


@dataclass(frozen=True)
class _Block:
    """What consecutive batches share, computed once for this rank's lanes."""

    frames: Frames
    rows: np.ndarray  # (B, N + 1) int64 row numbers; arbitrary in padding
    num_valid: list[Tensor]  # per batch
    whole: list[bool]  # per batch: every step is valid


class Segments(Dataset[Batch]):
    """Item n is batch n of the lane schedule, with this rank's lanes.

    `episode` and `step` of a batch are views that neighbouring batches share: do not write to them.
    """

    def __init__(self, episodes: Episodes, schedule: LaneSchedule, rank: int = 0, world_size: int = 1) -> None:
        self.episodes = episodes
        self.schedule = schedule
        self.world_size = world_size
        mine = schedule.lanes // world_size
        self.lanes = slice(rank * mine, (rank + 1) * mine)
        self._blocks: dict[int, _Block] = {}

    def __len__(self) -> int:
        return self.schedule.batches_per_epoch

    def __getitem__(self, n: int) -> Batch:
        block, m = self._block(n)
        data, size, length = self.episodes, self.episodes.layout.vector_dim, self.schedule.steps
        frames, inner = slice(m * length, (m + 1) * length + 1), slice(m * length, (m + 1) * length)
        rows, valid = block.rows[:, frames], block.frames.valid[:, inner]
        table = data.frames.take(rows, axis=0)
        pixels = None if data.images is None else data.images.take(rows, axis=0)
        steps = table[:, :-1, size:]
        if not block.whole[m]:  # values of a masked row must not reach any computation
            steps[~valid] = 0
            padding = block.frames.episode[:, frames] < 0
            table[padding, :size] = 0
            if pixels is not None:
                pixels[padding] = 0
        batch = Batch(
            obs=torch.from_numpy(table[..., :size]),
            reward=torch.from_numpy(steps[..., 0]),
            terminated=torch.from_numpy(steps[..., 1] > 0),
            action=torch.from_numpy(steps[..., 2:]),
            is_first=torch.from_numpy(block.frames.is_first[:, inner].copy()),
            valid=torch.from_numpy(valid.copy()),
            episode=torch.from_numpy(block.frames.episode[:, inner]),
            step=torch.from_numpy(block.frames.step[:, inner]),
            num_valid=block.num_valid[m],
            position=n,
        )
        if pixels is not None:
            batch["pixels"] = torch.from_numpy(pixels)
        return batch

    def _block(self, n: int) -> tuple[_Block, int]:
        """The block that holds batch n, and the batch's place in it."""
        first, frames, m = self.schedule.block(n)
        if first not in self._blocks:
            mine = frames.lanes(self.lanes)
            per_batch = frames.valid.reshape(self.schedule.lanes, -1, self.schedule.steps).sum(axis=(0, 2))
            counts = torch.from_numpy(per_batch / self.world_size).float().unbind()
            whole = (per_batch == self.schedule.lanes * self.schedule.steps).tolist()
            rows = self.episodes.starts[mine.episode] + mine.step
            self._blocks = {first: _Block(mine, rows, list(counts), whole)}  # earlier blocks are not needed again
        return self._blocks[first], m


class StreamSampler(Sampler[int]):
    """Counts batches from a position, without end.

    Args:
        position: returns the first batch's number, called when an iteration starts.
        batches_per_epoch: the length of the sampler.
    """

    def __init__(self, position: Callable[[], int], batches_per_epoch: int) -> None:
        self.position = position
        self.batches_per_epoch = batches_per_epoch

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[int]:
        yield from count(self.position())
