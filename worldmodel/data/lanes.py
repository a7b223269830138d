"""The lane schedule: which frames each lane of batch n holds, as a function of the seed and n alone.

An epoch gives every piece to one lane, longest first, each to the lane with the fewest frames so far, and then shuffles
the lanes and the pieces within them. A piece is an episode, or a crop of one at a random place. The loads depend on the
lengths alone, so that all epochs have equally many batches. A lane is the concatenation of its pieces' frames; batch m
of the epoch is the frames m T .. m T + T of every lane: T steps and the frame after them, which is the next batch's
first.
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
    """All lanes one after the other: the slots are the pieces in the order of their lanes."""

    episode: np.ndarray  # (P,) of the piece in each slot
    first: np.ndarray  # (P,) the piece's first frame in its episode
    begins: np.ndarray  # (P,) and in its lane
    keys: np.ndarray  # (P,) lane * span + the lane's frame after the slot's last: ascending
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
        crop: frames of the crops that take the place of whole episodes, a multiple of T; None: whole episodes. An epoch
            has about as many frames as the episodes; a shorter episode is a crop with padding.
    """

    def __init__(
        self,
        num_frames: np.ndarray,
        lanes: int,
        steps: int,
        seed: int = 0,
        shuffle: bool = True,
        whole: bool = False,
        crop: int | None = None,
    ) -> None:
        self.num_frames, self.crop = np.asarray(num_frames, dtype=np.int64), crop
        # frames of a lane that a piece takes
        self.room = -(-self.num_frames // steps) * steps if whole else self.num_frames
        if crop is not None:
            self.room = np.full(lanes * max(1, round(self.num_frames.sum() / (crop * lanes))), crop)
        self.lanes, self.steps, self.seed, self.shuffle = lanes, steps, seed, shuffle
        self._epoch: dict[int, _Epoch] = {}  # the one used last
        self._block: dict[tuple[int, int], Frames] = {}

    @cached_property
    def batches_per_epoch(self) -> int:
        longest = max(int(self.room[lane].sum()) for lane in self._assign(np.arange(len(self.room))))
        return max(1, -(-(longest - 1) // self.steps))

    @property
    def padding(self) -> float:
        """The share of an epoch's steps that are no transition."""
        steps, transitions = self.batches_per_epoch * self.steps * self.lanes, self.num_frames - 1
        if self.crop is None:
            return 1 - transitions.sum() / steps
        return 1 - len(self.room) * np.average(np.minimum(transitions, self.crop - 1), weights=self.num_frames) / steps

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
        episode, place = order.episode[slot], position - order.begins[slot]
        step = order.first[slot] + place
        inside &= step < self.num_frames[episode]
        valid = (slot[:, 1:] == slot[:, :-1]) & inside[:, 1:] & inside[:, :-1]
        episode, step = np.where(inside, episode, -1), np.where(inside, step, 0)
        return Frames(episode, step, ~inside[:, :-1] | (place[:, :-1] == 0), valid)

    def _make_epoch(self, epoch: int) -> _Epoch:
        rng = np.random.default_rng([self.seed, epoch])
        if not self.shuffle:
            lanes = self._assign(np.arange(len(self.room)))
        else:
            lanes = [rng.permutation(lane) for lane in self._assign(rng.permutation(len(self.room)))]
            lanes = [lanes[i] for i in rng.permutation(self.lanes)]
        ends = [np.cumsum(self.room[lane]) for lane in lanes]
        totals = np.array([end[-1] if len(end) else 0 for end in ends])
        span = int(totals.max()) + 1
        keys = [number * span + end for number, end in enumerate(ends)]
        pieces, flat_ends, flat_keys = (np.concatenate(parts).astype(np.int64) for parts in (lanes, ends, keys))
        episode, first = self._pieces(rng)
        return _Epoch(episode[pieces], first[pieces], flat_ends - self.room[pieces], flat_keys, totals, span)

    def _pieces(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The episode of each piece, and the piece's first frame there."""
        if self.crop is None:
            return np.arange(len(self.room)), np.zeros_like(self.room)
        # equally far from each other in all the frames, the first at a random place: few are crossed twice
        number, ends = len(self.room), np.cumsum(self.num_frames)
        drawn = (np.arange(number) + rng.random()) * ends[-1] / number
        episode = np.minimum(np.searchsorted(ends, drawn, side="right"), len(ends) - 1)
        within = (drawn - ends[episode]) / self.num_frames[episode] + 1
        room = np.maximum(self.num_frames[episode] - self.crop + 1, 1)
        return episode, np.clip((within * room).astype(np.int64), 0, room - 1)

    def _assign(self, order: np.ndarray) -> list[np.ndarray]:
        """The pieces of each lane: longest first (ties as in `order`), each to the lane with the fewest frames."""
        order = order[np.argsort(-self.room[order], kind="stable")]
        loads = [(0, lane) for lane in range(self.lanes)]
        lanes: list[list[int]] = [[] for _ in range(self.lanes)]
        for piece in order:
            load, lane = heapq.heappop(loads)
            lanes[lane].append(int(piece))
            heapq.heappush(loads, (load + int(self.room[piece]), lane))
        return [np.array(lane, dtype=np.int64) for lane in lanes]
