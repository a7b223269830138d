"""Mixtures of normal distributions: of an observation around its point prediction, or of many futures."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.nets import MLP

LOG_SCALE = -9.0, 7.0  # of the head's deviations: a scale that vanishes makes any likelihood infinite
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Mixture(NamedTuple):
    """A mixture of K normal distributions, each with independent entries. K is the axis before the last."""

    log_weight: Tensor  # (..., K), whose exponentials sum to 1
    mean: Tensor  # (..., K, O)
    scale: Tensor  # (..., K, O), above 0

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density (...) of x (..., O), all entries together."""
        return (self.log_weight + self._log_normal(x).sum(dim=-1)).logsumexp(dim=-1)

    def entry_log_prob(self, x: Tensor) -> Tensor:
        """The log density (..., O) of each entry of x (..., O) alone."""
        return (self.log_weight.unsqueeze(-1) + self._log_normal(x)).logsumexp(dim=-2)

    def cdf(self, x: Tensor) -> Tensor:
        """The probability (..., O) that an entry is below that of x (..., O)."""
        below = torch.special.ndtr((x.unsqueeze(-2) - self.mean) / self.scale)
        return (self._weight() * below).sum(dim=-2)

    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the deviation (..., O) of each entry."""
        mean = (self._weight() * self.mean).sum(dim=-2)
        square = self.scale.square() + (self.mean - mean.unsqueeze(-2)).square()
        return mean, (self._weight() * square).sum(dim=-2).sqrt()

    def crps(self, x: Tensor) -> Tensor:
        """The continuous ranked probability score (..., O) of each entry of x (..., O): E|X - x| - E|X - X'| / 2.

        In closed form (Grimit, Gneiting, Berrocal & Johnson 2006, equation 5), in K^2 terms an entry.
        """
        weight = self._weight()
        to_x = _mean_distance(x.unsqueeze(-2) - self.mean, self.scale)
        apart = self.mean.unsqueeze(-2) - self.mean.unsqueeze(-3)  # (..., K, K, O)
        both = (self.scale.unsqueeze(-2).square() + self.scale.unsqueeze(-3).square()).sqrt()
        among = (weight.unsqueeze(-2) * weight.unsqueeze(-3) * _mean_distance(apart, both)).sum(dim=(-3, -2))
        return (weight * to_x).sum(dim=-2) - among / 2

    def draw(self, noise: Tensor) -> Tensor:
        """A sample (..., O) from standard normal numbers (..., O + 1), of which the last chooses the component."""
        normal, choice = noise[..., :-1], torch.special.ndtr(noise[..., -1:])
        if self.mean.shape[-2] == 1:
            return self.mean.squeeze(-2) + self.scale.squeeze(-2) * normal
        reached = self.log_weight.exp().cumsum(dim=-1)[..., :-1]  # without the last, which rounding may leave below 1
        chosen = (choice >= reached).sum(dim=-1, keepdim=True).unsqueeze(-1)
        mean, scale = (x.take_along_dim(chosen, dim=-2).squeeze(-2) for x in (self.mean, self.scale))
        return mean + scale * normal

    def _log_normal(self, x: Tensor) -> Tensor:
        """Of each component and entry (..., K, O)."""
        standard = (x.unsqueeze(-2) - self.mean) / self.scale
        return -0.5 * standard.square() - self.scale.log() - HALF_LOG_2PI

    def _weight(self) -> Tensor:
        return self.log_weight.exp().unsqueeze(-1)


def _mean_distance(mean: Tensor, scale: Tensor) -> Tensor:
    """E|X| of X ~ N(mean, scale^2)."""
    standard = mean / scale
    density = (-0.5 * standard.square() - HALF_LOG_2PI).exp()
    return 2 * scale * density + mean * (2 * torch.special.ndtr(standard) - 1)


class MixtureHead(nn.Module):
    """The distribution of what a point prediction misses, from the predicted latent (..., Z), in the decoder's units.

    A new one has the deviation 1. With one component its mean is 0; several are moved apart from the point prediction.

    Args:
        latent_dim: Z.
        obs_dim: O.
        width: of its hidden layer.
        components: K.
    """

    def __init__(self, latent_dim: int, obs_dim: int, width: int, components: int) -> None:
        super().__init__()
        self.obs_dim, self.components = obs_dim, components
        parts = [components * obs_dim] + ([components * obs_dim, components] if components > 1 else [])
        self.parts = parts
        self.net = MLP(latent_dim, sum(parts), width, 1)
        with torch.no_grad():
            last = self.net[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.01)
            last.bias.zero_()
            if components > 1:  # apart, or all of them would learn the same
                nn.init.normal_(last.bias[parts[0] : parts[0] + parts[1]], std=0.5)

    def forward(self, pred: Tensor, beta: float = 0.0) -> Mixture:
        """The mixture (..., K, O); an entry's gradients are weighted by its deviation to the power of 2 `beta`.

        (Seitzer et al. 2022, arXiv 2203.09168, equation 7. At 1 they are of the size of a squared error's, at 0 a
        likelihood's: what is predicted most exactly then rules the gradient.)
        """
        raw = self.net(pred)
        raw, *apart = raw.to(torch.promote_types(raw.dtype, torch.float32)).split(self.parts, dim=-1)
        low, high = LOG_SCALE
        shape = self.components, self.obs_dim
        log_scale = high - nn.functional.softplus(high - raw.unflatten(-1, shape))
        scale = (low + nn.functional.softplus(log_scale - low)).exp()
        if not apart:
            mixture = Mixture(scale.new_zeros(scale.shape[:-1]), torch.zeros_like(scale), scale)
        else:
            mixture = Mixture(apart[1].log_softmax(dim=-1), apart[0].unflatten(-1, shape), scale)
        return mixture if beta == 0 or not torch.is_grad_enabled() else _weighted(mixture, beta)


def _weighted(mixture: Mixture, beta: float) -> Mixture:
    """The same, with gradients weighted entry by entry; the components' weights by the mean over entries."""
    with torch.no_grad():
        weight = mixture.moments()[1].pow(2 * beta).unsqueeze(-2)  # (..., 1, O)
    parts = zip(mixture, (weight.mean(dim=-1), weight, weight), strict=True)
    return Mixture(*(value.detach() + w * (value - value.detach()) for value, w in parts))
