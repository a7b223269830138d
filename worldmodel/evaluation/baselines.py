"""What a trained model has to beat, with the interface of one (see rollouts.Model), so that one code measures all.

The observation is its own latent. They live on the CPU.
"""

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.episodes import Episodes
from worldmodel.data.statistics import observation_moments
from worldmodel.errors import UserError
from worldmodel.evaluation.nested_regression import Nested, Scale, nested_regressions
from worldmodel.evaluation.rollouts import Predicted

WIDEST = 1024  # inputs of a regression: where frames are wide, fewer lags are tried


class CopyLast:
    """Predicts that the last observation stays. Its state has no entries."""

    device = torch.device("cpu")

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop."""
        return _stateless(obs)

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.observe."""
        return _stateless(obs)

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Predicted:
        """As WorldModel.open_loop."""
        return _constant(z, action.shape[1])


class Mean:
    """Predicts the mean observation of some episodes, whatever comes. Its state has no entries."""

    device = torch.device("cpu")

    def __init__(self, reference: Episodes) -> None:
        self.mean = torch.from_numpy(observation_moments(reference).mean)

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop."""
        return _stateless(self.mean.expand(obs.shape))

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.observe."""
        return _stateless(obs)

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Predicted:
        """As WorldModel.open_loop."""
        return _constant(self.mean.expand(z.shape), action.shape[1])


def _stateless(pred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return pred, pred.new_zeros(*pred.shape[:2], 0), pred.new_zeros(len(pred), 0)


def _constant(obs: Tensor, steps: int) -> Predicted:
    obs = obs.unsqueeze(1).expand(-1, steps, -1)
    return Predicted(obs, obs, obs.new_zeros(*obs.shape[:2], 0))


class AutoRegression:
    """The next observation as a linear function of the last p observations and actions (ARX), by least squares.

    At an episode's start, after c < p frames, a regression of its own on c frames predicts: zeros in the place of
    frames that are not there would be read as frames. Open loop, it sees its own predictions; one that is unstable
    explodes, and that is a result. It predicts absolute values: since the last observation is among the inputs, least
    squares of the differences gives the same function.

    The state holds the last frames, at most p - 1 of which are read, oldest first, each as (age, observation, action)
    in unit variance. The age counts an episode's frames from 1: it tells which of them are of this episode.
    """

    device = torch.device("cpu")

    def __init__(self, nested: Nested, lags: int) -> None:
        """The first `lags` of nested regressions."""
        self.lags = lags
        self._past = max(lags - 1, 1)  # frames in the state
        self._obs, self._action = _Units(nested.obs), _Units(nested.action)
        # oldest first, and the age with weight zero: a window of frames is one vector then, and a view
        windows = [np.pad(one.weights[::-1], ((0, 0), (1, 0), (0, 0))) for one in nested.regressions[:lags]]
        self._weights = [torch.from_numpy(window.reshape(-1, window.shape[2])) for window in windows]
        self._constants = [torch.from_numpy(one.constant) for one in nested.regressions[:lags]]
        self._width = 1 + nested.regressions[0].weights.shape[1]

    @classmethod
    def fit(cls, train: Episodes, lags: int | None, max_lags: int) -> "AutoRegression":
        """Fit to the transitions of some episodes, in memory that does not grow with them.

        Args:
            train: at least one episode, of vectors.
            lags: p; None: of 1, 2, 4, 8, .., max_lags the one with the least one-step error on every fifth episode
                after a fit to the others; then all are fitted.
            max_lags: the trained horizon. Not more are tried than make 1024 inputs, or than the longest episode has.

        Raises:
            UserError: if a number of lags is below 1, or the episodes hold images: pixels are too many.
        """
        layout = train.layout
        if layout.images:
            raise UserError(f"a linear autoregression takes vectors, not images ({', '.join(layout.images)})")
        if (fewest := min(max_lags, max_lags if lags is None else lags)) < 1:
            raise UserError(f"a linear autoregression has at least 1 lag, not {fewest}")
        affordable = max(1, min(max_lags, WIDEST // (layout.vector_dim + layout.action_dim)))
        most = min(affordable if lags is None else lags, int(train.num_frames.max()) - 1)
        nested = nested_regressions(train, most)
        powers = [2**i for i in range(most.bit_length()) if 2**i < most]
        return cls(nested, most if lags else min([*powers, most], key=lambda p: nested.held_out[p - 1]))

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

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Predicted:
        """As WorldModel.open_loop: from an observation z (B, O) and the state before it h, under actions (B, H, A)."""
        frames = self._frames(h, action, torch.zeros(action.shape[:2], dtype=torch.bool))
        latest, preds = self._obs.scaled(z), []
        for t in range(action.shape[1]):
            frames[:, self._past + t, 1 : 1 + z.shape[1]] = latest
            latest = self._predict(frames, t)
            preds.append(latest)
        obs = self._obs.unscaled(torch.stack(preds, dim=1))
        return Predicted(obs, obs, self._states(frames))

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


class _Units:
    """A Scale on tensors."""

    def __init__(self, scale: Scale) -> None:
        self.mean, self.spread = torch.from_numpy(scale.mean), torch.from_numpy(scale.spread)

    def scaled(self, values: Tensor) -> Tensor:
        return (values.double() - self.mean) / self.spread

    def unscaled(self, values: Tensor) -> Tensor:
        return values * self.spread + self.mean
