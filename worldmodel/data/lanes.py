"""The lane schedule: which frames each lane of batch n holds. A function of (seed, n) and nothing else.

An epoch gives every episode to one lane, the longest first, each to the lane with the fewest frames so far, and then
shuffles the episodes within the lanes and the lanes. The loads depend on the lengths alone, so that every epoch has
as many batches as any other. A lane is the concatenation of its episodes' frames; batch m of the epoch is the frames
m T .. m T + T of every lane: T steps, and the frame behind them, which is the next batch's first.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np


@dataclass(frozen=True)
class Frames:
    """The frames of one batch, (B, T + 1) each, and the steps between them, (B, T) each."""

    episode: np.ndarray  # int64, -1 in the padding behind a lane's end
    step: np.ndarray  # int64, the frame's index in its episode; 0 in padding
    is_first: np.ndarray  # bool
    valid: np.ndarray  # bool: frames t and t + 1 follow each other in one episode


class LaneSchedule:
    """Batches of B lanes times T steps over episodes.

    Args:
        num_frames: (E,) frames of each episode (one more than its transitions).
        lanes: B, over all ranks together.
        steps: T, the segment length.
        seed: of the shuffling.
        shuffle: if false, every epoch has the same order.
    """

    def __init__(self, num_frames: np.ndarray, lanes: int, steps: int, seed: int = 0, shuffle: bool = True) -> None:
        self.num_frames = np.asarray(num_frames, dtype=np.int64)
        self.lanes, self.steps, self.seed, self.shuffle = lanes, steps, seed, shuffle
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    @cached_property
    def batches_per_epoch(self) -> int:
        longest = max(int(self.num_frames[lane].sum()) for lane in self._assign(np.arange(len(self.num_frames))))
        return max(1, -(-(longest - 1) // self.steps))

    @property
    def padding(self) -> float:
        """The share of an epoch's steps that belongs to no transition."""
        steps = self.batches_per_epoch * self.steps * self.lanes
        return 1 - (int(self.num_frames.sum()) - len(self.num_frames)) / steps

    def batch(self, n: int) -> Frames:
        """Batch n >= 0 of an endless stream of epochs, all lanes."""
        epoch, m = divmod(n, self.batches_per_epoch)
        position = np.arange(m * self.steps, (m + 1) * self.steps + 1)
        episode = np.full((self.lanes, self.steps + 1), -1, dtype=np.int64)
        step = np.zeros_like(episode)
        for lane, (ids, ends) in enumerate(self._epoch(epoch)):
            if not len(ids):
                continue
            slot = np.searchsorted(ends, position, side="right")
            inside = slot < len(ids)
            own = ids[slot[inside]]
            episode[lane, inside] = own
            step[lane, inside] = position[inside] - (ends[slot[inside]] - self.num_frames[own])
        valid = (episode[:, 1:] == episode[:, :-1]) & (step[:, 1:] == step[:, :-1] + 1)
        return Frames(episode, step, step[:, :-1] == 0, valid)

    def _make_epoch(self, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each lane: its episodes, and the lane's frame behind each one's last."""
        if not self.shuffle:
            lanes = self._assign(np.arange(len(self.num_frames)))
        else:
            rng = np.random.default_rng([self.seed, epoch])
            lanes = [rng.permutation(lane) for lane in self._assign(rng.permutation(len(self.num_frames)))]
            lanes = [lanes[i] for i in rng.permutation(self.lanes)]
        return [(lane, np.cumsum(self.num_frames[lane])) for lane in lanes]

    def _assign(self, order: np.ndarray) -> list[np.ndarray]:
        """Longest first (ties as in `order`), each to the lane with the fewest frames."""
        order = order[np.argsort(-self.num_frames[order], kind="stable")]
        loads = [(0, lane) for lane in range(self.lanes)]
        lanes: list[list[int]] = [[] for _ in range(self.lanes)]
        for episode in order:
            load, lane = heapq.heappop(loads)
            lanes[lane].append(int(episode))
            heapq.heappush(loads, (load + int(self.num_frames[episode]), lane))
        return [np.array(lane, dtype=np.int64) for lane in lanes]
