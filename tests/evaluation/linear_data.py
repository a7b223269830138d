"""Episodes of a linear system, many at once and straight from its definition."""

import numpy as np
from memory import episodes_of

from worldmodel.data.episodes import Episodes
from worldmodel.envs.linear import LinearSystem


def sampled(system: LinearSystem, number: int, transitions: int, seed: int) -> Episodes:
    """So many episodes of so many transitions under uniform actions."""
    rng = np.random.default_rng(seed)
    roots = {name: np.linalg.cholesky(getattr(system, name)) for name in ("start", "Q", "R")}

    def noise(name):
        return rng.standard_normal((number, len(roots[name]))) @ roots[name].T

    x, obs, action = noise("start"), [], []
    for _ in range(transitions + 1):
        obs.append(x @ system.C.T + noise("R"))
        action.append(rng.uniform(-1, 1, (number, system.B.shape[1])).astype(np.float32))
        x = x @ system.A.T + action[-1] @ system.B.T + noise("Q")
    action[-1] = np.zeros_like(action[-1])
    columns = (np.stack(column, axis=1).reshape(number * (transitions + 1), -1) for column in (obs, action))
    return episodes_of(*columns, [transitions] * number)


def stacked(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """Observations (E, T + 1, O) and actions (E, T + 1, A) of episodes of one length, float32."""
    rows = np.stack([episodes.rows(i) for i in range(len(episodes))])
    return episodes.obs(rows), episodes.action(rows)
