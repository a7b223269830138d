"""The thresholds of the findings: on one side of each there is a fault, on the other there is none."""

from math import log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from worldmodel.evaluation.cause import Course, likely_cause
from worldmodel.evaluation.curves import HorizonCurves
from worldmodel.evaluation.diagnosis.baselines import Baselines
from worldmodel.evaluation.diagnosis.clock import Clock
from worldmodel.evaluation.diagnosis.gates import Gates
from worldmodel.evaluation.diagnosis.growth import Growth
from worldmodel.evaluation.diagnosis.jacobian import Spectrum
from worldmodel.evaluation.diagnosis.lags import Dependency, Lags, Reach
from worldmodel.evaluation.diagnosis.representation import Representation, Representations

T = 8


def findings(result, rule="residual", gradient="tbptt"):
    subject: Any = SimpleNamespace(horizon=T, rule=rule, gradient=gradient)
    return list(result.findings(subject))


def gates(saturated=0.0, stuck=0.0):
    return Gates(saturated, 0.0, stuck, 0.0, 0.5, [])


def growth(end=1.0, law="linear", read_end=None, read_law="linear", finite=True, unit=1.0, steps=2 * T):
    read_end = end if read_end is None else read_end
    norms = [[1.0] * (steps - 1) + [last] for last in (end, read_end)]
    return Growth(norms[0], law, 1.0, 0.0, {}, finite, False, unit, norms[1], read_law)


def expansion(factor):
    return Spectrum(1.0, 1.0, log(factor) / T, 0.0, [])


def lags(beyond=0.0, half_life=None, explains=0.0, share=1.0):
    dependency = Dependency(T + 3, explains, share, [T + 3], [explains])
    return Lags(Reach([1.0] * 2 * T, T, half_life, beyond, 0.0, 1), dependency)


def ranks(state=5.0, latent=5.0, seen=5.0, dead=0, dim=20):
    parts = (Representation(dim, rank, [0] * dead, []) for rank in (state, latent))
    return Representations(*parts, None if seen is None else Representation(30, seen, [], []))


@pytest.mark.parametrize(
    ("fault", "healthy"),
    [
        (gates(saturated=0.91), gates(saturated=0.89)),
        (gates(stuck=0.51), gates(stuck=0.49)),
        (Clock(0.91, 0.91, 0.6), Clock(0.89, 0.91, 0.0)),
        (Clock(0.95, 0.91, 0.6), Clock(0.95, 0.91, 0.62)),
        (Clock(0.95, 0.91, 0.0), Clock(0.95, 0.89, 0.0)),
        (expansion(101), expansion(99)),
        (growth(1.51), growth(1.49)),
        (growth(1.51), growth(1.51, law="bounded")),
        (growth(1.51), growth(1.51, read_law="bounded")),
        (growth(1.51), growth(9.0, read_end=1.49)),
        (growth(1.51), growth(1.51, steps=T)),
        (growth(unit=100.0), growth(unit=99.0)),
        (growth(finite=False), growth()),
        (lags(explains=0.11), lags(explains=0.09)),
        (lags(explains=0.11, share=0.011), lags(explains=0.11, share=0.009)),
        (lags(beyond=0.51), lags(beyond=0.49)),
        (lags(beyond=0.51, half_life=T + 1), lags(beyond=0.51, half_life=T)),
        (ranks(latent=1.19), ranks(latent=1.21)),
        (ranks(latent=1.99, seen=25.0), ranks(latent=2.01, seen=25.0)),
        (ranks(latent=1.19), ranks(latent=1.19, seen=1.49)),
        (ranks(latent=0.0, seen=1.0), ranks(latent=1.0, seen=1.0)),
        (ranks(state=1.19, seen=None), ranks(state=1.21)),
        (ranks(state=1.19, seen=1.51), ranks(state=1.19, seen=1.49)),
        (ranks(dead=6), ranks(dead=5)),
    ],
)
def test_a_threshold_parts_fault_and_health(fault, healthy):
    assert findings(fault) and not findings(healthy)


def test_an_exact_gradient_has_no_short_horizon():
    assert findings(lags(beyond=0.9)) and not findings(lags(beyond=0.9), gradient="rtrl")


def test_the_weight_of_a_baseline_that_is_ahead():
    """The most, where it is ahead at half of the trained horizons; the least, where only beyond them."""
    cause = likely_cause(Course(20, [3.0, 9.0], [], 0), 1e-3, False)

    def found(*ahead):
        horizon, ones = np.arange(1, 2 * T + 1), np.ones(2 * T)
        nmse = np.where(np.isin(horizon, ahead), 2.0, 0.5)
        curves = HorizonCurves(horizon, nmse, ones, ones, ones, ones, 1.0, 0.5, 1, [])
        return list(Baselines(curves).findings(SimpleNamespace(horizon=T, cause=cause)))

    assert found() == []
    weights = [found(*ahead)[0].weight for ahead in (range(1, T // 2 + 1), [T], [T + 1])]
    assert weights == [95, 60, 35]
    assert "learning rate is too high" in found(T)[0].means and "learning rate" not in found(T + 1)[0].means


def test_a_longer_segment_reaches_the_frame_that_explains():
    (near,) = findings(lags(explains=0.5))
    assert near.change == f"--data.steps {T + 4} or more" and near.kind == "short horizon"
    (far,) = findings(lags(beyond=0.9))
    assert far.change == f"--data.steps {2 * T} or more"


def test_a_bounded_rule_is_not_told_to_change_its_rule():
    (unbounded,), (bounded,) = findings(growth(9.0)), findings(growth(9.0), rule="gated_norm")
    assert "--model.rule gated_norm" in unbounded.change and "--model.rule" not in bounded.change
