"""A policy that balances CartPole's pole for long, but imperfectly: a third of its pushes are random."""

import numpy as np

_rng = np.random.default_rng(0)


def act(observations: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Push (N,) towards the falling pole, 0 left or 1 right, given position, speed, angle and angular speed (N, 4)."""
    lean = observations @ np.array([0.2, 0.5, 8.0, 2.0])
    pushed = (lean > 0).astype(np.int64)
    return np.where(_rng.random(len(lean)) < 0.35, _rng.integers(0, 2, len(lean)), pushed)
