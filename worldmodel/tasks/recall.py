"""How long a memory lasts: accuracy on sequence tasks far beyond the trained length, and how far a model counts."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.tasks.sequences import Counting, Task

PIECE = 256  # steps computed at once
WORDS = 256  # words judged at once


class TokenModel(Protocol):
    """A model of tokens; see WorldModel."""

    @property
    def device(self) -> torch.device: ...
    def closed_loop(
        self, obs: Tensor, action: Tensor, is_first: Tensor, h: Tensor | None, /
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # logits of the next token (B, T, V), states (B, T, D), carry (B, D)


@dataclass(frozen=True)
class RecallScores:
    """A model's scores on a task."""

    lengths: list[int]  # steps of a sequence
    accuracy: list[float]  # share of correct answers at each length
    chance: float  # accuracy of random answers
    counts_to: int | None  # in a counting task the largest n accepted with all smaller ones, else None
    limit: int | None  # the largest n that was tried


@torch.no_grad()
def recall(model: TokenModel, task: Task, lengths: list[int], sequences: int, seed: int, limit: int) -> RecallScores:
    """Judge a model on fresh sequences of given lengths, each from a state of zeros.

    Args:
        model: in evaluation mode; predicts the probabilities of the next token.
        task: the task the model was trained on.
        lengths: in steps.
        sequences: number of them for each length.
        seed: of the sequences.
        limit: the largest n to try in a counting task.
    """
    accuracies, asked = [], set[int]()
    sequences = 1 if isinstance(task, Counting) else sequences  # there is one word of each length
    for length in lengths:
        rng = np.random.default_rng([seed, length])
        drawn = [task.draw(rng, length) for _ in range(sequences)]
        steps = max(len(sequence.weight) for sequence in drawn)
        tokens = np.zeros((sequences, steps + 1), np.int64)
        weight = np.zeros((sequences, steps), np.float32)
        for row, sequence in enumerate(drawn):
            tokens[row, : len(sequence.tokens)], weight[row, : len(sequence.weight)] = sequence
        predicted, _ = _predict(model, tokens[:, :-1], len(task.vocabulary))
        correct = weight * (predicted == tokens[:, 1:])
        accuracies.append(float(correct.sum() / weight.sum()))
        asked |= set(np.unique(tokens[:, 1:][weight > 0]).tolist())
    counted = counts_to(model, task, limit) if isinstance(task, Counting) else None
    return RecallScores(lengths, accuracies, 1 / len(asked), counted, limit if counted is not None else None)


def counts_to(model: TokenModel, task: Counting, limit: int) -> int:
    """The largest n whose word is accepted along with those of all smaller n: 0 .. limit.

    A word is accepted if the most probable next symbol is always legal: one of a and b among the a, and elsewhere the
    only choice that the grammar leaves.
    """
    done = 0
    while done < limit:
        sizes = np.arange(done + 1, min(max(2 * done, 32), done + WORDS, limit) + 1)
        wrong = sizes[~accepts(model, task, sizes)]
        if len(wrong):
            return int(wrong[0]) - 1
        done = int(sizes[-1])
    return limit


def accepts(model: TokenModel, task: Counting, sizes: np.ndarray) -> np.ndarray:
    """Whether the words of these n are accepted (N,) bool; their common beginning is computed once."""
    symbols, vocabulary, most = task.symbols, len(task.vocabulary), int(sizes.max())
    opening = np.concatenate([[0], np.ones(most, np.int64)])[None]
    predicted, states = _predict(model, opening, vocabulary, keep=sizes)  # the state after the n-th a
    legal = np.isin(predicted[0], (1, 2))
    legal[0] = predicted[0, 0] == 1
    legal_opening = np.logical_and.accumulate(legal)[sizes]
    rest = np.full((len(sizes), (symbols - 1) * most), symbols + 1)
    truth = rest.copy()
    for row, n in enumerate(sizes):
        tail = np.repeat(np.arange(2, symbols + 1), n)
        rest[row, : len(tail)] = tail
        truth[row, : len(tail)] = [*tail[1:], symbols + 1]
    predicted, _ = _predict(model, rest, vocabulary, states)
    inside = np.arange(rest.shape[1]) < (symbols - 1) * sizes[:, None]
    return legal_opening & ((predicted == truth) | ~inside).all(axis=1)


def _predict(
    model: TokenModel, tokens: np.ndarray, vocabulary: int, state: Tensor | None = None, keep: np.ndarray | None = None
) -> tuple[np.ndarray, Tensor]:
    """The most probable next token (B, T) after each of tokens (B, T), from a state (B, D) or the start.

    Also the last state (B, D), or with `keep` (N,) the states (N, D) of the only lane after these steps.
    """
    carry, best, kept = state, [], []
    from_start = state is None
    for begin in range(0, tokens.shape[1], PIECE):
        part = torch.from_numpy(tokens[:, begin : begin + PIECE]).to(model.device)
        is_first = torch.zeros(part.shape, dtype=torch.bool, device=model.device)
        is_first[:, 0] = from_start and begin == 0
        obs = F.one_hot(part, vocabulary).float()
        action = torch.ones(*part.shape, 1, device=model.device)  # the only one there is
        probabilities, h, carry = model.closed_loop(obs, action, is_first, carry)
        best.append(probabilities.argmax(dim=-1).cpu().numpy())
        if keep is not None:
            steps = keep[(keep >= begin) & (keep < begin + PIECE)] - begin
            kept.append(h[0, torch.from_numpy(steps).to(h.device)])
    assert carry is not None
    return np.concatenate(best, axis=1), carry if keep is None else torch.cat(kept)
