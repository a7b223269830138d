"""Ridge regression from inner products, and how much of rows that were not fitted it explains."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

RIDGES = (1e-7, 1e-5, 1e-3, 1e-1)  # times the number of rows; inputs have unit variance
RIDGE = 1e-3  # of a regression with one fixed ridge, likewise
MIN_ROWS = 100  # in each half: nothing can be said from fewer

Array = TypeVar("Array", np.ndarray, Tensor)


def solve(products: np.ndarray, outputs: int, ridge: float) -> np.ndarray:
    """Weights (p, q) of the ridge regression of q outputs on p inputs, from [outputs | inputs]' [outputs | inputs]."""
    inner = products[outputs:, outputs:]
    return np.linalg.solve(inner + ridge * np.eye(len(inner)), products[outputs:, :outputs])


def squared_errors(products: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Summed squared errors (q,) of weights (p, q) on the rows of `products`: Y'Y - 2 W'X'Y + W'X'X W, its diagonal.

    At least 1e-12 of Y'Y, which is what rounding leaves of it.
    """
    outputs = weights.shape[1]
    inner, cross = products[outputs:, outputs:], products[outputs:, :outputs]
    total = np.diagonal(products)[:outputs]
    sums = total - 2 * (weights * cross).sum(axis=0) + (weights * (inner @ weights)).sum(axis=0)
    return np.maximum(sums, 1e-12 * total)


class Moments:
    """Inner products of inputs (N, p) and outputs (N, q) for two folds of the rows: many nested regressions from them.

    Args:
        blocks: (fold 0 or 1, inputs, outputs). The inputs get a column of ones.
    """

    def __init__(self, blocks: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> None:
        self.rows = [0, 0]
        self.products: list[np.ndarray] = []
        for fold, inputs, outputs in blocks:
            joined = np.concatenate([outputs, inputs, np.ones((len(inputs), 1))], axis=1, dtype=np.float64)
            if not self.products:
                self.num_inputs, self.num_outputs = inputs.shape[1] + 1, outputs.shape[1]
                self.products = [np.zeros((joined.shape[1],) * 2) for _ in range(2)]
            self.products[fold] += joined.T @ joined
            self.rows[fold] += len(inputs)

    def errors(self, columns: np.ndarray) -> np.ndarray:
        """Mean squared held-out error (q,) of a regression on these input columns and a constant.

        Each fold is predicted by the other, with the best of RIDGES for each output.
        """
        size, used = self.num_outputs, self._used(columns)
        folds = [products[used] for products in self.products]
        sums = np.zeros((len(RIDGES), size))
        for fit, held_out in ((0, 1), (1, 0)):
            # by one eigendecomposition, as well conditioned as the smallest ridge
            values, vectors = np.linalg.eigh(folds[fit][size:, size:])
            rotated = vectors.T @ folds[fit][size:, :size]
            for i, ridge in enumerate(RIDGES):
                damped = np.maximum(values, 0.0) + ridge * max(self.rows[fit], 1)
                sums[i] += squared_errors(folds[held_out], vectors @ (rotated / damped[:, None]))
        return (sums / max(sum(self.rows), 1)).min(axis=0)

    def weights(self, columns: np.ndarray, ridge: float) -> np.ndarray:
        """Weights (columns + 1, q) of a regression on both folds; the last row is the constant."""
        both = self.products[0] + self.products[1]
        return solve(both[self._used(columns)], self.num_outputs, ridge * max(sum(self.rows), 1))

    def _used(self, columns: np.ndarray) -> tuple[np.ndarray, ...]:
        inputs = self.num_outputs + np.append(columns, self.num_inputs - 1)
        return np.ix_(*[np.concatenate([np.arange(self.num_outputs), inputs])] * 2)


@dataclass(frozen=True)
class Units(Generic[Array]):
    """Units in which values have zero mean and unit variance; an entry that never varies is only centred."""

    mean: Array  # (X,) float64
    spread: Array  # (X,) float64

    @staticmethod
    def of(mean: np.ndarray, var: np.ndarray, least: float = 1e-6) -> "Units[np.ndarray]":
        """From means and variances (X,); deviations below `least` times the mean, or below `least`, are rounding."""
        varies = var > least**2 * (1 + np.square(mean))
        return Units(mean, np.where(varies, np.sqrt(var), 1.0))

    def scaled(self, values: Array) -> Array:
        """(..., X) -> (..., X) float64."""
        return (values - self.mean) / self.spread

    def unscaled(self, values: Array) -> Array:
        return values * self.spread + self.mean

    def tensors(self) -> "Units[Tensor]":
        return Units(torch.as_tensor(self.mean), torch.as_tensor(self.spread))


def held_out(inputs: np.ndarray, outputs: np.ndarray, half: np.ndarray) -> np.ndarray | None:
    """Predictions (N, q) of outputs (N, q) from inputs (N, p): each half (N,) bool by a regression on the other.

    None where a half has fewer than MIN_ROWS rows.
    """
    if min(half.sum(), (~half).sum()) < MIN_ROWS:
        return None
    inputs, predictions = inputs.astype(np.float64), np.empty(outputs.shape)
    for held in (half, ~half):
        x, y = inputs[~held], outputs[~held].astype(np.float64)
        units, centre = Units.of(x.mean(axis=0), x.var(axis=0), 1e-9), y.mean(axis=0)
        joined = np.concatenate([y - centre, units.scaled(x)], axis=1)
        weights = solve(joined.T @ joined, y.shape[1], RIDGE * len(x))
        predictions[held] = units.scaled(inputs[held]) @ weights + centre
    return predictions


def explained(predictions: np.ndarray, outputs: np.ndarray) -> float:
    """R^2: one minus squared error over variance, of all outputs together; 0 where they do not vary."""
    total = float(np.square(outputs - outputs.mean(axis=0)).sum())
    return 1 - float(np.square(outputs - predictions).sum()) / total if total > 0 else 0.0


class Scale:
    """Scales vectors to unit variance and, where they are wide, to their leading principal components.

    Args:
        rows: (N, n). Entries that never vary are left out.
        widest: the most outputs.
    """

    def __init__(self, rows: np.ndarray, widest: int) -> None:
        self.mean = rows.mean(axis=0, dtype=np.float64)
        self.spread = rows.std(axis=0, dtype=np.float64)
        varies = self.spread > 1e-6 * np.maximum(np.abs(self.mean), 1e-6)
        self.columns = np.flatnonzero(varies)
        self.axes: np.ndarray | None = None
        if len(self.columns) > widest:
            values, vectors = np.linalg.eigh(np.cov(self._unit(rows), rowvar=False))
            self.axes = vectors[:, ::-1][:, :widest] / np.sqrt(np.maximum(values[::-1][:widest], 1e-9))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Rows (N, n) as (N, at most widest) float64."""
        unit = self._unit(rows)
        return unit if self.axes is None else unit @ self.axes

    def _unit(self, rows: np.ndarray) -> np.ndarray:
        return (rows[:, self.columns] - self.mean[self.columns]) / self.spread[self.columns]


def narrowed(values: np.ndarray, width: int, seed: int = 0) -> np.ndarray:
    """(..., n) -> (..., at most width): wide vectors, such as images, by a random projection."""
    size = values.shape[-1]
    if size <= width:
        return values
    return values @ (np.random.default_rng(seed).standard_normal((size, width)) / size**0.5)


def products(rows: np.ndarray) -> np.ndarray:
    """All products of two entries: (N, n) -> (N, n (n + 1) / 2)."""
    i, j = np.triu_indices(rows.shape[1])
    return rows[:, i] * rows[:, j]


def outer(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of each entry of one with each of the other: (N, n), (N, m) -> (N, n m)."""
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)
