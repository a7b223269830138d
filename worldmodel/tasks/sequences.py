"""Sequence tasks: what a memory has to do for the next token to be predicted.

A task draws sequences of tokens 0 .. V-1. `weight[t]` is what a right prediction of token t + 1 from the tokens up to t
is worth: 1 where it is asked for, 0 where the token is noise. Lengths count steps, one less than tokens.
"""

from dataclasses import dataclass, fields
from math import log
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from worldmodel.errors import UserError, choose


class Sequence(NamedTuple):
    """One sequence of a task."""

    tokens: np.ndarray  # (L + 1,) int64
    weight: np.ndarray  # (L,) float32


class Task(Protocol):
    """What every task has."""

    @property
    def vocabulary(self) -> tuple[str, ...]: ...  # names of the tokens
    def draw(self, rng: np.random.Generator, length: int | None = None) -> Sequence:
        """A sequence: as long as the options say, or about as long as asked."""
        ...


@dataclass(frozen=True)
class Counting:
    """S a^n b^n E, or with three symbols S a^n b^n c^n E, in next-symbol form; n is uniform on 1 .. max_n.

    Everything can be predicted but where the first b comes: behind it the model must have counted
    (Gers & Schmidhuber 2001, LSTM recurrent networks learn simple context-free and context-sensitive languages).
    """

    symbols: int = 2
    max_n: int = 10

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
        word.weight[1 : n + 1] = 0  # among the a nobody can tell
        return word

    def optimum(self) -> float:
        """The least cross-entropy of a step, in nats: a word tells one n of max_n in symbols n + 1 steps."""
        return log(self.max_n) / (self.symbols * (self.max_n + 1) / 2 + 1)


@dataclass(frozen=True)
class Balanced:
    """S a^n b^m E and then the answer, Y if n = m, else N: asked for at E alone.

    Half of the words are balanced; the others miss by one or two. An odd total is never balanced: parity alone is
    right three times in four, and only more than that is counting. Of a given length n still varies, from three
    quarters of what fits on: with one n, who looks at m alone could be right every time.
    """

    max_n: int = 10
    vocabulary: ClassVar[tuple[str, ...]] = ("S", "a", "b", "E", "Y", "N")

    def draw(self, rng: np.random.Generator, length: int | None = None) -> Sequence:
        most = self.max_n if length is None else max(1, (length - 2) // 2)
        n = int(rng.integers(1 if length is None else max(1, 3 * most // 4), most + 1))
        m = n if rng.random() < 0.5 else int(rng.choice([d for d in (n - 2, n - 1, n + 1, n + 2) if d >= 1]))
        tokens = np.concatenate([[0], np.full(n, 1), np.full(m, 2), [3, 4 if n == m else 5]])
        return Sequence(tokens, _at_last(tokens))


@dataclass(frozen=True)
class _Recall:
    """Options of the tasks that recall values among values: the filler looks like what is to be kept."""

    values: int = 4
    min_length: int = 24
    max_length: int = 32

    def _length(self, rng: np.random.Generator, length: int | None, least: int) -> int:
        drawn = int(rng.integers(self.min_length, self.max_length + 1)) if length is None else length
        return max(drawn, least)

    def _names(self, *marks: str) -> tuple[str, ...]:
        return (*(f"v{i}" for i in range(self.values)), *marks)


@dataclass(frozen=True)
class Haystack(_Recall):
    """Filler, somewhere in it KEY value SEP, at the end ? and the value. The filler is drawn from the values.

    With `first` KEY is the first token, and the dependency as long as the sequence; else its place is uniform.
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
    """A few values among blanks, then GO: now the values, in their order (Gu & Dao 2023, Mamba, section 3.1)."""

    items: int = 4

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
    """Values; at a ? the next token is the first one of the sequence (as in POPGym, Morad et al. 2023).

    A token is a ? with a probability of 1 / 8, and the last but one always. Each answer is shown, as the next token;
    of a given length, therefore, a sequence asks at its end alone, and the first value lies that far back.
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
    "worldmodel/Counting-v0": Counting,
    "worldmodel/Balanced-v0": Balanced,
    "worldmodel/Haystack-v0": Haystack,
    "worldmodel/SelectiveCopy-v0": SelectiveCopy,
    "worldmodel/RepeatFirst-v0": RepeatFirst,
}


def make_task(env_id: str, **options: Any) -> Task:
    """The task of a name in TASKS.

    Raises:
        UserError: for an option that it has not, or a value that makes no sense.
    """
    kind = TASKS[env_id]
    name, known = env_id.split("/")[-1], {field.name for field in fields(kind)}
    for option, value in options.items():
        choose(f"{name} option", option, known)
        least = 2 if option in ("symbols", "values") else 1
        if option != "first" and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UserError(f"{name}'s {option} is {value!r}: it must be a whole number, at least {least}")
    if options.get("symbols", 2) > 3:
        raise UserError(f"{name}'s symbols is {options['symbols']}: 2 (a b) and 3 (a b c) are there")
    task = kind(**options)
    if issubclass(kind, _Recall) and task.min_length > task.max_length:
        raise UserError(f"{name}'s min_length {task.min_length} is above its max_length {task.max_length}")
    return task


def task_of(collected: list[dict[str, Any]]) -> Task | None:
    """The task that a dataset is of, by what its manifest says was collected; None if it is of no task, or of two."""
    made = {(past.get("env_id"), repr(sorted(past.get("env_kwargs", {}).items()))) for past in collected}
    if len(made) != 1 or collected[0].get("env_id") not in TASKS:
        return None
    return make_task(collected[0]["env_id"], **collected[0].get("env_kwargs", {}))


def _at_last(tokens: np.ndarray) -> np.ndarray:
    """Weights that ask for the last token alone."""
    weight = np.zeros(len(tokens) - 1, np.float32)
    weight[-1] = 1
    return weight
