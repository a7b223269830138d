"""How long a memory holds: accuracy on sequence tasks far past the trained length, and how far a model counts."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.tasks.sequences import Counting, Task

PIECE = 256  # steps that are computed at once
SIDE_BY_SIDE = 256  # words that are counted at once


class Model(Protocol):
    """What is asked of a model; see WorldModel."""

    @property
    def device(self) -> torch.device: ...
    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None, /
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # logits of the next token (B, T, V), states (B, T, D), carry (B, D)


@dataclass(frozen=True)
class Recalled:
    """What a model came to on a task."""

    lengths: list[int]  # steps of a sequence
    accuracy: list[float]  # of what is asked for, at each length
    chance: float  # of answers drawn at random from the tokens that are ever asked for
    counts_to: int | None  # of a counting task: the largest n accepted with all smaller ones; None: no such task
    limit: int | None  # up to which n it was tried


@torch.no_grad()
def recall(model: Model, task: Task, lengths: list[int], sequences: int, seed: int, limit: int) -> Recalled:
    """Judge a model on sequences of given lengths that are drawn here, each from a state of zeros.

    Args:
        model: in evaluation mode; what it predicts are the probabilities of the next token.
        task: that the model was trained on.
        lengths: in steps.
        sequences: of each length.
        seed: of the sequences, the same for every model.
        limit: the largest n that a counting task is tried up to.
    """
    accuracies, asked = [], set[int]()
    sequences = 1 if isinstance(task, Counting) else sequences  # of one length there is one word
    for length in lengths:
        rng = np.random.default_rng([seed, length])
        drawn = [task.draw(rng, length) for _ in range(sequences)]
        steps = max(len(sequence.weight) for sequence in drawn)
        tokens = np.zeros((sequences, steps + 1), np.int64)
        weight = np.zeros((sequences, steps), np.float32)
        for row, sequence in enumerate(drawn):
            tokens[row, : len(sequence.tokens)], weight[row, : len(sequence.weight)] = sequence
        predicted, _ = _predict(model, tokens[:, :-1], len(task.vocabulary))
        right = weight * (predicted == tokens[:, 1:])
        accuracies.append(float(right.sum() / weight.sum()))
        asked |= set(np.unique(tokens[:, 1:][weight > 0]).tolist())
    counted = counts_to(model, task, limit) if isinstance(task, Counting) else None
    return Recalled(lengths, accuracies, 1 / len(asked), counted, limit if counted is not None else None)


def counts_to(model: Model, task: Counting, limit: int) -> int:
    """The largest n whose word is accepted, with those of all smaller n: 0 .. limit.

    A word is accepted if the most probable next symbol is right wherever the grammar leaves one choice, and one of the
    legal two (a or b) among the a.
    """
    done = 0
    while done < limit:
        sizes = np.arange(done + 1, min(max(2 * done, 32), done + SIDE_BY_SIDE, limit) + 1)
        wrong = sizes[~accepts(model, task, sizes)]
        if len(wrong):
            return int(wrong[0]) - 1
        done = int(sizes[-1])
    return limit


def accepts(model: Model, task: Counting, sizes: np.ndarray) -> np.ndarray:
    """Whether the words of these n are accepted (N,) bool; what they have in common is computed once."""
    symbols, vocabulary, most = task.symbols, len(task.vocabulary), int(sizes.max())
    opening = np.concatenate([[0], np.ones(most, np.int64)])[None]
    predicted, states = _predict(model, opening, vocabulary, keep=sizes)  # the state behind the n-th a
    legal = np.isin(predicted[0], (1, 2))
    legal[0] = predicted[0, 0] == 1
    fine = np.logical_and.accumulate(legal)[sizes]
    rest = np.full((len(sizes), (symbols - 1) * most), symbols + 1)
    truth = rest.copy()
    for row, n in enumerate(sizes):
        tail = np.repeat(np.arange(2, symbols + 1), n)
        rest[row, : len(tail)] = tail
        truth[row, : len(tail)] = [*tail[1:], symbols + 1]
    predicted, _ = _predict(model, rest, vocabulary, states)
    inside = np.arange(rest.shape[1]) < (symbols - 1) * sizes[:, None]
    return fine & ((predicted == truth) | ~inside).all(axis=1)


def _predict(
    model: Model, tokens: np.ndarray, vocabulary: int, state: Tensor | None = None, keep: np.ndarray | None = None
) -> tuple[np.ndarray, Tensor]:
    """The most probable next token (B, T) after each of tokens (B, T), from a state (B, D) or the start.

    Also the last state (B, D); with `keep` (N,), of the only lane, the states after these steps, (N, D).
    """
    carry, best, kept = state, [], []
    fresh = state is None
    for begin in range(0, tokens.shape[1], PIECE):
        part = torch.from_numpy(tokens[:, begin : begin + PIECE]).to(model.device)
        is_first = torch.zeros(part.shape, dtype=torch.bool, device=model.device)
        is_first[:, 0] = fresh and begin == 0
        obs = F.one_hot(part, vocabulary).float()
        action = torch.ones(*part.shape, 1, device=model.device)  # the only one there is
        probabilities, h, carry = model.closed_loop(obs, action, is_first, carry)
        best.append(probabilities.argmax(dim=-1).cpu().numpy())
        if keep is not None:
            here = keep[(keep >= begin) & (keep < begin + PIECE)] - begin
            kept.append(h[0, torch.from_numpy(here).to(h.device)])
    assert carry is not None
    return np.concatenate(best, axis=1), carry if keep is None else torch.cat(kept)
