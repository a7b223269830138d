"""Planted faults are found, and healthy models have none."""

import io
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.diagnosis.models import SMALL, STEPS, echoes, kinds, new_model, of, pendulum, some_batches, trained
from worldmodel.cells.update import UpdateCell
from worldmodel.evaluation.diagnosis import diagnosis as room
from worldmodel.evaluation.diagnosis.clock import Clock
from worldmodel.evaluation.diagnosis.growth import Growth
from worldmodel.evaluation.diagnosis.jacobian import Spectrum
from worldmodel.evaluation.diagnosis.lags import Lags
from worldmodel.evaluation.diagnosis.measurement import Finding, Measurement
from worldmodel.evaluation.diagnosis.representation import Representations
from worldmodel.predictor import LatentPredictor

HEALTHY = ("gated_norm", "gru", "lstm")


@pytest.fixture(scope="module")
def data(pendulum_data):
    return pendulum(pendulum_data)


@pytest.fixture(scope="module")
def batches(data):
    return some_batches(data)


@pytest.fixture(scope="module")
def healthy(data):
    torch.set_num_threads(1)
    return {rule: trained(new_model(rule, data), data.train_dataloader(), 40) for rule in HEALTHY}


@pytest.fixture
def model(healthy):
    """A trained one with gates, to be damaged."""
    return deepcopy(healthy["gated_norm"])


def printed(diagnosis):
    text = io.StringIO()
    diagnosis.print(Console(file=text, width=200))
    return text.getvalue()


# --- healthy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", HEALTHY)
def test_nothing_is_found_in_a_healthy_model(healthy, data, batches, rule):
    for model in (healthy[rule], *([new_model(rule, data)] if rule == "gated_norm" else [])):
        diagnosis = of(model, batches)
        assert diagnosis.findings == []
        assert diagnosis[Growth].law == "bounded"
        assert diagnosis[Lags].reach.informative and diagnosis[Lags].dependency and diagnosis[Clock]


def test_a_delay_within_the_horizon_is_no_fault():
    segments = echoes(3)
    model = trained(new_model("gated_norm"), (segments[n] for n in range(60)), 60)
    assert kinds(of(model, [segments[n] for n in range(8)])) == []


# --- faults ----------------------------------------------------------------------------------------------------------


class HardRouted(UpdateCell):
    """A router that decides by a comparison, through which no gradient goes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.router = nn.Linear(SMALL["hidden_dim"], SMALL["hidden_dim"])

    def step(self, x, h):
        return torch.where(self.router(h) > 0, super().step(x, h), h)


def test_a_router_without_gradient(model, batches):
    torch.manual_seed(0)
    model.predictor.cell = HardRouted(SMALL["latent_dim"] + 1, SMALL["hidden_dim"], "gated_norm", 2, -1.0)
    found = of(model, batches).findings
    assert found[0].kind == "no gradient"
    assert "predictor.cell.router.weight, predictor.cell.router.bias: gradient none" in found[0].seen
    assert "a hard choice" in found[0].means


def test_a_gate_that_is_multiplied_by_zero(model, batches):
    model.heads[-1].weight.data.zero_()  # what lies before it learns nothing, though the graph reaches it
    found = {finding.kind: finding for finding in of(model, batches).findings}
    assert "heads.0.weight" in found["zero gradient"].seen and "exactly zero" in found["zero gradient"].seen


def test_an_exploding_state(data, batches):
    model = new_model("residual", data)
    model.predictor.cell.output.weight.data.mul_(300)  # it starts at a hundredth of the usual
    diagnosis = of(model, batches)
    (finding,) = (finding for finding in diagnosis.findings if finding.kind == "exploding state")
    assert f"after {len(diagnosis[Growth].norm)} steps" in finding.seen
    assert "--model.rule gated_norm" in finding.change


def test_a_state_that_overflows(data, batches):
    model = new_model("residual", data, layers=1)
    model.predictor.cell.recurrent.weight.data.copy_(20 * torch.eye(SMALL["hidden_dim"]))
    diagnosis = of(model, batches)
    assert diagnosis[Growth].law == "exponential"
    assert diagnosis[Growth].rate == pytest.approx(torch.tensor(21.0).log().item(), rel=0.02)  # h' = 21 h + ...
    assert diagnosis[Spectrum].radius_max == pytest.approx(21.0)
    assert {"exploding state", "exploding gradient"} <= set(kinds(diagnosis))
    diagnosis.as_json()


@pytest.mark.parametrize("bias", [-20.0, 20.0])
def test_a_saturated_gate(model, batches, bias):
    model.predictor.cell.output.bias.data[: SMALL["hidden_dim"]] = bias
    found = {finding.kind: finding for finding in of(model, batches).findings}
    assert "100% of the gate's values" in found["saturated gate"].seen
    assert ("never writes" if bias < 0 else "keeps nothing") in found["saturated gate"].means


@pytest.mark.parametrize("rank", [0, 1])
def test_a_collapsed_latent(model, batches, rank):
    last = model.encoder[-1]
    if rank:
        last.weight.data = torch.outer(torch.linspace(-1, 1, last.out_features), last.weight.data[0])
    else:
        last.weight.data.zero_()
    diagnosis = of(model, batches)
    assert diagnosis[Representations].latent.effective_rank == pytest.approx(rank, abs=0.02)
    assert "collapsed latent" in kinds(diagnosis)


class Detached(LatentPredictor):
    def closed_loop(self, z, a, is_first, h=None):
        return super().closed_loop(z.detach(), a, is_first, h)


def test_a_detached_encoder(data, batches):
    model = new_model("gated_norm", data, base="none")
    model.predictor.__class__ = Detached  # autoencoding still trains the encoder: its parameters have gradients
    (finding,) = (finding for finding in of(model, batches).findings if finding.kind == "detached encoder")
    assert "prediction" in finding.seen and "consistency" in finding.seen and "autoencoding" not in finding.seen


def test_a_parameter_that_is_nan(model, batches):
    model.decoder[0].weight.data[3, 1] = float("nan")
    diagnosis = of(model, batches)
    (finding,) = diagnosis.findings
    assert finding.kind == "not finite" and "decoder.0.weight holds NaN" in finding.seen
    values = diagnosis.as_json()
    assert all(values[name] is None for name in ("growth", "spectrum", "reach", "state", "latent", "gates", "clock"))
    assert printed(diagnosis).count("not measured") == 7


def test_a_horizon_that_is_shorter_than_the_dependency():
    lag = 12
    segments = echoes(lag)
    model = trained(new_model("gated_norm"), (segments[n] for n in range(60)), 60)
    diagnosis = of(model, [segments[n] for n in range(8)])
    assert lag > STEPS
    assert diagnosis[Lags].dependency.lag == lag - 1  # the next observation repeats what was seen eleven steps ago
    (finding,) = diagnosis.findings
    assert finding.kind == "short horizon" and f"--data.steps {lag}" in finding.change


def test_a_state_that_counts_steps(data, batches):
    model = new_model("residual", data)
    model.predictor.cell.output.weight.data.zero_()
    model.predictor.cell.output.bias.data.fill_(0.01)
    diagnosis = of(model, batches)
    assert diagnosis[Clock].state > 0.99
    assert "clock" in kinds(diagnosis)


def test_the_weightiest_comes_first_and_names_a_way_out(model, batches):
    model.predictor.cell.output.bias.data[: SMALL["hidden_dim"]] = -20.0
    model.encoder[-1].weight.data.zero_()
    found = of(model, batches).findings
    assert [finding.weight for finding in found] == sorted((finding.weight for finding in found), reverse=True)
    assert len(found) >= 2 and all(finding.change for finding in found)


# --- one more ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Restarts(Measurement):
    """Made up: how often an episode starts."""

    number: int

    key = "restarts"
    labels = ("starts within {horizon} steps",)
    panel = "starts", "lane", ""

    @classmethod
    def measure(cls, subject):
        return cls(int(subject.stretch["is_first"].sum()))

    def values(self, subject):
        return (f"{self.number} in {subject.stretch['valid'].shape[1]}",)

    def draw(self, axes, subject):
        axes.plot([self.number])

    def findings(self, subject):
        yield Finding("restless", 200, f"{self.number} starts", "episodes are short", "longer episodes")


def test_a_measurement_is_added_by_its_name_in_one_list(batches, monkeypatch):
    monkeypatch.setattr(room, "MEASUREMENTS", (room.Gradients, room.Clock, Restarts))
    diagnosis = of(new_model("gru").eval(), batches)
    number = sum(int(batch["is_first"].sum()) for batch in batches)
    assert diagnosis[Restarts].number == number and diagnosis.as_json()["restarts"] == {"number": number}
    said = printed(diagnosis)
    assert f"starts within {STEPS} steps" in said and f"{number} in {8 * STEPS}" in said
    assert said.index(f"1. restless: {number} starts") < said.index("change: longer episodes")
    assert [axes.get_title() for axes in diagnosis.figure("all").axes] == ["each parameter's gradient", "starts"]
