"""A segment as a loss sees it: frames in the model's units, latents, predictions, and means over what is valid."""

from typing import Any, NamedTuple

from einops import rearrange
from torch import Tensor

from worldmodel import losses
from worldmodel.base import Line
from worldmodel.batch import Batch
from worldmodel.members import SHARE
from worldmodel.model import Seen
from worldmodel.predictor import ClosedLoop


class Segment(NamedTuple):
    """A segment in the model's units, and the model's latents and predictions on it."""

    batch: Batch
    obs: Tensor  # (B, T + 1, O) normalised
    action: Tensor  # (B, T, A) normalised
    seen: Seen  # of T + 1 frames; with a base of T
    loop: ClosedLoop
    target: Tensor  # (B, T, Z) the latents of the next frames, without gradient
    obs_weights: Tensor  # (O,) see losses.part_weights

    def mean(self, error: Tensor) -> Tensor:
        """Of errors (B, T), over the valid steps."""
        return losses.masked_mean(error, self.batch["valid"], self.batch["num_valid"])

    def over(self, members: int, kept: Tensor | None) -> "Segment":
        """The same segment for each of K members, whose lanes (K B, ...) the loop has already.

        Args:
            members: K.
            kept: (K, B, T) bool, the steps that each is trained on; None: all.
        """

        def lanes(x: Any) -> Any:
            return x.repeat(members, *[1] * (x.ndim - 1)) if isinstance(x, Tensor) and x.ndim else x

        batch: Any = {name: lanes(value) for name, value in self.batch.items() if name != "carry"}
        batch["num_valid"] = members * self.batch["num_valid"]
        if kept is not None:
            batch["valid"] = batch["valid"] & kept.flatten(0, 1)
            batch["num_valid"] = SHARE * batch["num_valid"]  # of all ranks; what this one keeps is chance
        line = None if self.seen.line is None else Line(*map(lanes, self.seen.line))
        seen = self.seen._replace(z=lanes(self.seen.z), line=line)
        own = {name: lanes(getattr(self, name)) for name in ("obs", "action", "target")}
        return self._replace(batch=batch, seen=seen, **own)

    def rolled(self, x: Tensor, steps: int) -> Tensor:
        """x (B, T, ...) of the rollouts of K = `steps` steps, one after the other up to the end, (N, K, ...)."""
        return rearrange(x[:, x.shape[1] % steps :], "b (n k) ... -> (b n) k ...", k=steps)

    def starts(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of these rollouts: z (N, Z) where each starts, the state before it (N, D), and the actions (N, K, A)."""
        action = self.action
        z, before = (self.rolled(x, steps)[:, 0] for x in (self.seen.z[:, : action.shape[1]], self.loop.before))
        return z, before, self.rolled(action, steps)

    def rollout_mean(self, error: Tensor) -> Tensor:
        """Of errors (N, K) of these rollouts, over their steps within an episode."""
        valid, steps = self.batch["valid"], error.shape[1]
        within = losses.valid_rollout(valid[:, valid.shape[1] % steps :], steps)
        return losses.masked_mean(error.reshape(within.shape), within, self.batch["num_valid"])
