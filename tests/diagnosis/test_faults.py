"""Eight planted faults are found, and three healthy configurations have none."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.diagnosis.models import SMALL, STEPS, echoes, kinds, new_model, of, pendulum, some_batches, trained
from worldmodel.cells.update import UpdateCell
from worldmodel.evaluation.diagnosis.findings import findings
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
    return {rule: trained(new_model(rule, data), data.train_dataloader(), 120) for rule in HEALTHY}


@pytest.fixture
def model(healthy):
    """A trained one with gates, to be damaged."""
    return deepcopy(healthy["gated_norm"])


# --- healthy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", HEALTHY)
def test_nothing_is_found_in_a_healthy_model(healthy, data, batches, rule):
    for model in (healthy[rule], new_model(rule, data)):
        diagnosis = of(model, batches)
        assert findings(diagnosis) == []
        assert diagnosis.growth and diagnosis.growth.law == "bounded"
        assert diagnosis.reach and diagnosis.reach.tells and diagnosis.dependency and diagnosis.clock


def test_a_delay_within_the_horizon_is_no_fault():
    segments = echoes(3)
    model = trained(new_model("gated_norm"), (segments[n] for n in range(100)), 100)
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
    found = findings(of(model, batches))
    assert found[0].kind == "no gradient"
    assert "predictor.cell.router.weight, predictor.cell.router.bias: gradient none" in found[0].seen
    assert "a hard choice" in found[0].means


def test_a_gate_that_is_multiplied_by_zero(model, batches):
    model.heads[-1].weight.data.zero_()  # what lies before it learns nothing, though the graph reaches it
    found = {finding.kind: finding for finding in findings(of(model, batches))}
    assert "heads.0.weight" in found["zero gradient"].seen and "exactly zero" in found["zero gradient"].seen


def test_an_exploding_state(data, batches):
    model = new_model("residual", data)
    model.predictor.cell.output.weight.data.mul_(300)  # it starts at a hundredth of the usual
    diagnosis = of(model, batches)
    (finding,) = (finding for finding in findings(diagnosis) if finding.kind == "exploding state")
    assert diagnosis.growth and f"after {len(diagnosis.growth.norm)} steps" in finding.seen
    assert "--model.rule gated_norm" in finding.change


def test_a_state_that_overflows(data, batches):
    model = new_model("residual", data, layers=1)
    model.predictor.cell.recurrent.weight.data.copy_(20 * torch.eye(SMALL["hidden_dim"]))
    diagnosis = of(model, batches)
    assert diagnosis.growth and diagnosis.growth.law == "exponential"
    assert diagnosis.growth.rate == pytest.approx(torch.tensor(21.0).log().item(), rel=0.02)  # h' = 21 h + ...
    assert diagnosis.spectrum and diagnosis.spectrum.radius_max == pytest.approx(21.0)
    assert {"exploding state", "exploding gradient"} <= set(kinds(diagnosis))
    diagnosis.as_json()


@pytest.mark.parametrize("bias", [-20.0, 20.0])
def test_a_saturated_gate(model, batches, bias):
    model.predictor.cell.output.bias.data[: SMALL["hidden_dim"]] = bias
    found = {finding.kind: finding for finding in findings(of(model, batches))}
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
    assert diagnosis.latent and diagnosis.latent.effective_rank == pytest.approx(rank, abs=0.02)
    assert "collapsed latent" in kinds(diagnosis)


class Detached(LatentPredictor):
    def closed_loop(self, z, a, is_first, h=None):
        return super().closed_loop(z.detach(), a, is_first, h)


def test_a_detached_encoder(model, batches):
    model.predictor.__class__ = Detached  # autoencoding still trains the encoder: its parameters have gradients
    found = findings(of(model, batches))
    (finding,) = (finding for finding in found if finding.kind == "detached encoder")
    assert "prediction" in finding.seen and "consistency" in finding.seen and "autoencoding" not in finding.seen


def test_a_parameter_that_is_nan(model, batches):
    model.decoder[0].weight.data[3, 1] = float("nan")
    (finding,) = findings(of(model, batches))
    assert finding.kind == "not finite" and "decoder.0.weight holds NaN" in finding.seen


def test_a_horizon_that_is_shorter_than_the_dependency():
    lag = 12
    segments = echoes(lag)
    model = trained(new_model("gated_norm"), (segments[n] for n in range(100)), 100)
    diagnosis = of(model, [segments[n] for n in range(8)])
    assert lag > STEPS and diagnosis.dependency
    assert diagnosis.dependency.lag == lag - 1  # the next observation repeats what was seen eleven steps ago
    (finding,) = findings(diagnosis)
    assert finding.kind == "short horizon" and f"--data.steps {lag}" in finding.change


def test_a_state_that_counts_steps(data, batches):
    model = new_model("residual", data)
    model.predictor.cell.output.weight.data.zero_()
    model.predictor.cell.output.bias.data.fill_(0.01)
    diagnosis = of(model, batches)
    assert diagnosis.clock and diagnosis.clock.state > 0.99
    assert "clock" in kinds(diagnosis)


def test_the_weightiest_comes_first_and_names_a_way_out(model, batches):
    model.predictor.cell.output.bias.data[: SMALL["hidden_dim"]] = -20.0
    model.encoder[-1].weight.data.zero_()
    found = findings(of(model, batches))
    assert [finding.weight for finding in found] == sorted((finding.weight for finding in found), reverse=True)
    assert len(found) >= 2 and all(finding.change for finding in found)
