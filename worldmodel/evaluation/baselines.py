"""What a trained model has to beat, with the interface of one (rollouts.Forecaster), so that one code measures all.

The observation is its own latent. Baselines live on the CPU.
"""

import torch
from torch import Tensor

from worldmodel.data.episodes import Episodes
from worldmodel.data.statistics import observation_moments
from worldmodel.evaluation.arx import NestedRegressions, fit_nested
from worldmodel.evaluation.rollouts import Forecast


class CopyLast:
    """Predicts that the last observation stays. Its state has no entries."""

    device = torch.device("cpu")

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop."""
        return obs, obs.new_zeros(*obs.shape[:2], 0), obs.new_zeros(len(obs), 0)

    observe = closed_loop

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Forecast:
        """As WorldModel.open_loop."""
        obs = z.unsqueeze(1).expand(-1, action.shape[1], -1)
        return Forecast(obs, obs, obs.new_zeros(*obs.shape[:2], 0))


class Mean(CopyLast):
    """Predicts the mean observation of some episodes, whatever comes. Its state has no entries."""

    def __init__(self, reference: Episodes) -> None:
        self.mean = torch.from_numpy(observation_moments(reference).mean)

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop."""
        return super().closed_loop(self.mean.expand(obs.shape), action, is_first, h)

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Forecast:
        """As WorldModel.open_loop."""
        return super().open_loop(self.mean.expand(z.shape), h, action)


class AutoRegression:
    """The next observation as a linear function of the last p observations and actions (ARX), by least squares.

    At an episode's start, after c < p frames, a separate regression on c frames predicts: zeros in place of missing
    frames would be read as frames. In open loop it sees its own predictions; an unstable one explodes, and that is a
    result. It predicts absolute values: since the last observation is among the inputs, least squares of the
    differences gives the same function.

    The state holds the last frames, at most p - 1 of which are read, oldest first, each as (age, observation, action)
    in unit variance. The age counts an episode's frames from 1: it tells which of them are of this episode.
    """

    device = torch.device("cpu")

    def __init__(self, nested: NestedRegressions, lags: int) -> None:
        """Takes the first `lags` of nested regressions."""
        self.lags = lags
        self._past = max(lags - 1, 1)  # frames in the state
        self._obs, self._action = nested.obs.tensors(), nested.action.tensors()
        chosen = [torch.from_numpy(weights) for weights in nested.weights[:lags]]
        frame = (chosen[-1].shape[0] - 1) // lags
        self._width = 1 + frame
        self._constants = [weights[0] for weights in chosen]
        # oldest first, and the age with weight zero: a window of frames is then one vector, and a view
        windows = [weights[1:].reshape(-1, frame, weights.shape[1]).flip(0) for weights in chosen]
        self._weights = [torch.nn.functional.pad(window, (0, 0, 1, 0)).flatten(0, 1) for window in windows]

    @classmethod
    def fit(cls, train: Episodes, lags: int | None, max_lags: int) -> "AutoRegression":
        """Fit to the transitions of some episodes, in memory that does not grow with them.

        Args:
            train: at least one episode, of vectors.
            lags: p; None: of 1, 2, 4, 8, .., max_lags the one with the least one-step error on every fifth episode
                after a fit to the others; then all are fitted.
            max_lags: the trained horizon. Never more are tried than make 1024 inputs, or than the longest episode has.

        Raises:
            UserError: if a number of lags is below 1, or the episodes hold images: pixels are too many.
        """
        nested = fit_nested(train, lags, max_lags)
        return cls(nested, nested.best if lags is None else nested.most)

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop: the states (B, T, D) are views of one sequence of frames."""
        h = torch.zeros(len(obs), self._past * self._width, dtype=torch.float64) if h is None else h
        frames = self._frames(h, action, is_first)
        frames[:, self._past :, 1 : 1 + obs.shape[2]] = self._obs.scaled(obs)
        pred = torch.stack([self._predict(frames, t) for t in range(obs.shape[1])], dim=1)
        states = self._states(frames)
        return self._obs.unscaled(pred), states, states[:, -1]

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.observe."""
        _, states, carry = self.closed_loop(obs, action, is_first, h)
        return obs.double(), states, carry

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Forecast:
        """As WorldModel.open_loop: from an observation z (B, O) and the state before it h, under actions (B, H, A)."""
        frames = self._frames(h, action, torch.zeros(action.shape[:2], dtype=torch.bool))
        latest, preds = self._obs.scaled(z), []
        for t in range(action.shape[1]):
            frames[:, self._past + t, 1 : 1 + z.shape[1]] = latest
            latest = self._predict(frames, t)
            preds.append(latest)
        obs = self._obs.unscaled(torch.stack(preds, dim=1))
        return Forecast(obs, obs, self._states(frames))

    def _frames(self, h: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """(B, past + T, width): the state's frames, then those to come, without their observations."""
        past = h.view(len(h), self._past, self._width)
        count = torch.arange(1, action.shape[1] + 1)
        first = (count * is_first).cummax(dim=1).values  # where the episode began; 0: before
        frames = past.new_zeros(len(h), self._past + action.shape[1], self._width)
        frames[:, : self._past] = past
        frames[:, self._past :, 0] = count + torch.where(first > 0, 1 - first, past[:, -1:, 0])
        frames[:, self._past :, -action.shape[2] :] = self._action.scaled(action)
        return frames

    def _predict(self, frames: Tensor, t: int) -> Tensor:
        """(B, O), in unit variance, after the t-th frame to come."""
        newest = self._past + t
        window = frames[:, newest + 1 - self.lags : newest + 1].flatten(1)
        pred = window @ self._weights[-1] + self._constants[-1]
        age = frames[:, newest, 0]
        if bool((age < self.lags).any()):
            for lags in range(1, self.lags):
                rows = age == lags
                pred[rows] = window[rows, -lags * self._width :] @ self._weights[lags - 1] + self._constants[lags - 1]
        return pred

    def _states(self, frames: Tensor) -> Tensor:
        return frames[:, 1:].flatten(1).unfold(1, self._past * self._width, self._width)
