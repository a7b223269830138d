"""Closed-loop error against the time since an episode's start: does a model that sees every frame stay right?"""

from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.data.episodes import Episodes
from worldmodel.evaluation.rollouts import BLOCK, Model, Ruler, to_model


@dataclass(frozen=True)
class ClosedLoopCurve:
    """One-step errors after n = 1 .. N observed frames, divided by the observations' variance."""

    nmse: np.ndarray  # (N,)
    hidden_norm: np.ndarray  # (N,) mean ||h||
    episodes: np.ndarray  # (N,) how many are that long

    def window(self, begin: int, end: int) -> float:
        """The mean over all predictions after begin + 1 .. end frames."""
        part = slice(begin, end)
        return float(np.average(self.nmse[part], weights=self.episodes[part]))

    def norm_growth(self) -> float:
        """Slope of the mean ||h|| over the steps, by least squares; infinite where a norm is not finite."""
        if not np.isfinite(self.hidden_norm).all():
            return float("inf")
        step = np.arange(len(self.hidden_norm))
        return float(np.polyfit(step, self.hidden_norm, 1, w=np.sqrt(self.episodes))[0]) if len(step) > 1 else 0.0


@torch.no_grad()
def closed_loop_curve(
    model: Model, episodes: Episodes, steps: int, longest: int, reference: Episodes | None = None
) -> ClosedLoopCurve:
    """Let a model predict each next frame of episodes from all before it, from the episodes' starts on.

    Args:
        model: in evaluation mode.
        episodes: at least one.
        steps: that are computed at once.
        longest: frames of an episode that are looked at.
        reference: whose variance the errors are divided by; None: the episodes'.
    """
    ruler = Ruler(episodes if reference is None else reference)
    lengths = np.minimum(episodes.num_frames - 1, longest)
    error, norm = np.zeros(lengths.max()), np.zeros(lengths.max())
    group = max(1, BLOCK // (steps * episodes.layout.obs_dim))
    for first in range(0, len(episodes), group):
        some = slice(first, first + group)
        carry = None
        for begin in range(0, int(lengths[some].max()), steps):
            ahead = np.arange(begin, min(begin + steps, lengths[some].max()))
            rows = episodes.starts[some, None] + np.minimum(ahead, lengths[some, None] - 1)
            is_first = to_model(np.broadcast_to(ahead == 0, rows.shape), model)
            obs, action = to_model(episodes.obs(rows), model), to_model(episodes.action(rows), model)
            pred, h, carry = model.closed_loop(obs, action, is_first, carry)
            there = ahead < lengths[some, None]
            errors = ruler.error(pred.float().cpu().numpy(), episodes.obs(rows + 1))
            norms = h.double().norm(dim=-1).cpu().numpy()
            error[ahead] += np.where(there, errors, 0).sum(axis=0)
            norm[ahead] += np.where(there, norms, 0).sum(axis=0)
    count = (lengths[:, None] > np.arange(lengths.max())).sum(axis=0)
    return ClosedLoopCurve(error / count, norm / count, count)
