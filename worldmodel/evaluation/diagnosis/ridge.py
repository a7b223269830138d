"""What one set of numbers explains of another, on lanes that it was not fitted to."""

import numpy as np

RIDGE = 1e-3  # times the number of rows, of inputs with unit variance
FEWEST = 100  # rows of each half: of fewer, nothing can be said


def held_out(inputs: np.ndarray, outputs: np.ndarray, half: np.ndarray) -> np.ndarray | None:
    """Predictions (N, q) of outputs (N, q) from inputs (N, p): each half (N,) bool by a ridge regression on the other.

    None where a half has too few rows.
    """
    if min(half.sum(), (~half).sum()) < FEWEST:
        return None
    predictions = np.empty(outputs.shape)
    for held in (half, ~half):
        x, y = inputs[~held].astype(np.float64), outputs[~held].astype(np.float64)
        mean, spread = x.mean(axis=0), x.std(axis=0)
        spread = np.where(spread > 1e-9 * (1 + np.abs(mean)), spread, np.inf)  # what does not vary says nothing
        unit, centre = (x - mean) / spread, y.mean(axis=0)
        inner = unit.T @ unit + RIDGE * len(x) * np.eye(x.shape[1])
        weights = np.linalg.solve(inner, unit.T @ (y - centre))
        predictions[held] = (inputs[held] - mean) / spread @ weights + centre
    return predictions


def explained(predictions: np.ndarray, outputs: np.ndarray) -> float:
    """R^2: one minus squared error over variance, of all outputs together; 0 where they do not vary."""
    total = float(np.square(outputs - outputs.mean(axis=0)).sum())
    return 1 - float(np.square(outputs - predictions).sum()) / total if total > 0 else 0.0


def narrowed(values: np.ndarray, width: int, seed: int = 0) -> np.ndarray:
    """(..., n) -> (..., at most width): wide vectors, such as images, by a random projection."""
    size = values.shape[-1]
    if size <= width:
        return values
    return values @ (np.random.default_rng(seed).standard_normal((size, width)) / size**0.5)
