"""PPO's losses against tables worked by hand."""

import math

import pytest
import torch

from worldmodel.losses import masked_mean
from worldmodel.policy_losses import approximate_kl, beyond_clip, clipped_surrogate, clipped_value_loss

RATIOS = (0.5, 0.9, 1.0, 1.1, 2.0)


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def logs(*ratios):
    """Log-probabilities whose ratio to 0 is this."""
    return row(*map(math.log, ratios)).requires_grad_()


@pytest.mark.parametrize(
    ("advantage", "losses", "slopes"),
    [
        # min(r A, clip(r, .8, 1.2) A): a good action is not made likelier than 1.2, a bad one not less likely than 0.8
        (2.0, [-1.0, -1.8, -2.0, -2.2, -2.4], [-1.0, -1.8, -2.0, -2.2, 0.0]),
        (-2.0, [1.6, 1.8, 2.0, 2.2, 4.0], [0.0, 1.8, 2.0, 2.2, 4.0]),
    ],
)
def test_the_clipped_surrogate(advantage, losses, slopes):
    log_prob = logs(*RATIOS)
    got = clipped_surrogate(log_prob, torch.zeros(1, 5).double(), torch.full((1, 5), advantage).double(), 0.2)
    assert got[0].tolist() == pytest.approx(losses)
    got.sum().backward()
    assert log_prob.grad is not None and log_prob.grad[0].tolist() == pytest.approx(slopes)  # d/d log r = r dL/dr


def test_the_clipped_value_loss():
    # v_old 0, target 1, clip .2: v = .1 -> .81 / 2; v = .5 -> near .2, the worse error .64 / 2, no gradient;
    # v = -.5 -> 2.25 / 2 (its own is worse); v = 1.5 -> near .2 is worse: .64 / 2
    value = row(0.1, 0.5, -0.5, 1.5).requires_grad_()
    got = clipped_value_loss(value, row(0, 0, 0, 0), row(1, 1, 1, 1), 0.2)
    assert got[0].tolist() == pytest.approx([0.405, 0.32, 1.125, 0.32])
    got.sum().backward()
    assert value.grad is not None and value.grad[0].tolist() == pytest.approx([-0.9, 0.0, -1.5, 0.0])
    assert clipped_value_loss(value, value, row(1, 1, 1, 1), None)[0].tolist() == pytest.approx(
        [0.405, 0.125, 1.125, 0.125]
    )


def test_kl_and_what_is_beyond_the_clip():
    log_prob, old = logs(*RATIOS), torch.zeros(1, 5).double()
    assert approximate_kl(log_prob, old)[0].tolist() == pytest.approx([r - 1 - math.log(r) for r in RATIOS])
    assert beyond_clip(log_prob, old, 0.2)[0].tolist() == [1, 0, 0, 0, 1]
    # of a policy that moved from (.5, .5) to (.6, .4): the mean over the old one's actions is the divergence
    both = approximate_kl(row(0.6, 0.4).log(), row(0.5, 0.5).log())
    assert both.mean().item() == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4))


@pytest.mark.parametrize("steps", [25, 7])
def test_a_short_last_chunk_weighs_by_its_steps(steps):
    error, valid = torch.rand(1, steps).double(), torch.ones(1, steps, dtype=torch.bool)
    padding = -steps % 8
    chunks = [torch.nn.functional.pad(x, (0, padding)).reshape(-1, 8) for x in (error, valid)]
    assert len(chunks[0]) == -(-steps // 8)
    mean = masked_mean(chunks[0], chunks[1], chunks[1].sum())
    assert mean.item() == pytest.approx(error.mean().item(), rel=1e-14)
