"""Stale states: a carried state whose weights were replaced is refreshed by running the new ones over the last inputs.

Stale states, stored states and burn-in: Kapturowski et al., Recurrent Experience Replay (R2D2), 2019.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

INPUTS = ("obs", "action", "is_first")  # of a batch, as `observe` takes them
StaleState = Literal["keep", "zero", "burn_in", "replay"]


class LoadCounter:
    """Counts how often weights are loaded into a module or any part of it.

    Every part gets a hook, since the whole module's hook is not called when a part alone is loaded. Weights that are
    written in place, as optimizers do, are not counted.
    """

    def __init__(self) -> None:
        self.loads = 0
        self._handles: list[RemovableHandle] = []

    def follow(self, module: nn.Module) -> None:
        """Count loads into this module, as it is built now, and into no other."""
        self.leave()
        self._handles = [part.register_load_state_dict_post_hook(self) for part in module.modules()]

    def leave(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.loads += 1

    def __getstate__(self) -> dict[str, Any]:
        # a module's hooks are copied and pickled with it: the count alone goes along
        return {"loads": self.loads, "_handles": []}


class Segment(NamedTuple):
    """The inputs of one batch."""

    obs: Tensor  # (B, T, O)
    action: Tensor  # (B, T, A)
    is_first: Tensor  # (B, T) bool
    starts: Tensor | None  # (B,) bool, on the CPU: an episode starts in the segment; None if nobody asks


class InputHistory:
    """The last inputs of every lane, held by reference to their batches: nothing is copied.

    Args:
        steps: number of steps to cover; the batches that contain them are held. None: back to the start of the episode
            that each lane is in, as much as the longest episode; this reads `is_first` of each batch on the CPU.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self._segments: deque[Segment] = deque()

    @property
    def held(self) -> int:
        """Number of steps held, of each lane."""
        return sum(segment.is_first.shape[1] for segment in self._segments)

    @property
    def batches(self) -> int:
        """Number of batches held."""
        return len(self._segments)

    @property
    def complete(self) -> bool:
        """Whether nothing before the first batch is needed."""
        return self._needed()[1]

    def add_before(self, batch: Mapping[str, Any]) -> None:
        """Hold a batch that the first one continues."""
        self._segments.appendleft(self._segment(batch))

    def add(self, batch: Mapping[str, Any]) -> None:
        """Hold a batch that continues the last one, and drop what is no longer needed."""
        self._segments.append(self._segment(batch))
        for _ in range(len(self._segments) - self._needed()[0]):
            self._segments.popleft()

    def _needed(self) -> tuple[int, bool]:
        """How many of the last segments are needed, and whether they suffice."""
        held, started = 0, None
        for number, segment in enumerate(reversed(self._segments), start=1):
            held += segment.is_first.shape[1]
            if segment.starts is not None:
                started = segment.starts if started is None else started | segment.starts
            if bool(started.all()) if started is not None else self.steps is not None and held >= self.steps:
                return number, True
        return len(self._segments), False

    def _segment(self, batch: Mapping[str, Any]) -> Segment:
        obs, action, is_first = (batch[name].detach() for name in INPUTS)
        starts = is_first.any(dim=1).cpu() if self.steps is None else None
        return Segment(obs[:, : is_first.shape[1]], action, is_first, starts)

    def clear(self) -> None:
        """Drop all: the next batch continues nothing."""
        self._segments.clear()

    @torch.no_grad()
    def replay(self, observe: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Tensor | None:
        """The state (B, D) after the last step, from zeros before the first; None if no step is held.

        Args:
            observe: `(obs, action, is_first, h) -> (z, h, carry)`, see WorldModel.observe.
        """
        carry = None
        skipped = 0 if self.steps is None else max(0, self.held - self.steps)  # all of them in the first segment
        for segment in self._segments:
            inputs = (segment.obs, segment.action, segment.is_first)
            _, _, carry = observe(*(values[:, skipped:] for values in inputs), carry)
            skipped = 0
        return carry


def history_for(how: StaleState, steps: int) -> InputHistory | None:
    """The inputs to hold: the last `steps` for burn_in, an episode for replay, else none."""
    return None if how in ("keep", "zero") else InputHistory(steps if how == "burn_in" else None)


def refreshed(
    state: Tensor, how: StaleState, history: InputHistory | None, observe: Callable[..., Any] | None
) -> Tensor:
    """Replace a stale state (B, D); by zeros if no inputs are held to compute it from."""
    if how == "keep":
        return state
    if history is None or not history.held or observe is None:
        return torch.zeros_like(state)
    fresh = history.replay(observe)
    return torch.zeros_like(state) if fresh is None else fresh


class RefreshRatio:
    """What a refreshed state costs: the loss of the first segment after new weights, divided by that of the second.

    Both losses are of the new weights, and the second segment starts from a state that is a whole segment old. The loss
    before the change would compare the weights instead.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._waits = False

    def start(self) -> None:
        """The next segment is the first."""
        self._first, self._waits = None, True

    def add(self, loss: Tensor) -> float | None:
        """Take a segment's loss (); returns the ratio at the second, else None."""
        if not self._waits:
            return None
        if self._first is None:
            self._first = loss.detach().clone()
            return None
        self._waits = False
        return float(self._first / loss.detach())
