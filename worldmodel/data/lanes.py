"""The lane schedule: which frames each lane of batch n holds, as a function of the seed and n alone.

An epoch gives every episode to one lane, longest first, each to the lane with the fewest frames so far, and then
shuffles the lanes and the episodes within them. The loads depend on the lengths alone, so that all epochs have equally
many batches. A lane is the concatenation of its episodes' frames; batch m of the epoch is the frames m T .. m T + T of
every lane: T steps and the frame after them, which is the next batch's first.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BLOCK = 64  # batches computed at once, to spread NumPy's overhead


@dataclass(frozen=True)
class Frames:
    """The frames (B, N + 1) of one batch or several consecutive ones, and the steps (B, N) between them."""

    episode: np.ndarray  # int64, -1 in the padding after a lane's end
    step: np.ndarray  # int64, the frame's index in its episode; 0 in padding
    is_first: np.ndarray  # bool
    valid: np.ndarray  # bool: frames t and t + 1 follow each other in one episode

    def lanes(self, some: slice) -> "Frames":
        """The frames of some lanes, as views."""
        return Frames(self.episode[some], self.step[some], self.is_first[some], self.valid[some])

    def cut(self, first: int, steps: int) -> "Frames":
        """The steps from `first` on, as views."""
        frames, inner = slice(first, first + steps + 1), slice(first, first + steps)
        return Frames(self.episode[:, frames], self.step[:, frames], self.is_first[:, inner], self.valid[:, inner])


@dataclass(frozen=True)
class _Epoch:
    """All lanes one after the other: the slots are the episodes in the order of their lanes."""

    ids: np.ndarray  # (E,) the episode in each slot
    ends: np.ndarray  # (E,) the lane's frame after the slot's last
    keys: np.ndarray  # (E,) lane * span + end: ascending
    totals: np.ndarray  # (B,) frames of each lane, with padding
    span: int


class LaneSchedule:
    """Batches of B lanes times T steps over episodes.

    Args:
        num_frames: (E,) frames of each episode (one more than its transitions).
        lanes: B, over all ranks.
        steps: T, the segment length.
        seed: seed of the shuffling.
        shuffle: whether every epoch has another order.
        whole: every episode begins a segment, with padding between its last frame and the next segment.
    """

    def __init__(
        self,
        num_frames: np.ndarray,
        lanes: int,
        steps: int,
        seed: int = 0,
        shuffle: bool = True,
        whole: bool = False,
    ) -> None:
        self.num_frames = np.asarray(num_frames, dtype=np.int64)
        # frames of a lane that an episode takes
        self.room = -(-self.num_frames // steps) * steps if whole else self.num_frames
        self.lanes, self.steps, self.seed, self.shuffle = lanes, steps, seed, shuffle
        self._epoch: dict[int, _Epoch] = {}  # the one used last
        self._block: dict[tuple[int, int], Frames] = {}

    @cached_property
    def batches_per_epoch(self) -> int:
        longest = max(int(self.room[lane].sum()) for lane in self._assign(np.arange(len(self.num_frames))))
        return max(1, -(-(longest - 1) // self.steps))

    @property
    def padding(self) -> float:
        """The share of an epoch's steps that are no transition."""
        steps = self.batches_per_epoch * self.steps * self.lanes
        return 1 - (int(self.num_frames.sum()) - len(self.num_frames)) / steps

    def batch(self, n: int) -> Frames:
        """Batch n >= 0 of an endless stream of epochs, all lanes."""
        _, block, m = self.block(n)
        return block.cut(m * self.steps, self.steps)

    def block(self, n: int) -> tuple[int, Frames, int]:
        """The block that holds batch n: the number of its first batch, its frames, and the place of n in it."""
        epoch, m = divmod(n, self.batches_per_epoch)
        key = epoch, m // BLOCK
        if key not in self._block:
            self._block = {key: self._make_block(*key)}
        return n - m % BLOCK, self._block[key], m % BLOCK

    def _make_block(self, epoch: int, number: int) -> Frames:
        if epoch not in self._epoch:
            self._epoch = {epoch: self._make_epoch(epoch)}
        order, first = self._epoch[epoch], number * BLOCK * self.steps
        batches = min(BLOCK, self.batches_per_epoch - number * BLOCK)
        position = np.arange(first, first + batches * self.steps + 1)
        lane = np.arange(self.lanes)[:, None]
        slot = np.searchsorted(order.keys, lane * order.span + position, side="right")
        inside = position < order.totals[:, None]
        slot = np.where(inside, slot, 0)
        episode = order.ids[slot]
        step = position - (order.ends[slot] - self.room[episode])
        inside &= step < self.num_frames[episode]
        episode, step = np.where(inside, episode, -1), np.where(inside, step, 0)
        valid = (episode[:, 1:] == episode[:, :-1]) & (step[:, 1:] == step[:, :-1] + 1)
        return Frames(episode, step, step[:, :-1] == 0, valid)

    def _make_epoch(self, epoch: int) -> _Epoch:
        if not self.shuffle:
            lanes = self._assign(np.arange(len(self.num_frames)))
        else:
            rng = np.random.default_rng([self.seed, epoch])
            lanes = [rng.permutation(lane) for lane in self._assign(rng.permutation(len(self.num_frames)))]
            lanes = [lanes[i] for i in rng.permutation(self.lanes)]
        ends = [np.cumsum(self.room[lane]) for lane in lanes]
        totals = np.array([end[-1] if len(end) else 0 for end in ends])
        span = int(totals.max()) + 1
        keys = [number * span + end for number, end in enumerate(ends)]
        ids, flat_ends, flat_keys = (np.concatenate(parts).astype(np.int64) for parts in (lanes, ends, keys))
        return _Epoch(ids, flat_ends, flat_keys, totals, span)

    def _assign(self, order: np.ndarray) -> list[np.ndarray]:
        """The episodes of each lane: longest first (ties as in `order`), each to the lane with the fewest frames."""
        order = order[np.argsort(-self.room[order], kind="stable")]
        loads = [(0, lane) for lane in range(self.lanes)]
        lanes: list[list[int]] = [[] for _ in range(self.lanes)]
        for episode in order:
            load, lane = heapq.heappop(loads)
            lanes[lane].append(int(episode))
            heapq.heappush(loads, (load + int(self.room[episode]), lane))
        return [np.array(lane, dtype=np.int64) for lane in lanes]
