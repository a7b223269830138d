"""Which rollouts were asked for, held against what the episodes have."""

from dataclasses import dataclass, replace

import numpy as np

from worldmodel.data.episodes import Episodes
from worldmodel.errors import UserError, nearest
from worldmodel.evaluation.horizon import default_burn_in

FEW = 3  # episodes, where none are named


@dataclass(frozen=True)
class Plan:
    """Which episodes, from where, how far."""

    episodes: Episodes  # the chosen ones, from the first frame that the model sees
    first: int  # that frame
    burn_in: int  # frames that are seen before the one where the rollout begins
    lengths: list[int]  # steps of each rollout
    notes: list[str]  # what was made shorter than wished, in words


def plan_rollouts(
    episodes: Episodes,
    steps: int,
    chosen: str | None = None,
    start: int | None = None,
    burn_in: int | None = None,
    horizon: int | None = None,
) -> Plan:
    """Hold what was asked for against what the episodes have.

    Args:
        episodes: of the split.
        steps: T, the trained horizon.
        chosen: numbers or names with commas between; None: a few of those that allow the longest rollouts.
        start: the last frame that the model sees; None: `burn_in`.
        burn_in: frames seen before it; None: all before `start`, or T, less where an episode is short.
        horizon: steps; None: 10 T, less where an episode ends before.

    Raises:
        UserError: if there is no such episode, or an episode has not as many frames.
    """
    for name, value in (("start", start), ("burn_in", burn_in), ("horizon", horizon)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1")
    wanted = (start or burn_in or steps) + (horizon or 10 * steps) + 1  # frames
    needed = (start or burn_in or 1) + (horizon or 1) + 1
    numbers = _numbers(chosen, episodes) if chosen is not None else _longest(episodes, wanted, needed)
    some, notes = episodes.select(numbers), []
    if burn_in is None:
        shortest = some.select([int(some.num_frames.argmin())])
        burn_in = default_burn_in(shortest, steps) if start is None else start
        if start is None and burn_in < steps:
            notes.append(f"the model sees {burn_in} frames before a rollout, not {steps}: the episodes are short")
    start = burn_in if start is None else start
    if burn_in > start:
        raise UserError(f"--burn_in {burn_in} reaches back before frame 0: the rollout starts at frame {start}")
    _check_room(some, start, horizon)
    room = some.num_frames - 1 - start
    horizon = 10 * steps if horizon is None else horizon
    if room.min() < horizon:
        least, most = room.min(), min(room.max(), horizon)
        reach = f"{least} to {most}" if least < most else f"{most}"
        notes.append(f"the rollouts end with their episodes, after {reach} steps, before {horizon} (10 x {steps})")
    first = start - burn_in
    seen = replace(some, starts=some.starts + first, num_frames=some.num_frames - first)
    return Plan(seen, first, burn_in, np.minimum(room, horizon).tolist(), notes)


def _check_room(episodes: Episodes, start: int, horizon: int | None) -> None:
    """A UserError that names the first episode that is too short."""
    for name, frames in zip(episodes.names, episodes.num_frames.tolist(), strict=True):
        left = frames - 1 - start
        if left < 1:
            raise UserError(
                f"{name} has {frames} frames: nothing is left to predict behind frame {start};"
                f" --start and --burn_in can be at most {frames - 2}"
            )
        if horizon is not None and left < horizon:
            raise UserError(
                f"--horizon {horizon} is longer than {name}: {left} frames follow frame {start};"
                " ask for fewer steps, a lower --burn_in or --start, or other --episodes"
            )


def _longest(episodes: Episodes, wanted: int, needed: int) -> list[int]:
    """A few episodes that have as many frames as are wanted, or most; none with fewer than needed, if there is any."""
    found = np.argsort(-np.minimum(episodes.num_frames, wanted), kind="stable")[:FEW].tolist()
    return [i for i in found if episodes.num_frames[i] >= needed] or found[:1]


def _numbers(chosen: str, episodes: Episodes) -> list[int]:
    """Numbers of episodes, each given as such, or by its name or the end of it."""
    names = [_short(name) for name in episodes.names]
    numbers: list[int] = []
    for word in map(str.strip, chosen.split(",")):
        found = [i for i, name in enumerate(names) if word == name]
        if word.isdecimal():
            found = [int(word)] if int(word) < len(names) else []
        if not found:
            by_number = word.isdecimal() or len(names) > 1000
            hint = f"it has 0 to {len(names) - 1}" if by_number else nearest(word, names)
            raise UserError(f"no episode {word!r} in the split: {hint}")
        if len(found) > 1:
            raise UserError(f"{len(found)} episodes of the split are called {word!r}: choose by number, {found[:9]}")
        numbers += found
    return list(dict.fromkeys(numbers))


def _short(name: str) -> str:
    """The part of an episode's name after the file."""
    return name.rsplit(", ", 1)[-1]
