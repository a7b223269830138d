"""Which rollouts are made: the options of the evaluation, and the choices of `worldmodel rollout`."""

from dataclasses import dataclass, replace

import numpy as np

from worldmodel.data.episodes import Episodes
from worldmodel.errors import UserError, at_least, nearest
from worldmodel.evaluation.rollouts import Start

MULTIPLES = (1, 2, 5, 10, 50)  # of T, at which errors are reported
FEW = 3  # episodes, where none are named


@dataclass(frozen=True)
class RolloutOptions:
    """How far, from where and on how many episodes a model is rolled out.

    Args:
        multiples: Multiples of the segment length T at which the error is logged.
        burn_in: Frames that the model sees before the first rollout of an episode; null: T, fewer in short episodes.
        starts: Rollouts per episode.
        max_episodes: Episodes of the split that are evaluated, at most.
        threshold: Normalised error that ends the valid prediction time, and whose crossing is logged.
        examples: Rollouts in the picture.
        samples: Futures that are drawn of each rollout, where the model predicts a distribution.
        free_run: Frames that the model sees before a free run to the end of each episode; null: no free run.

    Raises:
        UserError: if a number is too small.
    """

    multiples: tuple[int, ...] = MULTIPLES
    burn_in: int | None = None
    starts: int = 8
    max_episodes: int = 64
    threshold: float = 0.5
    examples: int = 3
    samples: int = 32
    free_run: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "multiples", tuple(sorted(set(self.multiples))))
        least = min(self.starts, self.max_episodes, self.examples, *(self.multiples or [0]))
        if least < 1 or (self.burn_in or 0) < 0:
            raise UserError("rollout.multiples, starts, max_episodes, examples must be at least 1, burn_in at least 0")
        at_least(1, "rollout.", free_run=self.free_run)
        at_least(2, "rollout.", samples=self.samples)

    def first_episodes(self, split: Episodes) -> Episodes:
        """Those that are evaluated."""
        return split.select(range(min(self.max_episodes, len(split))))

    def rollouts(self, episodes: Episodes, steps: int) -> tuple[list[Start], int]:
        """Where rollouts start, at most the largest multiple of T = `steps` long; and the burn-in.

        The starts are spread so that as many rollouts as possible reach all multiples but the largest.
        """
        burn_in = default_burn_in(episodes, steps) if self.burn_in is None else self.burn_in
        burn_in = min(burn_in, int(episodes.num_frames.max()) - 2)
        longest = steps * self.multiples[-1]
        starts = [
            Start(episode, frame, min(length - frame, longest))
            for episode, length in enumerate((episodes.num_frames - 1).tolist())
            for frame in self._spread(length, burn_in, steps)
        ]
        return starts, burn_in

    def _spread(self, length: int, burn_in: int, steps: int) -> list[int]:
        """Frames of an episode with `length` transitions after which rollouts begin."""
        if length <= burn_in:
            return []
        fits = [multiple * steps for multiple in self.multiples if burn_in + multiple * steps <= length]
        if not fits:
            return [burn_in]
        return np.unique(np.linspace(burn_in, length - fits[max(len(fits) - 2, 0)], self.starts).astype(int)).tolist()


def default_burn_in(episodes: Episodes, steps: int) -> int:
    """T frames; a quarter of the longest episode, where that is less, but at least one."""
    return min(steps, max(1, (int(episodes.num_frames.max()) - 1) // 4))


@dataclass(frozen=True)
class Selection:
    """Chosen episodes, with one rollout of each."""

    episodes: Episodes  # from the first frame that the model sees
    first: int  # that frame
    burn_in: int  # frames that are seen before the one where the rollout begins
    lengths: list[int]  # steps of each rollout
    notes: list[str]  # what is shorter than asked for, in words


def select_rollouts(
    episodes: Episodes,
    steps: int,
    chosen: str | None = None,
    start: int | None = None,
    burn_in: int | None = None,
    horizon: int | None = None,
) -> Selection:
    """Choose rollouts as the options of `worldmodel rollout` ask, as far as the episodes allow.

    Args:
        episodes: of the split.
        steps: T, the trained horizon.
        chosen: numbers or names with commas between; None: a few of those that allow the longest rollouts.
        start: the last frame that the model sees; None: `burn_in`.
        burn_in: frames seen before it; None: all before `start`, or T, less where an episode is short.
        horizon: steps; None: 10 T, less where an episode ends before.

    Raises:
        UserError: if there is no such episode, or an episode is too short.
    """
    for name, value in (("start", start), ("burn_in", burn_in), ("horizon", horizon)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1")
    wanted = (start or burn_in or steps) + (horizon or 10 * steps) + 1  # frames
    needed = (start or burn_in or 1) + (horizon or 1) + 1
    some = episodes.select(_longest(episodes, wanted, needed) if chosen is None else episode_numbers(chosen, episodes))
    notes = []
    if burn_in is None:
        shortest = some.select([int(some.num_frames.argmin())])
        burn_in = default_burn_in(shortest, steps) if start is None else start
        if start is None and burn_in < steps:
            notes.append(f"the model sees {burn_in} frames before a rollout, not {steps}: the episodes are short")
    start = burn_in if start is None else start
    if burn_in > start:
        raise UserError(f"--burn_in {burn_in} reaches back before frame 0: the rollout starts at frame {start}")
    _check_length(some, start, horizon)
    left = some.num_frames - 1 - start
    horizon = 10 * steps if horizon is None else horizon
    if left.min() < horizon:
        least, most = left.min(), min(left.max(), horizon)
        ends = f"{least} to {most}" if least < most else f"{most}"
        notes.append(f"the rollouts end with their episodes, after {ends} steps, before {horizon} (10 x {steps})")
    first = start - burn_in
    seen = replace(some, starts=some.starts + first, num_frames=some.num_frames - first)
    return Selection(seen, first, burn_in, np.minimum(left, horizon).tolist(), notes)


def _check_length(episodes: Episodes, start: int, horizon: int | None) -> None:
    """Raise a UserError that names the first episode that is too short."""
    for name, frames in zip(episodes.names, episodes.num_frames.tolist(), strict=True):
        left = frames - 1 - start
        if left < 1:
            raise UserError(
                f"{name} has {frames} frames: nothing is left to predict after frame {start};"
                f" --start and --burn_in can be at most {frames - 2}"
            )
        if horizon is not None and left < horizon:
            raise UserError(
                f"--horizon {horizon} is longer than {name}: {left} frames follow frame {start};"
                " ask for fewer steps, a lower --burn_in or --start, or other --episodes"
            )


def _longest(episodes: Episodes, wanted: int, needed: int) -> list[int]:
    """A few episodes with as many frames as are wanted, or most; none with fewer than needed, if there is another."""
    longest = np.argsort(-np.minimum(episodes.num_frames, wanted), kind="stable")[:FEW].tolist()
    return [i for i in longest if episodes.num_frames[i] >= needed] or longest[:1]


def episode_numbers(chosen: str, episodes: Episodes) -> list[int]:
    """Numbers of episodes, each given as such, or by its name after the file's."""
    names = [name.rsplit(", ", 1)[-1] for name in episodes.names]
    numbers: list[int] = []
    for word in map(str.strip, chosen.split(",")):
        matches = [i for i, name in enumerate(names) if word == name]
        if word.isdecimal():
            matches = [int(word)] if int(word) < len(names) else []
        if not matches:
            by_number = word.isdecimal() or len(names) > 1000
            hint = f"it has 0 to {len(names) - 1}" if by_number else nearest(word, names)
            raise UserError(f"no episode {word!r} in the split: {hint}")
        if len(matches) > 1:
            raise UserError(
                f"{len(matches)} episodes of the split are called {word!r}: choose by number, {matches[:9]}"
            )
        numbers += matches
    return list(dict.fromkeys(numbers))
