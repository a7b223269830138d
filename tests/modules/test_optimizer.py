"""The learning rate's course, what decays, and how the world model's step clips and averages."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.data import statistics
from worldmodel.modules.optimizer import adamw

SMALL = {"latent_dim": 4, "hidden_dim": 6, "width": 5}


def made(schedule, planned=110.0):
    matrix, bias, frozen = (nn.Parameter(torch.ones(size)) for size in ((2, 2), (2,), (3, 3)))
    out = adamw([matrix, bias, frozen.requires_grad_(False)], 0.5, 0.1, schedule, 10, planned)
    return out["optimizer"], out["lr_scheduler"]["scheduler"].lr_lambdas[0]


def test_the_rate_rises_and_falls_to_a_hundredth():
    _, factor = made("cosine")
    assert factor(0) == pytest.approx(0.1) and factor(4) < factor(9) < 1
    assert factor(55) == pytest.approx(0.505) and factor(110) == factor(9999) == pytest.approx(0.01)
    for _, constant in (made("constant"), made("cosine", math.inf)):
        assert [constant(step) for step in (0, 4, 9, 10**6)] == pytest.approx([0.1, 0.5, 1.0, 1.0])


def test_matrices_alone_decay_and_what_is_frozen_is_left_out():
    optimizer, _ = made("constant")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [[p.ndim for p in group["params"]] for group in optimizer.param_groups] == [[2], [1]]


def test_the_target_encoder_follows_updates_and_no_skipped_one(monkeypatch):
    monkeypatch.setattr(pl.LightningModule, "optimizer_step", lambda *_: None)
    model = WorldModel(2, 1, objective="latent", ema_decay=0.75, **SMALL)
    online, average = next(model.encoder.parameters()), next(model.target_encoder.parameters())
    before = average.clone()
    online.data += 1
    model.optimizer_step()  # without gradients: the guard left the update out
    assert torch.equal(average, before)
    online.grad = torch.zeros_like(online)
    model.optimizer_step()
    torch.testing.assert_close(average.data, before + 0.25)


def test_clipping_takes_a_norm_that_is_known_already(monkeypatch):
    model, calls = WorldModel(2, 1, **SMALL), []
    monkeypatch.setattr(model, "clip_gradients", lambda *arguments: calls.append(arguments[1:]))
    parameter = next(model.parameters())
    optimizer = torch.optim.SGD([parameter], 0.1)
    parameter.grad, model.grad_norm = torch.ones_like(parameter), torch.tensor(8.0)
    model.configure_gradient_clipping(optimizer, 2.0, "norm")
    torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.25))
    assert model.grad_norm is None and not calls
    for value, kind, norm in (
        (2.0, "norm", None),
        (2.0, "value", torch.tensor(8.0)),
        (None, "norm", torch.tensor(8.0)),
    ):
        model.grad_norm = norm
        model.configure_gradient_clipping(optimizer, value, kind)
    assert calls == [(2.0, "norm"), (2.0, "value"), (None, "norm")]


def test_a_rare_reward_counts_with_an_eighth_of_its_range(pendulum_data, monkeypatch):
    train = EpisodeDataModule(pendulum_data).splits["train"]
    real = statistics.step_statistics(train)
    deviation = float(real.reward.var[0]) ** 0.5
    assert float(statistics.normalization(train)["reward"][1]) == pytest.approx(deviation, rel=1e-5)
    rare = real._replace(reward_range=16 * deviation)
    monkeypatch.setattr(statistics, "step_statistics", lambda _: rare)
    assert float(statistics.normalization(train)["reward"][1]) == pytest.approx(2 * deviation, rel=1e-5)
