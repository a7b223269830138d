"""Many futures of one present: open-loop rollouts that draw what each step leaves open, and go on from there."""

from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.base import Line, Rollout
from worldmodel.mixture import Mixture
from worldmodel.model import Model


class Futures(NamedTuple):
    """N rollouts of H steps, in the units of the data, and where they can go on from."""

    obs: Tensor  # (N, H, O) drawn
    given_past: Mixture  # (N, H, K, O): what each was drawn from, given the same rollout's steps before
    z: Tensor  # (N, Z) of the last step
    h: Tensor  # (N, D) after it


@torch.no_grad()
def futures(model: Model, z: Tensor, h: Tensor, action: Tensor, noise: Tensor) -> Futures:
    """Roll a model with a distribution out, drawing each next observation, which the following steps then see.

    Args:
        model: whose output is not a point.
        z: (N, Z) of the last frame that was seen, one row for each future.
        h: (N, D) the state before it.
        action: (N, H, A).
        noise: (N, H, O + 1) independent standard normal numbers; the same give the same futures.
    """
    head, base = model.noise, model.base
    assert head is not None, "a point has one future"
    run = None if base is None else Rollout(base, z[..., model.latent_dim :])
    drawn, given, latents = list[Tensor](), list[Mixture](), list[Tensor]()

    def feed(pred: Tensor, a_t: Tensor) -> Tensor:
        mixture = head(pred)
        correction = model.decoder(pred)
        sample = correction + mixture.draw(noise[:, len(drawn)])
        if run is None:
            line, encoded = Line(torch.zeros_like(sample), torch.ones_like(sample)), sample
        else:
            encoded = run.step(a_t, sample)
            line, sample = run.line, run.obs[-1]
        mean = line.pred.unsqueeze(-2) + line.scale.unsqueeze(-2) * (correction.unsqueeze(-2) + mixture.mean)
        given.append(mixture._replace(mean=mean, scale=line.scale.unsqueeze(-2) * mixture.scale))
        drawn.append(sample)
        latents.append(model.encoder(encoded))
        return latents[-1]

    loop = model.predictor.open_loop(model.latent(z), h, model.action_norm(action), feed)
    after = latents[-1] if run is None else torch.cat([latents[-1], run.memories()[:, -1]], dim=-1)
    weight, mean, scale = (torch.stack(parts, dim=1) for parts in zip(*given, strict=True))
    norm = model.obs_norm
    given_past = Mixture(weight, norm.inverse(mean), scale * norm.scale)
    return Futures(norm.inverse(torch.stack(drawn, dim=1)), given_past, after, loop.h[:, -1])
