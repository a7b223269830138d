"""The floor under a model's distribution: what the Kalman filter of the system that made the data knows, in scores."""

import numpy as np
import torch

from worldmodel.data.episode import Source
from worldmodel.data.episodes import Episodes
from worldmodel.envs import LINEAR_GAUSSIAN
from worldmodel.envs.linear import LinearSystem, linear_system
from worldmodel.evaluation.calibration import rollouts_of
from worldmodel.evaluation.kalman import KalmanFilter
from worldmodel.evaluation.rollouts import Start, open_loop_chunks
from worldmodel.evaluation.scores import Scores
from worldmodel.mixture import Mixture


def known_system(source: Source) -> LinearSystem | None:
    """The system that generated the data, if it is a single linear Gaussian one that is observed whole."""
    collected = source.provenance.get("collected") or []
    options = [past.get("env_kwargs", {}) for past in collected if past.get("env_id") == LINEAR_GAUSSIAN]
    if not options or len(options) < len(collected) or any(other != options[0] for other in options):
        return None
    if any(past.get("observe") is not None for past in collected):
        return None  # the filter needs all outputs
    return linear_system(**options[0])


def filtered(kalman: KalmanFilter, episodes: Episodes, starts: list[Start], steps: int, like: Scores) -> Scores:
    """The scores of the filter's own distribution, which is exact, on the rollouts of other scores.

    Args:
        kalman: of the system that generated the episodes.
        episodes: that the rollouts are of.
        starts: where each begins.
        steps: computed at once.
        like: of the same rollouts.
    """
    found = np.full((5, *like.truth.shape), np.nan)
    longest = int(like.horizon[-1])
    seen = [kalman.settled(start.frame + 1) for start in starts]
    spread = {frames: kalman.deviations(frames, longest) for frames in set(seen)}
    for chunk in open_loop_chunks(kalman, episodes, starts, steps):
        for k in np.flatnonzero(np.isin(like.horizon, chunk.ahead + 1)):
            at = int(like.horizon[k]) - int(chunk.ahead[0]) - 1
            std = np.stack([spread[frames][like.horizon[k] - 1] for frames in seen[chunk.rollouts]])
            mean, scale = torch.from_numpy(chunk.prediction[:, at]).double(), torch.from_numpy(std)
            exact = Mixture(torch.zeros(1), mean.unsqueeze(-2), scale.unsqueeze(-2))
            there = torch.from_numpy(chunk.truth[:, at]).double()
            nll, crps, pit = -exact.entry_log_prob(there), exact.crps(there), exact.cdf(there)
            rows = nll.numpy() - np.log(like.unit), crps.numpy() / like.unit, pit.numpy()
            found[:, chunk.rollouts, k] = np.stack([*rows, mean.numpy() / like.unit, std / like.unit])
    found[:, np.isnan(like.truth)] = np.nan
    nll, crps, pit, mean, std = found
    return like._replace(nll=nll, crps=crps, pit=pit, mean=mean, std=std, point=mean)


class Floor:
    """The filter's scores on the rollouts that `calibration.scored` makes, computed again only for other episodes."""

    def __init__(self) -> None:
        self._known: tuple[Episodes, Scores] | None = None

    def __call__(self, source: Source | None, whole: Episodes, steps: int, like: Scores) -> Scores | None:
        """Those beside a model's scores; None where the system that made the data is not known.

        Args:
            source: of the data.
            whole: the evaluated split.
            steps: T, the trained horizon.
            like: of the model.
        """
        system = None if source is None else known_system(source)
        if system is None:
            return None
        if self._known is None or self._known[0] is not whole:
            self._known = whole, filtered(KalmanFilter(system), *rollouts_of(whole, steps), steps, like)
        return self._known[1]
