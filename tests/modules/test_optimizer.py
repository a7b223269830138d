"""The learning rate's schedule at its corners, and what decays."""

import math

import pytest
import torch
from torch import nn

from worldmodel.modules.optimizer import adamw


def rates(steps, schedule, warmup_steps, planned_steps):
    """The learning rates of the steps, relative to the highest."""
    configured = adamw([nn.Parameter(torch.ones(2))], 0.5, 0.0, schedule, warmup_steps, planned_steps)
    factor = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    return [factor(step) for step in steps]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_linearly(schedule):
    assert rates(range(3), schedule, 4, math.inf) == pytest.approx([1 / 4, 2 / 4, 3 / 4])


def test_the_cosine_falls_to_a_hundredth_and_stays_there():
    assert rates([0, 50, 100, 150], "cosine", 0, 100) == pytest.approx([1, 0.505, 0.01, 0.01])


def test_a_fit_without_an_end_keeps_the_rate():
    assert rates([0, 10**6], "cosine", 0, math.inf) == [1, 1]


def test_only_matrices_decay():
    matrix, bias, frozen = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    frozen.requires_grad = False
    groups = adamw([matrix, bias, frozen], 0.1, 0.01, "constant", 0, math.inf)["optimizer"].param_groups
    decays = [(parameter.ndim, group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert decays == [(2, 0.01), (1, 0.0)]
