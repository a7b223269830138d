"""How much of an open-loop prediction to believe, so many steps ahead: the rest is the mean.

Of all multiples of a prediction o^ of o, both with mean zero, <o, o^> / <o^, o^> times it has the least squared error.
Measured on few episodes that factor has an error of its own, and where it is all error, a prediction is worse than the
mean; so it is shrunk itself, by the positive part of 1 - variance / square (James & Stein 1961).
"""

import numpy as np
import torch
from torch import Tensor

from worldmodel.base import KNOTS, PER_OCTAVE
from worldmodel.data.episodes import Episodes
from worldmodel.evaluation.rollouts import open_loop_chunks, to_model
from worldmodel.evaluation.selection import RolloutOptions
from worldmodel.model import Model

ROLLOUTS = RolloutOptions(starts=4, max_episodes=32)


@torch.no_grad()
def fit_shrinkage(model: Model, train: Episodes, steps: int) -> None:
    """Give a model's base the factors that are best on rollouts of training episodes, up to fifty times T = `steps`."""
    assert model.base is not None
    model.base.shrinkage.fill_(1)
    episodes = ROLLOUTS.first_episodes(train)
    starts, _ = ROLLOUTS.rollouts(episodes, steps)
    lengths = np.array([start.length for start in starts])
    whose = torch.tensor([start.episode for start in starts], device=model.device)
    products = model.base.shrinkage.new_zeros(2, len(episodes), int(lengths.max()), model.base.obs_dim)
    for chunk in open_loop_chunks(model, episodes, starts, steps):
        within = to_model(chunk.ahead < lengths[chunk.rollouts, None], model).unsqueeze(-1)
        true, pred = (model.obs_norm(to_model(obs, model)) for obs in (chunk.truth, chunk.prediction))
        own = torch.stack([true * pred, pred * pred])  # (2, R, C, O)
        steps_ahead = slice(int(chunk.ahead[0]), int(chunk.ahead[-1]) + 1)
        products[:, :, steps_ahead].index_add_(1, whose[chunk.rollouts], torch.where(within, own, 0.0))
    model.base.shrinkage.copy_(_factors(products))


def _factors(products: Tensor) -> Tensor:
    """At each knot (KNOTS, O), from products (2, E, K, O) in E episodes, of 1 .. K steps ahead.

    They never rise, and are constant after the last knot.
    """
    sums = torch.nn.functional.pad(products.double().cumsum(dim=2), (0, 0, 1, 0))
    centre = 2 ** (torch.arange(KNOTS, device=sums.device) / PER_OCTAVE)
    reach, half = sums.shape[2] - 1, 2 ** (0.5 / PER_OCTAVE)
    last = (centre * half).round().long().clamp(max=reach)
    first = torch.minimum((centre / half).round().long().clamp(min=1), last) - 1
    own, squared = sums[:, :, last] - sums[:, :, first]  # (E, KNOTS, O) each
    total = squared.sum(dim=0)
    factor = own.sum(dim=0) / total
    variance = (own - factor * squared).square().sum(dim=0) / total.square()
    factor = factor * (1 - variance / factor.square()).clamp(min=0)
    factor = torch.where(total > 0, factor, 1.0).nan_to_num(0.0).clamp(0, 1)
    return torch.where((centre <= reach).unsqueeze(-1), factor, 1.0).cummin(dim=0).values
