"""The Kalman filter of a linear Gaussian system: the floor under every model's error, in closed form and float64.

Kalman (1960); the notation is that of Anderson & Moore, Optimal Filtering (1979), chapter 3.
"""

import numpy as np
import torch
from torch import Tensor

from worldmodel.envs.linear import LinearSystem
from worldmodel.evaluation.rollouts import Forecast

LONGEST = 100_000  # frames after which a gain that still changes is taken as settled
MOST = 1 << 24  # entries of all covariances together, after which likewise


class KalmanFilter:
    """The filter with the interface of a trained model (rollouts.Forecaster), so that one code measures both.

    Its latent is the observation; after a rollout's first step, none: NaN. Its state is (x, n): the mean of the hidden
    state before frame n of the episode given all frames before, and n, on which the gain depends. The state before an
    episode's first frame is zeros.

    The one-step prediction of frame n + 1 after n + 1 frames has error covariance `innovation(n + 1)`; nothing that
    sees the same frames and actions has a smaller mean squared error.
    """

    device = torch.device("cpu")

    def __init__(self, system: LinearSystem, settled: float = 1e-15) -> None:
        self.system = system
        self._A, self._B, self._C = (torch.from_numpy(matrix) for matrix in (system.A, system.B, system.C))
        self.covariances, gains = _riccati(system, settled)  # (n, N, N) of x before frame n; the last is the limit
        self._gains = torch.from_numpy(gains)  # (n, N, O)

    def innovation(self, frames: int) -> np.ndarray:
        """Covariance (O, O) of the error of the one-step prediction after this many frames of an episode."""
        return self.prediction_covariance(frames, 1)

    def prediction_covariance(self, frames: int, steps: int) -> np.ndarray:
        """Covariance (O, O) of the error, `steps` ahead of the last of `frames` observed frames of an episode."""
        A, C, Q = self.system.A, self.system.C, self.system.Q
        P = self.covariances[self.settled(frames)]
        for _ in range(steps - 1):
            P = A @ P @ A.T + Q
        return C @ P @ C.T + self.system.R

    def settled(self, frames: int) -> int:
        """The least number of frames after which predictions are as sure as after this many."""
        return min(frames, len(self.covariances) - 1)

    def deviations(self, frames: int, longest: int) -> np.ndarray:
        """Of the error of each entry 1 .. H = `longest` steps ahead of the last of `frames` observed frames, (H, O)."""
        A, C, Q, found = self.system.A, self.system.C, self.system.Q, []
        P = self.covariances[self.settled(frames)]
        for _ in range(longest):
            found.append(np.sqrt((C @ P @ C.T + self.system.R).diagonal()))
            P = A @ P @ A.T + Q
        return np.stack(found)

    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.closed_loop: predictions of each next observation (B, T, O), states (B, T, N + 1), carry."""
        state = torch.zeros(len(obs), len(self._A) + 1, dtype=torch.float64) if h is None else h
        states = []
        for t in range(obs.shape[1]):
            state = state.masked_fill(is_first[:, t, None], 0.0)
            state = self._advance(self._correct(state, obs[:, t]), action[:, t])
            states.append(state)
        h = torch.stack(states, dim=1)
        return h[..., :-1] @ self._C.T, h, state

    def observe(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As WorldModel.observe: the latents are the observations."""
        _, h, carry = self.closed_loop(obs, action, is_first, h)
        return obs.double(), h, carry

    def open_loop(self, z: Tensor, h: Tensor, action: Tensor) -> Forecast:
        """As WorldModel.open_loop: from an observation (B, O) and the state before it, under actions (B, H, A)."""
        seen = ~z.isnan().any(dim=-1, keepdim=True)
        states = []
        for t in range(action.shape[1]):
            corrected = torch.where(seen, self._correct(h, z.nan_to_num()), h) if t == 0 else h
            h = self._advance(corrected, action[:, t])
            states.append(h)
        h = torch.stack(states, dim=1)
        obs = h[..., :-1] @ self._C.T
        return Forecast(obs, torch.full_like(obs, torch.nan), h)

    def _correct(self, state: Tensor, obs: Tensor) -> Tensor:
        """The mean given this frame too."""
        x, n = state[:, :-1], state[:, -1]
        gain = self._gains[n.long().clamp(max=len(self._gains) - 1)]
        surprise = obs.double() - x @ self._C.T
        return torch.cat([x + torch.einsum("bno,bo->bn", gain, surprise), state[:, -1:]], dim=-1)

    def _advance(self, state: Tensor, action: Tensor) -> Tensor:
        x = state[:, :-1] @ self._A.T + action.double() @ self._B.T
        return torch.cat([x, state[:, -1:] + 1], dim=-1)


def _riccati(system: LinearSystem, settled: float) -> tuple[np.ndarray, np.ndarray]:
    """The covariances (n, N, N) of x before frame n given the frames before it, and the gains (n, N, O) at frame n.

    By the recursion from the start, until a step changes the covariance by less than `settled` of its largest entry:
    the last solves the algebraic Riccati equation. (solve_discrete_are is less exact where there is little noise.)
    """
    C, R = system.C, system.R
    covariances = [system.start]
    for _ in range(min(LONGEST, MOST // system.A.size)):
        P = covariances[-1]
        covariances.append(_after(P, system))
        if np.abs(covariances[-1] - P).max() <= settled * np.abs(P).max():
            break
    gains = [P @ C.T @ np.linalg.inv(C @ P @ C.T + R) for P in covariances]
    return np.stack(covariances), np.stack(gains)


def _after(P: np.ndarray, system: LinearSystem) -> np.ndarray:
    """One step of the Riccati recursion, in Joseph's form, which stays symmetric and positive."""
    A, C = system.A, system.C
    gain = P @ C.T @ np.linalg.inv(C @ P @ C.T + system.R)
    keep = np.eye(len(A)) - gain @ C
    corrected = keep @ P @ keep.T + gain @ system.R @ gain.T
    return A @ corrected @ A.T + system.Q
