"""Ridge regressions against numpy's solutions of the same problems, written out."""

import numpy as np
import pytest
import torch

from worldmodel.regression import Moments, Scale, Units, explained, held_out, narrowed, outer, products, solve
from worldmodel.regression import squared_errors as squared

RNG = np.random.default_rng(0)
X = RNG.standard_normal((500, 6))
Y = X @ RNG.standard_normal((6, 3)) + 2 + 0.3 * RNG.standard_normal((500, 3))


def with_ones(x):
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def by_hand(x, y, ridge):
    """Least squares of rows with sqrt(ridge) times the identity below them."""
    below = np.sqrt(ridge) * np.eye(x.shape[1])
    return np.linalg.lstsq(np.concatenate([x, below]), np.concatenate([y, np.zeros((len(below), y.shape[1]))]))[0]


def inner(x, y):
    joined = np.concatenate([y, x], axis=1)
    return joined.T @ joined


@pytest.mark.parametrize("ridge", [1e-9, 50.0])
def test_the_ridge_solution_and_its_errors(ridge):
    weights = solve(inner(X, Y), 3, ridge)
    np.testing.assert_allclose(weights, by_hand(X, Y, ridge), rtol=1e-7)
    np.testing.assert_allclose(squared(inner(X, Y), weights), np.square(Y - X @ weights).sum(0), rtol=1e-9)
    np.testing.assert_allclose(squared(inner(X, X), np.eye(6)), 1e-12 * np.square(X).sum(0))


def test_each_fold_is_predicted_by_the_other_with_the_best_ridge():
    folds = (X[:200], Y[:200]), (X[200:], Y[200:])
    moments = Moments((fold, *rows) for fold, rows in enumerate(folds))
    assert moments.num_inputs == 7 and moments.rows == [200, 300]
    for columns in (np.arange(0), np.array([1, 4]), np.arange(6)):
        tried = []
        for ridge in (1e-7, 1e-5, 1e-3, 1e-1):
            sums = 0
            for (x, y), (other, truth) in (folds, folds[::-1]):
                weights = by_hand(with_ones(x[:, columns]), y, ridge * len(x))
                sums = sums + np.square(truth - with_ones(other[:, columns]) @ weights).sum(0)
            tried.append(sums / 500)
        np.testing.assert_allclose(moments.errors(columns), np.min(tried, axis=0), rtol=1e-7)
    weights = moments.weights(np.array([1, 4]), 1e-3)
    np.testing.assert_allclose(weights, by_hand(with_ones(X[:, [1, 4]]), Y, 0.5), rtol=1e-7)


def test_blocks_add_up():
    whole = Moments([(0, X[:250], Y[:250]), (1, X[250:], Y[250:])])
    parts = Moments((int(i >= 250), X[i : i + 50], Y[i : i + 50]) for i in range(0, 500, 50))
    np.testing.assert_allclose(whole.errors(np.arange(6)), parts.errors(np.arange(6)))


def test_what_is_explained_on_held_out_rows():
    half = np.arange(400) % 2 == 0
    outputs = X[:400, :3] @ RNG.standard_normal((3, 2)) + 5
    assert explained(held_out(X[:400, :3], outputs, half), outputs) > 0.999
    assert explained(held_out(RNG.standard_normal((400, 3)), outputs, half), outputs) < 0.02
    assert held_out(X[:199], outputs[:199], half[:199]) is None
    assert held_out(X[:200], outputs[:200], half[:200]) is not None, "a hundred rows in each half are enough"
    assert explained(np.ones((5, 1)), np.ones((5, 1))) == 0, "nothing varies"


def test_held_out_is_a_regression_of_each_half_in_its_own_units():
    half, x = np.arange(500) < 260, np.concatenate([1e3 * X + 7, np.full((500, 1), 3.0)], axis=1)
    mean, spread = x[~half].mean(0), x[~half].std(0)
    spread[-1] = 1
    centre = Y[~half].mean(0)
    weights = by_hand((x[~half] - mean) / spread, Y[~half] - centre, 1e-3 * 240)
    np.testing.assert_allclose(held_out(x, Y, half)[half], (x[half] - mean) / spread @ weights + centre, rtol=1e-6)


def test_units_are_zero_mean_and_unit_variance_and_back():
    values = np.stack([X[:, 0] * 1e-3 + 5, np.full(500, 7.0), 7 + 1e-7 * X[:, 1]], axis=1)
    units = Units.of(values.mean(0), values.var(0))
    scaled = units.scaled(values)
    np.testing.assert_allclose(scaled[:, 0].std(), 1)
    assert np.abs(scaled[:, 1:]).max() < 1e-6, "rounding is not blown up"
    np.testing.assert_allclose(Units.of(values.mean(0), values.var(0), 1e-9).scaled(values)[:, 2].std(), 1)
    tensors = units.tensors()
    torch.testing.assert_close(tensors.unscaled(tensors.scaled(torch.tensor(values))), torch.tensor(values))


def test_wide_vectors_become_principal_components_of_unit_variance():
    rows = np.concatenate([X @ RNG.standard_normal((6, 9)), np.full((500, 1), 4.0)], axis=1)
    scale = Scale(rows, 4)
    assert scale.columns.tolist() == list(range(9))
    np.testing.assert_allclose(np.cov(scale(rows), rowvar=False), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(Scale(rows, 9)(rows).std(0), 1)


def test_products_and_projections():
    rows = np.array([[2.0, 3.0, 5.0]])
    assert products(rows).tolist() == [[4, 6, 10, 9, 15, 25]]
    assert outer(rows, rows[:, :2]).tolist() == [[4, 6, 6, 9, 10, 15]]
    assert narrowed(X, 6) is X and narrowed(X, 2).shape == (500, 2)
    np.testing.assert_array_equal(narrowed(X[None], 2)[0], narrowed(X, 2))
