"""A noisy linear system with a hidden state and actions; its Kalman filter is the best possible predictor.

    x' = A x + B a + w,   w ~ N(0, Q)
    y  = C x + v,         v ~ N(0, R)

A is a set of damped oscillators, one for each pair of states, in mixed coordinates, so that no entry of y shows one of
them alone. Actions lie in [-1, 1]. An episode starts from the stationary distribution under uniform actions: its
beginning looks like its middle, and the filter's prior is exact.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import ortho_group

from worldmodel.errors import UserError, choose


@dataclass(frozen=True)
class LinearSystem:
    """The matrices, float64: N states, O observed entries, A actions."""

    A: np.ndarray  # (N, N)
    B: np.ndarray  # (N, A)
    C: np.ndarray  # (O, N)
    Q: np.ndarray  # (N, N) covariance of w
    R: np.ndarray  # (O, O) covariance of v
    start: np.ndarray  # (N, N) covariance of the first state, whose mean is zero


def linear_system(
    order: int = 4,
    damping: float = 0.05,
    obs_dim: int = 1,
    action_dim: int = 1,
    process_noise: float = 0.3,
    observation_noise: float = 0.3,
    system_seed: int = 0,
) -> LinearSystem:
    """Make a system, which depends on these options alone.

    Args:
        order: N, even: twice the number of oscillators.
        damping: an oscillation shrinks by 1 - damping in each step.
        obs_dim: O.
        action_dim: A.
        process_noise: effect of w on the outputs, in standard deviations of the effect of uniform actions.
        observation_noise: standard deviation of v, in the same unit, for each output.
        system_seed: of the frequencies, phases and gains.

    Raises:
        UserError: if an option is invalid.
    """
    _check("order", order, isinstance(order, int) and order >= 2 and order % 2 == 0, "even and at least 2")
    for name, dim in (("obs_dim", obs_dim), ("action_dim", action_dim)):
        _check(name, dim, isinstance(dim, int) and dim >= 1, "a whole number, at least 1")
    stable = isinstance(damping, int | float) and 0 < damping <= 1
    _check("damping", damping, stable, "above 0 and at most 1, for the system to be stable")
    for name, noise in (("process_noise", process_noise), ("observation_noise", observation_noise)):
        _check(name, noise, isinstance(noise, int | float) and 0 < noise < math.inf, "a number above 0")
    _check("system_seed", system_seed, isinstance(system_seed, int) and system_seed >= 0, "a whole number, at least 0")
    rng = np.random.default_rng(system_seed)
    pairs = order // 2
    A = np.zeros((order, order))
    frequencies = np.geomspace(0.15, 1.2, pairs) * rng.uniform(0.8, 1.25, pairs)  # radians a step
    for i, w in enumerate(frequencies):
        turn = np.array([[np.cos(w), -np.sin(w)], [np.sin(w), np.cos(w)]])
        A[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = (1 - damping) * turn
    mix = ortho_group.rvs(order, random_state=rng)
    A = mix @ A @ mix.T
    B, C = rng.normal(size=(order, action_dim)), rng.normal(size=(obs_dim, order))
    C /= np.linalg.norm(C, axis=1, keepdims=True)
    driven = C @ solve_discrete_lyapunov(A, B @ B.T / 3) @ C.T  # a uniform action on [-1, 1] has variance 1/3
    B /= np.sqrt(np.trace(driven) / obs_dim)  # uniform actions give outputs of variance 1
    Q = np.eye(order)
    Q *= process_noise**2 * obs_dim / np.trace(C @ solve_discrete_lyapunov(A, Q) @ C.T)
    R = observation_noise**2 * np.eye(obs_dim)
    stationary = solve_discrete_lyapunov(A, B @ B.T / 3 + Q)
    return LinearSystem(A, B, C, Q, R, stationary)


def _check(name: str, value: Any, valid: bool, what: str) -> None:
    if not valid:
        raise UserError(f"a linear system's {name} is {value!r}: it must be {what}")


class LinearGaussian(gym.Env[np.ndarray, np.ndarray]):
    """The system as an environment, with reward -|C x|^2. Only a time limit ends its episodes.

    Args:
        options: of `linear_system`.

    Raises:
        UserError: if there is no such option, or it is invalid.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = render_mode  # unsupported: Gymnasium says so
        for name in options:
            choose("linear system's option", name, inspect.signature(linear_system).parameters)
        self.system = linear_system(**options)
        outputs, actions = len(self.system.C), self.system.B.shape[1]
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (outputs,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (actions,), np.float32)
        self._roots = {name: np.linalg.cholesky(getattr(self.system, name)) for name in ("Q", "R", "start")}
        self._x = np.zeros(len(self.system.A))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._x = self._noise("start")
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        system = self.system
        self._x = system.A @ self._x + system.B @ np.asarray(action, np.float64) + self._noise("Q")
        output = system.C @ self._x
        return self._observe(), -float(output @ output), False, False, {}

    def _observe(self) -> np.ndarray:
        return (self.system.C @ self._x + self._noise("R")).astype(np.float32)

    def _noise(self, name: str) -> np.ndarray:
        root = self._roots[name]
        return root @ self.np_random.standard_normal(len(root))
