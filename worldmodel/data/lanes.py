"""The lane schedule: which frames each lane of batch n holds. A function of (seed, n) and nothing else.

An epoch gives every episode to one lane, the longest first, each to the lane with the fewest frames so far, and then
shuffles the episodes within the lanes and the lanes. The loads depend on the lengths alone, so that every epoch has
as many batches as any other. A lane is the concatenation of its episodes' frames; batch m of the epoch is the frames
m T .. m T + T of every lane: T steps, and the frame behind them, which is the next batch's first.
"""

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BLOCK = 64  # batches that are worked out at once: one batch's share of NumPy's overhead is small


@dataclass(frozen=True)
class Frames:
    """The frames of one batch or of several in a row, (B, N + 1) each, and the steps between them, (B, N) each."""

    episode: np.ndarray  # int64, -1 in the padding behind a lane's end
    step: np.ndarray  # int64, the frame's index in its episode; 0 in padding
    is_first: np.ndarray  # bool
    valid: np.ndarray  # bool: frames t and t + 1 follow each other in one episode

    def lanes(self, some: slice) -> "Frames":
        """Of some lanes, as views."""
        return Frames(self.episode[some], self.step[some], self.is_first[some], self.valid[some])

    def cut(self, first: int, steps: int) -> "Frames":
        """The steps from `first` on, as views."""
        frames, inner = slice(first, first + steps + 1), slice(first, first + steps)
        return Frames(self.episode[:, frames], self.step[:, frames], self.is_first[:, inner], self.valid[:, inner])


@dataclass(frozen=True)
class _Epoch:
    """All lanes behind each other: the slots are the episodes in the order of their lanes."""

    ids: np.ndarray  # (E,) the episode in each slot
    ends: np.ndarray  # (E,) the lane's frame behind the slot's last
    keys: np.ndarray  # (E,) lane * span + end: ascending
    totals: np.ndarray  # (B,) frames of each lane, with padding
    span: int


class LaneSchedule:
    """Batches of B lanes times T steps over episodes.

    Args:
        num_frames: (E,) frames of each episode (one more than its transitions).
        lanes: B, over all ranks together.
        steps: T, the segment length.
        seed: of the shuffling.
        shuffle: if false, every epoch has the same order.
        whole: every episode begins a segment; between its last frame and the next segment is padding.
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
        # what an episode takes of a lane, in frames
        self.room = -(-self.num_frames // steps) * steps if whole else self.num_frames
        self.lanes, self.steps, self.seed, self.shuffle = lanes, steps, seed, shuffle
        self._epoch: dict[int, _Epoch] = {}  # the last one used
        self._block: dict[tuple[int, int], Frames] = {}

    @cached_property
    def batches_per_epoch(self) -> int:
        longest = max(int(self.room[lane].sum()) for lane in self._assign(np.arange(len(self.num_frames))))
        return max(1, -(-(longest - 1) // self.steps))

    @property
    def padding(self) -> float:
        """The share of an epoch's steps that belongs to no transition."""
        steps = self.batches_per_epoch * self.steps * self.lanes
        return 1 - (int(self.num_frames.sum()) - len(self.num_frames)) / steps

    def batch(self, n: int) -> Frames:
        """Batch n >= 0 of an endless stream of epochs, all lanes."""
        _, block, m = self.block(n)
        return block.cut(m * self.steps, self.steps)

    def block(self, n: int) -> tuple[int, Frames, int]:
        """The batches around batch n: the number of the first, their frames, and which of them is batch n."""
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
        found = order.ids[slot]
        step = position - (order.ends[slot] - self.room[found])
        inside &= step < self.num_frames[found]
        episode, step = np.where(inside, found, -1), np.where(inside, step, 0)
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
        """Longest first (ties as in `order`), each to the lane with the fewest frames."""
        order = order[np.argsort(-self.room[order], kind="stable")]
        loads = [(0, lane) for lane in range(self.lanes)]
        lanes: list[list[int]] = [[] for _ in range(self.lanes)]
        for episode in order:
            load, lane = heapq.heappop(loads)
            lanes[lane].append(int(episode))
            heapq.heappush(loads, (load + int(self.room[episode]), lane))
        return [np.array(lane, dtype=np.int64) for lane in lanes]
