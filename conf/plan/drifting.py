"""A clumsy script for CartPole: it sees positions alone, never aims at the middle, and lets the cart run away.

It pushes to where the pole leans and moves to, the motion being the angle's change since the last frame. Each episode
draws how much of its pushing is random, from all of it (a random policy) to a quarter, and a lean that it holds the
pole at, so that the cart drifts off to one side. Episodes end with a fallen pole or with the cart out of bounds.
"""

import numpy as np

_rng = np.random.default_rng(0)
_memory: dict[str, np.ndarray] = {}


def act(observations: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Push (N,), 0 left or 1 right, of observations (N, 4), of which the pole's angle (entry 2) alone is used."""
    angle = observations[:, 2]
    if not _memory:
        _memory.update(last=angle, random=np.ones(len(angle)), lean=np.zeros(len(angle)))
    _memory["random"] = np.where(is_first, _rng.uniform(0.25, 1.0, len(angle)), _memory["random"])
    _memory["lean"] = np.where(is_first, _rng.normal(0.0, 0.03, len(angle)), _memory["lean"])
    motion = np.where(is_first, 0.0, angle - _memory["last"])
    _memory["last"] = angle
    pushed = angle - _memory["lean"] + 10 * motion > 0
    at_random = _rng.random(len(angle)) < _memory["random"]
    return np.where(at_random, _rng.integers(0, 2, len(angle)), pushed).astype(np.int64)
