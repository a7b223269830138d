"""Episodes in memory, without files."""

import numpy as np

from worldmodel.data.episodes import Episodes, Layout


def box(*shape, dtype="float32"):
    return {"type": "Box", "shape": list(shape), "dtype": dtype, "low": None, "high": None}


def episodes_of(obs, action, lengths, reward=None, terminated=None) -> Episodes:
    """Episodes of these numbers of transitions, whose rows (F, O) and (F, A) follow one another."""
    layout = Layout({"observation": box(obs.shape[1])}, box(action.shape[1]))
    zeros = np.zeros(len(obs), np.float32)
    columns = (obs, zeros if reward is None else reward, zeros if terminated is None else terminated, action)
    frames = np.array(lengths) + 1
    names = [f"file, episode {i}" for i in range(len(frames))]
    table = np.concatenate([column.reshape(len(obs), -1) for column in columns], axis=1).astype(np.float32)
    return Episodes(layout, table, None, np.cumsum(frames) - frames, frames, names)


def all_obs(episodes: Episodes) -> np.ndarray:
    """(F, O) of all episodes, in order."""
    return episodes.obs(np.concatenate([episodes.rows(i) for i in range(len(episodes))]))
