"""How much of an open-loop prediction to believe, so many steps ahead: the rest is the mean.

Of all multiples of a prediction o^ of o, both with mean zero, <o, o^> / <o^, o^> times it has the least squared error.
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
    products = model.base.shrinkage.new_zeros(2, int(lengths.max()), model.base.obs_dim, dtype=torch.float64)
    for chunk in open_loop_chunks(model, episodes, starts, steps):
        within = to_model(chunk.ahead < lengths[chunk.rollouts, None], model).unsqueeze(-1)
        true, pred = (model.obs_norm(to_model(obs, model)).double() for obs in (chunk.truth, chunk.prediction))
        own = torch.stack([true * pred, pred * pred])  # (2, R, C, O)
        products[:, chunk.ahead] += torch.where(within, own, 0.0).sum(dim=1)
    model.base.shrinkage.copy_(_factors(products))


def _factors(products: Tensor) -> Tensor:
    """At each knot (KNOTS, O), from products (2, K, O) of 1 .. K steps ahead: never rising; constant after the last."""
    sums = torch.nn.functional.pad(products.cumsum(dim=1), (0, 0, 1, 0))
    centre = 2 ** (torch.arange(KNOTS, device=sums.device) / PER_OCTAVE)
    reach, half = sums.shape[1] - 1, 2 ** (0.5 / PER_OCTAVE)
    last = (centre * half).round().long().clamp(max=reach)
    first = torch.minimum((centre / half).round().long().clamp(min=1), last) - 1
    own, squared = sums[:, last] - sums[:, first]
    factor = torch.where(squared > 0, own / squared, 1.0).nan_to_num(0.0).clamp(0, 1)
    return torch.where((centre <= reach).unsqueeze(-1), factor, 1.0).cummin(dim=0).values
