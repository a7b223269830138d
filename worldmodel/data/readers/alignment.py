"""Rows, as files hold them, turned into canonical episodes: the one place where alignment is decided.

Formats differ in which transition a row's action, reward and end belong to: the one that *leaves* the row's observation
("next") or the one that *enters* it ("previous").

    row          0     1     2          transitions
    observation  o0    o1    o2         o0 -a0-> o1 -a1-> o2
    "next"       a0    a1    -          the last row's is a placeholder
    "previous"   -     a0    a1         the first row's is a placeholder
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from worldmodel.data.episode import Episode
from worldmodel.data.spaces import Json, box_of
from worldmodel.errors import UserError

Side = Literal["next", "previous"]


@dataclass(frozen=True)
class Rows:
    """One episode as its file holds it; None where the file has no such column."""

    observations: dict[str, np.ndarray]  # key -> (T + 1, ...), the true final one included
    actions: np.ndarray  # (T, ...), or (T + 1, ...) with a placeholder
    rewards: np.ndarray | None = None  # (T,) or (T + 1,)
    terminated: np.ndarray | None = None  # (T,) or (T + 1,)
    truncated: np.ndarray | None = None  # (T,) or (T + 1,)


def episode_of(rows: Rows, actions: Side, outcomes: Side, where: str, rate: float = float("nan")) -> Episode:
    """The canonical episode of one episode's rows.

    `actions` and `outcomes` (rewards and ends) say which transition a row's values belong to, where there is a row
    more than there are transitions. Missing rewards become zeros; an episode that has not terminated was truncated.

    Raises:
        UserError: naming `where`, if there is no transition or lengths or flags contradict each other.
    """
    steps = len(next(iter(rows.observations.values()))) - 1
    if steps < 1:
        raise UserError(f"{where}: it has no transition (a single observation); leave it out of the dataset")
    taken = _transitions(rows.actions, steps, actions, "actions", where)
    if actions == "next" and taken.dtype.kind == "f" and np.isnan(taken[0]).all():
        raise UserError(f"{where}: its first action is NaN, a placeholder: the alignment should be 'previous'")
    rewards = np.zeros(steps, np.float32)
    if rows.rewards is not None:
        rewards = _transitions(rows.rewards, steps, outcomes, "rewards", where).reshape(steps, -1)
        if rewards.shape[1] != 1:
            raise UserError(f"{where}: a step has {rewards.shape[1]} rewards; it must be one number")
        rewards = rewards[:, 0]
    terminated = _ended(rows.terminated, steps, outcomes, "terminated", where)
    truncated = _ended(rows.truncated, steps, outcomes, "truncated", where) or not terminated
    try:
        return Episode(rows.observations, taken, rewards, terminated, truncated, rate)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def leaf_of(values: np.ndarray) -> Json:
    """The space of rows (N, ...) if the file declares none: MultiBinary for bool, else a Box without bounds."""
    if values.dtype == np.bool_:
        return {"type": "MultiBinary", "shape": list(values.shape[1:])}
    return box_of(values)


def action_leaf(values: np.ndarray, largest: int = 0) -> Json:
    """The space of actions (N, ...) if the file declares none: Discrete for one whole number per step, else a Box.

    Discrete holds 0 to `largest`, the largest value in the dataset: actions never seen cannot be known.
    """
    if values.ndim == 1 and values.dtype.kind in "iu":
        return {"type": "Discrete", "n": largest + 1, "start": 0}
    return leaf_of(values)


def side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    """Parts (N, ...) as one vector (N, entries); a single one stays as it is."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([part.reshape(len(part), int(np.prod(part.shape[1:]))) for part in parts], axis=1)


def check_spaces(episode: Episode, observations: dict[str, Json], actions: Json, where: str) -> None:
    """Raise UserError if an episode's arrays have other shapes than the dataset's spaces."""
    for what, values, leaf in [
        *((f"observation {key!r}", episode.observations[key], leaf) for key, leaf in observations.items()),
        ("action", episode.actions, actions),
    ]:
        expected = [len(leaf["nvec"])] if leaf["type"] == "MultiDiscrete" else leaf.get("shape", [])
        if list(values.shape[1:]) != expected:
            raise UserError(f"{where}: each {what} has the shape {list(values.shape[1:])}; the dataset's is {expected}")


def _transitions(values: np.ndarray, steps: int, side: Side, what: str, where: str) -> np.ndarray:
    """The values (T, ...) of T transitions, from T or T + 1 rows."""
    if len(values) == steps:
        return values
    if len(values) != steps + 1:
        raise UserError(f"{where}: {steps + 1} observations, but {len(values)} {what}; {steps} or {steps + 1} fit")
    return values[:-1] if side == "next" else values[1:]


def _ended(flags: np.ndarray | None, steps: int, side: Side, what: str, where: str) -> bool:
    """Whether the last transition is flagged; flags must stay set once they are."""
    if flags is None:
        return False
    flags = np.nan_to_num(flags.reshape(len(flags), -1)[:, 0]).astype(bool)
    of_steps = _transitions(flags, steps, side, what, where)
    first = int(np.argmax(flags)) if flags.any() else len(flags)
    if not flags[first:].all():
        raise UserError(f"{where}: {what!r} is set at row {first}, yet the episode continues: its bounds are wrong")
    if flags[-1] and not of_steps[-1]:
        raise UserError(f"{where}: {what!r} is set in its last row, yet none leaves it: outcomes should be 'previous'")
    return bool(of_steps[-1])
