"""Held-out ridge regressions of many nested models, from one matrix of inner products a fold."""

from collections.abc import Iterable, Iterator

import numpy as np

RIDGES = (1e-7, 1e-5, 1e-3, 1e-1)  # times the number of rows; inputs have unit variance
CHUNK = 8192  # rows


class Moments:
    """Inner products of inputs (N, p) and outputs (N, q), for two folds of the rows."""

    def __init__(self, blocks: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> None:
        """From blocks (fold 0 or 1, inputs, outputs); the inputs get a column of ones."""
        self.rows = [0, 0]
        self.products: list[np.ndarray] = []
        for fold, inputs, outputs in blocks:
            joined = np.concatenate([inputs, np.ones((len(inputs), 1)), outputs], axis=1, dtype=np.float64)
            if not self.products:
                self.num_inputs = inputs.shape[1] + 1
                self.products = [np.zeros((joined.shape[1],) * 2) for _ in range(2)]
            self.products[fold] += joined.T @ joined
            self.rows[fold] += len(inputs)

    def errors(self, columns: np.ndarray) -> np.ndarray:
        """Mean squared held-out error (q,) of a regression on these input columns and the constant.

        Each fold is predicted by the other; the ridge is the best of four, one for all outputs.
        """
        used = np.append(columns, self.num_inputs - 1)
        tried = np.zeros((len(RIDGES), len(self.products[0]) - self.num_inputs))
        for fit, held in ((0, 1), (1, 0)):
            for i, weights in enumerate(self._weights(used, fit)):
                tried[i] += self._held_out(used, weights, held)
        tried /= max(sum(self.rows), 1)
        return tried.min(axis=0)

    def weights(self, columns: np.ndarray, ridge: float) -> np.ndarray:
        """Weights (columns + 1, q) of a regression on both folds; the last row is the constant."""
        used = np.append(columns, self.num_inputs - 1)
        both = self.products[0] + self.products[1]
        return _solve(both, used, self.num_inputs, sum(self.rows), (ridge,))[0]

    def _weights(self, used: np.ndarray, fold: int) -> Iterator[np.ndarray]:
        yield from _solve(self.products[fold], used, self.num_inputs, self.rows[fold], RIDGES)

    def _held_out(self, used: np.ndarray, weights: np.ndarray, fold: int) -> np.ndarray:
        products = self.products[fold]
        inner, cross = products[np.ix_(used, used)], products[used, self.num_inputs :]
        total = np.diagonal(products)[self.num_inputs :]
        sums = total - 2 * (weights * cross).sum(axis=0) + (weights * (inner @ weights)).sum(axis=0)
        return np.maximum(sums, 0.0)


def _solve(
    products: np.ndarray, used: np.ndarray, start: int, rows: int, ridges: tuple[float, ...]
) -> list[np.ndarray]:
    """Ridge solutions by one eigendecomposition, as well conditioned as the smallest ridge."""
    values, vectors = np.linalg.eigh(products[np.ix_(used, used)])
    rotated = vectors.T @ products[used, start:]
    return [vectors @ (rotated / (np.maximum(values, 0.0) + ridge * max(rows, 1))[:, None]) for ridge in ridges]


class Scale:
    """Takes vectors to unit variance and, where they are wide, to their leading principal components."""

    def __init__(self, rows: np.ndarray, widest: int) -> None:
        """From rows (N, n); at most `widest` outputs."""
        self.mean = rows.mean(axis=0, dtype=np.float64)
        self.spread = rows.std(axis=0, dtype=np.float64)
        moving = self.spread > 1e-6 * np.maximum(np.abs(self.mean), 1e-6)
        self.columns = np.flatnonzero(moving)
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


def products(rows: np.ndarray) -> np.ndarray:
    """All products of two entries: (N, n) -> (N, n (n + 1) / 2)."""
    i, j = np.triu_indices(rows.shape[1])
    return rows[:, i] * rows[:, j]


def outer(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of each entry of one with each of the other: (N, n), (N, m) -> (N, n m)."""
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)
