"""What the table of rules promises: bounds and growth laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldmodel import RULES, LatentPredictor
from worldmodel.rules import BOUNDS, direct, gated, gated_norm, residual, unit_norm

finite = st.floats(-(2.0**99), 2.0**99, width=32)


def vectors(dim: int = 6):
    return hnp.arrays("float32", (3, dim), elements=finite).map(torch.from_numpy)


@settings(deadline=None, max_examples=300)
@given(h=vectors(), steps=st.lists(st.tuples(vectors(), vectors()), min_size=1, max_size=8))
def test_gated_norm_is_bounded_for_any_input(h, steps):
    bound = torch.maximum(h.abs(), torch.tensor(math.sqrt(h.shape[-1] - 1)))
    for gate, candidate in steps:
        h = gated_norm(h, gate, candidate)
        assert (h.abs() <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("rule", BOUNDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_bounds_hold_in_the_predictor_for_wild_inputs(rule, layers):
    torch.manual_seed(0)
    predictor = LatentPredictor(3, 2, 8, rule=rule, layers=layers)
    for scale in (1.0, 1e3, 1e6):
        z, a = torch.randn(4, 200, 3) * scale, torch.randn(4, 200, 2) * scale
        _, h, _ = predictor.closed_loop(z, a, torch.zeros(4, 200, dtype=torch.bool))
        assert h.isfinite().all()
        assert h.abs().max() <= BOUNDS[rule](8) * (1 + 1e-5)


def test_gated_norm_bound_is_tight():
    h = torch.zeros(1, 5, dtype=torch.float64)
    spike = torch.tensor([[1e6, 0, 0, 0, 0]], dtype=torch.float64)
    for _ in range(50):
        h = gated_norm(h, torch.full_like(h, 5.0), spike)
    assert h.max().item() == pytest.approx(2.0, rel=1e-6)


def test_gated_alone_is_only_as_bounded_as_its_candidates():
    h = torch.zeros(1, 4)
    for _ in range(100):
        h = gated(h, torch.zeros_like(h), torch.full_like(h, 1000.0))
    assert h.max() > 999


def norms(rule, candidates):
    h, sizes = torch.zeros_like(candidates[0]), []
    for candidate in candidates:
        h = rule(h, candidate)
        sizes.append(h.norm(dim=-1).mean().item())
    return sizes


def exponent(sizes):
    """The power p of sizes ~ T^p between T = 64 and T = 1024."""
    return math.log(sizes[1023] / sizes[63]) / math.log(16)


def test_residual_growth_laws():
    generator = torch.Generator().manual_seed(0)
    independent = torch.randn(1024, 64, 32, generator=generator)
    aligned = independent[:1].expand(1024, -1, -1)
    assert exponent(norms(residual, independent)) == pytest.approx(0.5, abs=0.02)
    assert exponent(norms(residual, aligned)) == pytest.approx(1.0, abs=1e-4)
    h = torch.ones(1, 4, dtype=torch.float64)
    for _ in range(100):
        h = residual(h, 0.03 * h)
    assert h[0, 0].item() == pytest.approx(1.03**100, rel=1e-9)


def test_direct_does_not_accumulate_and_unit_norm_stays_on_the_sphere():
    candidates = torch.randn(200, 4, 8, generator=torch.Generator().manual_seed(0))
    assert norms(direct, candidates)[-1] == pytest.approx(candidates[-1].norm(dim=-1).mean().item())
    assert norms(unit_norm, candidates) == pytest.approx([1.0] * 200, abs=1e-5)


def test_the_rules_that_users_name():
    seven = {"residual", "gated", "gated_norm", "direct", "unit_norm", "gru", "lstm"}
    modern = {"lru", "mingru", "mamba2", "gated_delta", "mlstm", "slstm", "attention"}
    assert set(RULES) == seven | {"diagonal", "slots", "triad"} | modern
