"""Each measurement against a closed form."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.diagnosis.models import STEPS, echoes, new_model, of, pendulum, some_batches
from worldmodel import EpisodeDataModule
from worldmodel.evaluation.diagnosis.clock import Clock
from worldmodel.evaluation.diagnosis.gates import gates
from worldmodel.evaluation.diagnosis.gradients import Gradients
from worldmodel.evaluation.diagnosis.growth import law_of
from worldmodel.evaluation.diagnosis.jacobian import Spectrum, jacobian
from worldmodel.evaluation.diagnosis.lags import Lags, reach, summary
from worldmodel.evaluation.diagnosis.measurement import Subject, ages, follow, join
from worldmodel.evaluation.diagnosis.representation import representation

T = np.arange(1, 257.0)


@pytest.fixture(scope="module")
def data(pendulum_data):
    return pendulum(pendulum_data)


def linear_model(recurrent: torch.Tensor):
    """h' = W_x [z, a] + W_h h + b, with W_h given: its Jacobian is W_h everywhere."""
    model = new_model("direct", layers=1)
    model.predictor.cell.recurrent.weight.data.copy_(recurrent)
    return model.eval()


# --- the stretch -----------------------------------------------------------------------------------------------------


def test_joined_batches_are_one_long_batch(data, pendulum_data):
    whole = some_batches(EpisodeDataModule(pendulum_data, steps=3 * STEPS, lanes=14), 2)
    parts = some_batches(data, 6)
    for n in range(2):
        joined = join(parts[3 * n : 3 * n + 3])
        for name in ("obs", "action", "reward", "is_first", "valid", "episode", "step", "num_valid"):
            assert torch.equal(joined[name], whole[n][name]), name
    with pytest.raises(ValueError, match="does not continue"):
        join([parts[0], parts[2]])


def test_ages_count_from_the_last_reset():
    is_first = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]]).bool()
    assert ages(is_first).tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]


# --- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_training(data):
    batches, model = some_batches(data, 2), new_model("gru", data, base="none")
    measured = Gradients.measure(Subject(model, batches, "gru"))
    squares, carry = {name: 0.0 for name, _ in model.named_parameters()}, None
    for batch in batches:
        batch = batch if carry is None else {**batch, "carry": carry}
        model.zero_grad()
        terms, _, carry = model.losses(batch)
        sum(weight * terms[name] for name, weight in model.weights.items()).backward()
        for name, p in model.named_parameters():
            squares[name] += float(p.grad.square().sum()) / len(batches)
    assert {p.name: p.gradient for p in measured.parameters} == pytest.approx(
        {name: square**0.5 for name, square in squares.items()}, rel=1e-4
    )
    assert measured.reach["autoencoding"].keys() == {"encoder", "decoder"}
    heads = [p.gradient**2 for p in measured.parameters if p.part == "heads"]
    assert measured.reach["reward"]["heads"] > 0 and sum(heads) > 0


# --- growth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "curve", "exponent"),
    [
        ("bounded", 5 * (1 - np.exp(-T / 9)), 0.0),
        ("bounded", np.full(256, 3.0), 0.0),
        ("sqrt", 0.3 * np.sqrt(T), 0.5),
        ("linear", 0.02 * T, 1.0),
        ("exponential", 0.1 * 1.05**T, None),
        ("exponential", 1e-3 * 3.0**T, None),
    ],
)
def test_the_law_of_growth(law, curve, exponent):
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(len(curve))
    for values in (curve, curve * noise):
        found, power, rate, residuals = law_of(values)
        assert found == law and residuals[law] < 0.03
        if exponent is not None:
            assert power == pytest.approx(exponent, abs=0.05)
        else:
            assert rate == pytest.approx(math.log(curve[-1] / curve[-2]), rel=0.02)


# --- the Jacobian ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["gated_norm", "lstm"])
def test_the_jacobian_is_that_of_the_step(data, rule):
    trajectory = follow(new_model(rule, data), some_batches(data, 1)[0])
    x, h, cell = trajectory.x[2, 5], trajectory.before[2, 5], trajectory.predictor.cell
    expected = torch.autograd.functional.jacobian(lambda state: cell.step(x, state), h)
    torch.testing.assert_close(jacobian(trajectory, 2, 5), expected, rtol=1e-12, atol=1e-12)


def test_eigenvalues_and_the_lyapunov_exponent_of_a_linear_cell():
    angle = torch.tensor(0.7)
    rotation = 0.9 * torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    recurrent = torch.block_diag(rotation, *[torch.tensor([[0.3]])] * 14)
    mix = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    model = linear_model(mix @ recurrent @ mix.T)
    segments = echoes(3, lanes=4)
    measured = Spectrum.measure(Subject(model, [segments[n] for n in range(8)], "direct"))
    assert measured.radius_mean == pytest.approx(0.9, abs=1e-5) == measured.radius_max
    assert measured.lyapunov == pytest.approx(math.log(0.9), abs=1e-4)
    pairs = {(round(real, 3), round(abs(imaginary), 3)) for real, imaginary in measured.eigenvalues}
    assert pairs == {(round(0.9 * math.cos(0.7), 3), round(0.9 * math.sin(0.7), 3)), (0.3, 0.0)}
    assert measured.growth(10) == pytest.approx(0.9**10, rel=1e-2)


@pytest.mark.parametrize("rule", ["gated_delta", "attention"])
def test_a_state_too_wide_for_its_eigenvalues_has_an_exponent(data, rule, monkeypatch):
    monkeypatch.setattr("worldmodel.evaluation.diagnosis.jacobian.WIDEST", 64)
    subject = Subject(new_model(rule, data), some_batches(data, 4), rule)
    measured = Spectrum.measure(subject)
    assert math.isnan(measured.radius_mean) and not measured.eigenvalues and math.isfinite(measured.lyapunov)
    assert "no eigenvalues of more than 64 entries; largest Lyapunov exponent" in measured.values(subject)[0]


def test_fewer_vectors_than_entries_have_the_rank_of_their_covariance():
    values = torch.randn(20, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(dim=1)
    found, singular = representation(values), torch.linalg.svdvals(values - values.mean(dim=0))[:19]
    share = singular / singular.sum()
    assert found.effective_rank == pytest.approx(float(torch.special.entr(share).sum().exp()), rel=1e-6)
    assert found.spectrum[:19] == pytest.approx(share.tolist(), rel=1e-6) and not any(found.spectrum[19:])


# --- lags ------------------------------------------------------------------------------------------------------------


def test_the_gradient_over_lags_of_a_linear_cell():
    keep, segments = 0.8, echoes(3, lanes=4)
    measured = reach(Subject(linear_model(keep * torch.eye(16)), [segments[n] for n in range(16)], "direct"))
    assert measured is not None and len(measured.gradient) == 4 * STEPS
    ratios = np.array(measured.gradient[1:]) / np.array(measured.gradient[:-1])
    np.testing.assert_allclose(ratios, keep, rtol=1e-3)
    assert measured.half_life == 4  # 0.8^3 = 0.51, 0.8^4 = 0.41
    assert measured.beyond == pytest.approx((keep**STEPS - keep**32) / (1 - keep**32), rel=1e-3)


def test_what_truncation_hides_by_hand():
    measured = summary(torch.tensor([4.0, 2.0, 1.0, 1.0]), 2, 1)
    assert measured.beyond == pytest.approx(2 / 8)
    assert measured.hidden == pytest.approx((4 / 8 + 2 / 8) / 2)  # at a segment's first step, and at its second
    assert measured.half_life == 2
    assert not summary(torch.zeros(4), 2, 1).informative


# --- representations, gates, clocks ----------------------------------------------------------------------------------


def test_the_effective_rank():
    axes = torch.cat([torch.eye(5), -torch.eye(5)])
    assert representation(axes).effective_rank == pytest.approx(5)
    assert representation(torch.outer(torch.randn(50), torch.arange(1.0, 4))).effective_rank == pytest.approx(1)
    constant = representation(torch.full((50, 3), 7.0))
    assert constant.effective_rank == 0 and constant.dead == [0, 1, 2]
    half = torch.randn(50, 2) * torch.tensor([1.0, 0.0])
    assert representation(half).dead == [1]
    two, share = torch.tensor([[1.0, 0], [-1, 0], [0, 3], [0, -3]]), np.array([0.25, 0.75])
    assert representation(two).effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_gates_by_hand():
    values = torch.tensor([[[0.001, 0.5, 0.999], [0.001, 0.5, 0.5], [0.5, 0.5, 0.5]]])
    measured = gates(values, torch.tensor([[True, True, False]]))
    assert (measured.shut, measured.open, measured.stuck) == pytest.approx((2 / 6, 1 / 6, 1 / 3))
    assert gates(None, torch.ones(1, 3, dtype=torch.bool)) is None


def test_the_clock_in_a_state(data):
    """States that are noise tell no time; with the step among their entries they tell it."""
    subject = Subject(new_model("gru", data), some_batches(data), "gru")
    trajectory = subject.trajectory
    noise = torch.randn(trajectory.h.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counting = torch.cat([noise[..., 1:], 0.1 * trajectory.step.unsqueeze(-1)], dim=-1)
    for states, least, most in ((noise, -1, 0.05), (counting, 0.99, 1)):
        subject.__dict__["trajectory"] = replace(trajectory, h=states)
        assert least < Clock.measure(subject).state <= most


# --- the whole -------------------------------------------------------------------------------------------------------


def test_a_diagnosis_leaves_the_model_as_it_was_and_is_plain_json(data):
    model = new_model("gated_norm", data).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (of(model, some_batches(data)).as_json() for _ in range(2))
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not model.encoder._forward_hooks


def test_one_batch_says_nothing_of_what_lies_beyond_it(data):
    diagnosis = of(new_model("gated_norm", data).eval(), some_batches(data, 1))
    lags = diagnosis[Lags]
    assert lags.reach is not None and not lags.reach.informative and lags.dependency is None
