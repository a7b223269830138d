"""Which episodes train, validate and test: shares of them, or one of several folds for cross-validation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from worldmodel.data.episodes import Episodes
from worldmodel.errors import UserError

Split = Literal["train", "val", "test"]
FEWEST = 2  # frames of a block: one step
TEN = 10  # episodes that are divided together


def check_split(val_fraction: float, test_fraction: float, folds: int | None, fold: int) -> None:
    """Raise UserError for shares or folds that divide no dataset."""
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise UserError(
            f"data.val_fraction is {val_fraction}, data.test_fraction {test_fraction}: the first must be above 0,"
            " the second at least 0, and their sum below 1"
        )
    if folds is None and fold:
        raise UserError(f"data.fold is {fold}: say with data.folds into how many parts the data is divided")
    if folds is not None and folds < 2:
        raise UserError(f"data.folds is {folds}: it must be at least 2, or null")
    if folds is not None and not 0 <= fold < folds:
        raise UserError(f"data.fold is {fold}: of {folds} folds (data.folds) it must be 0 to {folds - 1}")


def split(
    episodes: Episodes, val_fraction: float, test_fraction: float, folds: int | None, fold: int, seed: int
) -> dict[Split, Episodes]:
    """The episodes of each split, by shares, or by folds where their number is given."""
    if folds is not None:
        return split_folds(episodes, folds, fold, test_fraction, seed)
    chosen = split_episodes(len(episodes), val_fraction, test_fraction, seed)
    return {name: episodes.select(indices) for name, indices in chosen.items()}


def split_episodes(episodes: int, val_fraction: float, test_fraction: float, seed: int) -> dict[Split, np.ndarray]:
    """Indices of each split, in order; at least one for each fraction above 0, and at every tenth episode the shares.

    An episode's split is a function of its place alone, drawn among its ten: episodes that are added after it later
    move none, so that nothing that was trained on is ever validated on.

    Raises:
        UserError: if there are too few to split.
    """
    held_out, fewest = val_fraction + test_fraction, 1 + (test_fraction > 0)
    if episodes <= fewest:
        raise UserError(
            f"the dataset holds {episodes} episode{'s' * (episodes > 1)}: too few to split into training, 1 for"
            f" validation and {fewest - 1} for the test; collect more episodes"
            " (--data.test_fraction 0 needs one fewer), or hold out a block of each with --data.folds 5"
        )

    def counts(first: int) -> np.ndarray:
        """How many of the first episodes train, validate and test."""
        out = min(first - 1, max(fewest, round(first * held_out)))
        val = min(max(1, round(out * val_fraction / held_out)), out - fewest + 1)
        return np.array([first - out, val, out - val])

    rng, before, drawn = np.random.default_rng(seed), np.zeros(3, np.int64), []
    for first in (fewest + 1, *range(TEN, episodes + TEN, TEN)):  # the first few are one of each
        drawn.append(rng.permutation(np.repeat(np.arange(3), counts(first) - before)))
        before = counts(first)
    split_of = np.concatenate(drawn)[:episodes]
    names: tuple[Split, ...] = get_args(Split)
    return {name: np.flatnonzero(split_of == number) for number, name in enumerate(names)}


def split_folds(episodes: Episodes, folds: int, fold: int, test_fraction: float, seed: int) -> dict[Split, Episodes]:
    """Validation on one of several folds, training on the others; the test, set apart first, is that of every fold.

    A fold holds whole episodes. Where there are fewer episodes than folds, it holds a block of each: the last
    `test_fraction` of an episode's frames is the test, the rest is divided into `folds` blocks of consecutive frames,
    and what lies before and after the held-out block trains as episodes of their own. No frame is in two splits, and no
    step leads from one into another.

    Args:
        episodes: of the dataset.
        folds: number of folds, at least 2.
        fold: the one that validates, from 0.
        test_fraction: share of the episodes, or of the frames of each, for the test.
        seed: of the order of whole episodes.

    Raises:
        UserError: if an episode is too short to be divided.
    """
    if folds_of_frames(len(episodes), folds, test_fraction, seed):
        return _blocks(episodes, folds, fold, test_fraction)
    rest, tested = _apart(len(episodes), test_fraction, seed)
    rng = np.random.default_rng(seed)  # one of each fold, again and again: folds stay, too, where episodes are added
    fold_of = np.concatenate([rng.permutation(folds) for _ in range(0, len(rest), folds)])[: len(rest)]
    chosen: dict[Split, np.ndarray] = {"train": rest[fold_of != fold], "val": rest[fold_of == fold], "test": tested}
    return {name: episodes.select(indices) for name, indices in chosen.items()}


def folds_of_frames(episodes: int, folds: int, test_fraction: float, seed: int) -> bool:
    """Whether there are fewer episodes than folds, so that each is divided."""
    return len(_apart(episodes, test_fraction, seed)[0]) < folds


def _apart(episodes: int, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the episodes that are divided into folds, and of the test's."""
    if test_fraction == 0 or episodes < 2:
        return np.arange(episodes), np.zeros(0, np.int64)
    train, val, _ = split_episodes(episodes, test_fraction, 0.0, seed).values()
    return train, val


def _blocks(episodes: Episodes, folds: int, fold: int, test_fraction: float) -> dict[Split, Episodes]:
    parts: dict[Split, list[Episodes]] = {"train": [], "val": [], "test": []}
    for number, frames in enumerate(episodes.num_frames.tolist()):
        rest = frames - (max(FEWEST, round(frames * test_fraction)) if test_fraction > 0 else 0)
        if rest < FEWEST * folds:
            raise UserError(
                f"{episodes.names[number]} has {frames} frames: too few for {folds} blocks of at least {FEWEST}"
                f"{' and a test' * (test_fraction > 0)}; use fewer --data.folds, or leave the episode out"
            )
        begin, end = (rest * n // folds for n in (fold, fold + 1))
        spans: list[tuple[Split, int, int]] = [
            *(("train", 0, begin), ("val", begin, end), ("train", end, rest), ("test", rest, frames))
        ]
        for name, first, last in spans:
            if last > first:
                parts[name].append(episodes.cut(number, first, last))
    return {name: _joined(episodes, views) for name, views in parts.items()}


def _joined(episodes: Episodes, views: Sequence[Episodes]) -> Episodes:
    if not views:
        return episodes.select([])
    starts, frames = (np.concatenate([getattr(view, name) for view in views]) for name in ("starts", "num_frames"))
    return replace(episodes, starts=starts, num_frames=frames, names=[name for view in views for name in view.names])
