"""What it takes to mend a carried state when the weights that made it are replaced: seen, remade, and judged."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

INPUTS = ("obs", "action", "is_first")  # of a batch, that `observe` takes
OnWeightChange = Literal["keep", "zero", "burn_in", "replay"]


class WeightWatch:
    """Counts how often weights are loaded into a module, or into any part of it, by whomever.

    A hook on every part: that of the whole does not hear what is loaded into a part alone. Weights that are written
    in place, as optimizers do, are not counted.
    """

    def __init__(self) -> None:
        self.loads = 0
        self._handles: list[RemovableHandle] = []

    def follow(self, module: nn.Module) -> None:
        """Listen to this module, as it is built now, and to no other."""
        self.leave()
        self._handles = [part.register_load_state_dict_post_hook(self) for part in module.modules()]

    def leave(self) -> None:
        """Listen to none."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.loads += 1

    def __getstate__(self) -> dict[str, Any]:
        # a module's hooks are copied and pickled with it: nothing but the count goes along
        return {"loads": self.loads, "_handles": []}


class Segment(NamedTuple):
    """What a model was shown of one batch."""

    obs: Tensor  # (B, T, O)
    action: Tensor  # (B, T, A)
    is_first: Tensor  # (B, T) bool


class InputHistory:
    """The last inputs of every lane, by reference to the batches they came in: nothing is copied.

    Args:
        steps: how many; what is held are the batches that they lie in. None: back to the start of the episode that
            each lane is in, which is as much as the longest episode; this looks at `is_first` on the CPU in each batch.
    """

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self._segments: deque[Segment] = deque()
        self._starts: deque[Tensor] = deque()  # (B,) bool each: an episode starts in the segment

    @property
    def held(self) -> int:
        """Steps of a lane that are kept alive."""
        return sum(segment.is_first.shape[1] for segment in self._segments)

    @property
    def batches(self) -> int:
        """That are kept alive."""
        return len(self._segments)

    @property
    def complete(self) -> bool:
        """Whether nothing before the first batch is needed."""
        if self.steps is not None:
            return self.held >= self.steps
        return bool(self._starts) and bool(torch.stack(list(self._starts)).any(dim=0).all())

    def add_before(self, batch: Mapping[str, Any]) -> None:
        """Remember a batch that the first one continues."""
        segment = _segment(batch)
        self._segments.appendleft(segment)
        if self.steps is None:
            self._starts.appendleft(segment.is_first.any(dim=1).cpu())

    def add(self, batch: Mapping[str, Any]) -> None:
        """Remember a batch that continues the one before, and let go of what is not needed any more."""
        segment = _segment(batch)
        self._segments.append(segment)
        if self.steps is None:
            self._starts.append(segment.is_first.any(dim=1).cpu())
            needed = self._segments_since_start()
        else:
            needed = self._segments_of(self.steps)
        while len(self._segments) > needed:
            self._segments.popleft()
            if self._starts:
                self._starts.popleft()

    def _segments_of(self, steps: int) -> int:
        held = 0
        for number, segment in enumerate(reversed(self._segments), start=1):
            held += segment.is_first.shape[1]
            if held >= steps:
                return number
        return len(self._segments)

    def _segments_since_start(self) -> int:
        started = torch.zeros_like(self._starts[-1])
        for number, starts in enumerate(reversed(self._starts), start=1):
            started = started | starts
            if started.all():
                return number
        return len(self._starts)

    def clear(self) -> None:
        """Forget all: what comes next continues nothing."""
        self._segments.clear()
        self._starts.clear()

    @torch.no_grad()
    def replay(self, observe: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Tensor | None:
        """The state (B, D) behind the last step, from zeros before the first; None where there is no step.

        Args:
            observe: `(obs, action, is_first, h) -> (z, h, carry)`, see WorldModel.observe.
        """
        carry = None
        skipped = 0 if self.steps is None else max(0, self.held - self.steps)  # all of them in the first segment
        for segment in self._segments:
            _, _, carry = observe(*(values[:, skipped:] for values in segment), carry)
            skipped = 0
        return carry


def history_for(how: OnWeightChange, steps: int) -> InputHistory | None:
    """What must be remembered for it: the last `steps` for burn_in, an episode for replay, else nothing."""
    return None if how in ("keep", "zero") else InputHistory(steps if how == "burn_in" else None)


def mended(
    state: Tensor, how: OnWeightChange, history: InputHistory | None, observe: Callable[..., Any] | None
) -> Tensor:
    """What becomes of a state (B, D) that other weights made; zeros too where nothing is remembered to make it of."""
    if how == "keep":
        return state
    if history is None or not history.held or observe is None:
        return torch.zeros_like(state)
    remade = history.replay(observe)
    return torch.zeros_like(state) if remade is None else remade


def _segment(batch: Mapping[str, Any]) -> Segment:
    obs, action, is_first = (batch[name].detach() for name in INPUTS)
    return Segment(obs[:, : is_first.shape[1]], action, is_first)


class PostSwapRatio:
    """The loss of the first segment behind a swap relative to the second's: what the state that it began with cost.

    Both under the new weights, and the second begins with a state that is a whole segment old. The loss before the swap
    would compare the weights instead.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._waits = False

    def start(self) -> None:
        """The next segment is the first."""
        self._first, self._waits = None, True

    def hear(self, loss: Tensor) -> float | None:
        """A segment's loss (); the ratio at the second, else None."""
        if not self._waits:
            return None
        if self._first is None:
            self._first = loss.detach().clone()
            return None
        self._waits = False
        return float(self._first / loss.detach())
