"""Sequence tasks, which need a memory to predict the next token, and their environment.

A task draws sequences of tokens 0 .. V-1. `weight[t]` is the value of predicting token t + 1 from the tokens up to t:
1 where it is asked for, 0 where the token is noise. Lengths count steps, one less than tokens.
"""

from dataclasses import dataclass, field, fields
from math import log
from typing import Any, ClassVar, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from worldmodel.errors import UserError, choose


class Sequence(NamedTuple):
    """One sequence of a task."""

    tokens: np.ndarray  # (L + 1,) int64
    weight: np.ndarray  # (L,) float32


class Task(Protocol):
    """The interface of a task, a frozen dataclass whose fields are its options."""

    @property
    def vocabulary(self) -> tuple[str, ...]: ...  # names of the tokens
    def draw(self, rng: np.random.Generator, length: int | None = None) -> Sequence:
        """A sequence of about `length` steps; None: of a length within the options."""
        ...


def _option(default: int, least: int = 1, most: int | None = None) -> Any:
    """A task's whole-number option and its limits."""
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True)
class Counting:
    """S a^n b^n E, or with three symbols S a^n b^n c^n E; n is uniform on 1 .. max_n.

    Everything after the first b can be predicted by counting
    (Gers & Schmidhuber 2001, LSTM recurrent networks learn simple context-free and context-sensitive languages).
    """

    symbols: int = _option(2, least=2, most=3)
    max_n: int = _option(10)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return ("S", *"abc"[: self.symbols], "E")

    def word(self, n: int) -> Sequence:
        """The word of one n."""
        middle = np.repeat(np.arange(1, self.symbols + 1), n)
        tokens = np.concatenate([[0], middle, [self.symbols + 1]])
        return Sequence(tokens, np.ones(len(tokens) - 1, np.float32))

    def draw(self, rng: np.random.Generator, length: int | None = None) -> Sequence:
        if length is None:
            return self.word(int(rng.integers(1, self.max_n + 1)))
        word = self.word(n := max(1, length // self.symbols))
        word.weight[1 : n + 1] = 0  # the end of the a cannot be predicted
        return word

    def optimum(self) -> float:
        """The least cross-entropy of a step, in nats: a word reveals one n of max_n in symbols n + 1 steps."""
        return log(self.max_n) / (self.symbols * (self.max_n + 1) / 2 + 1)


@dataclass(frozen=True)
class Balanced:
    """S a^n b^m E and the answer: Y if n = m, else N. Only the answer is asked for.

    Half of the words are balanced; the others miss by one or two. An odd total is never balanced, so parity alone is
    right three times in four, and only a higher accuracy shows counting. At a given length n still varies, down to
    three quarters of its maximum; with a fixed n, m alone would give the answer away.
    """

    max_n: int = _option(10)
    vocabulary: ClassVar[tuple[str, ...]] = ("S", "a", "b", "E", "Y", "N")

    def draw(self, rng: np.random.Generator, length: int | None = None) -> Sequence:
        most = self.max_n if length is None else max(1, (length - 2) // 2)
        n = int(rng.integers(1 if length is None else max(1, 3 * most // 4), most + 1))
        m = n if rng.random() < 0.5 else int(rng.choice([d for d in (n - 2, n - 1, n + 1, n + 2) if d >= 1]))
        tokens = np.concatenate([[0], np.full(n, 1), np.full(m, 2), [3, 4 if n == m else 5]])
        return Sequence(tokens, _at_last(tokens))


@dataclass(frozen=True)
class _Recall:
    """Options of the tasks that recall a value; the filler is drawn from the same values."""

    values: int = _option(4, least=2)
    min_length: int = _option(24)
    max_length: int = _option(32)

    def __post_init__(self) -> None:
        if self.min_length > self.max_length:
            name = type(self).__name__
            raise UserError(f"{name}-v0's min_length {self.min_length} is above its max_length {self.max_length}")

    def _length(self, rng: np.random.Generator, length: int | None, least: int) -> int:
        drawn = int(rng.integers(self.min_length, self.max_length + 1)) if length is None else length
        return max(drawn, least)

    def _names(self, *marks: str) -> tuple[str, ...]:
        return (*(f"v{i}" for i in range(self.values)), *marks)


@dataclass(frozen=True)
class Haystack(_Recall):
    """Filler with KEY value SEP somewhere in it, then ? and the value.

    With `first` KEY is the first token, so the dependency is as long as the sequence; else its place is uniform.
    """

    first: bool = False

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self._names("KEY", "SEP", "?")

    def draw(self, rng: np.random.Generator, length: int | None = None) -> Sequence:
        steps, v = self._length(rng, length, 5), self.values
        tokens = rng.integers(0, v, steps + 1)
        place = 0 if self.first else int(rng.integers(0, steps - 3))
        value = int(rng.integers(0, v))
        tokens[place : place + 3] = v, value, v + 1
        tokens[-2:] = v + 2, value
        return Sequence(tokens, _at_last(tokens))


@dataclass(frozen=True)
class SelectiveCopy(_Recall):
    """A few values among blanks, then GO and the values in order (Gu & Dao 2023, Mamba, section 3.1)."""

    items: int = _option(4)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self._names("_", "GO")

    def draw(self, rng: np.random.Generator, length: int | None = None) -> Sequence:
        k, v = self.items, self.values
        before = self._length(rng, length, 2 * k + 1) - k
        kept = rng.integers(0, v, k)
        tokens = np.concatenate([np.full(before, v), [v + 1], kept])
        tokens[np.sort(rng.choice(before, k, replace=False))] = kept
        weight = np.zeros(len(tokens) - 1, np.float32)
        weight[-k:] = 1
        return Sequence(tokens, weight)


@dataclass(frozen=True)
class RepeatFirst(_Recall):
    """Values; after each ? comes the first token of the sequence (as in POPGym, Morad et al. 2023).

    A token is a ? with probability 1 / 8, and the last but one always. Each answer repeats the value, so a sequence of
    a given length asks only at its end, and the first value is that far back.
    """

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self._names("?")

    def draw(self, rng: np.random.Generator, length: int | None = None) -> Sequence:
        steps, v = self._length(rng, length, 2), self.values
        tokens = rng.integers(0, v, steps + 1)
        asked = rng.random(steps) < (1 / 8 if length is None else 0)
        asked[0], asked[-1] = False, True
        asked[1:] &= ~asked[:-1] | (np.arange(1, steps) == steps - 1)
        asked[-2] &= steps < 2  # what follows a ? is an answer
        weight = np.zeros(steps, np.float32)
        for t in np.flatnonzero(asked):
            tokens[t], tokens[t + 1], weight[t] = v, tokens[0], 1
        return Sequence(tokens, weight)


TASKS: dict[str, type[Any]] = {
    f"worldmodel/{kind.__name__}-v0": kind for kind in (Counting, Balanced, Haystack, SelectiveCopy, RepeatFirst)
}


def make_task(env_id: str, **options: Any) -> Task:
    """The task of a name in TASKS.

    Raises:
        UserError: for an unknown option, or an invalid value.
    """
    kind = TASKS[env_id]
    name, known = env_id.split("/")[-1], {field.name: field for field in fields(kind)}
    for option, value in options.items():
        choose(f"{name} option", option, known)
        if isinstance(known[option].default, bool):
            continue
        least, most = known[option].metadata["least"], known[option].metadata["most"]
        if not isinstance(value, int) or isinstance(value, bool) or value < least or (most and value > most):
            limits = f"from {least} to {most}" if most else f"at least {least}"
            raise UserError(f"{name}'s {option} is {value!r}: it must be a whole number, {limits}")
    return kind(**options)


def task_of(collected: list[dict[str, Any]]) -> Task | None:
    """The task of a dataset, given the collections in its manifest; None if they are of no task, or of several."""
    tasks = {(past.get("env_id"), repr(sorted(past.get("env_kwargs", {}).items()))) for past in collected}
    if len(tasks) != 1 or collected[0].get("env_id") not in TASKS:
        return None
    return make_task(collected[0]["env_id"], **collected[0].get("env_kwargs", {}))


class SequenceEnv(gym.Env[np.int64, np.int64]):
    """A sequence task as an environment: it shows one token after the other. Its single action has no effect.

    The reward of a step is the weight of predicting the token it leads to; the last token ends the episode.

    Args:
        task: a name in TASKS.
        options: of the task, see make_task.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, task: str, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = render_mode
        self.task = make_task(task, **options)
        self.observation_space = gym.spaces.Discrete(len(self.task.vocabulary))
        self.action_space = gym.spaces.Discrete(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self._sequence, self._t = self.task.draw(self.np_random), 0
        return self._sequence.tokens[0], {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        tokens, weight = self._sequence
        reward = float(weight[self._t])
        self._t += 1
        return tokens[self._t], reward, self._t == len(weight), False, {}


def _at_last(tokens: np.ndarray) -> np.ndarray:
    """Weights that ask only for the last token."""
    weight = np.zeros(len(tokens) - 1, np.float32)
    weight[-1] = 1
    return weight
